"""Labelled image sets: their folder layouts, the public ones, downloads."""

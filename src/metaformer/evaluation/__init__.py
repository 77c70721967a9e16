"""Metrics and one protocol for all methods."""

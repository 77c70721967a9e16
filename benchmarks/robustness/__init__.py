"""Broken input, light and camera, load."""

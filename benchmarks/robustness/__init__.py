"""Broken input, mutations of the code, load."""

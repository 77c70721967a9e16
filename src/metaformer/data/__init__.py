"""Data sets and synthetic defects."""

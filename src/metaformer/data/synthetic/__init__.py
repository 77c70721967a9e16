"""Synthetic defects with exact masks."""

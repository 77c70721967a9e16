"""Shipped weights, each with a card that says how it was made."""

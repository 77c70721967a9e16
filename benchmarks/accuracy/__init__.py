"""Accuracy on labelled sets, against other methods."""

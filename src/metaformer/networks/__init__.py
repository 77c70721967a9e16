"""The neural networks, one module a file, and their shipped weights."""

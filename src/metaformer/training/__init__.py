"""How the shipped weights are trained."""

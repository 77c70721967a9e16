"""Training of the instance prior."""

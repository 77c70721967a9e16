"""Few-shot episodes made of unlabelled photos."""

"""Meta-training of the metric of patch features."""

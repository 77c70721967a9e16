"""From a few normal images to a detector with a threshold."""

"""The `feature` preset: patch features of a frozen backbone and a memory bank."""

"""Find defects in images when all you have is a handful of good ones."""

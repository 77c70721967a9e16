"""Parts of a method left out, one at a time."""

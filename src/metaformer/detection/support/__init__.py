"""Images that a detector is adapted to: which are taken, copies and odd ones, thumbnails."""

"""Other people's detectors, run by our harness on the same images. Has requirements of its own."""

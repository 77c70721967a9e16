"""Tests of metaformer.detection.feature."""

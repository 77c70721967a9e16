"""Tests of metaformer.detection.pixel."""

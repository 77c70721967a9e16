"""Tests of metaformer.detection.scoring."""

"""Tests of metaformer.detection."""

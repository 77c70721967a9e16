"""Tests of metaformer.data."""

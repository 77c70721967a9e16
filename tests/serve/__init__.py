"""Tests of metaformer.serve."""

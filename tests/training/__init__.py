"""Tests of metaformer.training."""

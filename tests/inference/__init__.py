"""Tests of metaformer.inference."""

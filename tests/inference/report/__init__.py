"""Tests of metaformer.inference.report."""

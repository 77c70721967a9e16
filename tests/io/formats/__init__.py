"""Tests of metaformer.io.formats."""

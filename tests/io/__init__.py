"""Tests of metaformer.io."""

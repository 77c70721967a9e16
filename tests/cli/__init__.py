"""Tests of metaformer.cli."""

"""Tests of metaformer.networks."""

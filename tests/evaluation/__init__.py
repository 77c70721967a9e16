"""Tests of metaformer.evaluation."""

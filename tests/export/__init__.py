"""Tests of metaformer.export.exporter."""

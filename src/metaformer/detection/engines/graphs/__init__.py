"""Traced graphs without weights, written by ``tools/trace_graphs.py``."""

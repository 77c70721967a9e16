"""Detectors as ONNX files, and their networks on other runtimes."""

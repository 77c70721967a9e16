"""ONNX graphs of a detector."""

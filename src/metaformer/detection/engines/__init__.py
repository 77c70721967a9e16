"""What computes an adapted model's maps: PyTorch, or its graph on ONNX Runtime or OpenVINO."""

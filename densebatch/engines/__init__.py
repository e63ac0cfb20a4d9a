"""What evaluates a network on patches: PyTorch, CUDA or OpenVINO behind one protocol."""

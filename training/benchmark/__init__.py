"""Speed and memory of inference and training."""

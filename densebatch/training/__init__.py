"""Train a network on annotated and simulated images."""

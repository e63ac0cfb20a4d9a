"""Networks and weights: what a model is, its files, and where they come from."""

"""What `gpu.py` runs: `runner` its steps within a budget, every other module what a step does."""

"""Many runs for one purpose: threshold sweeps, the demo, benchmarks; and labels without a run."""

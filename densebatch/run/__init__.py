"""The story of a slide, told in the main process: plan, predict, trace, number, tell."""

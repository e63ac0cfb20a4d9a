"""What one pass over a slide's pixels tells: bounds of its channels, tissue, debris, rare cells."""

"""What runs as processes: supervisor, profile check, fusion loop, capture loop."""

"""What runs as processes."""

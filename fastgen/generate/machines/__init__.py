"""What runs step programs."""

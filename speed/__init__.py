"""What makes a network fast, applied to it from outside."""

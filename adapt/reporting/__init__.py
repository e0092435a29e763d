"""What a search found, for people."""

"""Scripts that make and check the documentation."""

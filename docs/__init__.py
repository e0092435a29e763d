"""The documentation, and the scripts that make and check it."""

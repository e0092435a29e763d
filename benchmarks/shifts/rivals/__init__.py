"""What a user would do with the same pictures instead of searching for a soup: one module for each kind of rival."""

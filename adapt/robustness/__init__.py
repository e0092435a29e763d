"""How robust soups are to attacks."""

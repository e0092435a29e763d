"""The results of a search, for people."""

"""Measures class frequencies: what they gain where they changed, and cost where they did not."""

"""Measures what images without labels are worth beyond channel statistics."""

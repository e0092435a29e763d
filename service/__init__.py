"""The BentoML service: predict, adapt, swap."""

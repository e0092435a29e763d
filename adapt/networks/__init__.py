"""Soups as running networks: mixing, folding, recalibrating, many forward passes."""

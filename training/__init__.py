"""Offline stage: makes base sets, the trained ingredients that later stages mix."""

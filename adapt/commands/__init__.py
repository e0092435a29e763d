"""`python -m adapt ...`, one module for each command."""

"""Faults put into the code one at a time, to see if the tests notice: `python -m tests.mutants`, `make mutants`."""

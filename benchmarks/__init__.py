"""Measurements that stand behind the project's claims; run from the root of the repository."""

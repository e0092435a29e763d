"""Revisions of the registry's tables, one file each: never changed once released, only added to."""

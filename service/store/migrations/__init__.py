"""How the registry's tables came to be what they are: Alembic's environment and its revisions, in `versions/`."""

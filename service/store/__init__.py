"""Stored data: the registry's database, and the images of deployments and jobs."""

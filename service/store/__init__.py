"""What is kept: the registry's database and the images of queued jobs."""

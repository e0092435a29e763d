"""What answers with a soup: catalogue, sessions, batches, recent images."""

"""The part that answers with a soup: catalogue, sessions, batches, recent images."""

"""What networks of other sizes cost: bundle, memory, swap, predictions, an adaptation."""

"""Is what an adaptation reports true, and how sure is its gate? Simulated on logits that are kept."""

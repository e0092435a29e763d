"""Which soup is better on labelled images, and how sure that is. No torch."""

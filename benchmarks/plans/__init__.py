"""How all weights are best trained on a few labelled pictures, from what a quick search finds."""

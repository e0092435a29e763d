"""What a last layer fitted to the labels of some classes does to the others."""

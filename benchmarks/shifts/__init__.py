"""Shifted test sets: corruptions, renditions, natural photographs, the ImageNet family."""

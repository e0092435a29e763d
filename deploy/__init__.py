"""Turns soups into things that run: serving bundles, ONNX Runtime sessions, self-contained ONNX files."""

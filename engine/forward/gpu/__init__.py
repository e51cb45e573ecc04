"""Layers, attention and graphs on a GPU."""

"""Layers and projections on a CPU."""

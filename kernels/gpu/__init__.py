"""Triton kernels, and the plans that they read."""

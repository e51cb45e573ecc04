"""Attention in plain torch, which kernels are held to."""

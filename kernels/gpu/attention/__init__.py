"""Attention over shared prefixes: a step's work items, the kernels that run them, and the write into the KV cache."""

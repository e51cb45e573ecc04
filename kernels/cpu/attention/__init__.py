"""Attention over a step's segments, and the KV rows it reads."""

"""Triton kernels and the tables that they read; the commands that time, tune and compile them."""

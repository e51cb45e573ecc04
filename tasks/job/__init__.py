"""A job file: its keys, their defaults and checks."""

"""The output folder: what is written, how it is committed, and a run's life in it."""

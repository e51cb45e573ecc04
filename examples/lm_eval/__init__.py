"""A task of lm-evaluation-harness over the example's table."""

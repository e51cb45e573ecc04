"""lm-evaluation-harness on Trunkline: its model class `trunkline`, and its command with that class in it."""

"""From a plan to steps: blocks, sequences, rows. Needs numpy alone."""

"""What the machine gives: devices, memory, and whose turn it is."""

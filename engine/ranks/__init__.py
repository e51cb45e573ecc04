"""One engine on several devices of a machine: each rank, a process of its own, has a part of every layer."""

"""An engine in a process of its own: what ends the engine ends its process, never the run."""

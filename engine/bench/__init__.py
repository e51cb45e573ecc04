"""Times the engine."""

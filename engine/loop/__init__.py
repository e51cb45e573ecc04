"""The engine: schedules, runs and samples, step after step."""

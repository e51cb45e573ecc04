"""What others' tools see of a run: OpenTelemetry spans and metrics, and logs of a JSON line an event."""

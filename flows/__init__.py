"""What runs, in which order."""

import os

# Prefect reads these when it is first imported, so they stand here; a value that the user set wins.
for _name, _value in {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # A run that is killed is told from one that goes on by its heartbeats, as `automations.yaml` does.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    # Two first runs at once on a new home need longer than Prefect's 20 s.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    # The steps' own log lines belong to the flow run.
    "PREFECT_LOGGING_EXTRA_LOGGERS": "tasks",
    # ... and a step that is called outside a flow logs to the console alone.
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}.items():
    os.environ.setdefault(_name, _value)

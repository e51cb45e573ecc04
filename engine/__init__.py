"""Plans and runs batches of requests on a model. Knows neither Prefect nor DuckDB.

Weights and tokenizers come from local files alone: the hub is switched off before transformers can be imported.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

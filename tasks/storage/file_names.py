"""What files of an output folder are called that more than one place reads."""

LOCK = ".lock"
PLAN = "plan.json"
PROGRESS, CURVE, STOP = "progress.json", "curve.json", "stop.json"
REPORT = "report.html"
DATABASE = "results.duckdb"

"""Arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from engine.config import ADMISSION, ORDER, SHARING

JobFile = Annotated[Path, typer.Argument(metavar="JOB", help="The job, a YAML file.", show_default=False)]
# A path, or the URL of a bucket's folder, which a Path would change.
Output = Annotated[
    str | None,
    typer.Option(
        "--output", "-o", metavar="FOLDER", help="The output folder, or s3://BUCKET/FOLDER.", show_default=False
    ),
]
RunFormat = Literal["table", "csv", "json"]
ReportFormat = Annotated[Literal["table", "json"], typer.Option("--format", "-f", help="How to write it.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the job, dotted; may be repeated."),
]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Score rows again that are errors.")]
Full = Annotated[bool, typer.Option("--full", help="Score all rows again, whatever was scored before.")]
SharingPolicy = Annotated[
    str | None, typer.Option("--sharing", metavar="|".join(SHARING), help="Short for --set engine.sharing=…")
]
OrderPolicy = Annotated[
    str | None, typer.Option("--order", metavar="|".join(ORDER), help="Short for --set engine.order=…")
]
AdmissionPolicy = Annotated[
    str | None, typer.Option("--admission", metavar="|".join(ADMISSION), help="Short for --set engine.admission=…")
]

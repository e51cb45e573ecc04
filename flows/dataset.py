"""The published results as an asset in Prefect: what made them, out of what, and what is in them."""

import hashlib
import os
import re
from pathlib import Path

from prefect.assets import Asset, AssetProperties, add_asset_metadata, materialize
from prefect.cache_policies import NO_CACHE

from engine.errors import UserError
from tasks.job.job_source import Source
from tasks.job.output_place import is_url
from tasks.publish import Published, publish_results
from tasks.source.source_paths import find_database, find_files
from tasks.storage.run import Run

# What Prefect takes for a key (RESTRICTED_ASSET_CHARACTERS of its 3.8.8): no escapes either.
_NOT_IN_A_KEY = re.compile(r"""[\x00-\x20\x7f#?&%"'<>\[\]{}|\\^`]""")
_LONGEST_KEY = 512


def publish(run: Run, plan_id: str) -> Published:
    """Publishes in a Prefect task that materializes the output folder's asset."""
    dataset = Asset(key=asset_key(str(run.folder)), properties=AssetProperties(name=run.job.name))

    def publish_dataset(run: Run, plan_id: str) -> Published:
        published = publish_results(run, plan_id)
        add_asset_metadata(dataset, facts(run, published))
        return published

    task = materialize(
        dataset,
        by="trunkline",
        name="publish",
        task_run_name="publish",
        asset_deps=[asset_key(path) for path in _sources(run.job.source)],
        persist_result=False,
        cache_policy=NO_CACHE,
    )
    return task(publish_dataset)(run, plan_id)


def facts(run: Run, published: Published) -> dict[str, str | int | float]:
    """What the asset's page says of one publication: names and numbers, nothing of a row."""
    return {
        "job": run.job.name,
        "run_id": run.run_id,
        "model": run.model.name,
        "model_fingerprint": run.model.fingerprint,
        "rows": published.rows,
        "results": published.results,
        "errors": published.errors,
        "missing": published.missing,
        "prompt_tokens": published.prompt_tokens,
        "unique_prompt_tokens": published.unique_prompt_tokens,
        "computed_prompt_tokens": published.computed_prompt_tokens,
        "saved_tokens": published.unique_prompt_tokens - published.computed_prompt_tokens,
        "saved_fraction": published.saved_fraction,
    }


def asset_key(place: str | Path) -> str:
    """The path, or URL, as a URI that Prefect takes; one that is none as it stands has a digest behind what is left."""
    whole = str(place) if is_url(str(place)) else f"file://{place}"
    uri = _NOT_IN_A_KEY.sub("-", whole.encode("utf-8", "replace").decode())
    if uri == whole and len(uri) <= _LONGEST_KEY:
        return uri
    digest = hashlib.sha256(os.fsencode(place)).hexdigest()[:16]
    return f"{uri[: _LONGEST_KEY - 17]}-{digest}"


def _sources(source: Source) -> list[Path]:
    """The source's file, or the folder that all of its files are in; nothing where they are gone by now."""
    try:
        files = find_files(source) if source.duckdb is None else (find_database(source),)
    except UserError:
        return []
    return [Path(os.path.commonpath([file.absolute() for file in files]))]

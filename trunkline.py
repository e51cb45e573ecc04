"""Trunkline for programs: `from trunkline import load_job, score`. This module is what is public; the rest may change.

Its packages have plain names, which a folder of the user's may have as well. Once this module is imported, those names
mean its own packages, wherever Python would look first.
"""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.errors import UserError as UserError
    from flows.harness.model import TrunklineLM as TrunklineLM
    from flows.score import score as score
    from flows.workers import kept_engines as kept_engines
    from tasks.functions.sql_functions import sql_functions as sql_functions
    from tasks.job.job_file import load_job as load_job
    from tasks.query import query as query
    from tasks.storage.stop_request import RunStoppedError as RunStoppedError

__all__ = ["RunStoppedError", "TrunklineLM", "UserError", "kept_engines", "load_job", "query", "score", "sql_functions"]

PACKAGES = ("flows", "tasks", "engine", "kernels")
_HOME = Path(__file__).parent
_WHERE = {
    "RunStoppedError": "tasks.storage.stop_request",
    "TrunklineLM": "flows.harness.model",
    "UserError": "engine.errors",
    "kept_engines": "flows.workers",
    "load_job": "tasks.job.job_file",
    "query": "tasks.query",
    "score": "flows.score",
    "sql_functions": "tasks.functions.sql_functions",
}


class _OwnPackages:
    """Asked before Python's own finders."""

    @staticmethod
    def find_spec(name: str, _: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [str(_HOME)], target) if name in PACKAGES else None


sys.meta_path.insert(0, _OwnPackages)


def foreign_package() -> str | None:
    """A line where a package of that name was imported from elsewhere before, so that ours cannot be."""
    for name in PACKAGES:
        module = sys.modules.get(name)
        where = None if module is None else next(iter(getattr(module, "__path__", [module.__file__])), None)
        if where is not None and Path(where).resolve() != _HOME.resolve() / name:
            return f"{name} was imported from {where}, but Trunkline's own is in {_HOME}; import trunkline first"
    return None


def _leave_hub_to_harness() -> None:
    """lm-eval fetches its data sets from the hub, which our own packages switch off for what is imported after them."""
    if importlib.util.find_spec("huggingface_hub") is not None:
        importlib.import_module("huggingface_hub.constants")


def __getattr__(name: str) -> Any:
    """What is public loads when it is first asked for: prefect and pyarrow take seconds."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    said = foreign_package()
    if said is not None:
        raise ImportError(said)
    if name == "TrunklineLM":
        _leave_hub_to_harness()
    return getattr(importlib.import_module(_WHERE[name]), name)


def main() -> None:
    """The command `trunkline`."""
    said = foreign_package()
    if said is not None:
        sys.stderr.write(f"trunkline: {said}\n")
        sys.exit(2)
    if sys.argv[1:2] == ["lm-eval"]:
        _leave_hub_to_harness()
    from flows.cli import main as run_command

    run_command()


if __name__ == "__main__":
    main()

"""`trunkline lm-eval`: the harness's own command, with the model `trunkline` in its registry."""

import importlib
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from engine.errors import UserError

_RUN, _OTHERS = "run", ("ls", "validate")


def run_lm_eval(arguments: Sequence[str]) -> None:
    """Runs the harness with `arguments`, which are all its own; the model is `trunkline` where they name none.

    Raises UserError where the harness is not installed, or a task's data are not there, and for what the model refuses.
    """
    if find_spec("lm_eval") is None:
        raise UserError("lm-eval is not installed; run: pip install 'trunkline[lm_eval]'")
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import model_registry

    importlib.import_module("lm_eval.models")  # the registry looks for the others only while it is empty
    if "trunkline" not in model_registry:
        model_registry.register("trunkline", target="flows.harness.model:TrunklineLM")
    sys.argv = ["lm-eval", *with_model(arguments)]
    try:
        cli_evaluate()
    except FileNotFoundError as missing:
        raise UserError(f"lm-eval: {missing}; paths start at the working directory") from missing


def with_model(arguments: Sequence[str]) -> list[str]:
    """`--model trunkline` before all other options of a run, so that whatever names another model wins.

    A run with a configuration file has its model there.
    """
    options = arguments[1:] if arguments[:1] == [_RUN] else arguments
    is_run = bool(options) and options[0] not in _OTHERS and not {"-h", "--help"} & set(options)
    has_file = any(option.partition("=")[0] in ("--config", "-C") for option in options)
    return [_RUN, "--model", "trunkline", *options] if is_run and not has_file else list(arguments)

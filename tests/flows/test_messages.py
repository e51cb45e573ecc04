"""What a run says on the terminal beside its bar."""

import io
import logging

from rich.console import Console

from flows.run_job import _Messages


def test_what_is_compiled_is_one_line_each() -> None:
    said = io.StringIO()
    handler = _Messages(Console(file=said, width=60))
    log = logging.getLogger("kernels")
    log.addHandler(handler)
    try:
        logging.getLogger("kernels.loop_cache").warning(
            "kernels.matmul is not compiled (%s): torch does [its] work", "why"
        )
        logging.getLogger("kernels.loop_cache").info("nothing")
    finally:
        log.removeHandler(handler)
    assert said.getvalue() == "trunkline: kernels.matmul is not compiled (why): torch does [its] work\n"

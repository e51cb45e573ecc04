"""What a run says on the terminal beside its bar."""

import io
import logging

from rich.console import Console

from flows.run_job import logs_told


def test_what_is_compiled_is_one_line_each() -> None:
    said, log = io.StringIO(), logging.getLogger("kernels.cpu.language.loop_cache")
    with logs_told(Console(file=said, width=60)):
        log.warning("kernels.matmul is not compiled (%s): torch does [its] work", "why")
        log.info("nothing")
    log.warning("nobody looks")
    assert said.getvalue() == "trunkline: kernels.matmul is not compiled (why): torch does [its] work\n"

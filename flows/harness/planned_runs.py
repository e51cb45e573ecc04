"""Lists of requests on one engine in this process, each planned as a whole."""

import logging
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from queue import SimpleQueue

from engine.adapter_size import AdapterSize
from engine.config import EngineConfig
from engine.errors import UserError
from engine.figures import percent
from engine.loop.plan_cost import plan_cost
from engine.machine.adapter_pages import size_in_cache
from engine.machine.device import resolve_device
from engine.model.adapter_config import AdapterError
from engine.model.adapter_files import AdapterFiles
from engine.model.checkpoint import ModelFiles, load_shape
from engine.model.model_shape import max_model_len, max_request_tokens
from engine.plan import PlanSummary
from engine.planning.planner import make_plan, shard_work
from engine.request import Request, RequestOutput
from engine.stages import hear_stages
from tasks.in_process import InProcess

# Under the harness's own logger, whose level and form its users set.
log = logging.getLogger("lm_eval.trunkline")


class PlannedRuns:
    """Begins to load the model when it is made; `run` waits for it. The engine ends with its owner, or the process."""

    def __init__(self, model: ModelFiles, config: EngineConfig, adapter: AdapterFiles | None = None) -> None:
        """All requests run with `adapter`. Raises UserError for a model or a device that cannot be served."""
        self.model = model
        self.shape = load_shape(model, config.tensor_parallel)
        if config.max_model_len > self.shape.max_model_len:
            raise UserError(f"max_length: {model.name} takes {self.shape.max_model_len:,} tokens at most")
        self.device = resolve_device(config)
        self.max_model_len = max_model_len(self.shape, config)
        self.adapter = adapter
        at_end = ExitStack()
        weakref.finalize(self, at_end.close)
        at_end.enter_context(hear_stages(log.info))
        self._workers = at_end.enter_context(InProcess(model, config))
        self._workers.start()

    def max_request_tokens(self) -> int:
        """Tokens that a request's prompt and answer may have together: the KV budget may hold fewer than a context."""
        config = self._workers.config()
        kv_format = self.device.kv_format(self.shape, config.quantization, config.kv_cache_dtype)
        taken = sum(size.num_bytes for size in self._sizes(config).values())
        left = replace(config, kv_cache_memory=config.kv_cache_memory - taken)
        return max_request_tokens(self.shape, left, kv_format)

    def run(self, requests: Sequence[Request]) -> Iterator[RequestOutput]:
        """Each request's output as it ends, in no certain order. Raises EngineDeadError where the engine dies."""
        config = self._workers.config()
        if self.adapter is not None:
            requests = [replace(request, adapter=self.adapter.name) for request in requests]
        cost = plan_cost(self.model, self.shape, config, self.device)
        plan = make_plan(requests, config, cost, adapters=self._sizes(config))
        log.info(_in_words(plan.summary))
        finished: SimpleQueue[RequestOutput | BaseException] = SimpleQueue()

        def tell_failure(future: "Future[list[RequestOutput]]") -> None:
            failure = future.exception()
            if failure is not None:
                finished.put(failure)

        for shard in plan.shards:
            self._workers.submit(shard_work(plan, shard, requests), finished.put).add_done_callback(tell_failure)
        for _ in requests:
            output = finished.get()
            if isinstance(output, BaseException):
                raise output
            yield output

    def _sizes(self, config: EngineConfig) -> dict[str, AdapterSize]:
        if self.adapter is None:
            return {}
        try:
            return {self.adapter.name: size_in_cache(self.adapter, self.shape, config, self.device)}
        except AdapterError as problem:
            raise UserError(f"peft: {self.adapter.folder} {problem}") from None


def _in_words(summary: PlanSummary) -> str:
    said = f"{summary.requests:,} prompts of {summary.prompt_tokens:,} tokens, {summary.computed_tokens:,} to compute"
    return f"{said} ({percent(summary.saved_fraction)} shared), about {summary.expected_seconds:.0f} s"

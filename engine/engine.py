"""The engine: one loop that schedules, runs and samples, for any number of shards at once."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from itertools import pairwise
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine import sampler
from engine.block_pool import BlockPool
from engine.config import EngineConfig
from engine.device_turn import DeviceTurn
from engine.errors import EngineClosedError, EngineDeadError
from engine.model_runner import ModelRunner
from engine.model_shape import max_model_len
from engine.output_processor import OutputState, error_output
from engine.plan import ShardWork
from engine.request import RequestOutput
from engine.scheduler import Sampled, Scheduler
from engine.scheduler_output import SampleRow, SchedulerOutput
from engine.trace import OnStep, StepTrace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

OnOutput = Callable[[RequestOutput], None]

# An engine without work keeps the device this long: a run's next shard may be on its way.
KEEP_TURN_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class EngineCounters:
    """Totals since the engine was made; `kv_bytes` is what is in use now."""

    finished_requests: int = 0
    computed_prompt_tokens: int = 0
    label_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    kv_bytes: int = 0
    peak_kv_bytes: int = 0


@dataclass(slots=True, eq=False)
class _Submission:
    work: ShardWork
    future: "Future[list[RequestOutput]]"
    on_output: OnOutput | None
    places: dict[int, int] = field(default_factory=dict)
    outputs: dict[int, RequestOutput] = field(default_factory=dict)


class Engine:
    """`submit` from any thread; one thread of the engine's own does the work, loading the model included.

    A failure in a step kills the engine: all its shards fail with EngineDeadError, and so does every later call;
    after `close` it is EngineClosedError.
    """

    runner: ModelRunner
    config: EngineConfig
    pool: BlockPool
    scheduler: Scheduler

    def __init__(
        self,
        load: Callable[[], tuple[ModelRunner, EngineConfig]],
        config: EngineConfig,
        tokenizer: "PreTrainedTokenizerFast | None" = None,
        on_step: OnStep | None = None,
        turn: DeviceTurn | None = None,
    ) -> None:
        """Waits for the device's `turn` and loads, in the engine's own thread, which tells `on_step` of each step.

        `load` settles what `config` leaves open.
        """
        self.config = config
        self.tokenizer = tokenizer
        self.on_step = on_step
        self._turn = turn or DeviceTurn()
        self._counters = EngineCounters()
        self._inbox: SimpleQueue[_Submission | None] = SimpleQueue()
        self._open: dict[int, _Submission] = {}
        self._states: dict[int, OutputState] = {}
        self._death: BaseException | None = None
        self._closing = False
        self._lock = threading.Lock()
        self._loaded: Future[None] = Future()
        self._thread = threading.Thread(target=self._main, args=(load,), name="trunkline-engine", daemon=True)
        self._thread.start()

    @property
    def dead(self) -> bool:
        return self._death is not None or self._closing

    def wait_until_loaded(self) -> None:
        """Raises what `load` raised, and EngineClosedError where the engine was closed first."""
        self._loaded.result()

    def submit(self, work: ShardWork, on_output: OnOutput | None = None) -> "Future[list[RequestOutput]]":
        """Outputs come in the order of `work.requests`; `on_output` gets each as it is finished."""
        future: Future[list[RequestOutput]] = Future()
        with self._lock:
            if self.dead:
                raise self._error()
            self._inbox.put(_Submission(work, future, on_output))
        return future

    def counters(self) -> EngineCounters:
        return self._counters

    def close(self) -> None:
        """Ends the loop; shards that are not done fail."""
        with self._lock:
            self._closing = True
            self._inbox.put(None)
        self._thread.join()

    def _main(self, load: Callable[[], tuple[ModelRunner, EngineConfig]]) -> None:
        # OpenMP keeps a pool for every thread that computes, and makes all of them sleep instead of spin once they
        # are more than the cores: with a model loaded by another thread, steps took 1.6 times as long.
        try:
            self._take_turn()
            if self._closing:
                raise self._error()
            self.runner, self.config = load()
            self.pool = BlockPool(self.runner.num_blocks, self.config.block_size)
            limit = max_model_len(self.runner.model.shape, self.config)
            self.scheduler = Scheduler(self.config, self.pool, limit)
        except BaseException as error:
            self._death = error
            self._turn.give(self)
            self._loaded.set_exception(error)
        else:
            self._loaded.set_result(None)
            self._loop()
            self._turn.give(self)

    def _loop(self) -> None:
        try:
            while not self._closing:
                self._receive(block=not self.scheduler.has_work())
                if self.scheduler.has_work() and not self._closing:
                    self._step()
        except BaseException as death:
            self._death = death
        finally:
            self._fail_all()

    def _receive(self, *, block: bool) -> None:
        while block or not self._inbox.empty():
            submission = self._wait() if block else self._inbox.get()
            block = False
            if submission is None:
                return
            self._accept(submission)

    def _wait(self) -> _Submission | None:
        """The next submission; others get the device where none comes soon."""
        try:
            return self._inbox.get(timeout=KEEP_TURN_SECONDS)
        except Empty:
            self._turn.give(self)
        submission = self._inbox.get()
        if submission is not None:
            self._take_turn()
        return submission

    def _take_turn(self) -> None:
        self._turn.take(self, given_up=lambda: self._closing)

    def _accept(self, submission: _Submission) -> None:
        for place, sequence in enumerate(self.scheduler.add(submission.work)):
            submission.places[sequence.key] = place
            self._open[sequence.key] = submission
            if sequence.finished:
                message = f"{sequence.num_prompt_tokens} prompt tokens and the answer fit neither context nor KV budget"
                self._deliver(sequence.key, error_output(sequence, "CONTEXT_OVERFLOW", message))
            else:
                eos = self.runner.model.shape.eos_token_ids
                self._states[sequence.key] = OutputState(sequence, self.tokenizer, eos)
        if not submission.work.requests:
            submission.future.set_result([])

    def _step(self) -> None:
        times = [perf_counter()]
        step = self.scheduler.schedule()
        times.append(perf_counter())
        held = self.scheduler.num_running, len(self.scheduler.sequences), self.pool.num_used * self.runner.block_bytes
        hidden = self.runner.hidden(step)
        times.append(perf_counter())
        sampled = self._sample(step, hidden)
        self._score(step, hidden)
        times.append(perf_counter())
        finished = self.scheduler.update(step, sampled)
        times.append(perf_counter())
        if self.on_step is not None:
            self.on_step(_trace(self._counters.steps, step, held, times))
        counters = self._counters
        self._counters = replace(
            counters,
            finished_requests=counters.finished_requests + len(finished),
            computed_prompt_tokens=counters.computed_prompt_tokens + step.num_prefill_tokens,
            label_tokens=counters.label_tokens + step.num_label_tokens,
            generated_tokens=counters.generated_tokens + len(step.samples),
            steps=counters.steps + 1,
            kv_bytes=self.pool.num_used * self.runner.block_bytes,
            peak_kv_bytes=self.pool.peak_used * self.runner.block_bytes,
        )
        for sequence in finished:
            self._deliver(sequence.key, self._states.pop(sequence.key).output())

    @torch.inference_mode()
    def _sample(self, step: SchedulerOutput, hidden: Tensor) -> dict[int, Sampled]:
        """Rows whose token is the greatest logit's, and nothing else is asked of them, need no logits."""
        sampled = {}
        plain: list[SampleRow] = []
        others: list[SampleRow] = []
        for sample in step.samples:
            (plain if self._states[sample.key].takes_best else others).append(sample)
        tokens = self.runner.best_tokens(step, hidden, [sample.row for sample in plain])
        for sample, token in zip(plain, tokens, strict=True):
            sampled[sample.key] = self._states[sample.key].take(token)
        for part, logits in self.runner.logits(step, hidden, [sample.row for sample in others]):
            states = [self._states[sample.key] for sample in others[part]]
            barred = [(row, state.suppressed) for row, state in enumerate(states) if state.suppressed]
            sampler.suppress(logits, [row for row, _ in barred], [ids for _, ids in barred])
            for row, (state, best) in enumerate(zip(states, sampler.greedy(logits), strict=True)):
                sampled[state.sequence.key] = state.take_row(logits[row], best)
        return sampled

    @torch.inference_mode()
    def _score(self, step: SchedulerOutput, hidden: Tensor) -> None:
        for part, logits in self.runner.logits(step, hidden, [score.row for score in step.scores]):
            asked = [
                (row, score, label, target)
                for row, score in enumerate(step.scores[part])
                for label, target in zip(score.labels, score.targets, strict=True)
            ]
            values = sampler.target_logprobs(logits, [a[0] for a in asked], [a[3] for a in asked])
            for (_, score, label, _), logprob, is_best, finite in zip(asked, *values, strict=True):
                self._states[score.key].take_score(label, logprob, is_best, finite)

    def _deliver(self, key: int, output: RequestOutput) -> None:
        submission = self._open.pop(key)
        submission.outputs[submission.places[key]] = output
        if submission.on_output is not None:
            submission.on_output(output)
        if len(submission.outputs) == len(submission.work.requests):
            submission.future.set_result([submission.outputs[place] for place in range(len(submission.outputs))])

    def _fail_all(self) -> None:
        with self._lock:
            self._closing = True
            waiting = set(self._open.values())
            while not self._inbox.empty():
                submission = self._inbox.get()
                if submission is not None:
                    waiting.add(submission)
        for submission in waiting:
            submission.future.set_exception(self._error())
        self._open.clear()
        self._states.clear()

    def _error(self) -> EngineDeadError | EngineClosedError:
        if self._death is None:
            return EngineClosedError("the engine was closed")
        error = EngineDeadError(f"the engine died: {self._death!r}")
        error.__cause__ = self._death
        return error


def _trace(number: int, step: SchedulerOutput, held: tuple[int, int, int], times: list[float]) -> StepTrace:
    """`held` were running, unfinished and KV bytes behind the scheduling; `times` are of the step's five ends."""
    running, unfinished, kv_bytes = held
    scheduled, computed, sampled, updated = (1000 * (after - before) for before, after in pairwise(times))
    return StepTrace(
        step=number,
        prefill_tokens=step.num_prefill_tokens,
        decode_tokens=step.num_decode_tokens,
        label_tokens=step.num_label_tokens,
        running=running,
        waiting=unfinished - running,
        kv_bytes=kv_bytes,
        schedule_ms=scheduled + updated,
        model_ms=computed,
        sample_ms=sampled,
    )

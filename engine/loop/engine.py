"""The engine: one loop that schedules, runs and samples, for any number of shards at once."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import TYPE_CHECKING

from engine.config import EngineConfig
from engine.errors import EngineClosedError, EngineDeadError, UserError
from engine.failpoint import failpoint, token_failpoint
from engine.forward.model_runner import ModelRunner
from engine.grammar.grammars import Grammars
from engine.loop.engine_counters import EngineCounters
from engine.loop.output_processor import NO_MEMORY, OutputState, error_output
from engine.loop.step_in_flight import StepInFlight
from engine.loop.step_launcher import StepLauncher
from engine.loop.step_reader import StepReader
from engine.loop.trace import OnStep
from engine.machine.device_turn import DeviceTurn
from engine.model.adapter_config import BAD_ADAPTER
from engine.model.model_shape import max_model_len
from engine.plan import ShardWork
from engine.request import RequestOutput
from engine.scheduling.block_pool import BlockPool
from engine.scheduling.sampled import Sampled
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.scheduler_output import SchedulerOutput
from engine.stages import abandonable, checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

OnOutput = Callable[[RequestOutput], None]

# How long a load that is not wanted any more is waited for: a step of it may read all weights.
CLOSING_SECONDS = 2.0
# Steps for which a decode step's plan holds where steps are scheduled ahead: a plan takes the host as long as a step
# of some hundred rows takes a GPU, and the keys that a row has yet to reach cost a little of every step.
DECODE_AHEAD = 32


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
        took: "Callable[[SchedulerOutput, float], float]" = lambda *_: 0.0,
        free_rows: Callable[[], int] = lambda: 0,
    ) -> None:
        """Waits for the device's `turn` and loads, in the engine's own thread, which tells `on_step` of each step.

        `load` settles what `config` leaves open. `took` is told each step and its seconds, and says in how many the
        device could run it at best; `free_rows` says how many rows of a step cost no more than one, for drafts.
        """
        self.config = config
        self.tokenizer = tokenizer
        self.on_step = on_step
        self.took = took
        self._free_rows = free_rows
        self._turn = turn or DeviceTurn()
        self._counters, self._since = EngineCounters(), 0.0
        self._inbox: SimpleQueue[_Submission | None] = SimpleQueue()
        self._accepting: _Submission | None = None
        self._open: dict[int, _Submission] = {}
        self._states: dict[int, OutputState] = {}
        self._in_flight: deque[StepInFlight] = deque()
        self._death: BaseException | None = None
        self._closing = False
        self._loading = True
        self._lock = threading.Lock()
        self._loaded: Future[None] = Future()
        self._thread = threading.Thread(target=self._main, args=(load,), name="trunkline-engine", daemon=True)
        self._thread.start()

    @property
    def dead(self) -> bool:
        return self._death is not None or self._closing

    @property
    def loaded(self) -> bool:
        """Whether it can compute."""
        return self._loaded.done() and self._loaded.exception() is None

    def wait_until_loaded(self) -> None:
        """Raises what `load` raised, and EngineClosedError where the engine was closed first."""
        self._loaded.result()

    def submit(self, work: ShardWork, on_output: OnOutput | None = None) -> "Future[list[RequestOutput]]":
        """Outputs come in the order of `work.requests`; `on_output` gets each as it is finished.

        The future has a UserError where an adapter of its requests cannot run here.
        """
        future: Future[list[RequestOutput]] = Future()
        with self._lock:
            if self.dead:
                raise self._error()
            self._inbox.put(_Submission(work, future, on_output))
        return future

    def counters(self) -> EngineCounters:
        if not self.loaded:
            return self._counters
        return replace(self._counters, going=self.scheduler.going, preemptions=self.scheduler.preemptions)

    def close(self) -> None:
        """Ends the loop; shards that are not done fail, and so does who waits for the model.

        A model that is being loaded is left at the load's next step; `CLOSING_SECONDS` later nobody waits for that.
        """
        with self._lock:
            self._closing = True
            self._inbox.put(None)
        self._settle(self._error())
        self._thread.join(CLOSING_SECONDS if self._loading else None)

    def _settle(self, error: BaseException | None) -> None:
        """Says, once, whether the model is loaded."""
        with self._lock:
            if self._loaded.done():
                return
            if error is None:
                self._loaded.set_result(None)
            else:
                self._loaded.set_exception(error)

    def _check_wanted(self) -> None:
        if self._closing:
            raise self._error()

    def _main(self, load: Callable[[], tuple[ModelRunner, EngineConfig]]) -> None:
        # OpenMP keeps a pool for every thread that computes, and makes all of them sleep instead of spin once they
        # are more than the cores: with a model loaded by another thread, steps took 1.6 times as long.
        try:
            self._take_turn()
            with abandonable(self._check_wanted):
                checkpoint()
                self.runner, self.config = load()
            self.pool = BlockPool(self.runner.num_blocks, self.config.block_size)
            limit = max_model_len(shape := self.runner.model.shape, self.config)
            ahead = DECODE_AHEAD if self.runner.num_steps_ahead else 0
            drafts = 0 if ahead or self.config.speculation == "none" else self._free_rows()
            self.scheduler = Scheduler(self.config, self.pool, limit, decode_ahead=ahead, draft_rows=drafts)
            self._grammars = Grammars(self.tokenizer, shape.vocab_size, shape.eos_token_ids)
            self._reader = StepReader(self.runner, self._states, self.scheduler.wanted, self._grammars)
            self._launcher = StepLauncher(self.runner, self._reader)
        except BaseException as error:
            self._death = error
            try:
                self._end()
            finally:
                self._loading = False
                self._settle(error)
        else:
            self._loading = False
            self._settle(None)
            self._loop()
            self._end()

    def _end(self) -> None:
        if hasattr(self, "runner"):
            self.runner.close()
        self._turn.give(self)

    @property
    def _busy(self) -> bool:
        return self.scheduler.has_work() or bool(self._in_flight)

    def _loop(self) -> None:
        try:
            while not self._closing:
                self._receive(block=not self._busy)
                if self._busy and not self._closing:
                    started = self._since = perf_counter()
                    self._step()
                    busy_seconds = self._counters.busy_seconds + perf_counter() - started
                    self._counters = replace(self._counters, busy_seconds=busy_seconds)
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
            self._accepting = submission
            self._accept(submission)

    def _wait(self) -> _Submission | None:
        """The next submission; others get the device where none comes soon."""
        try:
            return self._inbox.get(timeout=self._turn.keep_seconds)
        except Empty:
            self._turn.give(self)
        if (submission := self._inbox.get()) is not None:
            self._take_turn()
        return submission

    def _take_turn(self) -> None:
        self._turn.take(self, given_up=lambda: self._closing)

    def _accept(self, submission: _Submission) -> None:
        work = submission.work
        try:
            sizes = self.runner.adapters.sizes({r.adapter for r in work.requests if r.adapter is not None})
        except UserError as problem:
            submission.future.set_exception(problem)
            return
        blocks = {adapter: size.blocks for adapter, size in sizes.items()}
        for place, sequence in enumerate(self.scheduler.add(work, blocks)):
            submission.places[sequence.key] = place
            self._open[sequence.key] = submission
            if sequence.finished:
                message = f"{sequence.num_prompt_tokens} prompt tokens and the answer fit neither context nor KV budget"
                self._deliver(sequence.key, error_output(sequence, "CONTEXT_OVERFLOW", message))
            else:
                eos = self.runner.model.shape.eos_token_ids
                strict = self.runner.model.strict
                self._states[sequence.key] = OutputState(sequence, self.tokenizer, eos, self._grammars, strict=strict)
        if not work.requests:
            submission.future.set_result([])

    def _step(self) -> None:
        """Schedules and launches a step, and takes in the one that as many steps behind are in flight."""
        failpoint("engine.step")
        started = perf_counter()
        step = self.scheduler.schedule() if self.scheduler.has_work() else None
        if step is not None:
            self._launch(step, started)
        while self._in_flight and (step is None or len(self._in_flight) > self.runner.num_steps_ahead):
            self._take(self._in_flight.popleft())

    def _launch(self, step: SchedulerOutput, started: float) -> None:
        token_failpoint(step.input_ids)
        scheduled = perf_counter()
        running = step.num_decode_tokens - step.num_draft_tokens
        held = running, len(self.scheduler.sequences), self.pool.num_used * self.runner.block_bytes
        budget = self.config.max_num_batched_tokens, self.pool.num_blocks * self.runner.block_bytes
        launched = self._launcher.launch(step)
        lost = self.scheduler.lost(step, launched.lost_rows)
        self.runner.last_tokens = launched.tokens
        self._in_flight.append(StepInFlight(launched, lost, held, budget, (started, scheduled, perf_counter())))

    def _take(self, flown: StepInFlight) -> None:
        step, before = flown.launched.step, perf_counter()
        sampled: dict[int, Sampled] = {}
        failed = flown.lost.among(self.scheduler.sequences.values())
        for sequence in failed:
            sampled[sequence.key] = self._states[sequence.key].fail(*NO_MEMORY)
        for values in flown.launched.values:
            self._reader.take(values, sampled)
        taken = perf_counter()
        finished = self.scheduler.update(step, sampled, failed)
        began, self._since = self._since, perf_counter()
        if self.on_step is not None:
            self.on_step(flown.trace(self._counters.steps, (before, taken, self._since)))
        counters = self._counters
        self._counters = replace(
            counters,
            finished_requests=counters.finished_requests + len(finished),
            computed_prompt_tokens=counters.computed_prompt_tokens + step.num_prefill_tokens,
            label_tokens=counters.label_tokens + step.num_label_tokens,
            generated_tokens=counters.generated_tokens + sum(len(one.token_ids) for one in sampled.values()),
            draft_tokens=counters.draft_tokens + step.num_draft_tokens,
            accepted_tokens=counters.accepted_tokens + sum(len(one.accepted) for one in sampled.values()),
            steps=counters.steps + 1,
            limit_seconds=counters.limit_seconds + self.took(step, self._since - began),
            kv_bytes=self.pool.num_used * self.runner.block_bytes,
            peak_kv_bytes=self.pool.peak_used * self.runner.block_bytes,
        )
        for sequence in finished:
            state, problem = self._states.pop(sequence.key), self.runner.adapters.problem_of(sequence.request.adapter)
            bad = error_output(sequence, BAD_ADAPTER, f"its adapter {problem}") if problem is not None else None
            self._deliver(sequence.key, bad or state.output())

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
            if self._accepting is not None and not self._accepting.future.done():
                waiting.add(self._accepting)
            while not self._inbox.empty():
                if (submission := self._inbox.get()) is not None:
                    waiting.add(submission)
        for submission in waiting:
            submission.future.set_exception(self._error())
        for held in (self._open, self._states, self._in_flight):
            held.clear()

    def _error(self) -> EngineDeadError | EngineClosedError:
        if self._death is None:
            return EngineClosedError("the engine was closed")
        error = EngineDeadError(f"the engine died: {self._death!r}")
        error.__cause__ = self._death
        return error

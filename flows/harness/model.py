"""The harness's model `trunkline`: all that a call asks is planned at once, and computed by one engine."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.utils import postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from engine.errors import UserError
from engine.model.checkpoint import resolve_model
from engine.request import RequestOutput
from engine.sampling_params import SamplingParams
from flows.harness.asked_texts import AskedTexts, Seeds
from flows.harness.bars import LazyBar
from flows.harness.gen_kwargs import read_gen_kwargs
from flows.harness.model_args import in_their_words, read_model_args
from flows.harness.planned_runs import PlannedRuns, log
from flows.harness.scored_pairs import PairScore, ScoredPairs
from flows.harness.sections import Section, needed_tokens, sections
from flows.harness.text_model import TextModel

Ids = Sequence[int]
Name = Callable[[int], str]


@register_model("trunkline")
class TrunklineLM(TextModel):
    """A model of the harness, for `simple_evaluate` and for its command.

    Within a call, equal requests are computed once, and so is whatever prompts begin with; the continuations of a
    context run behind it. What the harness caches itself (`--use_cache`) is told of each answer as it comes.
    """

    def __init__(self, pretrained: str | None = None, **model_args: Any) -> None:
        """`model_args` as `flows.harness.model_args.ModelArgs` has them. Raises UserError for what cannot be served."""
        args = read_model_args({"pretrained": pretrained, **model_args})
        self.args = args
        with in_their_words():
            model = resolve_model(args.path)
            self._runs = PlannedRuns(model, args.engine_config(), args.adapter())
            super().__init__(model, args)
        if args.batch_size not in (None, 1, "1", "auto"):
            log.info("batch_size %s is not needed: steps are packed by tokens and memory", args.batch_size)

    @property
    def max_length(self) -> int:
        return self._runs.max_model_len

    @property
    def max_gen_toks(self) -> int:
        return self.args.max_gen_toks

    def get_model_info(self) -> dict[str, Any]:
        """What the harness keeps beside its results."""
        adapter = self._runs.adapter
        return {
            "model_dtype": self._runs.device.dtype,
            "model_quantization": self.args.quantization,
            "model_sha": self._runs.model.fingerprint,
            **({} if adapter is None else {"peft_sha": adapter.fingerprint}),
        }

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of each (context, continuation): the continuation's log-likelihood, and whether it is the greedy one."""
        if self.args.enable_thinking:
            raise UserError(
                f"enable_thinking: {_name(requests[0])} scores given texts, before which nothing is thought"
            )
        texts = [request.args for request in requests]
        tokenised = tqdm(texts, desc="Tokenizing inputs", disable=disable_tqdm)
        pairs = (self.pair_ids(*text) for text in tokenised)
        return self._loglikelihoods(pairs, texts, lambda number: _name(requests[number]), disable_tqdm)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, Ids, Ids]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        """As `loglikelihood`, of tokens; the texts are what answers are cached by, where there are any."""
        del kwargs
        pairs = ((context, continuation) for _, context, continuation in requests)
        return self._loglikelihoods(pairs, [texts for texts, *_ in requests], "request {}".format, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Of each text: its log-likelihood, in windows as long as the model takes, no token scored twice."""
        totals = [0.0] * len(requests)
        owners: list[int] = []
        left = [0] * len(requests)
        bar = LazyBar(len(requests), "Running loglikelihood_rolling requests", disable_tqdm)

        def end(number: int) -> None:
            self.cache_hook.add_partial("loglikelihood_rolling", requests[number].args, totals[number])
            bar.update()

        def windows() -> Iterator[tuple[Ids, Ids]]:
            for number, request in enumerate(requests):
                found = self._windows(*request.args)
                owners.extend([number] * len(found))
                left[number] = len(found)
                if not found:
                    end(number)
                yield from found

        with bar:
            for score in self._scores(windows(), lambda window: _name(requests[owners[window]])):
                number = owners[score.number]
                totals[number] += score.logprob
                left[number] -= 1
                if not left[number]:
                    end(number)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """A text behind each context, which ends before the first of its `until`."""
        until: list[tuple[str, ...]] = []
        texts = [""] * len(requests)
        seeds = Seeds(self.args.seed)

        def asked() -> Iterator[tuple[Ids, SamplingParams, int]]:
            for request in requests:
                context, given = request.args
                generation = read_gen_kwargs(given, self.max_gen_toks, self.end_text)
                room = self.max_length - generation.params.max_tokens
                if room < 1:
                    said = f"max_gen_toks: {generation.params.max_tokens} leave no room for a context"
                    raise UserError(f"{_name(request)}: {said}; the model takes {self.max_length:,} tokens")
                until.append(generation.until)
                prompt = self.prompt_ids(context)
                yield prompt, seeds.seeded(prompt, generation.params), room

        parts = sections(asked(), AskedTexts, lambda section, number, item: section.add(number, *item))
        with LazyBar(len(requests), "Running generate_until requests", disable_tqdm) as bar:
            for section in parts:
                for output in self._run(section, lambda number: _name(requests[number])):
                    for number in section.numbers(output.request_id):
                        texts[number] = self._answer(output, until[number])
                        self.cache_hook.add_partial("generate_until", requests[number].args, texts[number])
                        bar.update()
        return texts

    def _loglikelihoods(
        self, pairs: Iterable[tuple[Ids, Ids]], texts: Sequence[Any], name: Name, disable_tqdm: bool
    ) -> list[tuple[float, bool]]:
        answers = [(0.0, False)] * len(texts)
        with LazyBar(len(texts), "Running loglikelihood requests", disable_tqdm) as bar:
            for score in self._scores(pairs, name):
                answers[score.number] = score.logprob, score.is_greedy
                if texts[score.number] is not None:
                    self.cache_hook.add_partial("loglikelihood", texts[score.number], answers[score.number])
                bar.update()
        return answers

    def _scores(self, pairs: Iterable[tuple[Ids, Ids]], name: Name) -> Iterator[PairScore]:
        """Each pair's score as it is there, under its number. Raises UserError for a pair that has none."""

        def add(section: ScoredPairs, number: int, pair: tuple[Ids, Ids]) -> None:
            if not pair[1]:
                raise UserError(f"{name(number)}: the continuation has no token of its own behind its context")
            if len(pair[1]) > self.max_length:
                said = f"the continuation has {len(pair[1]):,} tokens, and the model takes {self.max_length:,}"
                raise UserError(f"{name(number)}: {said}")
            section.add(number, *pair)

        for section in sections(pairs, lambda: ScoredPairs(self.max_length), add):
            for output in self._run(section, name):
                yield from section.scores(output)

    def _run(self, section: Section, name: Name) -> Iterator[RequestOutput]:
        """The section's outputs as they end. Raises UserError for a request that does not fit, or ends as an error."""
        requests = section.requests()
        fits = self._runs.max_request_tokens()
        for request in requests:
            if (needed := needed_tokens(request)) > fits:
                said = f"{needed:,} tokens; kv_cache_memory holds {fits:,}. Give more of it, or a smaller max_length"
                raise UserError(f"{name(section.numbers(request.request_id)[0])}: {said}")
        if section.num_cut:
            log.warning("%d contexts lose their beginning to fit %d tokens", section.num_cut, self.max_length)
        for output in self._runs.run(requests):
            if output.error_type is not None:
                number = section.numbers(output.request_id)[0]
                raise UserError(f"{name(number)}: {output.error_type}: {output.error_message}")
            yield output

    def _windows(self, text: str) -> list[tuple[Ids, Ids]]:
        """A context and what is scored behind it, each."""
        windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, context_len=1)
        return [make_disjoint_window(window) for window in windows]

    def _answer(self, output: RequestOutput, until: tuple[str, ...]) -> str:
        """The text behind the model's reasoning, cut as the harness cuts it."""
        end = self.args.think_end_token
        text = output.text or ""
        if isinstance(end, int) and end in output.token_ids:
            last = len(output.token_ids) - output.token_ids[::-1].index(end)
            text = self.tok_decode(output.token_ids[last:]).lstrip()
        return str(postprocess_generated_text(text, list(until), end if isinstance(end, str) else None))


def _name(request: Instance) -> str:
    return f"{request.task_name or 'request'}, document {request.doc_id}"

"""What a plan's requests cost: tokens and attended keys counted, then priced in seconds."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.adapter_size import NO_ADAPTERS, AdapterSizes, size_of
from engine.config import EngineConfig
from engine.device_rates import DeviceRates
from engine.label_tree import build_label_tree
from engine.model.model_shape import ModelShape
from engine.planning.groups import Forest
from engine.planning.prompts import Ints
from engine.planning.request_table import NO_LOGPROBS, RequestTable
from engine.scheduling.scheduler_output import SchedulerOutput
from kernels.kv_format import KVFormat

# From a file that the system has read before into the KV cache's memory.
ADAPTER_BYTES_PER_SECOND = 0.35e9


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """Counts for each request in execution order; sums over a slice are a shard's, over all the plan's.

    A node's tokens count for the first request that needs them. `prefill_tokens` are prompt tokens, `label_tokens`
    those of the label trie, `decode_tokens` the most that may be generated. `attended_keys` are summed over all
    computed tokens, each of which attends to itself and to all before it; `decode_keys` are those of generated ones.
    `prompt_head_rows` are prompt tokens whose logits are asked for: the last, where anything is asked behind it, and
    one for each log-probability of the prompt. `adapter_params` multiply each of the request's tokens besides the
    model's, `adapter_bytes` are what a step reads of them for all requests that run with the adapter, and the first of
    those, where `adapter_is_new`, has them brought in.
    """

    prefill_tokens: Ints
    label_tokens: Ints
    decode_tokens: Ints
    attended_keys: Ints
    decode_keys: Ints
    prompt_head_rows: Ints
    adapter_params: Ints
    adapter_bytes: Ints
    adapter_users: Ints
    adapter_is_new: NDArray[np.bool_]

    @property
    def decode_steps(self) -> Ints:
        """Steps that follow the one which gives the first token: nothing follows the last."""
        return np.maximum(self.decode_tokens - 1, 0)

    @property
    def answer_tokens(self) -> Ints:
        """Tokens computed behind the prompt: labels', and all that is generated but the last."""
        return self.label_tokens + self.decode_steps

    @property
    def computed_tokens(self) -> Ints:
        return self.prefill_tokens + self.answer_tokens

    @property
    def head_rows(self) -> Ints:
        """Rows whose logits are asked for: some of the prompt's, and every answer token's."""
        return self.prompt_head_rows + self.answer_tokens

    def without_answers(self) -> "Work":
        """The same prompts and labels, behind which nothing is generated."""
        none = np.zeros_like(self.decode_tokens)
        return replace(self, decode_tokens=none, decode_keys=none, attended_keys=self.attended_keys - self.decode_keys)


def count_work(forest: Forest, requests: RequestTable, adapters: AdapterSizes = NO_ADAPTERS) -> Work:
    """`forest` is arranged: the nodes that are new with a request are those behind all before it, to its own."""
    order = forest.order
    prompt = forest.end[forest.node_of[order]]
    last = np.maximum.accumulate(forest.node_of[order])
    decode = requests.max_tokens[order]
    label_set = requests.label_set[order]
    labels, label_depths, asks_behind = _label_counts(requests, label_set)
    decode_keys = attended_keys(prompt, prompt + np.maximum(decode - 1, 0))
    label_keys = labels * (prompt + 1) + label_depths
    return Work(
        prefill_tokens=_new_with(last, forest.num_tokens),
        label_tokens=labels,
        decode_tokens=decode,
        attended_keys=_new_with(last, attended_keys(forest.start, forest.end)) + label_keys + decode_keys,
        decode_keys=decode_keys,
        prompt_head_rows=_new_with(last, _read_tokens(forest, requests)) + asks_behind,
        **_adapter_counts(requests, order, adapters),
    )


def attended_keys(start: Ints, end: Ints) -> Ints:
    """Sum of p + 1 over the positions `start <= p < end`."""
    return (end * (end + 1) - start * (start + 1)) // 2


@dataclass(frozen=True, slots=True)
class Prices:
    """Seconds that a prompt's token, a generated one and any step add to a run, where as many rows decode as may."""

    prompt_token: float = 1.0
    decode_token: float = 1.0
    step: float = 0.0


@dataclass(frozen=True, slots=True)
class CostModel:
    """A model on a device: its sizes, how its KV is kept, the weights that a step reads, and the device's rates.

    `step_factors` are those of `engine.planning.step_times`, where steps have run on the device.
    """

    shape: ModelShape
    kv_format: KVFormat
    rates: DeviceRates
    weight_bytes: float = 0.0
    step_factors: tuple[float, ...] = ()

    def seconds(self, work: Work, config: EngineConfig) -> NDArray[np.float64]:
        """What each request of `work` adds to a run, where its shared prefixes are with the first that needs them.

        Prompts and labels are computed in full steps, at the device's FLOP/s. A decode step is slower than that where
        it waits for memory: it reads the weights once for all of its rows, and each row's KV; the longer of computing
        and reading counts, of matmuls and of attention apart. A last layer that skips rows computes less than this.
        """
        matmul, head, attention = self._flops()
        rates, steps = self.rates, work.decode_steps
        prompt_and_labels = (
            matmul * (work.prefill_tokens + work.label_tokens) + head * (work.prompt_head_rows + work.label_tokens)
        ) / rates.matmul_flops
        token = max(
            (matmul + head) / rates.matmul_flops,
            self.weight_bytes / self.decode_rows(work, config) / rates.memory_bytes,
        )
        # A step reads what is the request's own, and a shared prefix for the first that has it.
        own_keys = steps * work.prefill_tokens + attended_keys(np.zeros_like(steps), steps)
        read = own_keys * self.shape.kv_bytes_per_token(self.kv_format) / rates.memory_bytes
        decode_attention = np.maximum(attention * work.decode_keys / rates.attention_flops, read)
        prefill_attention = attention * (work.attended_keys - work.decode_keys) / rates.attention_flops
        total: NDArray[np.float64] = prompt_and_labels + steps * token + prefill_attention + decode_attention
        return total + self._adapter_seconds(work, config)

    def _adapter_seconds(self, work: Work, config: EngineConfig) -> NDArray[np.float64]:
        """What adapters add: their products, their weights read once a decode step for all of its rows that run with
        one, and their way into memory.
        """
        rates, steps = self.rates, work.decode_steps
        prompt_and_labels = 2.0 * work.adapter_params * (work.prefill_tokens + work.label_tokens) / rates.matmul_flops
        rows = np.minimum(work.adapter_users, self.decode_rows(work, config))
        token = np.maximum(
            2.0 * work.adapter_params / rates.matmul_flops, work.adapter_bytes / rows / rates.memory_bytes
        )
        brought = work.adapter_is_new * work.adapter_bytes / ADAPTER_BYTES_PER_SECOND
        total: NDArray[np.float64] = prompt_and_labels + steps * token + brought
        return total

    def prices(self) -> Prices:
        """Short contexts', by the rates alone: each token its FLOPs, each step its weights."""
        matmul, head, _ = self._flops()
        flops = self.rates.matmul_flops
        return Prices(matmul / flops, (matmul + head) / flops, self.weight_bytes / self.rates.memory_bytes)

    def step_seconds(self, step: SchedulerOutput) -> float:
        """What a step takes: by what steps took, where any has run here; else its FLOPs at the rate of matmuls, or its
        weights read once.

        A step that only decodes also reads each token of KV once, for however many rows.
        """
        if not self.step_factors:
            return self._seconds(step, self.step_flops(step))
        own, *factors = self.step_factors
        return own + sum(factor * part for factor, part in zip(factors, self.step_parts(step), strict=True))

    def step_limit(self, step: SchedulerOutput, *, computes_logits: bool) -> float:
        """The same of the least that could be computed: the last layer runs rows that are asked for alone, and a head
        that looks for the greatest logit among coarser products `computes_logits` of few.
        """
        matmul, head, attention = self._flops()
        layers = matmul * step.num_scheduled_tokens + attention * _keys_of(step)
        all_rows = layers * (1 - 1 / self.shape.num_layers)
        asked = step.num_head_rows * (matmul / self.shape.num_layers + (head if computes_logits else 0.0))
        return self._seconds(step, all_rows + asked)

    def _seconds(self, step: SchedulerOutput, flops: float) -> float:
        least = max(flops / self.rates.matmul_flops, self.weight_bytes / self.rates.memory_bytes)
        if step.num_decode_tokens < step.num_scheduled_tokens:
            return least
        return least + self._kv_bytes(step) / self.rates.memory_bytes

    def _kv_bytes(self, step: SchedulerOutput) -> int:
        """What a step reads of the KV cache, a shared token once."""
        kv_tokens = int((step.segments.kv_end - step.segments.kv_start).sum())
        return kv_tokens * self.shape.kv_bytes_per_token(self.kv_format)

    def step_parts(self, step: SchedulerOutput) -> tuple[float, float, float, float]:
        """Seconds of a step's matmuls, logits, attention and reading of KV, each as if it were all."""
        matmul, head, attention = self._flops()
        rates = self.rates
        return (
            max(matmul * step.num_scheduled_tokens / rates.matmul_flops, self.weight_bytes / rates.memory_bytes),
            head * step.num_head_rows / rates.matmul_flops,
            attention * _keys_of(step) / rates.attention_flops,
            self._kv_bytes(step) / rates.memory_bytes,
        )

    def step_flops(self, step: SchedulerOutput) -> float:
        """What a step's rows, and the logits that are asked for, take."""
        matmul, head, attention = self._flops()
        return matmul * step.num_scheduled_tokens + head * step.num_head_rows + attention * _keys_of(step)

    def free_rows(self) -> int:
        """Rows of a step whose matmuls are done when the weights have been read; 0 where reading is not measured."""
        matmul, head, _ = self._flops()
        return int(self.weight_bytes / self.rates.memory_bytes * self.rates.matmul_flops / (matmul + head))

    def decode_rows(self, work: Work, config: EngineConfig) -> float:
        """Rows that decode together: as many requests as the KV budget holds of those that decode, at least one.

        It does not follow the tokens of a step, so that neither do the ends of shards.
        """
        decoding = int(np.count_nonzero(work.decode_steps))
        if decoding == 0:
            return 1.0
        held = config.kv_cache_memory // self.shape.kv_bytes_per_token(self.kv_format)
        each = float((work.prefill_tokens + work.decode_steps).sum()) / decoding
        rows = min(held / each, decoding)
        return max(min(rows, config.max_num_seqs) if config.admission == "count" else rows, 1.0)

    def _flops(self) -> tuple[float, float, float]:
        """Two for a multiply-add: of a computed token, of a row of logits, of an attended key (scores, then values)."""
        shape = self.shape
        attention = 4.0 * shape.num_layers * shape.num_heads * shape.head_dim
        return 2.0 * shape.matmul_params, 2.0 * shape.head_params, attention


def _keys_of(step: SchedulerOutput) -> int:
    """Whatever it is cut into, a row's context is all that is before it, and itself."""
    return int(step.position_ids.sum()) + step.num_scheduled_tokens


def _new_with(last: Ints, values: Ints) -> Ints:
    return np.diff(np.cumsum(values)[last], prepend=0)


def _read_tokens(forest: Forest, requests: RequestTable) -> Ints:
    """Of each node, the tokens whose log-probability any request at it or below it asks."""
    if (requests.logprobs_from == NO_LOGPROBS).all():
        return np.zeros_like(forest.end)
    first = np.full(len(forest.end), int(forest.end.max(initial=0)), dtype=np.int64)
    np.minimum.at(first, forest.node_of, requests.logprobs_from)
    firsts: list[int] = first.tolist()
    for node, parent in reversed([*enumerate(forest.parent.tolist())]):
        if parent >= 0:
            firsts[parent] = min(firsts[parent], firsts[node])
    return np.maximum(forest.end - np.maximum(forest.start, np.array(firsts, dtype=np.int64)), 0)


def _adapter_counts(requests: RequestTable, order: Ints, adapters: AdapterSizes) -> dict[str, NDArray[Any]]:
    """`Work`'s fields of adapters: all 0 for a request that runs with none, and users 1."""
    adapter = requests.adapter[order]
    sizes = [size_of(adapters, name) for name in requests.adapters]
    users = np.bincount(adapter, minlength=len(sizes))
    found, first = np.unique(adapter, return_index=True)
    is_new = np.zeros(len(order), dtype=np.bool_)
    is_new[first] = [requests.adapters[number] is not None for number in found.tolist()]
    return {
        "adapter_params": np.array([size.params for size in sizes], dtype=np.int64)[adapter],
        "adapter_bytes": np.array([size.num_bytes for size in sizes], dtype=np.int64)[adapter],
        "adapter_users": users[adapter],
        "adapter_is_new": is_new,
    }


def _label_counts(requests: RequestTable, label_set: Ints) -> tuple[Ints, Ints, Ints]:
    """Size of each request's label trie, the sum of its depths, and 1 where anything is asked behind the prompt."""
    trees = [build_label_tree(labels) for labels in requests.label_sets]
    # The last row is of requests without labels, which are told by -1.
    counts = [
        (len(tree.depths), sum(tree.depths), int(labels != ()))
        for tree, labels in zip(trees, requests.label_sets, strict=True)
    ]
    found = np.array([*counts, (0, 0, 1)], dtype=np.int64)[label_set]
    return found[:, 0], found[:, 1], found[:, 2]

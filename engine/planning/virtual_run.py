"""Shards through the scheduler, with the cost model's clock in place of a model: what a device would do with them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from engine.config import EngineConfig
from engine.model.model_shape import max_model_len, num_kv_blocks
from engine.plan import ShardWork
from engine.planning.cost import CostModel
from engine.scheduling.block_pool import BlockPool
from engine.scheduling.sampled import Sampled
from engine.scheduling.scheduler import Scheduler

# Which token a text goes on with decides nothing here.
_ANY_TOKEN = 0


@dataclass(frozen=True, slots=True)
class VirtualRun:
    """What a device computes of its shards, and how long that takes it. `kv_block_seconds` are the blocks in use,
    summed over the time; `refused` are requests that do not fit the context or the KV budget even alone.
    """

    seconds: float = 0.0
    steps: int = 0
    prefill_tokens: int = 0
    label_tokens: int = 0
    decode_tokens: int = 0
    flops: float = 0.0
    peak_kv_blocks: int = 0
    kv_block_seconds: float = 0.0
    refused: int = 0


def run_virtually(
    works: Iterable[ShardWork],
    config: EngineConfig,
    cost: CostModel,
    adapter_blocks: Mapping[str, int] = MappingProxyType({}),
    answer_tokens: Mapping[str, int] = MappingProxyType({}),
) -> VirtualRun:
    """All of the `works` handed over at once, each step taken in before the next, each text as long as it may become.

    A step takes `CostModel.step_seconds`. Requests that `answer_tokens` names end after as many. `adapter_blocks` as
    `Scheduler.add` has them.
    """
    pool = BlockPool(num_kv_blocks(cost.shape, config, cost.kv_format), config.block_size)
    scheduler = Scheduler(config, pool, max_model_len(cost.shape, config))
    refused = sum(one.finished for work in works for one in scheduler.add(work, adapter_blocks))
    seconds = flops = kv_block_seconds = 0.0
    steps = prefill_tokens = label_tokens = decode_tokens = peak = 0
    while scheduler.has_work():
        output = scheduler.schedule()
        assert output is not None, "nothing is in flight"
        steps += 1
        taken = cost.step_seconds(output)
        seconds += taken
        flops += cost.step_flops(output)
        prefill_tokens += output.num_prefill_tokens
        label_tokens += output.num_label_tokens
        decode_tokens += output.num_decode_tokens
        peak = max(peak, pool.num_used)
        kv_block_seconds += taken * pool.num_used
        sampled = {}
        for key in output.sampling:
            sequence = scheduler.sequences[key]
            most = answer_tokens.get(sequence.request.request_id, sequence.max_tokens)
            sampled[key] = Sampled(_ANY_TOKEN, len(sequence.token_ids) + 1 >= min(most, sequence.max_tokens))
        scheduler.update(output, sampled)
    scheduler.check_integrity()
    return VirtualRun(
        seconds, steps, prefill_tokens, label_tokens, decode_tokens, flops, peak, kv_block_seconds, refused
    )

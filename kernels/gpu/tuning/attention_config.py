"""Tile shapes of the kernels for each architecture, with the reason for each."""

from dataclasses import dataclass

import torch

from kernels.gpu.tuning.device_limits import architecture


@dataclass(frozen=True, slots=True)
class AttentionConfig:
    """`small` and `large` are stacked query rows of a tile, `keys` its keys; `programs` run at once on a processor."""

    small: int
    large: int
    keys: int
    num_warps: int
    num_stages: int
    programs: int
    reason: str


SAFE = AttentionConfig(16, 64, 32, 4, 1, 1, "any device: 32 keys and values of 256 dimensions in 16 bits are 32 KiB")
WIDE = AttentionConfig(16, 32, 16, 4, 1, 1, "any device, 256 dimensions in 32 bits: 64 KiB, of 64 rows by 32 keys 128")

# By largest head size, in numbers of 16 bits (`AttentionShape.room`); of the candidates the first whose tile takes the
# step's widest segment, else the last. 64 rows are 16 rows of a group of 4 heads, as in decoding; 128 rows reuse keys
# twice as often, as prefill wants, for more registers. With one stage the next block of keys is not loaded ahead, with
# n stages n - 1 blocks are.
ATTENTION: dict[str, dict[int, tuple[AttentionConfig, ...]]] = {
    "sm_80": {
        64: (
            AttentionConfig(16, 64, 64, 4, 3, 2, "32 KiB of keys and values in flight; several programs a processor"),
            AttentionConfig(16, 128, 64, 8, 3, 1, "with 4 warps the 128 rows spill (40 bytes a thread)"),
        ),
        96: (
            AttentionConfig(16, 64, 32, 4, 4, 3, "as 128, with room for a third program"),
            AttentionConfig(16, 128, 32, 8, 4, 1, "three blocks of 12 KiB ahead"),
        ),
        128: (
            AttentionConfig(16, 64, 32, 4, 4, 2, "three blocks of 16 KiB ahead, and room for a second program"),
            AttentionConfig(16, 128, 32, 8, 3, 1, "blocks of 64 keys spill (24 bytes a thread)"),
        ),
        192: (
            AttentionConfig(16, 64, 32, 4, 3, 2, "with 8 warps it spills (16 bytes a thread), with 128 rows too (24)"),
        ),
        256: (AttentionConfig(16, 64, 32, 8, 3, 1, "the 64 x 256 sums take 8 warps; 32 keys are 32 KiB a block"),),
    },
    "sm_90": {
        64: (
            AttentionConfig(16, 64, 64, 4, 4, 2, "a warp group's wgmma is 64 rows; two programs a processor overlap"),
            AttentionConfig(16, 128, 32, 4, 4, 2, "one warp group is a third faster than two; 64 keys spill"),
        ),
        96: (
            AttentionConfig(16, 64, 64, 4, 3, 2, "as 128, in 84 KiB"),
            AttentionConfig(16, 128, 64, 8, 3, 1, "two warp groups of 64 rows read the same keys"),
        ),
        128: (
            AttentionConfig(16, 64, 64, 4, 3, 2, "one warp group; 112 KiB, so that two programs share a processor"),
            AttentionConfig(16, 128, 64, 8, 3, 1, "two warp groups of 64 rows read the same keys"),
        ),
        192: (
            AttentionConfig(16, 64, 32, 8, 3, 1, "with 4 warps the 64 x 192 sums spill (16 bytes a thread)"),
            AttentionConfig(16, 128, 32, 8, 3, 1, "two warp groups; blocks of 64 keys leave no register free"),
        ),
        256: (AttentionConfig(16, 64, 32, 8, 3, 1, "with 4 warps the 64 x 256 sums spill (48 bytes a thread)"),),
    },
    "gfx942": {
        64: (
            AttentionConfig(16, 64, 64, 4, 2, 2, "half of the 64 KiB of LDS; the next block waits in registers"),
            AttentionConfig(16, 128, 64, 4, 2, 1, "keys are reused twice as often"),
        ),
        96: (
            AttentionConfig(16, 64, 32, 4, 2, 2, "32 keys and values are 12 KiB of LDS"),
            AttentionConfig(16, 128, 32, 4, 2, 2, "keys are reused twice as often, still by two programs"),
        ),
        128: (
            AttentionConfig(16, 64, 32, 4, 2, 2, "32 keys and values are 16 KiB of LDS"),
            AttentionConfig(16, 128, 32, 4, 2, 1, "keys are reused twice as often"),
        ),
        192: (AttentionConfig(16, 64, 32, 4, 1, 2, "with the next block in registers there is room for one program"),),
        256: (AttentionConfig(16, 64, 32, 4, 1, 1, "32 KiB a block: the LDS has no room for a second"),),
    },
}


def attention_candidates(arch: str, dim: int) -> tuple[AttentionConfig, ...]:
    """Of a known architecture, by rising `large`; elsewhere, and beyond 256, a tile alone that any device holds."""
    table = ATTENTION.get(arch, {256: (SAFE,)})
    return next((configs for largest, configs in sorted(table.items()) if dim <= largest), (WIDE,))


def attention_config(device: torch.device, dim: int, widest: int) -> AttentionConfig:
    """For heads of `dim` in a step whose widest segment stacks `widest` query rows."""
    candidates = attention_candidates(architecture(device), dim)
    return next((config for config in candidates if config.large >= widest), candidates[-1])


def decode_config(device: torch.device, dim: int) -> AttentionConfig:
    """For a step that only decodes: most of it is rows' own keys, so that programs at once count more than large tiles.

    On an H100, 256 rows over 8 prefixes of 2,000 keys took 92 us a layer with the first candidate and 126 with the
    last (heads of 64), 145 and 166 (of 128).
    """
    return attention_candidates(architecture(device), dim)[0]

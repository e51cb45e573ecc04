"""What a PEFT folder's adapter_config.json says: which layers are adapted, by how much, and what is not served."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BAD_ADAPTER = "BAD_ADAPTER"
"""The row's adapter is not there, is for another base, is not served, or does not fit the KV cache.

Cure: name one of `model.adapters`, or a folder that PEFT saved for this model; the message says what is wrong with it.
"""

# A key that holds anything but nothing, and what the adapter does then.
REASONS = {
    "alora_invocation_tokens": "is switched on by tokens of the prompt (aLoRA)",
    "layer_replication": "repeats layers of its base",
    "lora_bias": "adds biases (lora_bias)",
    "megatron_config": "is for Megatron's layers",
    "modules_to_save": "holds whole layers besides (modules_to_save)",
    "monteclora_config": "is drawn anew for every use (MonteCLoRA)",
    "target_parameters": "adapts parameters of no layer (target_parameters)",
    "trainable_token_indices": "holds embeddings of its own (trainable_token_indices)",
    "use_dora": "scales its base's weights (DoRA)",
    "use_qalora": "is of groups of inputs (QA-LoRA)",
    "velora_config": "keeps parts of activations (VeLoRA)",
}
# Ways to begin a training that leave other weights in the base than it had.
CHANGES_BASE = ("corda", "loftq", "lora_ga", "olora", "pissa")


class AdapterError(ValueError):
    """What is wrong with an adapter, in a line that does not say which one it is.

    Seen as: the row's `BAD_ADAPTER`, or a UserError where the job names the adapter.
    """


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """LoRA (Hu et al. 2021, arXiv 2106.09685): a layer's output has `scale * B(A x)` added.

    Patterns map a regular expression over paths to the rank, or alpha, that holds there in place of the common one;
    `targets` is one such expression, or names that paths end with.
    """

    rank: int
    alpha: float
    uses_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    targets: str | tuple[str, ...]

    def rank_of(self, path: str) -> int:
        return next((rank for key, rank in self.rank_pattern.items() if _ends_with(key, path)), self.rank)

    def scale_of(self, path: str) -> float:
        """alpha / rank, or alpha over the rank's root (rsLoRA, arXiv 2312.03732)."""
        alpha = next((alpha for key, alpha in self.alpha_pattern.items() if _ends_with(key, path)), self.alpha)
        rank = self.rank_of(path)
        return float(alpha / rank**0.5 if self.uses_rslora else alpha / rank)

    def adapts(self, path: str) -> bool:
        """Whether PEFT would look for weights of the layer at this path."""
        if isinstance(self.targets, str):
            return self.targets.lower() == "all-linear" or re.fullmatch(self.targets, path) is not None
        return any(path == name or path.endswith(f".{name}") for name in self.targets)


def parse_adapter_config(content: Mapping[str, Any]) -> AdapterConfig:
    """Raises AdapterError for what is no LoRA, or is one that would be computed wrongly."""
    kind = content.get("peft_type")
    if kind != "LORA":
        raise AdapterError(f"is of PEFT's type {kind}; only LORA is served")
    for key, reason in REASONS.items():
        if content.get(key):
            raise AdapterError(f"{reason}, which is not served")
    if content.get("bias", "none") != "none":
        raise AdapterError(f"holds biases (bias: {content['bias']}), which is not served")
    if content.get("task_type") not in (None, "CAUSAL_LM"):
        raise AdapterError(f"is for {content['task_type']}; only CAUSAL_LM is served")
    begun = content.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(CHANGES_BASE):
        raise AdapterError(f"belongs to a base that its training changed (init_lora_weights: {begun}); convert it")
    try:
        targets = content["target_modules"]
        return AdapterConfig(
            rank=int(content["r"]),
            alpha=float(content.get("lora_alpha", 8)),
            uses_rslora=bool(content.get("use_rslora")),
            rank_pattern={str(key): int(rank) for key, rank in (content.get("rank_pattern") or {}).items()},
            alpha_pattern={str(key): float(alpha) for key, alpha in (content.get("alpha_pattern") or {}).items()},
            targets=targets if isinstance(targets, str) else tuple(map(str, targets)),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise AdapterError(f"has an adapter_config.json that cannot be read ({problem!r})") from None


def _ends_with(pattern: str, path: str) -> bool:
    """As PEFT looks its patterns up. Raises AdapterError for one that is no regular expression."""
    try:
        return re.match(rf"(.*\.)?({pattern})$", path) is not None
    except re.error as problem:
        raise AdapterError(f"has the pattern {pattern!r:.60}, which is no regular expression ({problem})") from None

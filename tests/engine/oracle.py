"""transformers itself, one request at a time and with nothing shared: what every answer is held to."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from engine.request import Request, RequestOutput

TIE = 1e-4
TOLERANCE = 1e-3


class Oracle:
    def __init__(self, folder: Path) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def generate(self, request: Request) -> list[int]:
        prompt = torch.tensor(request.prompt_token_ids, dtype=torch.long)[None]
        end = [] if request.params.ignore_eos else self.model.generation_config.eos_token_id
        out = self.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=request.params.max_tokens,
            eos_token_id=end or None,
            pad_token_id=0,
        )
        return list(out[0, prompt.shape[1] :].tolist())

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        logits: torch.Tensor = self.model(torch.tensor([list(token_ids)]), use_cache=False).logits[0]
        return logits

    def loglikelihood(self, request: Request, label: Sequence[int]) -> float:
        prompt = request.prompt_token_ids.tolist()
        logprobs = self.logits([*prompt, *label]).log_softmax(-1)
        return sum(float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(label))

    def assert_same(self, request: Request, output: RequestOutput) -> None:
        """The same greedy tokens, up to a shown tie; the same label log-likelihoods, to the tolerance."""
        if request.labels is not None:
            assert output.label_scores is not None
            for label, score in zip(request.labels, output.label_scores, strict=True):
                assert abs(self.loglikelihood(request, label.tolist()) - score.logprob) < TOLERANCE
            return
        wanted, got = self.generate(request), list(output.token_ids)
        if wanted == got:
            return
        split = next(i for i, (a, b) in enumerate(zip(wanted, got, strict=False)) if a != b)
        logits = self.logits([*request.prompt_token_ids.tolist(), *wanted[:split]])[-1]
        gap = float(logits[wanted[split]] - logits[got[split]])
        assert abs(gap) < TIE, (request.request_id, split, wanted[split], got[split], gap)

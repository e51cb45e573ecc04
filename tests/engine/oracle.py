"""transformers itself, one request at a time and with nothing shared: what every answer is held to."""

import copy
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
    def generate(self, request: Request, **ways: Any) -> list[int]:
        """Greedily; `ways` are transformers' own."""
        prompt = torch.tensor(request.prompt_token_ids, dtype=torch.long)[None]
        out = self.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=request.params.max_tokens,
            eos_token_id=sorted(self._ends(request)) or None,
            pad_token_id=0,
            **ways,
        )
        return list(out[0, prompt.shape[1] :].tolist())

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        logits: torch.Tensor = self.model(torch.tensor([list(token_ids)]), use_cache=False).logits[0]
        return logits

    @torch.inference_mode()
    def loglikelihoods(self, request: Request) -> list[float]:
        """Of each label: the prompt runs once, every label behind a copy of transformers' own cache."""
        assert request.labels is not None
        prompt = self.model(
            torch.tensor(request.prompt_token_ids, dtype=torch.long)[None], use_cache=True, logits_to_keep=1
        )
        scores = []
        for label in request.labels:
            logits = prompt.logits[0]
            if len(label) > 1:
                head = torch.tensor(label[:-1], dtype=torch.long)[None]
                cache = copy.deepcopy(prompt.past_key_values)
                logits = torch.cat([logits, self.model(head, past_key_values=cache).logits[0]])
            logprobs = logits.log_softmax(-1)
            scores.append(sum(float(logprobs[i, token]) for i, token in enumerate(label.tolist())))
        return scores

    def assert_same(self, request: Request, output: RequestOutput) -> float:
        """The same greedy tokens, up to a shown tie; the same label log-likelihoods, to the tolerance.

        Returns the largest difference between log-likelihoods; for text the tie's gap in logits, 0 without one.
        """
        if request.labels is not None:
            assert output.label_scores is not None
            pairs = list(zip(self.loglikelihoods(request), output.label_scores, strict=True))
            for wanted, score in pairs:
                assert abs(wanted - score.logprob) < TOLERANCE, (request.request_id, wanted, score.logprob)
            return max(abs(wanted - score.logprob) for wanted, score in pairs)
        return self._assert_greedy(request, list(output.token_ids))

    @torch.inference_mode()
    def _assert_greedy(self, request: Request, got: list[int]) -> float:
        """Each token is the best behind all before it, which one pass over them shows; a text ends where it has to.

        Tokens behind a tie are those of another text, of which nothing is said.
        """
        prompt = request.prompt_token_ids.tolist()
        made = self.model(torch.tensor([[*prompt, *got]]), use_cache=False, logits_to_keep=len(got) + 1).logits[0, :-1]
        assert len(made) == len(got) > 0
        for place, (best, token) in enumerate(zip(made.argmax(-1).tolist(), got, strict=True)):
            if best != token:
                gap = float(made[place, best] - made[place, token])
                assert gap < TIE, (request.request_id, place, best, token, gap)
                return gap
        ends = self._ends(request)
        assert not ends.intersection(got[:-1]), (request.request_id, "goes on behind its end")
        assert len(got) == request.params.max_tokens or got[-1] in ends, (request.request_id, "ends too early")
        assert len(got) <= request.params.max_tokens
        return 0.0

    def _ends(self, request: Request) -> set[int]:
        ends = [] if request.params.ignore_eos else self.model.generation_config.eos_token_id or []
        return {ends} if isinstance(ends, int) else set(ends)

"""Every family that is dealt answers on two ranks as transformers does on one device."""

from pathlib import Path

import pytest

from engine.model.tensor_parallel import deals_heads
from tests.engine.families import SERVED, Family, save_tiny
from tests.engine.oracle import Oracle
from tests.engine.test_models import answers, prompts

DEALT = [family for family in SERVED if deals_heads(family.model_type)]


@pytest.mark.nightly
@pytest.mark.parametrize("family", DEALT, ids=lambda family: family.id)
def test_two_ranks_of_a_family_answer_as_transformers_does(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    save_tiny(family.model_type, family.config, tmp_path)
    requests = prompts(rows=6)
    dealt, oracle = answers(tmp_path, requests, "multi_level", ranks=2), Oracle(tmp_path)
    for request in requests:
        oracle.assert_same(request, dealt[request.request_id])

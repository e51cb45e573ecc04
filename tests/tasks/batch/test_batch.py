"""A batch file through all steps: every line comes out once, as OpenAI's own types read it."""

import base64
import gzip
import json
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from engine.errors import UserError
from tasks.batch import line_file, request_table
from tasks.batch.batch_run import BatchRun
from tasks.batch.endpoint import TokenTexts
from tasks.batch.export import Exported, to_lines
from tests.tasks.batch.batch_steps import (
    COMPLETIONS,
    EMBEDDINGS,
    RERANK,
    SCORE,
    batch_of,
    by_id,
    lines_of,
    request,
    run_batch,
)
from tests.tasks.fakes import FakeWorkers, write_model

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]


def parse_chat(body: object) -> "ChatCompletion":
    """Strictly: the client itself takes anything."""
    # Here, as in the tests: each of the suite's processes collects this file, and its import takes two seconds.
    from openai.types.chat import ChatCompletion

    return ChatCompletion.model_validate(body, strict=True)


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> BatchRun:
    """A line of each kind, and each with a fault of its own."""
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]
    batch = batch_of(
        tmp_path_factory.mktemp("batch"),
        [
            request("greedy", temperature=0),
            request("many", logprobs=True, top_logprobs=2, seed=5),
            request("tools", tools=TOOLS, temperature=0),
            request("three", n=3, seed=1, logprobs=True, top_logprobs=1, max_tokens=2),
            request("text", COMPLETIONS, prompt="One two", max_tokens=3, temperature=0, logprobs=2),
            request("two", COMPLETIONS, prompt=["One two", [5, 6, 7]], max_tokens=3, temperature=0, echo=True),
            request("image", messages=image),
            request("warm", temperature=-1),
            request("long", messages=[{"role": "user", "content": "word " * 2000}]),
            "not JSON",
            request("greedy", temperature=0),
            request("copies", n=3, temperature=0),
        ],
        tiny_model,
    )
    assert run_batch(batch) == Exported(6, 6)
    ids = [line["id"] for line in (*lines_of(batch.out), *lines_of(batch.errors))]
    assert len(set(ids)) == len(ids) == 12
    return batch


def body_of(batch: BatchRun, name: str) -> Any:
    line = by_id(batch.out)[name]
    assert (line["response"]["status_code"], line["error"]) == (200, None)
    return line["response"]["body"]


def test_chats_are_what_the_official_client_reads(answered: BatchRun) -> None:
    for name in ("greedy", "many", "tools"):
        chat = parse_chat(body_of(answered, name))
        usage = chat.usage
        assert usage is not None
        assert usage.completion_tokens == 4
        assert usage.total_tokens == usage.prompt_tokens + 4
        assert usage.prompt_tokens_details is not None
        assert chat.choices[0].finish_reason == "length"
    logprobs = parse_chat(body_of(answered, "many")).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [len(token.top_logprobs) for token in logprobs.content] == [2] * 4


def test_several_choices_are_what_the_official_client_reads(answered: BatchRun) -> None:
    chat = parse_chat(body_of(answered, "three"))
    assert [choice.index for choice in chat.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in chat.choices}) > 1
    for choice in chat.choices:
        assert choice.logprobs is not None
        assert len(choice.logprobs.content or []) == 2
        assert "".join(token.token for token in choice.logprobs.content or []) == choice.message.content
    assert chat.usage is not None
    assert chat.usage.completion_tokens == 6


def test_completions_are_what_the_official_client_reads(answered: BatchRun) -> None:
    from openai.types import Completion

    text = Completion.model_validate(body_of(answered, "text"), strict=True).choices[0]
    assert text.logprobs is not None
    assert "".join(text.logprobs.tokens or []) == text.text
    assert text.logprobs.text_offset == [sum(map(len, (text.logprobs.tokens or [])[:i])) for i in range(3)]
    two = Completion.model_validate(body_of(answered, "two"), strict=True)
    assert [choice.index for choice in two.choices] == [0, 1]
    assert two.choices[0].text == f"One two{text.text}"


def test_errors_are_what_the_official_client_reads(answered: BatchRun) -> None:
    from openai.types.batch_error import BatchError

    errors = {line["error"]["line"]: line for line in lines_of(answered.errors)}
    wanted = {
        7: ("image", "bad_messages", None),
        8: ("warm", "invalid_value", "temperature"),
        9: ("long", "context_length_exceeded", None),
        10: (None, "invalid_json_line", None),
        11: ("greedy", "duplicate_custom_id", "custom_id"),
        12: ("copies", "invalid_value", "n"),
    }
    for number, (custom_id, code, param) in wanted.items():
        line = errors[number]
        error = BatchError.model_validate(line["error"], strict=True)
        assert (line["custom_id"], error.code, error.param) == (custom_id, code, param)
        assert line["response"]["body"]["error"]["message"] == error.message
        assert line["response"]["status_code"] == 400


def test_an_echo_has_the_prompts_log_probabilities(tmp_path: Path, tiny_model: Path) -> None:
    """Those of transformers' forward; the first token follows nothing."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = "One two three"
    lines = [
        request("scored", COMPLETIONS, prompt=text, echo=True, logprobs=1, max_tokens=0),
        request("more", COMPLETIONS, prompt=text, echo=True, logprobs=1, max_tokens=2, temperature=0),
        request("plain", COMPLETIONS, prompt=text, logprobs=1, max_tokens=2, temperature=0),
    ]
    batch = batch_of(tmp_path, lines, tiny_model)
    assert run_batch(batch) == Exported(3, 0)
    found = {name: line["response"]["body"]["choices"][0] for name, line in by_id(batch.out).items()}
    ids = AutoTokenizer.from_pretrained(tiny_model)(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)(ids).logits[0]
    wanted = logits.log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[:, 0].tolist()
    scored, more, plain = found["scored"], found["more"], found["plain"]
    assert scored["text"] == "".join(scored["logprobs"]["tokens"]) == text
    assert scored["logprobs"]["token_logprobs"][0] is None
    assert scored["logprobs"]["token_logprobs"][1:] == pytest.approx(wanted, abs=1e-3)
    assert more["text"] == text + plain["text"]
    for name in ("tokens", "token_logprobs", "top_logprobs"):
        assert more["logprobs"][name][len(wanted) + 1 :] == plain["logprobs"][name]
    assert plain["logprobs"]["text_offset"] == [0, len(plain["logprobs"]["tokens"][0])]
    assert more["logprobs"]["text_offset"][len(wanted) + 1] == len(text)


def test_structures_and_wanted_calls(tmp_path: Path, tiny_model: Path) -> None:
    """A random model, so that what is right was forced."""
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    named = {"type": "function", "function": {"name": "f"}}
    response_format = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    lines = [
        request("schema", response_format=response_format, max_tokens=32),
        request("named", tools=tools, tool_choice=named, max_tokens=32),
        request("required", tools=tools, tool_choice="required", max_tokens=64),
        request("choice", COMPLETIONS, prompt="a", structured_outputs={"choice": ["yes", "no"]}, max_tokens=9),
        request("none", response_format={"type": "json_schema", "json_schema": {"schema": {"type": "gone"}}}),
    ]
    batch = batch_of(tmp_path, lines, tiny_model)
    assert run_batch(batch) == Exported(4, 1)
    found = {name: line["response"]["body"] for name, line in by_id(batch.out).items()}
    content = parse_chat(found["schema"]).choices[0].message.content
    assert json.loads(content or "") in ({"a": 1}, {"a": 2})
    for name in ("named", "required"):
        [choice] = parse_chat(found[name]).choices
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
        [call] = choice.message.tool_calls or []
        assert call.type == "function"
        assert call.function.name == "f"
        assert json.loads(call.function.arguments) in ({"a": 1}, {"a": 2})
    assert found["choice"]["choices"][0]["text"] in ("yes", "no")
    [error] = lines_of(batch.errors)
    assert (error["custom_id"], error["error"]["line"]) == ("none", 5)
    assert error["error"]["param"] == "response_format", "and not what a job calls it"
    assert error["error"]["message"] == "response_format: Invalid type: gone"


def test_embeddings(tmp_path: Path, tiny_model: Path) -> None:
    from openai.types import CreateEmbeddingResponse

    lines = [
        request("floats", EMBEDDINGS, input=["a text", "another"]),
        request("bytes", EMBEDDINGS, input="a text", encoding_format="base64"),
        request("short", EMBEDDINGS, input="a text", dimensions=8),
        request("long", EMBEDDINGS, input="a text", dimensions=4096),
    ]
    batch = batch_of(tmp_path, lines, tiny_model)
    assert run_batch(batch) == Exported(3, 1)
    bodies = {name: line["response"]["body"] for name, line in by_id(batch.out).items()}
    found = {name: CreateEmbeddingResponse.model_validate(bodies[name], strict=True) for name in ("floats", "short")}
    vectors = [np.array(one.embedding, np.float32) for one in found["floats"].data]
    assert [len(vector) for vector in vectors] == [64, 64]
    packed = base64.b64decode(bodies["bytes"]["data"][0]["embedding"])
    assert np.array_equal(np.frombuffer(packed, "<f4"), vectors[0])
    short = np.array(found["short"].data[0].embedding)
    assert np.allclose(short, vectors[0][:8] / np.linalg.norm(vectors[0][:8]), atol=1e-6)
    assert found["floats"].usage.prompt_tokens == found["floats"].usage.total_tokens
    [error] = lines_of(batch.errors)
    assert (error["custom_id"], error["error"]["param"]) == ("long", "dimensions")


def test_scores_and_ranks(tmp_path: Path, tiny_model: Path) -> None:
    texts = ["blue", "green", "a long one"]
    lines = [
        request("score", SCORE, text_1="Is it a colour?", text_2=texts),
        request("pairs", SCORE, text_1=["Is it a colour?"] * 3, text_2=texts),
        request("rank", RERANK, query="Is it a colour?", documents=texts, top_n=2),
        request("bad", SCORE, text_1="q", text_2=["a"], labels=[]),
    ]
    batch = batch_of(tmp_path, lines, tiny_model)
    assert run_batch(batch) == Exported(3, 1)
    found = {name: line["response"]["body"] for name, line in by_id(batch.out).items()}
    scores = [one["score"] for one in found["score"]["data"]]
    assert [one["score"] for one in found["pairs"]["data"]] == pytest.approx(scores, abs=1e-6)
    assert all(0 < score < 1 for score in scores)
    best = sorted(range(3), key=lambda index: -scores[index])[:2]
    assert [(one["index"], one["document"]["text"]) for one in found["rank"]["results"]] == [
        (i, texts[i]) for i in best
    ]
    assert [one["relevance_score"] for one in found["rank"]["results"]] == [scores[i] for i in best]
    [error] = lines_of(batch.errors)
    assert (error["custom_id"], error["error"]["code"], error["error"]["param"]) == ("bad", "invalid_value", "labels")


def test_the_same_command_again_scores_nothing_and_writes_the_same(tmp_path: Path, engine: FakeWorkers) -> None:
    lines = [request(f"r{i}", COMPLETIONS, prompt=f"text {i % 3}", temperature=0, max_tokens=4) for i in range(6)]
    batch = batch_of(tmp_path, lines, write_model(tmp_path / "model"))
    assert run_batch(batch) == Exported(6, 0)
    assert len(engine.scored) == 3
    before = batch.out.read_bytes()
    batch.out.unlink()
    assert run_batch(batch) == Exported(6, 0)
    assert len(engine.scored) == 3
    assert batch.out.read_bytes() == before
    batch_of(tmp_path, [*lines, request("new", COMPLETIONS, prompt="new", temperature=0)], tmp_path / "model")
    assert run_batch(batch) == Exported(7, 0)
    assert len(engine.scored) == 4
    assert batch.out.read_bytes().startswith(before)


def test_a_batch_of_faults_alone(tmp_path: Path, engine: FakeWorkers) -> None:
    batch = batch_of(tmp_path, ["{", "", "[]"], write_model(tmp_path / "model"))
    assert run_batch(batch) == Exported(0, 2)
    assert [line["error"]["line"] for line in lines_of(batch.errors)] == [1, 3]
    assert batch.out.read_bytes() == b""


def test_files_that_cannot_be(tmp_path: Path, engine: FakeWorkers) -> None:
    batch = batch_of(tmp_path, [], write_model(tmp_path / "model"))
    with pytest.raises(UserError, match="has no line"):
        run_batch(batch)
    batch.source.unlink()
    with pytest.raises(UserError, match="no such file"):
        batch.check()
    batch = batch_of(tmp_path, [request("a")], tmp_path / "model")
    with pytest.raises(UserError, match="are three files"):
        type(batch)(batch.source, batch.source, batch.errors, batch.model).check()
    with pytest.raises(UserError, match="--errors: no folder"):
        type(batch)(batch.source, batch.out, tmp_path / "nowhere" / "e", batch.model).check()
    with pytest.raises(UserError, match=r"--set source\.id: a batch takes keys of"), batch.prepared():
        batch.job({"source.id": "x"})
    with batch.prepared(), pytest.raises(UserError, match=r"\.run is in use by process \d+"), batch.prepared():
        pass


def test_what_a_killed_run_left_is_taken_away(tmp_path: Path, engine: FakeWorkers) -> None:
    """DuckDB spills into a folder of its own."""
    batch = batch_of(tmp_path, [request("a", COMPLETIONS, prompt="a")], write_model(tmp_path / "model"))
    spill = batch.folder / "staging-x" / "spill"
    spill.mkdir(parents=True)
    (spill / "blocks").touch()
    with batch.prepared():
        assert {path.name for path in batch.folder.iterdir()} == {".lock", "requests.parquet"}


def test_a_line_is_never_read_further_than_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_file, "LONGEST_LINE", 1000)
    path = tmp_path / "in.jsonl.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbfa\n" + b"b" * 5000 + b"\n\n" + b"c" * 999 + b"\nd"))
    assert list(line_file.read_lines(path)) == [(1, b"a\n"), (2, None), (4, b"c" * 999 + b"\n"), (5, b"d")]


def test_lines_become_rows_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python holds of them at once: as much for 4,000 lines as for 1,000."""
    monkeypatch.setattr(request_table, "BATCH_ROWS", 100)
    peaks = []
    for count in (1_000, 4_000):
        source = tmp_path / f"{count}.jsonl"
        with source.open("w") as file:
            for i in range(count):
                line = request(f"r{i}", COMPLETIONS, prompt=f"{i} " + "x" * 500)
                file.write(f"{json.dumps(line)}\n")
        tracemalloc.start()
        request_table.write_table(source, tmp_path / f"{count}.parquet", {"m"})
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0], peaks


def test_rows_become_lines_one_by_one() -> None:
    taken = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal taken
        for taken in range(1, 1001):
            fault = {"code": "c", "message": "m", "param": None}
            yield {"line": taken, "batch_id": None, "request_hash": None, "fault": json.dumps(fault)}

    lines = to_lines(rows(), NoTokens(), "m", "fp")
    for number in range(1, 11):
        assert next(lines)["error"]["line"] == number
        assert taken == number + 1  # the first of the next line, which ends this one
    assert sum(1 for _ in lines) == 990


class NoTokens(TokenTexts):
    def text(self, token_ids: Sequence[int]) -> str:
        raise AssertionError(token_ids)

"""A job's own chat template, in a file."""

from pathlib import Path

import pytest

from engine.errors import UserError
from tasks.job.job_file import load_job, parse_job
from tasks.preview import preview_rows
from tasks.storage.output_folder import OutputFolder
from tasks.storage.run import make_run
from tests.tasks.fakes import job_content

TEMPLATE = "{% for message in messages %}<|im_start|>{{ message.content }}{% endfor %}"


def test_a_file_in_the_place_of_the_models_template(tmp_path: Path, tiny_model: Path) -> None:
    """Found from the job file's folder; what it says counts in which plan is taken up."""
    (tmp_path / "rows.jsonl").write_text('{"text": "a<|im_end|>"}\n')
    (tmp_path / "short.jinja").write_text(TEMPLATE)
    job_file = tmp_path / "job.yaml"
    job_file.write_text(
        f"name: chat\nsource: {{jsonl: rows.jsonl}}\ntask: {{type: generate}}\noutput: {tmp_path}/out\n"
        f"prompt: {{column: text, chat: true, chat_template: short.jinja}}\nmodel: {{path: {tiny_model}}}\n"
        "engine: {device: cpu, kv_cache_memory: 16MiB}\n"
    )
    job = load_job(job_file)
    [preview] = preview_rows(job, 1)
    assert (preview.prompt, preview.tokens) == ("<|im_start|>a<|im_end|>", 9)
    before = make_run(job, OutputFolder(job.output_folder)).fingerprint
    (tmp_path / "short.jinja").write_text(f"{TEMPLATE}!")
    assert make_run(job, OutputFolder(job.output_folder)).fingerprint != before


def test_keys_of_chats_need_a_chat(tmp_path: Path) -> None:
    content = job_content(tmp_path, {"jsonl": "a.jsonl"}, prompt={"column": "text", "tools_column": "t"})
    with pytest.raises(UserError, match="prompt: tools_column belongs to messages, body and chat: true"):
        parse_job(content, "job")
    job = parse_job(job_content(tmp_path, {"jsonl": "a.jsonl"}), "job")
    assert parse_job(job.model_dump(mode="json"), "again") == job


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        ([], "prompt.tools: is empty"),
        ([{"name": "f"}], "prompt.tools: a tool is {type: function"),
        ("f", "prompt.tools: must be a list"),
    ],
)
def test_tools_are_checked_with_the_job(tmp_path: Path, tools: object, said: str) -> None:
    content = job_content(tmp_path, {"jsonl": "a.jsonl"}, prompt={"messages": "m", "tools": tools})
    with pytest.raises(UserError, match=said):
        parse_job(content, "job")

"""Shards commit what they have when their run ends, and nothing after."""

import threading

import pytest

from engine.errors import EngineClosedError
from tasks.run_commits import RunCommits
from tests.tasks.test_shard_gate import started


def test_an_ended_run_lets_a_shard_commit_what_it_has_and_none_after() -> None:
    commits, committed = RunCommits(), list[str]()
    inside, may_commit = threading.Event(), threading.Event()

    def shard() -> None:
        with commits.entered():
            inside.set()
            may_commit.wait(10)
            with commits.committing():
                committed.append("rows")

    thread = started(shard)
    assert inside.wait(10)
    closing = started(commits.close)
    may_commit.set()
    closing.join(10)
    thread.join(10)
    assert committed == ["rows"]
    with pytest.raises(EngineClosedError, match="the run has ended"), commits.committing():
        committed.append("more")

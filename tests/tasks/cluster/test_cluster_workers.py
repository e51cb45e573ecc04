"""Workers of a cluster that is played here: who comes, goes, refuses and does not answer, with nobody's library."""

import time
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path

import pytest

from engine.errors import EngineLostError, UserError
from engine.machine.place import Place
from engine.model.checkpoint import resolve_model
from engine.process.child import Child
from tasks.cluster.asked_model import AskedModel, tell_model
from tasks.cluster.cluster_workers import ClusterWorkers, wait_for_workers
from tests.tasks.engine_process.test_engine_process import CONFIG, assert_equal, wait_for, work
from tests.tasks.fakes import write_model

FAKE = "tests.tasks.engine_process.fake_server"


class Answer:
    """At once, unless somebody holds it back."""

    def __init__(self, tell: Callable[[], bytes | None]) -> None:
        self.tell = tell
        self.is_late = self.cancelled = False

    def done(self) -> bool:
        return not self.is_late

    def cancel(self) -> None:
        self.cancelled = True

    def told(self) -> bytes | None:
        return self.tell()


class PlayedCluster:
    kind = "played worker"
    cure = "play more"

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.answers: dict[str, Answer] = {}
        self.tells: dict[str, Callable[[], bytes | None]] = {}
        self.late: set[str] = set()
        self.children: list[Child] = []

    def known(self) -> Mapping[str, Place]:
        return {name: Place(threads=3) for name in self.names}

    def address(self, seen: str) -> str:
        return seen

    def ask(self, seen: str, path: str) -> Answer:
        self.answers[seen] = Answer(self.tells.get(seen, lambda: tell_model(path)))
        self.answers[seen].is_late = seen in self.late
        return self.answers[seen]

    def start_child(self, seen: str) -> Child:
        self.children.append(Child(FAKE))
        return self.children[-1]


@pytest.fixture(autouse=True)
def own_devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Engines of as many threads as this machine has cores would wait for whoever computes on it."""
    monkeypatch.setenv("TRUNKLINE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOOK_SECONDS", "ANSWER_SECONDS", "SECONDS_TO_FOLLOW"):
        monkeypatch.setattr(f"tasks.cluster.cluster_workers.{name}", 0.02)
    for name in ("SECONDS_TO_JOIN", "SECONDS_TO_TELL"):
        monkeypatch.setattr(f"tasks.cluster.cluster_workers.{name}", 0.2)


@pytest.fixture
def model(tmp_path: Path) -> AskedModel:
    folder = str(write_model(tmp_path / "fine"))
    return AskedModel(folder, resolve_model(folder))


@pytest.fixture
def cluster() -> PlayedCluster:
    return PlayedCluster("a", "b")


@pytest.fixture
def workers(cluster: PlayedCluster, model: AskedModel) -> Iterator[ClusterWorkers[str]]:
    with ClusterWorkers(cluster, model, CONFIG) as made:
        yield made


def labels(workers: ClusterWorkers[str]) -> list[str]:
    time.sleep(0.03)
    return [worker.label for worker in workers.each()]


def refuses() -> bytes:
    raise UserError("runner: it cannot be asked")


def test_a_member_for_each_that_is_there(workers: ClusterWorkers[str]) -> None:
    first, _ = workers.each()
    assert labels(workers) == ["the played worker a", "the played worker b"]
    assert_equal(first.submit(work(5)).result(10), work(5).requests)


def test_who_comes_late_joins_once_it_has_told(workers: ClusterWorkers[str], cluster: PlayedCluster) -> None:
    cluster.late.add("c")
    cluster.names.append("c")
    assert labels(workers) == ["the played worker a", "the played worker b"]
    cluster.answers["c"].is_late = False
    wait_for(lambda: len(labels(workers)) == 3)


def test_who_goes_is_a_member_no_more_and_starts_nothing(workers: ClusterWorkers[str], cluster: PlayedCluster) -> None:
    first, _ = workers.each()
    cluster.names.remove("a")
    with pytest.raises(EngineLostError, match=r"^the played worker a starts no engine: it is gone$"):
        first.submit(work(1))
    assert labels(workers) == ["the played worker b"]
    assert cluster.children == []


def test_who_was_not_seen_once_is_another_member_when_it_is_seen_again(
    workers: ClusterWorkers[str], cluster: PlayedCluster
) -> None:
    """A cluster that does not answer knows nobody; a run gives a member nothing more that was lost."""
    first, second = workers.each()
    names, cluster.names = cluster.names, []
    for _ in range(2):
        with pytest.raises(EngineLostError, match=r"^the played worker a starts no engine: it is gone$"):
            first.submit(work(1))
        cluster.names = names
    wait_for(lambda: len(labels(workers)) == 2 and first not in workers.each())
    again, other = workers.each()
    assert (again.label, other) == (first.label, second)
    assert_equal(again.submit(work(2)).result(10), work(2).requests)
    assert len(cluster.children) == 1


def test_who_goes_before_it_has_told_is_not_waited_for(workers: ClusterWorkers[str], cluster: PlayedCluster) -> None:
    cluster.late.add("c")
    cluster.names.append("c")
    labels(workers)
    cluster.names.remove("c")
    labels(workers)
    assert cluster.answers["c"].cancelled


def test_who_went_while_it_was_asked_is_asked_again(workers: ClusterWorkers[str], cluster: PlayedCluster) -> None:
    cluster.tells["c"] = lambda: None
    cluster.names.append("c")
    assert len(labels(workers)) == 2
    del cluster.tells["c"]
    wait_for(lambda: len(labels(workers)) == 3)


def test_who_joins_and_refuses_is_left_alone(
    workers: ClusterWorkers[str], cluster: PlayedCluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.tells["c"] = refuses
    cluster.names.append("c")
    labels(workers)
    labels(workers)
    assert labels(workers) == ["the played worker a", "the played worker b"]
    assert caplog.messages == ["a played worker that joined is not asked for anything: runner: it cannot be asked"]
    assert cluster.answers["c"].cancelled


def test_a_refusal_at_the_beginning_ends_the_run(cluster: PlayedCluster, model: AskedModel) -> None:
    cluster.tells["b"] = refuses
    with pytest.raises(UserError, match=r"^runner: it cannot be asked$"):
        ClusterWorkers(cluster, model, CONFIG)


def test_where_nobody_answers(cluster: PlayedCluster, model: AskedModel) -> None:
    cluster.late = {"a", "b"}
    with pytest.raises(UserError, match=r"^runner: no played worker answers when it is asked for the model"):
        ClusterWorkers(cluster, model, CONFIG)


def test_a_look_that_fails_takes_no_question_back(
    cluster: PlayedCluster, model: AskedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are asked, nobody is seen twice, with and without an answer, and they are there again."""
    there, looks = cluster.known, count(1)
    cluster.late = {"a", "b"}

    def known() -> Mapping[str, Place]:
        look = next(looks)
        for name in cluster.names if look == 2 else ():
            cluster.answers[name].is_late = False
        return {} if look in (2, 3) else there()

    monkeypatch.setattr(cluster, "known", known)
    with ClusterWorkers(cluster, model, CONFIG) as workers:
        assert labels(workers) == ["the played worker a", "the played worker b"]
    assert not any(answer.cancelled for answer in cluster.answers.values())


def test_who_all_went_while_they_were_asked_are_not_waited_for_as_who_tell(
    cluster: PlayedCluster, model: AskedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.cluster.cluster_workers.SECONDS_TO_TELL", 120.0)
    cluster.late = {"a", "b"}
    looks = iter([cluster.known()])
    monkeypatch.setattr(cluster, "known", lambda: next(looks, {}))
    began = time.monotonic()
    with pytest.raises(UserError, match=r"^runner: no played worker answers when it is asked for the model"):
        ClusterWorkers(cluster, model, CONFIG)
    assert time.monotonic() - began < 60


def test_nobody_waits_for_the_slower_one(cluster: PlayedCluster, model: AskedModel) -> None:
    cluster.late = {"b"}
    with ClusterWorkers(cluster, model, CONFIG) as workers:
        assert labels(workers) == ["the played worker a"]


def test_where_fewer_join_than_were_asked_for(cluster: PlayedCluster) -> None:
    wait_for_workers(cluster, 2)
    said = r"^runner: 2 of 9 played workers joined in 0\.2 s; play more, or ask for fewer with engine\.workers$"
    with pytest.raises(UserError, match=said):
        wait_for_workers(cluster, 9)


def test_who_comes_again_has_the_place_of_the_one_that_went(
    cluster: PlayedCluster, model: AskedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Place] = []

    class Watched(ClusterWorkers[str]):
        def _place(self, seen: str, there: Place) -> Place:
            taken.append(super()._place(seen, there))
            return taken[-1]

    own = Place((0,), 1), Place((1,), 1)
    with Watched(cluster, model, CONFIG, own) as workers:
        cluster.names[0] = "c"
        wait_for(lambda: labels(workers) == ["the played worker c", "the played worker b"])
        names, cluster.names = cluster.names, []
        assert labels(workers) == []
        cluster.names = [*names, "d"]
        wait_for(lambda: len(labels(workers)) == 3)
    assert taken == [*own, own[0], Place(threads=3)]

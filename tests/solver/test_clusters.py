"""Solves on clusters: the same answers as here, whatever becomes of the cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from reference import random_batch, random_feasible, random_starts

from qubo_prune.errors import InputError
from qubo_prune.request import PruneRequest
from qubo_prune.run.plan import Plan
from qubo_prune.solver import BatchRequest, Solver, SolveRequest, SolveResult, Status, clusters, single_answer
from qubo_prune.solver.clusters import Cluster, ClusterLost, WorkerDied, connect, split_name
from qubo_prune.solver.dispatch import Handling, handling_of, parse_workers, solve_batch


class Threads(Cluster):
    """Two threads of this process."""

    def __init__(self, name: str = "threads", good_for: int = 1000, killed: Sequence[int] = ()) -> None:
        super().__init__(name)
        self._pool = ThreadPoolExecutor(2)
        self._good_for, self._killed = good_for, killed
        self.sent: list[Any] = []
        self.ended: list[Any] = []
        self.closed = False

    @property
    def count(self) -> int:
        return 2

    def _threads(self) -> int:
        return 2

    def _submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if len(self.sent) == self._good_for:
            raise ClusterLost("it burnt down")
        self.sent.append(self._pool.submit(function, *arguments, 1))
        return self.sent[-1]

    def _result(self, ticket: Any, seconds: float) -> Any:
        if self.sent.index(ticket) in self._killed:
            raise WorkerDied("for want of memory")
        return ticket.result(seconds)

    def cancel(self, tickets: Sequence[Any], end: Callable[..., Any], *arguments: Any) -> None:
        self.ended = list(tickets)
        for ticket in tickets:
            ticket.cancel()
        end(*arguments)

    def close(self) -> None:
        self.closed = True


@dataclass(frozen=True)
class Drawing(Solver):
    """Draws by the seed."""

    def solve(self, request: SolveRequest, /) -> SolveResult:
        rng = np.random.default_rng(request.seed)
        drawn = [random_feasible(rng, request.problem) for _ in range(5)]
        return single_answer(request.problem, min(drawn, key=request.problem.energy), Status.FEASIBLE)


@pytest.fixture
def request_of_rows(rng: np.random.Generator) -> BatchRequest:
    problems = random_batch(rng, 6, 12, [6])
    return BatchRequest(problems, random_starts(rng, problems), seed=3, row_time_limit=60.0)


def answers(cluster: Cluster | None, rows: BatchRequest) -> Any:
    return solve_batch(Drawing(), rows, Handling(False, workers=2 if cluster else 0, cluster=cluster))


def are_the_same(one: Any, other: Any) -> bool:
    return torch.equal(one.assignments, other.assignments) and one.failures == other.failures


def test_answers_do_not_depend_on_where_they_are_found(request_of_rows: BatchRequest) -> None:
    cluster = Threads()
    away = answers(cluster, request_of_rows)
    assert are_the_same(away, answers(None, request_of_rows))
    assert len(cluster.sent) == 6
    assert away.notes == {}
    assert cluster.ended == []


@pytest.mark.parametrize("good_for", [0, 3])
def test_what_a_lost_cluster_does_not_answer_is_solved_here_and_the_notes_tell(
    request_of_rows: BatchRequest, good_for: int
) -> None:
    cluster = Threads("dask:tcp://moon:1", good_for=good_for)
    answer = answers(cluster, request_of_rows)
    assert are_the_same(answer, answers(None, request_of_rows))
    told = "dask:tcp://moon:1 was lost (it burnt down); the rest was solved on this machine."
    assert set(answer.notes) == {told}
    assert answer.notes[told] >= 6 - good_for
    assert cluster.closed
    # it is not asked again
    assert answers(cluster, request_of_rows).notes == {told: 6}
    assert len(cluster.sent) == good_for


def test_a_task_whose_worker_died_is_sent_again_once(request_of_rows: BatchRequest) -> None:
    plain = answers(None, request_of_rows)
    once = answers(Threads(killed=(1,)), request_of_rows)
    assert are_the_same(once, plain)
    assert once.notes == {"The block was solved again: its process died (for want of memory).": 1}
    never = answers(Threads(killed=range(100)), request_of_rows)
    assert set(never.failures.values()) == {(Status.FAILED, "its process died (for want of memory) twice")}
    assert torch.equal(never.assignments, request_of_rows.warm_start)


def test_an_interrupt_ends_what_the_cluster_is_at(
    request_of_rows: BatchRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Threads()

    def interrupted(ticket: Any, seconds: float) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(cluster, "_result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        solve_batch(Sleeping(), request_of_rows, Handling(False, workers=2, cluster=cluster))
    assert cluster.ended == cluster.sent
    assert len(cluster.sent) == 4
    ended = [ticket.exception(60) for ticket in cluster.sent if not ticket.cancelled()]
    assert {type(error).__name__ for error in ended} == {"CancelledError"}


@dataclass(frozen=True)
class Sleeping(Solver):
    """Until it is ended."""

    def solve(self, request: SolveRequest, /) -> SolveResult:
        threading.Event().wait(1000)
        raise AssertionError


# --- names ------------------------------------------------------------------------------------------


def test_names_of_clusters() -> None:
    assert split_name("dask") == ("dask", "")
    assert split_name("dask:tcp://10.0.0.1:8786") == ("dask", "tcp://10.0.0.1:8786")
    assert split_name("ray:10.0.0.1:6379") == ("ray", "10.0.0.1:6379")
    for other in ("", "2", "local", "dask:", "dusk:tcp://10.0.0.1:8786", "loky", "DASK"):
        assert split_name(other) is None
    with pytest.raises(InputError, match="There is no cluster 'moon'; use dask, dask:ADDRESS, ray, ray:ADDRESS"):
        connect("moon")


def test_workers_are_a_number_or_a_cluster() -> None:
    given = [None, "local", 0, 3, "0", "12", "dask", "dask:tcp://a:1", "ray:b:2"]
    assert [parse_workers(value) for value in given] == [None, None, 0, 3, 0, 12, "dask", "dask:tcp://a:1", "ray:b:2"]
    for bad in (-1, "-1", "", "two", "1.5", "dask:", "loky", "tcp://a:1"):
        said = repr(int(bad) if bad in (-1, "-1") else bad)
        with pytest.raises(InputError, match=f"^workers is {said}; pass a number of processes, .* dask:ADDRESS"):
            parse_workers(bad)


def test_a_cluster_with_nothing_to_do_is_refused_before_it_is_asked() -> None:
    def plan(**settings: Any) -> None:
        given = {"workers": "dask:tcp://moon:1", "loss": "classification", **settings}
        Plan.of(PruneRequest.of(None, (), settings=given))

    with pytest.raises(InputError, match="the solver 'greedy' decides many blocks at once in this process"):
        plan()
    with pytest.raises(InputError, match="blocks of the loss are decided one after another in this process"):
        plan(method="loss", solver="neal")


def test_a_cluster_whose_package_is_missing_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, package in (("distributed", "dask", r"'dask\[distributed\]'"), ("ray", "ray:a:1", "ray")):
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
        with pytest.raises(InputError, match=f"needs one more package: pip install {package}"):
            handling_of(Drawing(), "drawing", name, True)


# --- connections ------------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Threads]:
    """What ``connect`` opens instead of Dask's clusters."""
    made: list[Threads] = []

    def make(name: str, address: str) -> Threads:
        made.append(Threads(name))
        return made[-1]

    monkeypatch.setattr(clusters, "_Dask", make)
    monkeypatch.setattr(clusters, "_open", {})
    return made


def test_a_cluster_is_connected_to_once_and_again_when_it_was_lost(opened: list[Threads]) -> None:
    first = handling_of(Drawing(), "drawing", "dask:tcp://a:1", True)
    assert (first.workers, first.polish) == (2, True)
    assert handling_of(Drawing(), "drawing", "dask:tcp://a:1", False).cluster is first.cluster is opened[0]
    assert connect("dask:tcp://b:1") is opened[1]
    opened[0].lost = "gone"
    assert connect("dask:tcp://a:1") is opened[2]
    assert [cluster.closed for cluster in opened] == [True, False, False]
    clusters._close_all()
    assert all(cluster.closed for cluster in opened)


def test_workers_of_another_kind_are_refused(opened: list[Threads], monkeypatch: pytest.MonkeyPatch) -> None:
    def other(slots: int = 0) -> str:
        # the worker is asked for one task at a time, this process for none
        return f"qubo-prune {slots}.0 on Python 3.11"

    monkeypatch.setattr(clusters, "about", other)
    with pytest.raises(InputError, match=r"workers of dask have qubo-prune 1\.0 .* this process has qubo-prune 0\.0"):
        connect("dask")

    def absent(slots: int = 0) -> str:
        raise ModuleNotFoundError("No module named 'qubo_prune'")

    monkeypatch.setattr(clusters, "about", absent)
    with pytest.raises(InputError, match="install the same version of qubo-prune there"):
        connect("dask")
    assert all(cluster.closed for cluster in opened)


def test_a_cluster_without_workers_is_refused_and_lost_when_they_do_not_come_back(
    opened: list[Threads], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "LOOK", 0.01)
    monkeypatch.setattr(Threads, "_threads", lambda self: 0)
    ready = threading.Event()
    monkeypatch.setattr(clusters, "about", lambda slots: ready.wait(30))
    monkeypatch.setattr(clusters, "ABSENCE", 0.05)
    with pytest.raises(InputError, match=r"No worker of dask has answered .*no worker for 0\.05 seconds"):
        connect("dask")
    assert opened[0].lost == "it has had no worker for 0.05 seconds"
    monkeypatch.setattr(clusters, "ABSENCE", 1000.0)
    monkeypatch.setattr(clusters, "FIRST_ANSWER", 0.1)
    with pytest.raises(InputError, match=r"No worker of dask has answered .0\.1 seconds.; start some"):
        connect("dask")
    ready.set()


# --- a real cluster ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_dask(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What ``on_dask.py`` found out."""
    # apart, since distributed has entry points read by other classes for the rest of the process
    command = [sys.executable, str(Path(__file__).parents[1] / "on_dask.py"), str(tmp_path_factory.mktemp("dask"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


real = pytest.mark.skipif(util.find_spec("distributed") is None, reason="distributed is not installed")


@real
@pytest.mark.slow
def test_masks_are_the_same_on_a_dask_cluster(on_dask: dict[str, Any]) -> None:
    assert on_dask["cluster"]["same"]
    assert on_dask["cluster"]["notes"] == on_dask["local"]["notes"]
    # no process of the machine that asked has solved, and each worker has
    assert on_dask["cluster"]["solvers"] == 2
    assert on_dask["within"]["same"]


@real
@pytest.mark.slow
def test_masks_are_the_same_when_a_worker_of_the_cluster_is_killed_in_mid_run(on_dask: dict[str, Any]) -> None:
    killed = on_dask["killed"]
    assert killed["same"]
    assert 0 < killed["before"] < killed["solves"]
    assert killed["notes"] == on_dask["local"]["notes"]


@real
@pytest.mark.slow
def test_a_solver_that_ignores_its_limit_is_ended_on_a_worker_too(on_dask: dict[str, Any]) -> None:
    assert on_dask["hangs"] == {"statuses": ["OVERRAN"], "count": 4, "details": ["no answer at its time limit"]}
    assert on_dask["dies"]["statuses"] == ["FAILED"]
    assert on_dask["dies"]["details"] == ["its process died (Abnormal termination, exit code -9) twice"]


@real
@pytest.mark.slow
def test_an_interrupt_ends_the_solves_on_the_workers(on_dask: dict[str, Any]) -> None:
    assert on_dask["interrupted"] == {"begun": 2, "left": 0}


@real
@pytest.mark.slow
def test_masks_are_the_same_when_the_cluster_is_lost_in_mid_run_and_the_notes_say_so(on_dask: dict[str, Any]) -> None:
    lost = on_dask["lost"]
    assert lost["same"]
    assert 0 < lost["before"] < lost["solves"]
    # on a busy machine a solve that was under way may be noted, too
    added = set(lost["notes"]) - set(on_dask["local"]["notes"])
    said = "was lost (its scheduler is gone); the rest was solved on this machine."
    assert sum(said in note for note in added) == 1


@real
@pytest.mark.slow
def test_a_cluster_that_cannot_be_reached_is_an_input_error(on_dask: dict[str, Any]) -> None:
    said = on_dask["unreachable"]
    assert said["message"].startswith("The cluster dask:tcp://127.0.0.1:")
    assert "cannot be reached (" in said["message"]
    assert said["message"].count(".") == said["message"].rstrip(".").count(".") + 1
    assert said["seconds"] < 60
    assert said["exit code"] == 2


# --- Ray --------------------------------------------------------------------------------------------


class FakeRay(ModuleType):
    """What is asked of Ray, in this thread; ``get`` raises what it is told to."""

    def __init__(self) -> None:
        super().__init__("ray")
        kinds = ("RayTaskError", "WorkerCrashedError", "OutOfMemoryError", "NodeDiedError")
        base = type("RayError", (Exception,), {})
        errors = {name: type(name, (base,), {"cause": ValueError("too cold")}) for name in kinds}
        late = type("GetTimeoutError", (base, TimeoutError), {})
        self.exceptions = SimpleNamespace(RayError=base, GetTimeoutError=late, **errors)
        self.asked: list[Any] = []
        self.next: list[BaseException] = []

    def is_initialized(self) -> bool:
        return False

    def init(self, **settings: Any) -> None:
        self.asked.append(settings)
        if "moon" in str(settings.get("address")):
            raise ConnectionError("Failed to connect to Ray cluster at moon\nand more")

    def remote(self, function: Callable[..., Any]) -> Any:
        return SimpleNamespace(options=lambda **more: SimpleNamespace(remote=function))

    def get(self, ticket: Any, timeout: float) -> Any:
        if self.next:
            raise self.next.pop(0)
        return ticket

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 3.0}

    def cancel(self, ticket: Any, force: bool) -> None:
        self.asked.append((ticket, force))

    def shutdown(self) -> None:
        self.asked.append("shutdown")


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setattr(clusters, "_open", {})
    return fake


def test_what_ray_raises_is_what_a_cluster_raises(ray: FakeRay) -> None:
    cluster = connect("ray")
    assert ray.asked == [{"address": "local", "include_dashboard": False, "log_to_driver": False}]
    assert cluster.count == 3
    ticket = cluster.submit(lambda number, slots: (number, slots), 7)
    problems = ray.exceptions
    ray.next = [problems.GetTimeoutError()]
    assert cluster.result(ticket) == (7, 1)
    died = (problems.WorkerCrashedError, WorkerDied), (problems.OutOfMemoryError, WorkerDied)
    for kind, raised in ((problems.RayTaskError, ValueError), *died):
        ray.next = [kind()]
        with pytest.raises(raised):
            cluster.result(ticket)
    assert cluster.lost is None
    cluster.cancel([ticket], print)
    assert ray.asked[-1] == (ticket, True)
    ray.next = [problems.NodeDiedError("node 3")]
    with pytest.raises(ClusterLost, match="NodeDiedError: node 3"):
        cluster.result(ticket)
    assert ray.asked[-1] == "shutdown"
    assert cluster.lost == "NodeDiedError: node 3"


def test_a_ray_cluster_that_cannot_be_reached_is_an_input_error(ray: FakeRay) -> None:
    with pytest.raises(InputError, match=r"^The cluster ray:moon:1 cannot be reached .Failed .* at moon.; give"):
        connect("ray:moon:1")


ON_RAY = """
import sys
import on_dask
from qubo_prune.solver import clusters
from pathlib import Path

trial = on_dask.Trial(Path(sys.argv[1]))
assert trial.run(2)["solvers"] == 1
away = trial.run("ray")
assert away["same"] and away["solvers"] > 1, away
"""


@pytest.mark.skipif(util.find_spec("ray") is None, reason="ray is not installed")
@pytest.mark.slow
def test_masks_are_the_same_on_a_ray_cluster(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    command = [sys.executable, "-c", ON_RAY, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr

"""Clusters that work can be sent to, by the names that joblib has for them: Dask's and Ray's.

``dask:ADDRESS`` and ``ray:ADDRESS`` are clusters that run; ``dask`` and ``ray`` start one on this machine (Ray's
listens to the network, to whoever has its token). A connection is opened once and stays until the interpreter ends,
or until it is lost.
"""

from __future__ import annotations

import abc
import atexit
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from typing import Any

from qubo_prune.errors import InputError, did_you_mean
from qubo_prune.solver.imports import Imports

#: The kinds of clusters: the module that each needs, and what to install for it.
PACKAGES = {"dask": ("distributed", "'dask[distributed]'"), "ray": ("ray", "ray")}
#: Seconds to reach a cluster, for a worker to answer at first, and for one to come back when all are gone.
REACHING, FIRST_ANSWER, ABSENCE = 10.0, 60.0, 30.0
#: Seconds between looks at a cluster that has not answered.
LOOK = 2.0


class ClusterLost(Exception):
    """The cluster cannot be asked any more."""


class WorkerDied(Exception):
    """The cluster gave a task up, since the workers that it was given to died."""


def split_name(text: str) -> tuple[str, str] | None:
    """Kind and address, which may be empty, of a cluster's name; ``None`` if it names none."""
    kind, colon, address = text.partition(":")
    return None if kind not in PACKAGES or (colon and not address) else (kind, address)


class Cluster(abc.ABC):
    """A connection to processes elsewhere, which have this package too.

    Attributes:
        name: as it was given.
        lost: why it cannot be asked any more; ``None`` while it can.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.lost: str | None = None

    @property
    @abc.abstractmethod
    def count(self) -> int:
        """How many tasks it works on at a time, as of now; at least 1."""

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Start ``function(*arguments, slots)`` on a worker; ``slots`` is how many tasks it has at a time, at most.

        Returns a ticket for :meth:`result`.

        Raises:
            ClusterLost: it cannot be asked.
        """
        with self._marked():
            return self._submit(function, *arguments)

    def result(self, ticket: Any, seconds: float | None = None) -> Any:
        """Wait for what a task returns, or raise what it raised.

        Raises:
            ClusterLost: the cluster, or the way to it, is gone, or it has had no worker for :data:`ABSENCE` seconds.
            WorkerDied: the workers that had it died, one after another.
            TimeoutError: no answer within so many seconds.
        """
        end, absent = None if seconds is None else time.monotonic() + seconds, None
        with self._marked():
            while True:
                with suppress(TimeoutError):
                    return self._result(ticket, LOOK)
                now = time.monotonic()
                absent = None if self._threads() else absent or now
                if absent is not None and now - absent > ABSENCE:
                    raise ClusterLost(f"it has had no worker for {ABSENCE:g} seconds")
                if end is not None and now > end:
                    raise TimeoutError

    @contextmanager
    def _marked(self) -> Iterator[None]:
        """Remember it if the cluster is lost."""
        if self.lost is not None:
            raise ClusterLost(self.lost)
        try:
            yield
        except ClusterLost as error:
            self.lost = str(error)
            with suppress(Exception):  # it would try to connect again and again
                self.close()
            raise

    @abc.abstractmethod
    def cancel(self, tickets: Sequence[Any], end: Callable[..., Any], *arguments: Any) -> None:
        """Give tasks up; ``end(*arguments)`` is called where some may be at work."""

    @abc.abstractmethod
    def close(self) -> None:
        """End the connection, and what was started for it."""

    @abc.abstractmethod
    def _submit(self, function: Callable[..., Any], *arguments: Any) -> Any: ...

    @abc.abstractmethod
    def _result(self, ticket: Any, seconds: float) -> Any: ...

    @abc.abstractmethod
    def _threads(self) -> int:
        """How many tasks its workers can have at a time now."""


class _Dask(Cluster):
    """A Dask cluster, or threads of this process that make one."""

    def __init__(self, name: str, address: str) -> None:
        super().__init__(name)
        own = {"processes": False, "n_workers": 1, "threads_per_worker": os.cpu_count() or 1}
        self._client = dask_client(name, address, {} if address else own, set_as_default=False)

    @property
    def count(self) -> int:
        with suppress(ClusterLost):  # whoever waits for an answer is told
            return max(1, self._threads())
        return 1

    def _threads(self) -> int:
        with _lost_if(OSError, RuntimeError, TimeoutError):
            return sum(self._client.nthreads().values())

    def _submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        with _lost_if(OSError, RuntimeError):
            return self._client.submit(_on_dask, function, *arguments, pure=False)

    def _result(self, ticket: Any, seconds: float) -> Any:
        from distributed import KilledWorker

        try:
            return ticket.result(timeout=seconds)
        except CancelledError as error:
            raise ClusterLost("its scheduler is gone") from error
        except KilledWorker as error:
            raise WorkerDied("workers of the cluster died") from error

    def cancel(self, tickets: Sequence[Any], end: Callable[..., Any], *arguments: Any) -> None:
        with suppress(OSError, RuntimeError, TimeoutError):
            self._client.cancel(list(tickets))
            # what a worker has begun goes on there unless it is ended
            self._client.run(end, *arguments, on_error="ignore")

    def close(self) -> None:
        self._client.close(timeout=5)


def _on_dask(function: Callable[..., Any], *arguments: Any) -> Any:
    """In a worker of Dask."""
    from distributed import get_worker

    process = multiprocessing.current_process()
    if process.daemon:
        # a worker is a daemon of its nanny, which may have no children; ours see themselves when it is gone
        process._config["daemon"] = False  # type: ignore[attr-defined]
    return function(*arguments, get_worker().state.nthreads)


class _Ray(Cluster):
    """A Ray cluster."""

    def __init__(self, name: str, address: str) -> None:
        super().__init__(name)
        self._ray, self._own = _ray_at(name, address)

    @property
    def count(self) -> int:
        with suppress(ClusterLost):
            return max(1, self._threads())
        return 1

    def _threads(self) -> int:
        with _lost_if(ConnectionError, self._ray.exceptions.RayError):
            return int(self._ray.cluster_resources().get("CPU", 0))

    def _submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        with _lost_if(ConnectionError, self._ray.exceptions.RayError):
            return self._ray.remote(function).options(num_cpus=1, max_retries=2).remote(*arguments, 1)

    def _result(self, ticket: Any, seconds: float) -> Any:
        problems = self._ray.exceptions
        try:
            return self._ray.get(ticket, timeout=seconds)
        except problems.RayTaskError as error:
            raise error.cause from error
        except (problems.WorkerCrashedError, problems.OutOfMemoryError) as error:
            raise WorkerDied("workers of the cluster died") from error
        except problems.GetTimeoutError as error:
            raise TimeoutError from error
        except (ConnectionError, problems.RayError) as error:
            raise ClusterLost(f"{type(error).__name__}: {_first_line(error)}") from error

    def cancel(self, tickets: Sequence[Any], end: Callable[..., Any], *arguments: Any) -> None:
        with suppress(ConnectionError, self._ray.exceptions.RayError):
            for ticket in tickets:
                # its process, and with it those that it has started
                self._ray.cancel(ticket, force=True)

    def close(self) -> None:
        if self._own:
            self._ray.shutdown()


@contextmanager
def _lost_if(*errors: type[BaseException]) -> Iterator[None]:
    """Some errors mean that the cluster is gone."""
    try:
        yield
    except errors as error:
        raise ClusterLost(f"{type(error).__name__}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]


@contextmanager
def _installed(kind: str) -> Iterator[None]:
    """:class:`InputError` with what to install, if it is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in ("dask", "distributed", "ray"):
            raise
        raise InputError(f"The back-end {kind!r} needs one more package: pip install {PACKAGES[kind][1]}.") from None


def dask_client(name: str, address: str, own: dict[str, Any], set_as_default: bool = True) -> Any:
    """A client of the Dask cluster at an address, or of ``own`` where that is empty.

    Raises:
        InputError: the package is missing, or nothing answers there.
    """
    with _installed("dask"):
        from distributed import Client

        if not address:
            # by default they listen to the whole network
            pages = {"dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0"}
            return Client(**own, **pages, set_as_default=set_as_default)
        try:
            return Client(address, timeout=REACHING, set_as_default=set_as_default)
        except (OSError, ValueError, TimeoutError) as error:
            raise _unreachable(name, error) from error


def _ray_at(name: str, address: str) -> tuple[Any, bool]:
    """Ray, connected to the cluster at an address or to one of its own; and whether this did it."""
    with _installed("ray"):
        import ray

        if ray.is_initialized():
            return ray, False
        try:
            ray.init(
                address=address or "local", log_to_driver=False, **({} if address else {"include_dashboard": False})
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise _unreachable(name, error) from error
        return ray, True


def _unreachable(name: str, error: BaseException) -> InputError:
    return InputError(
        f"The cluster {name} cannot be reached ({_first_line(error)}); give the address that its scheduler listens at, "
        "or a number of processes of this machine."
    )


_open: dict[str, Cluster] = {}


def connect(name: str) -> Cluster:
    """The cluster of that name, whose workers can do what this process can; the same as before unless it was lost.

    Raises:
        InputError: it cannot be reached, has no worker, or they have another version of this package or of Python.
    """
    if name in _open and _open[name].lost is None:
        return _open[name]
    named = split_name(name)
    if named is None:
        raise InputError(f"There is no cluster {name!r}; use {', '.join(_spellings())}.")
    _close(name)
    opened = (_Dask if named[0] == "dask" else _Ray)(name, named[1])
    try:
        _check_worker(opened)
    except BaseException:
        with suppress(Exception):  # one that was lost meanwhile is closed
            opened.close()
        raise
    _open[name] = opened
    return opened


def _spellings() -> list[str]:
    return [text for kind in PACKAGES for text in (kind, f"{kind}:ADDRESS")]


def _check_worker(cluster: Cluster) -> None:
    try:
        there = cluster.result(cluster.submit(about), FIRST_ANSWER)
    except (ClusterLost, TimeoutError) as error:
        raise InputError(
            f"No worker of {cluster.name} has answered ({_first_line(error) or f'{FIRST_ANSWER:g} seconds'}); start "
            "some, or give workers a number of processes of this machine."
        ) from error
    except Exception as error:  # whatever a worker says that cannot import what it is sent
        raise InputError(
            f"The workers of {cluster.name} cannot do it ({type(error).__name__}: {_first_line(error)}); install the "
            "same version of qubo-prune there as here."
        ) from error
    if there != about():
        raise InputError(
            f"The workers of {cluster.name} have {there} and this process has {about()}; give them the same."
        )


def about(slots: int = 1) -> str:
    """What has to be the same here and there."""
    from qubo_prune.version import __version__

    return f"qubo-prune {__version__} on Python {'.'.join(platform.python_version_tuple()[:2])}"


@atexit.register
def _close_all() -> None:
    for name in list(_open):
        _close(name)


def _close(name: str) -> None:
    if name in _open:
        with suppress(Exception):  # one that is gone cannot be told
            _open.pop(name).close()


@contextmanager
def joblib_backend(text: str, workers: int, others: Iterable[str] = ()) -> Iterator[None]:
    """joblib's back-end of that name, so many tasks at a time.

    Args:
        text: the name of a cluster, or one of ``others``.
        workers: how many tasks at a time.
        others: what is allowed besides.

    Raises:
        InputError: there is none of that name, its package is missing, or it cannot be reached.
    """
    import joblib

    named = split_name(text)
    if text in others:
        # processes that were started before, by any other user of joblib, may import other code
        same = {"initializer": Imports.apply, "initargs": (Imports(),)} if text == "loky" else {}
        with joblib.parallel_config(text, n_jobs=workers, **same):
            yield
    elif named is None:
        *first, last = [*others, *_spellings()]
        near = did_you_mean(text, [*first, last])
        raise InputError(f"There is no back-end {text!r}{near}; use {', '.join(first)} or {last}.")
    elif named[0] == "dask":
        # a cluster of our own has one thread for each task
        own = {"n_workers": workers, "threads_per_worker": 1}
        with dask_client(text, named[1], own), joblib.parallel_config("dask", n_jobs=workers):
            yield
    else:
        _ray_at(text, named[1])
        from ray.util.joblib import register_ray

        register_ray()
        with joblib.parallel_config("ray", n_jobs=workers):
            yield

"""Makes a suite: emits its problems from the real models, searches, and proves what can be proven."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from qubo_prune.arguments import as_limit, as_names
from qubo_prune.bench.emitted import Emitted, compensated_block, fisher_blocks, gram_block
from qubo_prune.bench.instances import Captured
from qubo_prune.bench.origins import ORIGINS, Origin
from qubo_prune.bench.suite import FORMAT, MANIFEST, Instance, Suite, sha256
from qubo_prune.bench.suites import SUITES, VERSION, Effort, Family, definition, part_of, suite_effort, suite_families
from qubo_prune.choices import BOUNDS, FORMATS
from qubo_prune.errors import InputError, did_you_mean
from qubo_prune.files.cache import user_cache
from qubo_prune.files.outputs import check_added, list_files
from qubo_prune.files.parsing import strict_json
from qubo_prune.formats.text import write_problem
from qubo_prune.precision import pinned
from qubo_prune.problem.bounds import check_kind, lower_bounds
from qubo_prune.problem.qubo import BlockQubo, FactorForm
from qubo_prune.progress import Progress
from qubo_prune.ranks import check_alone
from qubo_prune.report.report import machine, versions
from qubo_prune.solver.dispatch import solve
from qubo_prune.solver.interface import SolveResult, Status

#: Variables up to which a kind of bound is tried: the factor analysis of a Gram of 1536 takes minutes and brings
#: nothing, and where Q has a low rank, as beyond that, no shift is left to find. Kinds that are not here are tried only
#: where they are asked for.
_AFFORDABLE: Mapping[str, int] = {"plain": 2**31, "eigenvalue": 1536, "trace": 1024, "row": 576, "semidefinite": 576}
#: Variables up to which the searches are long.
_SEARCHED = 1536
#: Share of the best known energy below which a gap is but rounding, and no further kind of bound is tried.
_TIGHT = 1e-9
#: ``exact`` takes no larger ones.
_PROVABLE = 512
#: What is known of the instances while a suite is made.
_NOTEBOOK = ".making.jsonl"


def load_suite(
    name: str = "standard",
    *,
    families: str | Sequence[str] | None = None,
    sizes: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> Suite:
    """A suite from the cache of the user; what is not there yet of what is asked for is made first, and nothing else.

    A suite stands in ``suites/NAME-DIGEST`` of :func:`~qubo_prune.files.cache.user_cache`, where the digest is that of
    its definition, so it is made anew only when that changes. Such as
    ``for instance, problem in load_suite("smoke").problems(): ...``.

    Args:
        name: one of :data:`~qubo_prune.bench.suites.SUITES`, or the folder of a suite.
        families: names of families or of instances; all if left out.
        sizes: n; all if left out.
        progress: where to report to while something is made; by default to a terminal or a notebook.

    Returns:
        The suite with what was asked for alone.

    Raises:
        InputError: there is no such suite, it has nothing of what is asked for, or a model's package is not installed.
    """
    names = None if families is None else list(as_names("families", families))
    if name not in SUITES:
        if not (Path(name) / MANIFEST).is_file():
            suite_families(name)  # says that there is none
        return Suite.read(name).part(names, sizes)
    wanted, effort, bars = suite_families(name), suite_effort(name), progress or Progress(True)
    chosen = [entry for family in part_of(name, wanted, names, sizes) for entry in family.instances]
    folder = user_cache() / "suites" / f"{name}-{definition(wanted, effort)}"
    known = _known(folder)
    if not set(chosen) <= known:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder, bars):
            missing = [entry for entry in chosen if entry not in _known(folder)]
            if missing:
                bars.say(f"Making {len(missing)} problems of the suite {name!r} in {folder}, once.")
                make_suite(folder, name, families=missing, progress=bars)
    return Suite.read(folder).part(chosen)


def _known(folder: Path) -> set[str]:
    """Names of the instances that stand in a folder, with their files."""
    if not (folder / MANIFEST).is_file():
        return set()
    return {instance.name for instance in Suite.read(folder).instances if (folder / instance.file).is_file()}


@contextmanager
def _alone(folder: Path, bars: Progress) -> Iterator[None]:
    """One process at a time makes what belongs into a folder; the others wait."""
    # the system takes the lock back when the process ends, however it ends
    lock = filelock.FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        bars.say(f"Another process makes {folder}; waiting for it.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@pinned()
def make_suite(
    folder: str | Path,
    name: str = "standard",
    *,
    families: str | Sequence[str] | None = None,
    sizes: Sequence[int] | None = None,
    proof_time: float | str | None = None,
    bounds: str | Sequence[str] | None = None,
    formats: str | Sequence[str] = ("json",),
    progress: Progress | None = None,
) -> Suite:
    """Emit a suite's problems into a folder, with what is known of each; goes on where an earlier call was stopped.

    The problems follow from the suite's version alone (to the rounding of the machine's linear algebra); bounds and
    proofs also from the time they are given, and may be better elsewhere. Other parts of the same suite that are in
    the folder stay, if they were made with the same settings.

    Args:
        folder: made if need be; files of an earlier call are replaced.
        name: one of :data:`~qubo_prune.bench.suites.SUITES`.
        families: names of families or of instances; all if left out.
        sizes: n; all if left out.
        proof_time: seconds for the branch and bound of each instance, also as text such as ``"10s"``; the suite's own
            if left out.
        bounds: kinds of certified bounds (:data:`~qubo_prune.choices.BOUNDS`), tried in order of their cost, of which
            the best one counts; the suite's own if left out, which are those that the size allows.
        formats: of the problem files, ``json`` among them.
        progress: where to report to.

    Raises:
        InputError: there is no such suite, family, bound or format, a model's package is not installed, or files of
            the same names are in the folder that no earlier call wrote.
    """
    check_alone("make the same suite")
    wanted, effort = suite_families(name), suite_effort(name)
    names = None if families is None else list(as_names("families", families))
    kinds = effort.bounds if bounds is None else as_names("bounds", bounds)
    bars = progress or Progress()
    return make(
        folder,
        name,
        part_of(name, wanted, names, sizes),
        _origins(part_of(name, wanted, names, sizes), bars),
        whole=wanted,
        proof_time=as_limit("proof_time", proof_time) or effort.proof_time,
        bounds=kinds,
        formats=formats,
        progress=bars,
    )


def _origins(wanted: Iterable[Family], bars: Progress) -> Iterator[Origin]:
    """The models one after another: only one is held at a time."""
    for name in dict.fromkeys(family.origin for family in wanted):
        with bars.task(f"loading {name}", None):
            origin = ORIGINS[name]()
        yield origin


def make(
    folder: str | Path,
    name: str,
    wanted: Sequence[Family],
    origins: Iterable[Origin],
    *,
    whole: Sequence[Family] | None = None,
    proof_time: float = 10.0,
    bounds: str | Sequence[str] = (),
    formats: str | Sequence[str] = ("json",),
    progress: Progress | None = None,
) -> Suite:
    """:func:`make_suite` for any families of any models; ``whole`` are those of the suite that they are a part of."""
    proof_time = as_limit("proof_time", proof_time) or 0.0
    formats, effort = _checked_formats(formats), Effort(proof_time, _checked_bounds(bounds))
    files = [f"{entry}.{format}" for family in wanted for entry in family.instances for format in formats]
    files += [MANIFEST, "README.md", _NOTEBOOK]
    target, bars = check_added(folder, files, (MANIFEST, FORMAT)), progress or Progress()
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder {str(folder)!r} cannot be made: {error.strerror}.") from error
    list_files(target, files)
    defined = definition(whole or wanted, effort)
    notebook = _Notebook(target, {"definition": defined})
    described, instances = _made(target, wanted, origins, effort, formats, notebook, bars)
    made = {
        "date": str(date.today()),
        "machine": machine(),
        "versions": versions(),
        "proof_time": proof_time,
        "bounds": list(effort.bounds),
        "definition": defined,
    }
    suite = Suite(target, name, VERSION, tuple(described), tuple(instances), made)
    suite = _with_earlier(suite, whole or wanted)
    suite.save()
    notebook.remove()
    return suite


def _checked_formats(formats: str | Sequence[str]) -> tuple[str, ...]:
    names = tuple(as_names("formats", formats))
    unknown = [format for format in names if format not in FORMATS]
    if unknown or "json" not in names:
        near = "".join(did_you_mean(each, FORMATS) for each in unknown)
        raise InputError(
            f"The formats are {', '.join(names)}{near}; give json, and any others of {', '.join(FORMATS)} beside it."
        )
    return names


def _checked_bounds(bounds: str | Sequence[str]) -> tuple[str, ...]:
    """Kinds of bounds in the order of their cost."""
    names = tuple(as_names("bounds", bounds))
    for kind in names:
        check_kind(kind)
    return tuple(kind for kind in BOUNDS if kind in names)


def _made(
    target: Path,
    wanted: Sequence[Family],
    origins: Iterable[Origin],
    effort: Effort,
    formats: Sequence[str],
    notebook: _Notebook,
    bars: Progress,
) -> tuple[list[dict[str, Any]], list[Instance]]:
    """The families, described, and their instances, whose files are written."""
    described: list[dict[str, Any]] = []
    instances: list[Instance] = []
    with bars.task("instances", sum(len(family.instances) for family in wanted)) as advance:
        for origin in origins:
            own = [family for family in wanted if family.origin == origin.name]
            origin.read_grams(list(dict.fromkeys(family.layer for family in own)), bars)
            for family in own:
                described.append(_described(family, origin))
                for n, density, emitted in _emit(family, origin):
                    entry = family.instance(n, density)
                    digest = _write(emitted.problem, target, entry, formats)
                    instance = notebook.known(entry, digest)
                    if instance is None:
                        instance = _searched(entry, digest, family, origin, density, emitted, effort)
                        notebook.add(instance)
                    instances.append(instance)
                    advance(1, entry)
    return described, instances


def _with_earlier(suite: Suite, whole: Sequence[Family]) -> Suite:
    """With the other parts of the same suite that are in the folder, in the order of the families."""
    if (suite.folder / MANIFEST).is_file():
        with suppress(InputError):  # of an earlier version, or another suite: it is replaced
            earlier = Suite.read(suite.folder)
            made = {instance.name for instance in suite.instances}
            left = tuple(i for i in earlier.instances if i.name not in made and (suite.folder / i.file).is_file())
            if earlier.definition == suite.definition:
                suite = suite.joined(replace(earlier, instances=left))
    order = [entry for family in whole for entry in family.instances]
    instances = sorted(suite.instances, key=lambda instance: order.index(instance.name))
    return replace(suite, instances=tuple(instances))


class _Notebook:
    """What is known already of a suite that is being made, so that a stopped command goes on where it was.

    One JSON line for each instance; those that were found with other settings do not count.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._path, self._settings = folder / _NOTEBOOK, dict(settings)
        self._known: dict[str, Instance] = {}
        text = self._path.read_text(encoding="utf-8") if self._path.is_file() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:  # a kill cut a line short
            self._path.write_text(whole, encoding="utf-8")
        for line in whole.splitlines():
            try:
                entry = strict_json(line, constants=True)
                if entry["settings"] == self._settings:
                    instance = Instance.of(entry["instance"])
                    self._known[instance.name] = instance
            except (AttributeError, KeyError, TypeError, ValueError):
                continue  # what cannot be understood is searched for again

    def known(self, name: str, digest: str) -> Instance | None:
        """What was found for the very same problem."""
        instance = self._known.get(name)
        return instance if instance is not None and instance.sha256 == digest else None

    def add(self, instance: Instance) -> None:
        """Keep what was found."""
        line = json.dumps({"settings": self._settings, "instance": asdict(instance)}) + "\n"
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(line)

    def remove(self) -> None:
        """The manifest has it all."""
        self._path.unlink(missing_ok=True)


def _described(family: Family, origin: Origin) -> dict[str, Any]:
    return {
        "name": family.name,
        "about": family.about,
        "hessian": family.hessian,
        "layer": family.layer,
        "shape": list(origin.layer(family.layer).shape),
        "model": origin.about,
        "reads": origin.reads,
    }


def _emit(family: Family, origin: Origin) -> Iterator[tuple[int, float, Emitted]]:
    gram = origin.gram(family.layer)
    captured = Captured(family.layer, origin.layer(family.layer).matrix().detach(), gram)
    for density, sizes in family.sizes.items():
        if family.hessian == "fisher":
            blocks = fisher_blocks(origin, family.layer, gram, sizes, density)
            yield from ((n, density, emitted) for n, emitted in zip(sizes, blocks, strict=True))
        else:
            block = gram_block if family.hessian == "gram" else compensated_block
            for n in sizes:
                yield n, density, block(captured, n, density, family.seed(n, density))


def _write(problem: BlockQubo, folder: Path, name: str, formats: Sequence[str]) -> str:
    """The problem's files; the SHA-256 of the one in JSON."""
    for format in formats:
        write_problem(problem, folder / f"{name}.{format}")
    return sha256(folder / f"{name}.json")


def _searched(
    name: str, digest: str, family: Family, origin: Origin, density: float, emitted: Emitted, effort: Effort
) -> Instance:
    """What is known of a problem once it was searched and bounded."""
    problem = emitted.problem
    n = problem.num_variables
    best, by = _best_known(problem, emitted.start)
    root, root_by, seconds = _root_bound(emitted, effort.bounds, best.energy)
    proven, proof, optimal = root, root_by, False
    if n <= _PROVABLE:
        began = time.perf_counter()
        tree = solve(problem, "exact", 0, effort.proof_time, best.assignment)
        if tree.energy < best.energy:
            best, by = tree, "exact"
        # within the solver's own tolerance, 1e-9 of the energy
        optimal = tree.status is Status.OPTIMAL
        if tree.lower_bound is not None and (optimal or tree.lower_bound >= proven):
            proven, proof, seconds = tree.lower_bound, "exact", time.perf_counter() - began
    width = origin.layer(family.layer).shape[1]
    q = problem.q
    entries = np.concatenate([q.diagonal, q.factor.ravel()]) if isinstance(q, FactorForm) else q[np.triu_indices(n)]
    size = np.abs(entries[entries != 0])
    return Instance(
        name=name,
        file=f"{name}.json",
        sha256=digest,
        family=family.name,
        origin=family.origin,
        layer=family.layer,
        hessian=family.hessian,
        num_variables=n,
        density=density,
        num_pruned=problem.num_pruned[0],
        whole_row=family.hessian == "gram" and n == width,
        form="factor" if isinstance(q, FactorForm) else "dense",
        couplings=_couplings(problem),
        smallest=float(size.min()) if len(size) else 0.0,
        largest=float(size.max(initial=0.0)),
        spectrum=_spectrum(problem),
        facts=dict(emitted.facts),
        start=_pruned(emitted.start),
        start_energy=float(np.float64(problem.energy(emitted.start))),
        best=_pruned(best.assignment),
        best_energy=best.energy,
        best_by=by,
        lower_bound=min(proven, best.energy),
        bound_by=proof,
        bound_seconds=seconds,
        root_bound=min(root, best.energy),
        root_by=root_by,
        optimal=optimal,
    )


def _root_bound(emitted: Emitted, asked: Sequence[str], best: float) -> tuple[float, str, float]:
    """The best bound of the relaxations, its kind and its seconds.

    Kinds are tried in the order of their cost, without a limit of time, so that they prove the same everywhere, until
    one leaves no gap to the best known energy: those that are asked for where the size allows them, else all of them.
    A kind that stands in no table of sizes is tried only where it is asked for.
    """
    n, found = emitted.problem.num_variables, (-np.inf, "", 0.0)
    for kind in BOUNDS:
        most = _AFFORDABLE.get(kind, 2**31 if kind in asked else 0)
        if (asked and kind not in asked) or n > most:
            continue
        began = time.perf_counter()
        lower = float(lower_bounds(emitted.convex, kind).lower.sum())
        if lower > found[0]:
            found = (lower, kind, time.perf_counter() - began)
        if best - found[0] <= _TIGHT * abs(best):
            break
    return found


def _best_known(problem: BlockQubo, start: np.ndarray) -> tuple[SolveResult, str]:
    """The best of two searches, whose lengths are given in steps so that they find the same everywhere."""
    long = problem.num_variables <= _SEARCHED
    tries = {
        "tabu": solve(problem, "tabu", 1, None, start, starts=4, steps=40 if long else 4, threads=None),
        "local": solve(problem, "local", 2, None, start, starts=3, rounds=1.0 if long else 0.05, threads=None),
    }
    by = min(tries, key=lambda name: tries[name].energy)
    return tries[by], by


def _pruned(x: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.flatnonzero(x))


def _couplings(problem: BlockQubo) -> int:
    """Pairs that interact; of the factor form, the entries of the factor."""
    q = problem.q
    return int(q.factor.size if isinstance(q, FactorForm) else np.count_nonzero(np.triu(q, 1)))


def _spectrum(problem: BlockQubo) -> dict[str, float]:
    """Of Q: lowest and highest eigenvalue and the effective rank ``exp(entropy)`` of their absolute values.

    Of the factor form: of ``U U'`` alone, whose other eigenvalues are 0.
    """
    q = problem.q
    if isinstance(q, FactorForm):
        values = np.concatenate([[0.0], np.linalg.svd(q.factor, compute_uv=False) ** 2])
    else:
        values = np.linalg.eigvalsh(q)
    share = np.abs(values) / max(np.abs(values).sum(), np.finfo(float).tiny)
    entropy = -float((share * np.log(np.maximum(share, np.finfo(float).tiny))).sum())
    return {"lowest": float(values.min()), "highest": float(values.max()), "effective_rank": float(np.exp(entropy))}

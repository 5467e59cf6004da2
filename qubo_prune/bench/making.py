"""Makes a suite: emits its problems from the real models, searches, and proves what can be proven."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from qubo_prune.arguments import as_names
from qubo_prune.bench.emitted import Emitted, compensated_block, fisher_blocks, gram_block
from qubo_prune.bench.instances import Captured
from qubo_prune.bench.origins import ORIGINS, Origin
from qubo_prune.bench.suite import FORMAT, MANIFEST, Instance, Suite, sha256
from qubo_prune.bench.suites import VERSION, Family, suite_families
from qubo_prune.choices import FORMATS
from qubo_prune.errors import InputError, did_you_mean
from qubo_prune.files.outputs import check_added, list_files
from qubo_prune.files.parsing import strict_json
from qubo_prune.formats.text import write_problem
from qubo_prune.precision import pinned
from qubo_prune.problem.bounds import lower_bounds
from qubo_prune.problem.qubo import BlockQubo, FactorForm
from qubo_prune.progress import Progress
from qubo_prune.ranks import check_alone
from qubo_prune.report.report import machine, versions
from qubo_prune.solver.dispatch import solve
from qubo_prune.solver.interface import SolveResult, Status

#: Up to so many variables each row has a shift of its own and, where its optimum is not proven, the semidefinite
#: relaxation; up to so many there is one shift for the Gram. Beyond, where Q has a low rank, no shift is left to find.
_OWN_SHIFT, _SHIFTED = 576, 1024
#: ``exact`` takes no larger ones.
_PROVABLE = 512
#: What is known of the instances while a suite is made.
_NOTEBOOK = ".making.jsonl"


@pinned()
def make_suite(
    folder: str | Path,
    name: str = "standard",
    *,
    proof_time: float = 10.0,
    formats: str | Sequence[str] = ("json",),
    progress: Progress | None = None,
) -> Suite:
    """Emit a suite's problems into a folder, with what is known of each; goes on where an earlier call was stopped.

    The problems follow from the suite's version alone (to the rounding of the machine's linear algebra); bounds and
    proofs also from the time they are given, and may be better elsewhere.

    Args:
        folder: made if need be; files of an earlier call are replaced.
        name: one of :data:`~qubo_prune.bench.suites.SUITES`.
        proof_time: seconds for the branch and bound of each instance.
        formats: of the problem files, ``json`` among them.
        progress: where to report to.

    Raises:
        InputError: there is no such suite or format, a model's package is not installed, or files of the same names
            are in the folder that no earlier call wrote.
    """
    check_alone("make the same suite")
    wanted = suite_families(name)
    return make(folder, name, wanted, _origins(wanted), proof_time=proof_time, formats=formats, progress=progress)


def _origins(wanted: Iterable[Family]) -> Iterator[Origin]:
    """The models one after another: only one is held at a time."""
    for name in dict.fromkeys(family.origin for family in wanted):
        yield ORIGINS[name]()


def make(
    folder: str | Path,
    name: str,
    wanted: Sequence[Family],
    origins: Iterable[Origin],
    *,
    proof_time: float = 10.0,
    formats: str | Sequence[str] = ("json",),
    progress: Progress | None = None,
) -> Suite:
    """:func:`make_suite` for any families of any models."""
    formats = as_names("formats", formats)
    unknown = [format for format in formats if format not in FORMATS]
    if unknown or "json" not in formats:
        near = "".join(did_you_mean(each, FORMATS) for each in unknown)
        raise InputError(
            f"The formats are {', '.join(formats)}{near}; give json, and any others of {', '.join(FORMATS)} beside it."
        )
    if not proof_time > 0:
        raise InputError(f"proof_time is {proof_time}; give a positive number of seconds.")
    files = [f"{entry}.{format}" for family in wanted for entry in family.instances for format in formats]
    files += [MANIFEST, "README.md", _NOTEBOOK]
    target, bars = check_added(folder, files, (MANIFEST, FORMAT)), progress or Progress()
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder {str(folder)!r} cannot be made: {error.strerror}.") from error
    list_files(target, files)
    notebook = _Notebook(target, {"version": VERSION, "proof_time": proof_time})
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
                        instance = _searched(entry, digest, family, origin, density, emitted, proof_time)
                        notebook.add(instance)
                    instances.append(instance)
                    advance(1, entry)
    order = {entry: place for place, family in enumerate(wanted) for entry in family.instances}
    instances.sort(key=lambda instance: order[instance.name])
    made = {"date": str(date.today()), "machine": machine(), "versions": versions(), "proof_time": proof_time}
    suite = Suite(target, name, VERSION, tuple(described), tuple(instances), made)
    suite.save()
    notebook.remove()
    return suite


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
    name: str, digest: str, family: Family, origin: Origin, density: float, emitted: Emitted, proof_time: float
) -> Instance:
    """What is known of a problem once it was searched and bounded."""
    problem = emitted.problem
    n = problem.num_variables
    root = _root_bound(emitted)
    best, by = _best_known(problem, emitted.start)
    proven, proof, optimal = -np.inf, "", False
    if n <= _PROVABLE:
        tree = solve(problem, "exact", 0, proof_time, best.assignment)
        if tree.energy < best.energy:
            best, by = tree, "exact"
        if tree.lower_bound is not None:
            proven, proof = tree.lower_bound, "exact"
        # within the solver's own tolerance, 1e-9 of the energy
        optimal = tree.status is Status.OPTIMAL
    if not optimal:
        relaxed = {"relaxation": root}
        if n <= _OWN_SHIFT:
            relaxed["semidefinite"] = float(lower_bounds(emitted.convex, "semidefinite").lower.sum())
        by_relaxation = max(relaxed, key=relaxed.__getitem__)
        if relaxed[by_relaxation] > proven:
            proven, proof = relaxed[by_relaxation], by_relaxation
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
        root_bound=min(root, best.energy),
        optimal=optimal,
    )


def _root_bound(emitted: Emitted) -> float:
    """Of the convex relaxation, the best kind that the size allows, without a limit: the same everywhere."""
    n = emitted.problem.num_variables
    kind = "row" if n <= _OWN_SHIFT else "trace" if n <= _SHIFTED else "plain"
    return float(lower_bounds(emitted.convex, kind).lower.sum())


def _best_known(problem: BlockQubo, start: np.ndarray) -> tuple[SolveResult, str]:
    """The best of two searches, whose lengths are given in steps so that they find the same everywhere."""
    long = problem.num_variables <= _SHIFTED
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

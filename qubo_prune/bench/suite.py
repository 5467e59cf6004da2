"""A suite on disk: problem files, a manifest with what is known of each, and a page that describes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qubo_prune.bench.suites import none_such
from qubo_prune.errors import InputError, near_entry
from qubo_prune.files.atomic import atomic_write
from qubo_prune.files.parsing import is_plain, limited_text, short, strict_json
from qubo_prune.formats.text import MAX_VARIABLES, read_problem
from qubo_prune.problem.qubo import BlockQubo
from qubo_prune.tables import Table

MANIFEST = "manifest.json"
FORMAT = "qubo_prune.suite"
#: Larger manifests are refused.
MAX_MANIFEST_BYTES = 2**28
#: Share of the energies' size that rounding may take from a stored energy.
_ROUNDING = 1e-9
#: Share of the best known energy that a proof of optimality may leave open.
_PROVEN = 1e-6


def _is_whole(value: Any) -> bool:
    return type(value) is int and 0 <= value <= 2**53


def _is_real(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) <= 2**53)


#: What a field of that type may hold in a manifest.
_KINDS: Mapping[str, Callable[[Any], bool]] = {
    "str": is_plain,
    "int": _is_whole,
    "float": _is_real,
    "bool": lambda value: type(value) is bool,
    "Mapping[str, float]": lambda value: isinstance(value, dict) and all(map(_is_real, value.values())),
    "Mapping[str, Any]": lambda value: isinstance(value, dict),
    "tuple[int, ...]": lambda value: isinstance(value, list) and all(map(_is_whole, value)),
}


def _is_file_name(name: str) -> bool:
    """Whether a name stays within its folder: no folders, no parents, nothing hidden."""
    return is_plain(name, 200) and not set(name) & set("/\\:") and not name.startswith(".") and bool(name)


def _check_suite(data: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise ``ValueError`` for what is wrong with a manifest besides its instances."""
    if len(set(names)) < len(names):
        raise ValueError("two instances have one name")
    if not (is_plain(data["suite"]) and _is_whole(data["version"]) and isinstance(data["made"], dict)):
        raise ValueError("suite, version or made is not what it should be")
    if not isinstance(data["families"], list) or not all(isinstance(family, dict) for family in data["families"]):
        raise ValueError("families is no list of objects")


@dataclass(frozen=True)
class Instance:
    """What is known of one problem.

    Attributes:
        name: its own, in all suites.
        file: in the suite's folder.
        sha256: of the file.
        family: layer and Hessian.
        origin: the model.
        layer: full name.
        hessian: ``gram``, ``compensated`` or ``fisher``.
        num_variables: n.
        density: share that is kept.
        num_pruned: how many variables are 1.
        whole_row: it is a whole row of its layer.
        form: ``dense`` or ``factor``.
        couplings: pairs with ``Q_ij != 0``; of the factor form its entries.
        smallest, largest: of ``|Q_ij|`` where it is not 0, the diagonal included.
        spectrum: of Q, plain data.
        facts: of the weights and samples, plain data.
        start: variables that Wanda's choice prunes.
        start_energy: of it.
        best: variables that the best known answer prunes.
        best_energy: of it.
        best_by: what found it.
        lower_bound: proven: no answer has a lower energy.
        bound_by: what proved it: ``exact``, or a kind of :data:`~qubo_prune.choices.BOUNDS`.
        bound_seconds: that took, on the machine that made the suite.
        root_bound: the best one of the relaxations.
        root_by: the kind that it is of.
        optimal: the best known answer is proven optimal.
    """

    name: str
    file: str
    sha256: str
    family: str
    origin: str
    layer: str
    hessian: str
    num_variables: int
    density: float
    num_pruned: int
    whole_row: bool
    form: str
    couplings: int
    smallest: float
    largest: float
    spectrum: Mapping[str, float]
    facts: Mapping[str, Any]
    start: tuple[int, ...]
    start_energy: float
    best: tuple[int, ...]
    best_energy: float
    best_by: str
    lower_bound: float
    bound_by: str
    bound_seconds: float = field(compare=False)
    root_bound: float
    root_by: str
    optimal: bool

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Instance:
        """From plain data; ``ValueError`` if a field is missing or unknown."""
        known = {own.name for own in fields(cls)}
        if entry.keys() != known:
            raise ValueError(f"an instance has the fields {short(sorted(entry.keys() ^ known))} too few or too many")
        for own in fields(cls):
            if not _KINDS[str(own.type)](entry[own.name]):
                raise ValueError(f"the field {own.name!r} of an instance is {short(entry[own.name])}")
        if not _is_file_name(entry["file"]):
            raise ValueError(
                f"the file {short(entry['file'])} of an instance is no plain name within the suite's folder"
            )
        n = entry["num_variables"]
        if n > MAX_VARIABLES or not all(0 <= i < n for name in ("start", "best") for i in entry[name]):
            raise ValueError(f"an instance has {short(n)} variables, or a start or best answer that goes beyond them")
        return cls(**{**entry, "start": tuple(entry["start"]), "best": tuple(entry["best"])})

    def assignment(self, pruned: Sequence[int]) -> NDArray[np.bool_]:
        """The variables as a vector ``(n,)``."""
        x = np.zeros(self.num_variables, dtype=bool)
        x[list(pruned)] = True
        return x

    @property
    def scale(self) -> float:
        """What gaps are relative to: ``|best_energy|``; where that is but rounding, the largest ``|Q_ij|``."""
        return abs(self.best_energy) if abs(self.best_energy) > _ROUNDING * self.largest else self.largest or 1.0


@dataclass(frozen=True)
class Suite:
    """A folder of problem files with its manifest.

    Attributes:
        folder: where it is.
        name: which suite.
        version: of the suite.
        families: what each is about: origin, layer, shape, text, as plain data.
        instances: in the order of the families.
        made: day, machine and versions, as plain data.
    """

    folder: Path
    name: str
    version: int
    families: tuple[Mapping[str, Any], ...]
    instances: tuple[Instance, ...]
    made: Mapping[str, Any]

    @classmethod
    def read(cls, folder: str | Path) -> Suite:
        """The suite in a folder.

        Raises:
            InputError: there is no manifest, or it cannot be understood.
        """
        file = Path(folder) / MANIFEST
        if not file.is_file():
            raise InputError(
                f"There is no suite in {folder}{near_entry(folder)}: {MANIFEST} is missing; make one with: "
                "instances make."
            )
        try:
            data = strict_json(limited_text(file, MAX_MANIFEST_BYTES), constants=True)
            if data["format"] != FORMAT:
                raise InputError("it is no manifest of a suite; give the folder that instances make wrote.")
            instances = tuple(Instance.of(entry) for entry in data["instances"])
            _check_suite(data, [instance.name for instance in instances])
            return cls(Path(folder), data["suite"], data["version"], tuple(data["families"]), instances, data["made"])
        except InputError as error:
            raise InputError(f"{file} cannot be understood: {error}") from None
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{file} cannot be understood ({error}); make the suite again.") from None

    def manifest(self) -> str:
        """What :meth:`read` reads."""
        data = {
            "format": FORMAT,
            "suite": self.name,
            "version": self.version,
            "made": dict(self.made),
            "families": [dict(family) for family in self.families],
            "instances": [asdict(instance) for instance in self.instances],
        }
        return json.dumps(data, indent=1) + "\n"

    def save(self) -> None:
        """Write the manifest and the page; they appear only once complete."""
        atomic_write(self.folder / MANIFEST, self.manifest())
        atomic_write(self.folder / "README.md", self.page())

    @property
    def definition(self) -> str:
        """Digest of what the whole suite follows from, of which this may be a part; that of the files if unknown."""
        told = self.made.get("definition")
        return told if isinstance(told, str) else self.digest

    @property
    def digest(self) -> str:
        """Of all problem files: the same for the same problems."""
        joined = "\n".join(sorted(f"{i.name} {i.sha256}" for i in self.instances))
        return hashlib.sha256(joined.encode()).hexdigest()[:16]

    def problem(self, instance: Instance) -> BlockQubo:
        """The instance's problem, its file checked against the manifest.

        Raises:
            InputError: the file is missing, or not the one of the manifest.
        """
        path = self.folder / instance.file
        if not _is_file_name(instance.file) or path.is_symlink():
            raise InputError(f"The file {short(instance.file)} of the suite leads out of its folder; make it again.")
        if not path.is_file():
            raise InputError(f"The file {path} of the suite is missing; make the suite again.")
        if sha256(path) != instance.sha256:
            raise InputError(f"{path} is not the file that the manifest names: its checksum differs; make it again.")
        problem = read_problem(path)
        if (problem.num_variables, problem.num_pruned) != (instance.num_variables, (instance.num_pruned,)):
            raise InputError(f"{path} is not what the manifest says: the file has {problem!r}; make the suite again.")
        return problem

    def select(self, names: Sequence[str] | None, sizes: Sequence[int] | None) -> tuple[Instance, ...]:
        """The instances of these families (or of these names) and sizes; all where ``None``.

        Raises:
            InputError: nothing is left.
        """
        chosen = tuple(
            i
            for i in self.instances
            if (names is None or i.family in names or i.name in names) and (sizes is None or i.num_variables in sizes)
        )
        if not chosen:
            known = list(dict.fromkeys(i.family for i in self.instances))
            raise none_such(self.name, names, known, known, {i.num_variables for i in self.instances})
        return chosen

    def part(self, names: Sequence[str] | None = None, sizes: Sequence[int] | None = None) -> Suite:
        """The suite with what :meth:`select` chooses alone."""
        chosen = self.select(names, sizes)
        seen = {instance.family for instance in chosen}
        families = tuple(family for family in self.families if family["name"] in seen)
        return replace(self, families=families, instances=chosen)

    def joined(self, other: Suite) -> Suite:
        """Its own instances with those of another part of the same suite, whose own come first.

        Raises:
            InputError: they know two problems by one name, or have no problem and no definition in common.
        """
        own = {instance.name: instance for instance in other.instances}
        differing = [i.name for i in self.instances if i.name in own and own[i.name].sha256 != i.sha256]
        if differing or not (self.definition == other.definition or any(i.name in own for i in self.instances)):
            raise InputError(
                f"{other.folder} holds another suite than {self.folder}; give the run a folder of its own."
            )
        families = {family["name"]: family for family in (*other.families, *self.families)}
        instances = own | {instance.name: instance for instance in self.instances}
        return replace(self, families=tuple(families.values()), instances=tuple(instances.values()))

    def problems(self) -> Iterator[tuple[Instance, BlockQubo]]:
        """Every instance with its problem, one after another from the disk.

        Raises:
            InputError: a file is missing, or not the one of the manifest.
        """
        for instance in self.instances:
            yield instance, self.problem(instance)

    def table(self) -> Table:
        """One line per instance, gaps in percent of the best known energy."""
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
        words = ("\ninstance", "\nby", "\nbest known")
        for column in ("\ninstance", "\nn", "\npruned", "start\n%", "root\nbound %", "\nbound %", *words[1:]):
            justify: Literal["left", "right"] = "left" if column in words else "right"
            table.add_column(column, justify=justify, no_wrap=column != "\nbest known")
        for instance in self.instances:
            table.add_row(*_known(instance))
        return table

    def page(self) -> str:
        """Every family and instance, as Markdown."""
        lines = [
            f"# Block QUBOs of real layers: suite {self.name}, version {self.version}\n",
            f"{len(self.instances)} instances, made {self.made.get('date', '')}; digest {self.digest}. Minimise "
            "`E(x) = offset + x'Qx` over binary x with exactly `num_pruned` ones; `x_i = 1` prunes weight i. Gaps are "
            "relative to the best known energy, or to the largest `Q_ij` where that is 0: of Wanda's choice (start), "
            "of the bound at the root, the best relaxation's, and of the best proven one, with what proved it.\n",
        ]
        for family in self.families:
            lines += [
                f"## {family['name']}\n",
                f"{_sentence(family['about'])} {_sentence(family['model'])} Layer "
                f"`{family['layer']}`, {family['shape'][0]} x {family['shape'][1]}. "
                f"{_sentence(family['reads'])}\n",
            ]
            columns = ("instance", "n", "pruned", "start %", "root bound %", "bound %", "by", "best known")
            lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
            for i in self.instances:
                if i.family == family["name"]:
                    name, *known = _known(i)
                    lines.append(f"| `{name}` | {' | '.join(known)} |")
            lines.append("")
        return "\n".join(lines)


def _known(instance: Instance) -> tuple[str, ...]:
    """What lists say of an instance."""
    best = instance.best_energy
    gaps = (instance.start_energy - best, best - instance.root_bound, best - instance.lower_bound)
    return (
        instance.name,
        str(instance.num_variables),
        str(instance.num_pruned),
        *(f"{100 * gap / instance.scale:.1f}" for gap in gaps),
        instance.bound_by,
        "proven" if instance.optimal else f"by {instance.best_by}",
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def faults(suite: Suite, instance: Instance) -> list[str]:
    """What is wrong with an instance; nothing if its file, its counts, its energies and its bounds agree."""
    try:
        problem = suite.problem(instance)
    except InputError as error:
        return [str(error)]
    found = []
    sizes = [abs(value) for value in (instance.start_energy, instance.best_energy, problem.offset)]
    # all comparisons are such that NaN is a fault
    rounding = _ROUNDING * max(size for size in sizes if size == size)
    for kind, pruned, energy in (
        ("start", instance.start, instance.start_energy),
        ("best", instance.best, instance.best_energy),
    ):
        if not set(pruned) <= set(range(problem.num_variables)):
            found.append(f"the {kind} names variables that the problem has not")
            continue
        x = instance.assignment(pruned)
        if not problem.is_feasible(x):
            found.append(f"the {kind} does not meet the counts")
        elif not abs(float(problem.energy(x)) - energy) <= rounding:
            found.append(f"the {kind} has the energy {problem.energy(x)}, not {energy}")
    if instance.best_energy > instance.start_energy + rounding:
        found.append("the best known answer is worse than the start")
    for bound in (instance.lower_bound, instance.root_bound):
        if not bound <= instance.best_energy + rounding:
            found.append(f"the bound {bound} is above the best known energy")
    if instance.optimal and instance.best_energy - instance.lower_bound > _PROVEN * instance.scale + rounding:
        found.append(f"the answer is called optimal and the bound {instance.lower_bound} leaves a gap")
    return found

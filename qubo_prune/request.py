"""What a run is asked for: a model, its calibration, a method, and settings in groups.

Each setting is one field here and nowhere else: the keywords of :func:`qubo_prune.prune`, the options of the command
line with their help, the tables of the documentation, what a resumed run is compared by and what a report says follow
from the fields. The first sentence of a field is the help of its option.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from qubo_prune.arguments import as_block_size, as_count, as_names, as_number, as_shares, as_time
from qubo_prune.choices import Allocation, Bound, DtypeName, Effort, Weights, WholeRow
from qubo_prune.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
#: What brings an argument of a plain form, such as text of a number, into its own: ``read(name, value)``.
Read = Callable[[str, Any], Any]

#: Panels of the command line's help.
WHAT, BLOCKS, BUDGETS, DATA, RUN, OUTPUT = (
    "What to prune",
    "Blocks and solver",
    "Budgets",
    "Data",
    "Run",
    "Output",
)


def option(
    default: Any,
    panel: str,
    *,
    read: Read | None = None,
    flag: str | None = None,
    off: str | None = None,
    metavar: str | None = None,
    words: str | Sequence[str] = (),
    shown: str | None = None,
    same: bool = True,
    entry: bool = False,
) -> Any:
    """A field that is an option of the command line.

    Args:
        default: of the field.
        panel: of the help that lists it; empty if the command line does not have it.
        read: brings other forms of the value into its own; ``None`` is left alone.
        flag: the option, where it is not the field's name in kebab case.
        off: the help of a flag that turns the setting off.
        metavar: of the value in the help.
        words: what a shell completes: words, or the name of a function of ``qubo_prune.cli.complete``.
        shown: the default in words, where it follows from other settings.
        same: a run that goes on must have been begun with it.
        entry: a method of a comparison may have it of its own, as in ``compensated@max_sweeps=2``.
    """
    metadata = {
        "panel": panel,
        "read": read,
        "flag": flag,
        "off": off,
        "metavar": metavar,
        "words": words,
        "shown": shown,
        "same": same,
        "entry": entry,
    }
    if isinstance(default, Mapping):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Budget:
    """How many weights are kept, and where.

    Attributes:
        pattern: Where the budget is balanced: row, layer, or n:m such as 2:4 (whose density is n/m).
        allocation: Densities of the layers: uniform, progression (falling with depth), owl (outliers), fisher or kron
            (predicted change of the loss), qubo or evolution (searched from kron). The change is predicted from the
            gradients of single weights with fisher, from the factors of each layer with kron; qubo solves problems over
            density levels, evolution tries mutations. The whole keeps the density of the run; see
            :mod:`qubo_prune.methods.allocation`.
        allocation_settings: A setting of the search for budgets, with qubo or evolution, such as passes=400. It is a
            field of :class:`~qubo_prune.methods.budget_search.BudgetSearch`.
        densities: Kept share of layers by a shell-style pattern of their names, such as ``'*.mlp.*=0.4'``. Of several
            patterns that match a layer the last counts.
        reorder: Reorder the channels of MLPs before a pattern n:m, which leaves the model as it is and lets the pattern
            prune less. Weights and masks are of that order.
        protect: Share of a layer, its highest Wanda scores, that nothing may prune (compensated blocks, or a score
            alone). Fewer are protected where a budget does not hold them.
        certify: Prove how much better masks could be, by a bound: plain, eigenvalue, trace, row or semidefinite, the
            tighter the slower. For every layer it is a lower bound of the error that any mask of its counts has, where
            kept weights hold their values (see :mod:`qubo_prune.problem.bounds`); and, for a few random blocks of each,
            the optimum, within a second each (see :func:`qubo_prune.blocks.certificate.block_optima`).
        include: Prune only layers like this shell-style pattern, such as ``'*.mlp.*'``; all if none is given. A layer
            that no calibration input reaches stays dense, unless its full name is given here: then it is pruned by
            magnitude.
        exclude: Leave layers like this shell-style pattern dense.
        prune_head: Prune the output head too. Embeddings tied to it become sparse with it.
    """

    pattern: str = option("row", BUDGETS, words=("row", "layer", "2:4", "4:8"))
    allocation: Allocation = option("uniform", BUDGETS, entry=True)
    allocation_settings: Mapping[str, Any] | None = option(None, BUDGETS, flag="--allocation-set", metavar="NAME=VALUE")
    densities: Mapping[str, float] | None = option(
        None, BUDGETS, read=as_shares, flag="--layer-density", metavar="PATTERN=SHARE"
    )
    reorder: bool = option(False, BUDGETS, entry=True)
    protect: float | str = option(0.0, BUDGETS, read=as_number, entry=True)
    certify: Bound | None = option(None, BLOCKS)
    include: str | Sequence[str] = option((), WHAT, read=as_names)
    exclude: str | Sequence[str] = option((), WHAT, read=as_names)
    prune_head: bool = option(False, WHAT)


@dataclass(frozen=True)
class DataSettings:
    """What is drawn from the calibration, and what the loss is.

    Attributes:
        samples: Calibration windows cut from a text.
        sequence_length: Tokens per window.
        draw: Which windows of a text are calibrated on: 0 for evenly spread ones, any other number for some drawn at
            random, the same for the same number.
        guard: Held-out windows of a text, or batches, on which layers are checked; 0 for none. Windows lie between the
            others, batches are the last of those given. A layer whose error there rises against the warm start gets
            that back, and its report says so. By default 4 windows of a text if kept weights change, else none.
        loss_length: Tokens per window that the loss is taken over, if the calibration is a text.
        loss: ``next-token``, ``classification`` (of samples or of their positions), ``multi-label``, ``regression``,
            or a function ``(model, batch) -> losses`` of one value per sample. By default the one that fits the model
            and its labels. Labels of -100 do not count. Without blocks of the loss it only tells the labels in a batch
            from the inputs.
        gram_samples: Of :class:`~qubo_prune.data.samples.Samples`, or of batches with a loss, how many the layers'
            inputs are taken from, at most.
        held_out: With blocks of the loss, samples or batches by which moves are judged. A fifth of the calibration,
            which is then left out there, if not given.
        tokenizer: Needed if the model is a module and the calibration a text.
    """

    samples: int | str = option(32, DATA, read=as_count)
    sequence_length: int | str = option(512, DATA, read=as_count)
    draw: int = option(0, DATA)
    guard: int | None = option(None, DATA, read=as_count, shown="4 of a text if kept weights change", entry=True)
    loss_length: int | str = option(128, DATA, read=as_count)
    loss: Any = option(None, "", same=False)
    gram_samples: int | str = option(1024, "", read=as_count)
    held_out: Any = option(None, "", same=False)
    tokenizer: Any = option(None, "", same=False)


@dataclass(frozen=True)
class Placement:
    """Where a model is while it is pruned, and in which type.

    Attributes:
        device: Where the model lives: cpu, cuda, cuda:1 ... (a model given as a module stays where it is).
        gram_devices: Comma-separated devices that multiply the layers' inputs in turn, such as cuda:0,cuda:1. The
            Grams do not depend on their number. By default each batch is multiplied where it is.
        dtype: Type of the loaded weights: auto (as stored, float32 for .gguf), float32, bfloat16 or float16.
        weights: Where weights are: memory, or disk for a model larger than it (a local folder of safetensors). On the
            disk one decoder layer is loaded at a time, hidden states are in a file, and the output is written shard by
            shard. The result is the same.
        trust_remote_code: Run model code that comes with the checkpoint.
    """

    device: str = option("cpu", RUN, words=("cpu", "cuda"))
    gram_devices: str | Sequence[str] = option(
        (), RUN, read=as_names, metavar="TEXT", shown="where they are", same=False
    )
    dtype: DtypeName = option("auto", RUN)
    weights: Weights = option("memory", RUN, same=False)
    trust_remote_code: bool = option(False, RUN, same=False)


@dataclass(frozen=True)
class RunSettings:
    """Where results and progress go, and how long the run may take.

    Attributes:
        max_time: Wall-clock budget of the run such as 90s, 5m, 1h; the best masks so far count. The passes over the
            calibration data always complete; the search gets what they leave.
        seed: Every random choice follows from it.
        workers: Processes for solvers that take one block at a time; one per core. Or a cluster for them:
            dask:ADDRESS or ray:ADDRESS (see :mod:`qubo_prune.solver.clusters`). With 0 they run in the process itself,
            but for those that a block's time limit has to end.
        run_folder: Folder that keeps what is decided, so that a later call can go on. It is written after every layer
            and every two minutes within one; ``qubo-prune watch`` reads what happens from it.
        resume: Go on with the run in the run folder, if it holds one. The result is that of a run that was never
            interrupted, bit-identical, unless a time limit cut it.
        output: Folder for the pruned model, report.json and masks.safetensors; a command needs one but for --dry-run.
            It is for language models and image classifiers of ``transformers``; what is none is pruned in place.
        overwrite: Replace an output folder that is not empty. It may hold nothing but files that its list
            ``.qubo-prune.json`` names; a folder with anything else, or that is, holds or lies in the model, a text, the
            run folder or the current directory, is rejected before anything is loaded.
    """

    max_time: float | str | None = option(None, RUN, read=as_time, metavar="TEXT")
    seed: int = option(0, RUN)
    workers: int | str | None = option(None, RUN, metavar="TEXT", shown="one per core", same=False)
    run_folder: str | Path | None = option(None, RUN, same=False)
    resume: bool = option(False, RUN, same=False)
    output: str | Path | None = option(None, OUTPUT, same=False)
    overwrite: bool = option(False, OUTPUT, same=False)


@dataclass(frozen=True)
class MethodSettings:
    """How masks and weights are chosen, in words: the text form of a chain of methods.

    Attributes:
        method: Blocks (gram, compensated, or loss = icbs), a score or a published method; qubo-prune methods lists
            them. From Python also an object of ``qubo_prune.methods``, or a chain of them.
        update: Kept weights on the final mask: none, refit, admm, sparsegpt, block, distill, or block+distill. By
            default what the method itself does to them, refit with compensated blocks. ``block`` fits those of a
            decoder layer together, to the dense model's states, ``distill`` those of the model, to its predictions (see
            :mod:`qubo_prune.methods.reconstruction`).
        effort: Settings that are good together: fast, balanced or best, see
            :data:`qubo_prune.request.EFFORTS`. What is given besides comes before them; the pattern n:m, where budgets
            cannot move, goes without kron.
        method_settings: A setting of the method, a field of its class. It is read as :attr:`solver_settings` are.
        solver: Who decides: a name, package.module:Class, or adapter:package.module:Thing. From Python also a
            :class:`~qubo_prune.Solver`.
        solver_settings: A setting of the solver, its value as JSON or as text. It may be given several times, for
            several settings; each value is read as the type of the solver's field and checked before a model is loaded.
        warm_start: What blocks begin with: a score, a published method or a masks.safetensors; with blocks of the loss
            also gradient, or gram. ``gradient`` ranks by ``|w g|`` of the dense model, ``gram`` takes the masks of the
            method gram. From Python also keep masks by parameter name.
        block_size: Weights per block, or less if the solver takes less; or row, for a whole row as one block. Whole
            rows are for blocks from a Gram, and a solver that takes fewer variables than a row has is refused.
        block_time: Most time for one block such as 500ms or 10s; none for no limit. A solver that ignores it is ended
            and loses that block.
        max_sweeps: Most blocks per row; after blocks from a Gram, swaps over the whole row follow.
        polish: Swap within the blocks that the solver has decided. What the solver brought and what the swaps did
            stand apart in the report.
        row_swaps: After blocks from a Gram, swap over whole rows. These swaps find much of what a worse solver left, so
            a comparison of solvers goes without them.
        damping: Share of a Gram's mean diagonal added to its diagonal by updates and compensated blocks.
        correction: How far layers make up for those pruned before, 0 to 1. With 0 a layer keeps its outputs on the
            inputs that it has now, with 1 it gives the dense model's outputs; see
            :mod:`qubo_prune.methods.correction`.
        loss_settings: A setting of blocks of the loss. It is a field of
            :class:`~qubo_prune.blocks.loss.descent.LossDescent`; ``preset`` chooses where the others start from:
            ``measured`` or ``paper``.
        hessian: With kron the errors at the outputs of a layer count by what they cost the loss, from its gradients in
            the dense model (pattern layer; see :mod:`qubo_prune.hessian.output_factor`). Also old words for the blocks
            of the method icbs: gram, compensated, or fisher for those of the loss.
    """

    method: Any = option("gram", WHAT, words="method_names")
    update: str | None = option(None, WHAT, words="update_names", shown="the method's own")
    effort: Effort | None = option(None, WHAT)
    method_settings: Mapping[str, Any] | None = option(None, WHAT, flag="--method-set", metavar="NAME=VALUE")
    solver: Any = option("greedy", BLOCKS, words="solver_names", entry=True)
    solver_settings: Mapping[str, Any] | None = option(None, BLOCKS, flag="--set", metavar="NAME=VALUE")
    warm_start: str | Mapping[str, Tensor] | None = option(
        None, BLOCKS, words="method_names", metavar="TEXT", shown="wanda, with compensated admm", entry=True
    )
    block_size: int | WholeRow | None = option(
        None,
        BLOCKS,
        read=as_block_size,
        metavar="TEXT",
        words=("row",),
        shown="64, compensated 128, loss 1024",
        entry=True,
    )
    block_time: float | str | None = option("60s", BLOCKS, read=as_time, metavar="TEXT")
    max_sweeps: int | None = option(None, BLOCKS, read=as_count, shown="1", entry=True)
    polish: bool = option(
        True, BLOCKS, flag="--no-polish", off="Leave out the swaps on the solver's answers.", entry=True
    )
    row_swaps: bool = option(
        True,
        BLOCKS,
        flag="--no-row-swaps",
        off="Leave out the swaps over whole rows that follow blocks from a Gram.",
        entry=True,
    )
    damping: float | None = option(None, BLOCKS, read=as_number, shown="0.01, with a correction 0.3", entry=True)
    correction: float | None = option(None, BLOCKS, read=as_number, shown="0, with compensated 0.5", entry=True)
    loss_settings: Mapping[str, Any] | None = option(None, BLOCKS, flag="--loss-set", metavar="NAME=VALUE")
    hessian: str | None = option(None, BLOCKS, words=("kron",), entry=True)


class PruneSettings(TypedDict, total=False):
    """Keywords of :func:`qubo_prune.prune`: the fields of the groups by their names, for editors and type checkers."""

    effort: Effort | None
    pattern: str
    allocation: Allocation
    allocation_settings: Mapping[str, Any] | None
    densities: Mapping[str, float] | None
    reorder: bool
    protect: float | str
    certify: Bound | None
    include: str | Sequence[str]
    exclude: str | Sequence[str]
    prune_head: bool
    samples: int | str
    sequence_length: int | str
    draw: int
    guard: int | None
    loss_length: int | str
    loss: Any
    gram_samples: int | str
    held_out: Any
    tokenizer: Any
    device: str
    gram_devices: str | Sequence[str]
    dtype: DtypeName
    weights: Weights
    trust_remote_code: bool
    max_time: float | str | None
    seed: int
    workers: int | str | None
    run_folder: str | Path | None
    resume: bool
    output: str | Path | None
    overwrite: bool
    update: str | None
    method_settings: Mapping[str, Any] | None
    hessian: str | None
    solver: Any
    solver_settings: Mapping[str, Any] | None
    warm_start: str | Mapping[str, Tensor] | None
    block_size: int | WholeRow | None
    block_time: float | str | None
    max_sweeps: int | None
    polish: bool
    row_swaps: bool
    damping: float | None
    correction: float | None
    loss_settings: Mapping[str, Any] | None


_FAST: Mapping[str, Any] = {
    "method": "admm",
    "update": "refit",
    "correction": 0.5,
    "damping": 0.3,
    "hessian": "kron",
    "allocation": "kron",
    "pattern": "layer",
}
#: What ``effort`` stands for: masks by ADMM, rows and layers by what their errors cost the loss, a refit that makes up
#: for layers before; four times the calibration windows; and kept weights fitted together, by gradients.
EFFORTS: Mapping[str, Mapping[str, Any]] = {
    "fast": _FAST,
    "balanced": {**_FAST, "samples": 128},
    "best": {**_FAST, "samples": 128, "update": "block+distill"},
}


#: The groups of settings, by the name of the argument of :func:`qubo_prune.prune` and the field of a request.
GROUPS: Mapping[str, type[Any]] = {
    "how": MethodSettings,
    "budget": Budget,
    "data": DataSettings,
    "place": Placement,
    "run": RunSettings,
}
#: The group of each setting.
HOME = {each.name: group for group, owner in GROUPS.items() for each in fields(owner)}


@dataclass(frozen=True, eq=False)
class PruneRequest:
    """All that a run is asked for: what ``prune``, ``estimate_run``, ``compare`` and the command line make of theirs.

    Attributes:
        model: a module, or the name of one.
        calibration: what the layers' inputs come from.
        density: kept share.
        how: method, blocks and solver.
        budget: how many weights are kept, and where.
        data: what is drawn from the calibration.
        place: where the model is.
        run: where results go, and for how long.
    """

    model: Any
    calibration: Any = "pydoc"
    density: float = 0.5
    how: MethodSettings = field(default_factory=MethodSettings)
    budget: Budget = field(default_factory=Budget)
    data: DataSettings = field(default_factory=DataSettings)
    place: Placement = field(default_factory=Placement)
    run: RunSettings = field(default_factory=RunSettings)

    @classmethod
    def of(
        cls,
        model: Any,
        calibration: Any = "pydoc",
        density: float | str = 0.5,
        *,
        caller: str = "prune",
        groups: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> PruneRequest:
        """A request from arguments as people give them.

        Args:
            model: see :func:`qubo_prune.prune`.
            calibration: likewise.
            density: likewise.
            caller: the function that was called, for messages.
            groups: whole groups by their names.
            settings: single fields by theirs, which come before those of a group.

        Raises:
            TypeError: there is no such field (the message gives near ones), or a group is of another type.
            InputError: a value cannot be read.
        """
        request = cls(model, calibration, as_number("density", density))
        for name, group in (groups or {}).items():
            if not isinstance(group, GROUPS[name]):
                raise TypeError(f"{name} is of type {type(group).__name__}; give a {GROUPS[name].__name__}.")
            request = replace(request, **{name: group})
        return request.changed(settings or {}, caller)

    def changed(self, settings: Mapping[str, Any], caller: str = "prune") -> PruneRequest:
        """The same with other values of some fields, by their names, and all values in their own forms."""
        for name in settings:
            if name not in HOME:
                known = ("model", "calibration", "density", *(group for group in GROUPS if group != "how"), *HOME)
                raise TypeError(f"{caller}() has no argument {name!r}{did_you_mean(name, known)}.")
        made = {
            group: plain(replace(getattr(self, group), **{n: v for n, v in settings.items() if HOME[n] == group}))
            for group in GROUPS
        }
        return replace(self, **made)

    def with_effort(self) -> PruneRequest:
        """The same with what its effort stands for in place of defaults."""
        if self.how.effort is None:
            return self
        if self.how.effort not in EFFORTS:
            near = did_you_mean(self.how.effort, EFFORTS)
            raise InputError(f"effort is {self.how.effort!r}{near}; give one of {', '.join(EFFORTS)}.")
        usual = PruneRequest(self.model)
        meant = {name: value for name, value in EFFORTS[self.how.effort].items() if self[name] == usual[name]}
        if ":" in self.budget.pattern:
            meant = {name: value for name, value in meant.items() if value != "kron"}
        return self.changed(meant)

    def __getitem__(self, name: str) -> Any:
        """The value of a setting, by its name."""
        return getattr(getattr(self, HOME[name]), name)

    def compared(self) -> dict[str, Any]:
        """What a run that goes on must have been begun with, as it was given."""
        return {entry.name: self[entry.name] for entry in all_fields() if entry.metadata["same"]}


def plain(group: T) -> T:
    """A group with every value in its field's own form.

    Raises:
        InputError: one cannot be read.
    """
    # it brings numpy, which a shell that completes options does not wait for
    from qubo_prune.settings import checked, kinds_of

    found: Any = group
    kinds = kinds_of(type(found))
    values: dict[str, Any] = {}
    for each in fields(found):
        value, read = getattr(found, each.name), each.metadata.get("read")
        if read is not None and not (value is None and each.default is None):
            value = read(each.name, value)
        # words have messages of their own, with near ones, and seeds too
        word = isinstance(value, str) and not (each.type == "bool" or str(each.type).startswith("Mapping"))
        if each.name != "seed" and not word:
            checked(each.name, value, kinds[each.name])
        values[each.name] = value
    made: T = replace(found, **values)
    return made


def all_fields() -> Iterator[dataclasses.Field[Any]]:
    """The fields of all groups."""
    for owner in GROUPS.values():
        yield from fields(owner)


def sentences_of(owner: type[Any]) -> dict[str, str]:
    """What the docstring of a dataclass says of each field, as one line."""
    _, _, listed = inspect.cleandoc(owner.__doc__ or "").partition("Attributes:\n")
    found = re.findall(r"^    (\w+): (.*(?:\n(?:        .*)?)*)", listed, flags=re.M)
    return {name: " ".join(text.split()) for name, text in found}


def first_sentence(text: str) -> str:
    """The help of an option, from what is said of its field."""
    return re.split(r"(?<=\.) (?=[A-Z`])", text, maxsplit=1)[0]

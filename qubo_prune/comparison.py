"""Methods side by side on one model: same calibration, same held-out text, one table."""

from __future__ import annotations

import itertools
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from rich import box
from rich.console import Group
from rich.markup import escape
from rich.text import Text

from qubo_prune.arguments import as_count, as_names, parse_seconds
from qubo_prune.choices import METHODS
from qubo_prune.durable import write_whole
from qubo_prune.errors import InputError, did_you_mean
from qubo_prune.evaluation import perplexity
from qubo_prune.masks import Pattern
from qubo_prune.models import LoadedModel, check_name, load_model
from qubo_prune.outputs import check_output
from qubo_prune.peers import PEERS
from qubo_prune.plan import Blocks, Plan, check_method
from qubo_prune.precision import pinned
from qubo_prune.progress import Progress
from qubo_prune.pruning import prune, save_pruned
from qubo_prune.ranks import check_alone
from qubo_prune.report import Report, machine, reset_peak_memory
from qubo_prune.seeds import checked_seed
from qubo_prune.settings import Given, checked, kinds_of
from qubo_prune.tables import Shown, Table, rendered, shown
from qubo_prune.text import check_length, check_source, check_windows, token_windows

logger = logging.getLogger(__name__)

#: What a comparison takes if no methods are named.
COMPARED = ("magnitude", "wanda", "sparsegpt", "admm", "icbs", "icbs:compensated")
_LABELS = {"magnitude": "magnitude", "wanda": "Wanda", "icbs": "iCBS"} | {name: p.label for name, p in PEERS.items()}
_BLOCKS = {"gram": " blocks", "compensated": " compensated", "fisher": " of the loss"}


#: Arguments of :func:`qubo_prune.prune` that an entry may have of its own.
ENTRY_SETTINGS = (
    "allocation", "block_size", "correction", "damping", "guard", "max_sweeps", "polish", "protect", "solver",
    "warm_start",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A method of a comparison: ``METHOD[:HESSIAN][+UPDATE][@NAME=VALUE ...]``.

    Such as ``admm+refit``, ``icbs:compensated`` or ``icbs:compensated@allocation=fisher@max_sweeps=1``; the names are
    those of :data:`ENTRY_SETTINGS`.
    """

    method: str
    hessian: str = "gram"
    update: str | None = None
    settings: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Entry:
        """Read the text of an entry; :meth:`check` says whether it can be run."""
        whole, (text, *given) = text, text.split("@")
        settings = [setting.partition("=") for setting in given]
        for name, equals, _ in settings:
            if name not in ENTRY_SETTINGS or not equals:
                raise InputError(
                    f"The setting {name!r} of {text!r} is not known{did_you_mean(name, ENTRY_SETTINGS)}; give "
                    f"NAME=VALUE with one of {', '.join(ENTRY_SETTINGS)}."
                )
        name, _, update = text.partition("+")
        method, _, hessian = name.partition(":")
        if method not in METHODS:
            raise InputError(f"There is no method {method!r}{did_you_mean(method, METHODS)}; use {', '.join(METHODS)}.")
        kinds = kinds_of(prune)
        values = tuple(
            (name, checked(f"The setting {name} of {whole!r}", Given(value), kinds[name]))
            for name, _, value in settings
        )
        return cls(method, hessian or "gram", update or None, values)

    def check(self, setting: Setting, solver: str = "greedy") -> None:
        """Raise :class:`InputError` if :func:`qubo_prune.prune` would not take this entry at that setting."""
        check_method(self.method, self.hessian, self.update)
        given = dict(self.settings)
        blocks = Blocks(given.pop("solver", solver), {}, given.pop("block_size", None), None, given.pop("polish", True))
        given.pop("guard", None)
        Plan.checked(
            density=setting.density, pattern=setting.pattern, method=self.method, hessian=self.hessian,
            update=self.update, blocks=blocks, **given,
        )  # fmt: skip

    def __str__(self) -> str:
        hessian = f":{self.hessian}" if self.hessian != "gram" else ""
        settings = "".join(
            f"@{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in self.settings
        )
        return f"{self.method}{hessian}{f'+{self.update}' if self.update else ''}{settings}"

    @property
    def label(self) -> str:
        """For tables."""
        blocks = _BLOCKS.get(self.hessian, f" {self.hessian}") if self.method == "icbs" else ""
        return f"{_LABELS[self.method]}{blocks}{f' + {self.update}' if self.update else ''}" + "".join(
            f", {name} {_as_text(value)}" for name, value in self.settings
        )


def _as_text(value: Any) -> str:
    """What :func:`~qubo_prune.settings.setting_value` reads as the value."""
    return value if isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True)
class Setting:
    """How much is kept, and where the budget is balanced."""

    density: float
    pattern: str

    @classmethod
    def parse(cls, text: str | float, pattern: str) -> Setting:
        """A kept share, or a pattern n:m such as ``2:4``, which says it itself."""
        try:
            chosen, density = Pattern.parse(pattern), float(text)
        except ValueError:
            chosen = Pattern.parse(str(text))
            density = chosen.keep / chosen.of if chosen.of else math.nan
        chosen.check(density)
        return cls(density, chosen.name)

    def __str__(self) -> str:
        return self.pattern if ":" in self.pattern else f"{self.density:g} {self.pattern}"


@dataclass(frozen=True)
class ComparisonRow:
    """One model of a comparison.

    Attributes:
        method: ``dense``, or an entry as :class:`Entry` reads it.
        density: kept share of the pruned layers.
        perplexities: on each of the held-out texts.
        layer_error: mean squared output error, summed over the layers; ``None`` where it was not measured.
        relative_error: the same as a share of the summed output power.
        seconds: wall-clock time of the pruning, calibration passes included.
        forward_seconds: of it, forward passes over the calibration data.
        search_seconds: of it, choosing masks and weights.
        peak_memory_bytes: highest resident memory while it ran.
        setting: what was asked for.
        warnings: how many blocks the solver lost and how many the clock cut, as sentences.
        all_lost: the solver lost every block.
    """

    method: str
    density: float
    perplexities: tuple[float, ...]
    layer_error: float | None = 0.0
    relative_error: float | None = 0.0
    seconds: float = 0.0
    forward_seconds: float = 0.0
    search_seconds: float = 0.0
    peak_memory_bytes: int = 0
    setting: str = ""
    warnings: tuple[str, ...] = ()
    all_lost: bool = False

    @property
    def perplexity(self) -> float:
        """On the first of the held-out texts."""
        return self.perplexities[0]


@dataclass(frozen=True, eq=False)
class Comparison(Shown):
    """Rows in the order they were asked for, ``dense`` first; ``evaluation`` describes the held-out texts."""

    model: str
    rows: tuple[ComparisonRow, ...]
    calibration: dict[str, Any]
    evaluation: tuple[dict[str, Any], ...]
    machine: dict[str, Any]
    date: str

    @property
    def settings(self) -> list[str]:
        """What was asked for, in order."""
        return list(dict.fromkeys(row.setting for row in self.rows if row.method != "dense"))

    def row(self, method: str, setting: str | None = None) -> ComparisonRow:
        """The row of a method, in the first setting if none is named."""
        return next(row for row in self.rows if row.method == method and setting in (None, row.setting))

    def rise(self, method: str, setting: str | None = None, text: int = 0) -> float:
        """Rise of the log-perplexity over the dense model, on the held-out text of that number."""
        return math.log(self.row(method, setting).perplexities[text] / self.row("dense").perplexities[text])

    @property
    def texts(self) -> list[str]:
        """Short names of the held-out texts, with their places where those are the same."""
        short = [Path(each["source"]).stem[:10] for each in self.evaluation]
        return [name if short.count(name) == 1 else f"{name} {at}" for at, name in enumerate(short, 1)]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def table(self) -> Table:
        """The comparison as a table of at most 80 columns."""
        several, many = len(self.evaluation) > 1, len(self.evaluation) > 2
        table = Table(
            title=escape(f"{self.model}, {self.date}"), title_justify="left", caption_justify="left",
            box=box.SIMPLE_HEAD, show_edge=False, padding=0,
        )  # fmt: skip
        clock = "s: seconds" if several else "seconds: of them, search for masks and weights"
        table.caption = escape(
            f"ppl: perplexity on {self._evaluated()}; calibration {self.calibration['windows']} x "
            f"{self.calibration['length']} tokens ({self.calibration['source']}); rise: of log-perplexity; error: "
            f"summed over layers, relative to their outputs; {clock}; GiB: peak; "
            f"{self.machine['processor']}, {self.machine['threads']} threads"
        )
        table.add_column("kept", no_wrap=True)
        table.add_column("method")
        for name in self.texts:
            table.add_column(f"{name}\nppl" if several else "ppl", justify="right", no_wrap=True)
            table.add_column("\nrise" if several else "rise", justify="right", no_wrap=True)
        others = ("\nerror", "\ns", "\nGiB") if several else ("error", "seconds", "search", "GiB")
        for column in () if many else others:  # there is no room for them beside many texts
            table.add_column(column, justify="right", no_wrap=True)
        dense = self.row("dense")
        table.add_row("", "dense", *itertools.chain(*((f"{value:.2f}", "") for value in dense.perplexities)))
        for setting in self.settings:
            table.add_section()
            for row in self.rows:
                if row.setting == setting:
                    values = (
                        (f"{value:.2f}", f"{self.rise(row.method, setting, at):.3f}")
                        for at, value in enumerate(row.perplexities)
                    )
                    search = () if several else (f"{row.search_seconds:.0f}",)
                    numbers = (
                        shown(row.relative_error, 5), f"{row.seconds:.0f}", *search,
                        f"{row.peak_memory_bytes / 2**30:.1f}",
                    )  # fmt: skip
                    table.add_row(
                        setting, Entry.parse(row.method).label, *itertools.chain(*values), *(() if many else numbers)
                    )
        return table

    def _evaluated(self) -> str:
        return " and ".join(f"{each['tokens']} held-out tokens ({each['source']})" for each in self.evaluation)

    def add_to(self, folder: Path) -> None:
        """Write ``comparison.json`` and ``comparison.png`` beside a model."""
        write_whole(folder / "comparison.json", json.dumps(self.to_dict(), indent=1) + "\n")
        self.plot(folder / "comparison.png")

    def plot(self, path: str | Path) -> None:
        """Rise of log-perplexity on each text, layer error and seconds of every method, one panel each, as a file."""
        from qubo_prune.plot import methods, save_panels  # which know what a comparison is

        panels: list[tuple[str, int | None]] = [("rise", at) for at in range(len(self.texts))]
        panels += [("error", None), ("seconds", None)]

        def drawn(place: int, ax: Axes) -> None:
            quantity, text = panels[place]
            methods(self, quantity, text=text, ax=ax).tick_params(axis="y", labelleft=place % columns == 0)

        columns = 2 if len(panels) > 3 else len(panels)
        entries = len({row.method for row in self.rows})
        save_panels(
            path, [partial(drawn, place) for place in range(len(panels))], width=4.2, height=1.2 + 0.4 * entries,
            columns=columns, shared_legend=True,
        )  # fmt: skip

    def __str__(self) -> str:
        return rendered(self.__rich__(), 80)

    def __rich__(self) -> Group:
        return Group(self.table(), *(Text(sentence, style="bold") for sentence in self.warnings()))

    def warnings(self) -> list[str]:
        """How many blocks solvers lost and how many the clock cut, as sentences with the rows they are of."""
        return [
            f"{Entry.parse(row.method).label}, {row.setting}: {sentence}"
            for row in self.rows
            for sentence in row.warnings
        ]

    @property
    def all_lost(self) -> bool:
        """True if the solver lost every block of a row."""
        return any(row.all_lost for row in self.rows)


@pinned()
def compare(
    model: str | LoadedModel,
    methods: str | Sequence[str] = COMPARED,
    *,
    calibration: str = "pydoc",
    text: str | Sequence[str] = "pydoc",
    density: float | str | Sequence[float | str] = 0.5,
    pattern: str = "row",
    solver: str = "greedy",
    max_time: float | str | None = None,
    seed: int = 0,
    samples: int = 32,
    eval_samples: int = 24,
    sequence_length: int = 512,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    device: str = "cpu",
    dtype: str = "auto",
    output: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Comparison:
    """Prune a model by several methods, each from the dense weights, and evaluate each.

    Args:
        model: a name that :func:`qubo_prune.models.load_model` takes, or what it returned, which has its dense weights
            again in the end.
        methods: entries ``METHOD[:HESSIAN][+UPDATE]``, such as ``wanda``, ``admm+refit``, ``icbs:compensated``.
        calibration: text source for calibration.
        text: held-out text source, or several; methods are compared on each.
        density: kept share, or several; an entry such as ``"2:4"`` is a pattern of its own.
        pattern, solver, max_time, seed, samples, sequence_length, include, exclude, device, dtype:
            see :func:`qubo_prune.prune`.
        eval_samples: windows of held-out text.
        output: folder for the model of the last method, with ``comparison.json`` and ``comparison.png``.
        overwrite: replace an output folder that is not empty.
        progress: show progress bars.
    """
    check_alone("prune and compare the same models")
    methods = as_names("methods", methods)
    samples, eval_samples = as_count("samples", samples), as_count("eval_samples", eval_samples)
    sequence_length = as_count("sequence_length", sequence_length)
    if not methods:
        raise InputError(f"No method is given to compare; name one or more of {', '.join(METHODS)}.")
    entries = [Entry.parse(method) for method in methods]
    asked = list(density) if isinstance(density, Iterable) and not isinstance(density, str) else [density]
    settings = [Setting.parse(each, pattern) for each in asked]
    for entry, setting in itertools.product(entries, settings):
        entry.check(setting, solver)
    parse_seconds(max_time)
    checked_seed(seed)
    if isinstance(model, str):
        check_name(model, dtype, device)
    texts = [text] if isinstance(text, str) else list(text)
    if not texts:
        raise InputError("No held-out text is given; name one or more.")
    for source in (calibration, *texts):
        check_source(source)
    for count in (samples, eval_samples):
        check_windows(count, sequence_length)
    named = model if isinstance(model, str) else model.name
    needed = {"model": named, "calibration text": calibration, "held-out text": texts}
    target = None if output is None else check_output(output, overwrite, needed)
    bars = Progress(progress)
    if isinstance(model, str):
        with bars.task(f"loading {model}", None):
            loaded = load_model(model, dtype, device)
    else:
        loaded = model
    check_length(loaded.model, sequence_length)
    held_out = [token_windows(loaded.tokenizer, each, "evaluation", eval_samples, sequence_length) for each in texts]

    def perplexities() -> tuple[float, ...]:
        return tuple(perplexity(loaded.model, each.tokens, each.source, bars).perplexity for each in held_out)

    rows = [ComparisonRow("dense", 1.0, perplexities())]
    calibrated: dict[str, Any] = {}
    with _dense_again(loaded) as restore:
        for setting, entry in itertools.product(settings, entries):
            restore()
            reset_peak_memory()
            report = prune(
                loaded.model, calibration, setting.density, pattern=setting.pattern, method=entry.method,
                hessian=entry.hessian, update=entry.update, max_time=max_time, seed=seed, samples=samples,
                sequence_length=sequence_length, include=include, exclude=exclude, tokenizer=loaded.tokenizer,
                progress=progress, **{"solver": solver, **dict(entry.settings)},
            )  # fmt: skip
            calibrated = report.calibration
            rows.append(_row(entry, setting, report, perplexities()))
            logger.info(
                "%s, %s: perplexity %s, layer error %s, %.0f s", entry, setting,
                ", ".join(f"{value:.3f}" for value in rows[-1].perplexities), shown(report.relative_error, 6),
                report.seconds["total"],
            )  # fmt: skip
        evaluated = tuple(each.describe() | {"tokens": each.tokens[:, 1:].numel()} for each in held_out)
        result = Comparison(loaded.name, tuple(rows), calibrated, evaluated, machine(), time.strftime("%Y-%m-%d"))
        if target is not None:
            save_pruned(loaded, target, report, result.add_to)
    return result


@contextmanager
def _dense_again(loaded: LoadedModel) -> Iterator[Callable[[], None]]:
    """What gives a model the weights back that it has now; it is done in the end, too."""
    dense = {name: weight.detach().clone() for name, weight in loaded.model.named_parameters()}

    def restore() -> None:
        for name, weight in loaded.model.named_parameters():
            weight.data.copy_(dense[name])

    try:
        yield restore
    finally:
        restore()


def _row(entry: Entry, setting: Setting, report: Report, values: tuple[float, ...]) -> ComparisonRow:
    return ComparisonRow(
        method=str(entry),
        density=report.density,
        perplexities=values,
        layer_error=report.error_after,
        relative_error=report.relative_error,
        seconds=report.seconds["total"],
        forward_seconds=report.seconds["forward"],
        search_seconds=report.seconds["search"],
        peak_memory_bytes=report.peak_memory_bytes,
        setting=str(setting),
        warnings=tuple(report.warnings()),
        all_lost=report.all_blocks_lost,
    )

"""What a pruning run did: as data, as a table, as HTML, as ``report.json``."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import re
import resource
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.text import Text

from qubo_prune.blocks.certificate import BlockOptima
from qubo_prune.blocks.loss.trace import LossTrace
from qubo_prune.blocks.notes import folded_notes
from qubo_prune.blocks.rows import TracePoint
from qubo_prune.errors import InputError
from qubo_prune.files.atomic import atomic_write
from qubo_prune.files.parsing import limited_text, one_line, strict_json
from qubo_prune.masks.keep import KeepMasks
from qubo_prune.methods.budget_search import BudgetTrace
from qubo_prune.models.coverage import Coverage, LeftDense, percent, sentences
from qubo_prune.models.names import DottedName, folded
from qubo_prune.solver.block_counts import NONE, THE_SOLVER, BlockCounts, total
from qubo_prune.tables import Shown, Table, rendered, shown

#: The file of a report in the folder of a pruned model, and how large one is that is read.
REPORT, _MOST_BYTES = "report.json", 2**28
_PACKAGES = ("qubo-prune", "torch", "transformers", "numpy", "dimod", "ortools", "qiskit-optimization")


@dataclass(frozen=True)
class LayerReport:
    """One layer of a run that was pruned. What was not measured is ``None``: errors and power without inputs.

    Attributes:
        name: dotted path in the model.
        shape: ``(d_out, d_in)``.
        kept: weights the mask keeps.
        density: kept share.
        error_before: mean squared output error with the warm start, summed over outputs.
        error_after: the same with the final mask.
        output_power: mean squared output of the dense layer on the same inputs; relative errors
            are shares of it.
        steps: blocks solved.
        accepted: blocks that lowered the energy.
        solver_gain: by how much the solver's answers lowered the error.
        polish_gain: by how much the swaps on its blocks did then; the rest is the whole-row swaps'.
        seconds: time of the mask search.
        solver: what decided the blocks (empty if nothing did).
        tokens: calibration tokens the layer saw.
        dead_inputs: inputs that were zero in all of them.
        stopped_early: the time budget ended the search.
        notes: what was done instead of what was asked, as sentences, each with its number.
        trace: energy against time.
        swapped: weights whose mask a descent on the loss changed after that; the errors are those before.
        held_out_before: error of the warm start on held-out inputs, as a share of the outputs' power there; ``None``
            if there were none.
        held_out_after: the same of the result, before it was reverted if it was.
        reverted: the error on held-out inputs rose, so the layer has its warm start back.
        least_error: no mask of these counts has an error below this; ``None`` where nothing was proven.
        block_optima: how many of some sampled blocks the mask has optimal; ``None`` where none were sampled.
        blocks: how many blocks the solver was given, lost, and was cut in by the clock.
    """

    name: str
    shape: tuple[int, int]
    kept: int
    density: float
    error_before: float | None
    error_after: float | None
    output_power: float | None
    steps: int
    accepted: int
    solver_gain: float
    polish_gain: float
    seconds: float
    solver: str
    tokens: int
    dead_inputs: int
    stopped_early: bool = False
    notes: dict[str, int] = field(default_factory=dict)
    trace: tuple[TracePoint, ...] = ()
    swapped: int = 0
    held_out_before: float | None = None
    held_out_after: float | None = None
    reverted: bool = False
    least_error: float | None = None
    block_optima: BlockOptima | None = None
    blocks: BlockCounts = NONE

    @property
    def solver_share(self) -> float | None:
        """What the solver's answers took off the error that the blocks began with; ``None`` where there were none."""
        return _solver_share([self])

    @property
    def gap(self) -> float | None:
        """By how much of ``error_after`` a better mask may be below it, at most; ``None`` where nothing was proven."""
        if self.least_error is None or self.error_after is None:
            return None
        return _share(self.error_after - self.least_error, self.error_after)

    @property
    def relative_before(self) -> float | None:
        """``error_before / output_power``; ``None`` where that was not measured."""
        return _ratio(self.error_before, self.output_power)

    @property
    def relative_after(self) -> float | None:
        """``error_after / output_power``; ``None`` where that was not measured."""
        return _ratio(self.error_after, self.output_power)

    def to_dict(self) -> dict[str, Any]:
        """All fields and the relative errors as plain data."""
        relative = {"relative_before": self.relative_before, "relative_after": self.relative_after, "gap": self.gap}
        blocks = {"block_optima": self.block_optima.to_dict() if self.block_optima else None}
        relative["solver_share"] = self.solver_share
        return dataclasses.asdict(self) | blocks | relative

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> LayerReport:
        """What :meth:`to_dict` gave, before or after a way through JSON."""
        names = [field.name for field in dataclasses.fields(cls)]
        fields = {name: plain[name] for name in names}
        optima = plain["block_optima"]
        if optima is not None:
            fields["block_optima"] = BlockOptima(**{f.name: optima[f.name] for f in dataclasses.fields(BlockOptima)})
        fields["blocks"] = BlockCounts.from_dict(plain["blocks"])
        trace = tuple(TracePoint(**point) for point in plain["trace"])
        return cls(**{**fields, "shape": tuple(plain["shape"]), "trace": trace})


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or whole is None else _share(part, whole)


def _sum(values: Iterable[float | None]) -> float | None:
    """Of those that were measured; ``None`` if none was."""
    measured = [value for value in values if value is not None]
    return sum(measured) if measured else None


@dataclass(frozen=True, eq=False)
class Report(Shown):
    """Outcome of :func:`qubo_prune.prune`.

    Attributes:
        layers: one entry per pruned layer, in the order they were pruned.
        model: name of the model.
        settings: the arguments of the run, seed included.
        calibration: source, windows and token count.
        seconds: ``forward``, ``hessian``, ``search``, ``loss``, ``bounds`` and ``total`` wall-clock seconds, and
            ``checkpoints``, what the run's folder took of this process.
        masks: the keep masks by parameter name (saved apart, not part of :meth:`to_dict`).
        loss: the steps of a descent on the loss, if there was one.
        budgets: the steps of a search for budgets between parts of the model, if there was one.
        held_out_perplexity: of the dense and of the pruned model on the held-out windows of a calibration text, if
            there are any.
        memory_estimate_bytes: what was foreseen of that before the run; ``None`` where it is not known.
        left_dense: layers of the run that were not pruned, with the reason: no calibration input reached them.
        coverage: the weights of the whole model, and large parameters that are in no layer of the run; ``None`` where
            that is not known.
        model_source: the file that the weights were read from, if they were stored quantised and are no longer; else
            empty.
        peak_memory_bytes: highest resident memory of the process so far.
        versions: of Python and the packages that matter.
        machine: processor and operating system.
    """

    layers: tuple[LayerReport, ...]
    model: str
    settings: dict[str, Any]
    calibration: dict[str, Any]
    seconds: dict[str, float]
    masks: KeepMasks = field(default_factory=KeepMasks, repr=False)
    loss: LossTrace | None = None
    budgets: BudgetTrace | None = None
    held_out_perplexity: tuple[float, float] | None = None
    memory_estimate_bytes: int | None = None
    left_dense: tuple[LeftDense, ...] = ()
    coverage: Coverage | None = None
    model_source: str = ""
    peak_memory_bytes: int = field(default_factory=lambda: peak_memory())
    versions: dict[str, str] = field(default_factory=lambda: versions())
    machine: dict[str, Any] = field(default_factory=lambda: machine())

    @property
    def density(self) -> float:
        """Kept share of all weights in the pruned layers."""
        return _share(sum(layer.kept for layer in self.layers), sum(_size(layer) for layer in self.layers))

    @property
    def share(self) -> float | None:
        """The pruned layers' share of all weights of the model; ``None`` where those were not counted."""
        if self.coverage is None:
            return None
        return _share(sum(_size(layer) for layer in self.layers), self.coverage.weights)

    @property
    def error_before(self) -> float | None:
        """Layer output errors of the warm start, summed over the layers where they were measured."""
        return _sum(layer.error_before for layer in self.layers)

    @property
    def error_after(self) -> float | None:
        """Layer output errors of the final masks, summed over the layers where they were measured."""
        return _sum(layer.error_after for layer in self.layers)

    @property
    def relative_error(self) -> float | None:
        """:attr:`error_after` as a share of the summed output power."""
        return _ratio(self.error_after, _sum(layer.output_power for layer in self.layers))

    @property
    def relative_error_before(self) -> float | None:
        """:attr:`error_before` as a share of the summed output power."""
        return _ratio(self.error_before, _sum(layer.output_power for layer in self.layers))

    @property
    def gap(self) -> float | None:
        """By how much of the summed error better masks may be below it, at most, over the layers with a bound."""
        proven = [layer for layer in self.layers if layer.least_error is not None]
        after, least = _sum(layer.error_after for layer in proven), _sum(layer.least_error for layer in proven)
        return None if after is None or least is None else _share(after - least, after)

    @property
    def block_optima(self) -> BlockOptima | None:
        """The sampled blocks of all layers together; ``None`` if there are none."""
        sampled = [layer.block_optima for layer in self.layers if layer.block_optima is not None]
        return sum(sampled, BlockOptima()) if sampled else None

    @property
    def blocks(self) -> BlockCounts:
        """The solver's blocks of all layers, and those of the loss."""
        return total([*(layer.blocks for layer in self.layers), NONE if self.loss is None else self.loss.counts])

    @property
    def all_blocks_lost(self) -> bool:
        """True if a solver was given blocks, of the layers or of the loss, and lost every one of them."""
        layers = total(layer.blocks for layer in self.layers)
        return layers.all_lost or (self.loss is not None and self.loss.counts.all_lost)

    def warnings(self) -> list[str]:
        """How many blocks solvers lost, and how many the clock cut, as sentences; none if all went well."""
        said = total(layer.blocks for layer in self.layers).sentences(str(self.settings.get("solver") or THE_SOLVER))
        if self.loss is not None:
            named = (self.settings.get("loss_settings") or {}).get("solver", THE_SOLVER)
            said += self.loss.counts.sentences(str(named))
        early = sum(layer.stopped_early for layer in self.layers)
        if early:
            said.append(f"The time budget ended the search in {early} of {len(self.layers)} layers.")
        return said

    def notes(self) -> list[str]:
        """What was done otherwise than asked, as sentences: of the loss, and of the layers, folded by kind."""
        of_loss = {} if self.loss is None else self.loss.notes
        return [
            *folded_notes([("loss", of_loss)]),
            *folded_notes((layer.name, layer.notes) for layer in self.layers),
        ]

    def totals(self) -> dict[str, Any]:
        """Sums over the layers."""
        blocks = self.block_optima
        return {
            "layers": len(self.layers),
            "weights": sum(_size(layer) for layer in self.layers),
            "kept": sum(layer.kept for layer in self.layers),
            "density": self.density,
            "share": self.share,
            "error_before": self.error_before,
            "error_after": self.error_after,
            "relative_before": self.relative_error_before,
            "relative_after": self.relative_error,
            "gap": self.gap,
            "block_optima": blocks.to_dict() if blocks else None,
            "steps": sum(layer.steps for layer in self.layers),
            "accepted": sum(layer.accepted for layer in self.layers),
            "stopped_early": sum(layer.stopped_early for layer in self.layers),
            "solver_share": _solver_share(self.layers),
            "solver_blocks": self.blocks.to_dict(),
            "all_blocks_lost": self.all_blocks_lost,
            "warnings": self.warnings(),
            "reverted": [layer.name for layer in self.layers if layer.reverted],
            "left_dense": len(self.left_dense),
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything but the masks, as plain data for JSON."""
        return {
            "model": self.model,
            "model_source": self.model_source,
            "settings": self.settings,
            "calibration": self.calibration,
            "seconds": self.seconds,
            "memory_estimate_bytes": self.memory_estimate_bytes,
            "peak_memory_bytes": self.peak_memory_bytes,
            "totals": self.totals(),
            "loss": self.loss.to_dict() if self.loss else None,
            "budgets": self.budgets.to_dict() if self.budgets else None,
            "held_out_perplexity": _finite(self.held_out_perplexity),
            "layers": [layer.to_dict() for layer in self.layers],
            "left_dense": [dataclasses.asdict(layer) for layer in self.left_dense],
            "coverage": self.coverage.to_dict() if self.coverage else None,
            "versions": self.versions,
            "machine": self.machine,
        }

    def save(self, path: str | Path) -> None:
        """Write ``report.json``."""
        atomic_write(path, json.dumps(self.to_dict(), indent=1) + "\n")

    def table(self, full: bool = False) -> Table:
        """A table of all layers, or by kind of layer (numbers in names folded together)."""
        title, caption = Text(self._title(), style="table.title"), Text(self._caption(), style="table.caption")
        table = Table(
            title=title,
            caption=caption,
            title_justify="left",
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            show_edge=False,
            padding=0,
        )
        table.add_column("layer", min_width=16)
        for column in ("layers", "kept", "before", "after", "ratio", "solver", "blocks", "s"):
            table.add_column(column, justify="right", no_wrap=True)
        groups: dict[str, list[LayerReport]] = {}
        for layer in self.layers:
            groups.setdefault(layer.name if full else folded(layer.name), []).append(layer)
        for name, members in groups.items():
            table.add_row(DottedName(name), *_row(members))
        table.add_section()
        table.add_row("all", *_row(list(self.layers)))
        return table

    def _title(self) -> str:
        pattern, solver = self.settings.get("pattern", ""), self.settings.get("solver", "")
        method = self.settings.get("method", "")
        by = f"{method} blocks by {solver}" if solver else method
        if self.loss:
            decided = (self.settings.get("loss_settings") or {}).get("solver")
            by = f"blocks of the loss ({method})" + (f" by {decided}" if decided else "")
        share = "" if self.share is None else f" of {percent(self.share)} of the model's weights"
        return f"{self.model}: {by}, pattern {pattern}, density {self.density:.4f}{share}"

    def _caption(self) -> str:
        seconds, trace = self.seconds, self.loss
        loss = (
            ""
            if trace is None
            else (
                f"held-out loss {trace.start_loss:.5f} to {trace.best_loss:.5f} in {trace.blocks} blocks, "
                f"{trace.seconds:.0f} s. {trace.stopped}\n"
            )
        )
        if self.budgets is not None:
            loss += (
                f"budgets: divergence of the masked model {self.budgets.start:.4g} to {self.budgets.end:.4g} nats in "
                f"{self.budgets.passes:.0f} short passes\n"
            )
        judged = self.held_out_perplexity
        loss += f"held-out perplexity {judged[0]:.2f} to {judged[1]:.2f}\n" if judged else ""
        if self.gap is not None:
            loss += f"proven: no masks of these counts have an error below {1 - self.gap:.1%} of this\n"
        loss += f"{_told(self.block_optima)}\n" if self.block_optima else ""
        loss += "".join(f"{line}\n" for line in sentences(self.coverage, self.left_dense))
        return (
            f"{loss}kept: share of weights; before, after: errors relative "
            f"to the layers' outputs; solver: what its answers took off the error that blocks began with; "
            f"blocks: given to the solver, and rows that were polished as a whole; s: of the search; "
            f"{max((layer.tokens for layer in self.layers), default=0)} calibration tokens of "
            f"{self.calibration.get('source', '')}; {seconds.get('total', 0):.0f} s: "
            f"forward {seconds.get('forward', 0):.0f}, "
            f"Hessians {seconds.get('hessian', 0):.0f}, search {seconds.get('search', 0):.0f}; "
            f"peak {self.peak_memory_bytes / 2**30:.2f} GiB"
        )

    def __str__(self) -> str:
        return rendered(self.__rich__(), 100)

    def __rich__(self) -> Group:
        style = "bold red" if self.all_blocks_lost else "bold"
        said = [Text(sentence, style=style) for sentence in self.warnings()]
        return Group(self.table(), *said, *map(Text, self.notes()))


def _finite(values: Sequence[float] | None) -> list[float | None] | None:
    """For JSON, which knows no infinity."""
    return None if values is None else [value if math.isfinite(value) else None for value in values]


def _told(found: BlockOptima) -> str:
    """Sampled blocks as a sentence."""
    blocks = f"{found.blocks} sampled blocks{f' ({found.skipped} rows hold no block)' if found.skipped else ''}"
    if found.gain_share is None:
        return f"optima were proven in none of {blocks}"
    return (
        f"optima were proven in {found.proven} of {blocks}: the masks have {found.optimal} of them, and all together "
        f"would lower their rows' errors by {found.gain_share:.2%}"
    )


def _size(layer: LayerReport) -> int:
    return layer.shape[0] * layer.shape[1]


def _row(members: list[LayerReport]) -> tuple[str, ...]:
    power = _sum(layer.output_power for layer in members)
    before, after = _sum(layer.error_before for layer in members), _sum(layer.error_after for layer in members)
    density = _share(sum(layer.kept for layer in members), sum(_size(layer) for layer in members))
    return (
        str(len(members)),
        f"{density:.4f}",
        shown(_ratio(before, power), 5),
        shown(_ratio(after, power), 5),
        shown(_ratio(after, before), 3),
        _percent(_solver_share(members)),
        str(sum(layer.steps for layer in members)),
        f"{sum(layer.seconds for layer in members):.1f}",
    )


def told_of(folder: str | Path) -> list[str]:
    """The warnings in the ``report.json`` of a pruned model's folder; none where there is no such file."""
    try:
        found = strict_json(limited_text(Path(folder) / REPORT, _MOST_BYTES), constants=True)
    except (OSError, InputError):
        return []
    totals = found.get("totals") if isinstance(found, dict) else None
    warnings = totals.get("warnings") if isinstance(totals, dict) else None
    return [one_line(said, 1000) for said in warnings if isinstance(said, str)] if isinstance(warnings, list) else []


def _solver_share(layers: Sequence[LayerReport]) -> float | None:
    """What the solver's answers took off, of the error that the blocks of these layers began with."""
    decided = [layer for layer in layers if layer.solver and layer.steps]
    began = _sum(layer.trace[0].energy if layer.trace else layer.error_before for layer in decided)
    # a layer that has its warm start back was helped by nobody
    return _ratio(sum(0.0 if layer.reverted else layer.solver_gain for layer in decided), began)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def peak_memory() -> int:
    """Highest resident memory of this process since :func:`reset_peak_memory`, or since it began, in bytes."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(re.search(r"^VmHWM:\s*(\d+) kB", status, flags=re.MULTILINE)[1]) * 1024  # type: ignore[index]
    except (OSError, TypeError):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_memory() -> None:
    """Let :func:`peak_memory` begin anew, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the result."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """Processor, cores and operating system."""
    import torch

    return {
        "system": platform.system(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    match = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return match[1] if match else platform.machine()

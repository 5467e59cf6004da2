"""What a run says of solvers, by the conventions of the field.

* **gap to the best known** ``(E - E_best) / |E_best|``, the best being the lowest energy that the suite or the run
  knows; **gap to the bound** ``(E - L) / |E_best|`` with the certified L. They are kept apart: the first says who is
  ahead, the second what could be left.
* **success**: the gap to the best known is at most ``1e-6``; its probability p is taken over seeds and instances.
* **time to solution** ``t ln(0.01) / ln(1 - p)``: until one of independent runs of t seconds has succeeded with
  99 %; t if p = 1, none if p = 0. With an interval from that of p (Clopper-Pearson, 95 %).
* **profile** (E. Dolan, J. Moré, Mathematical Programming 91, 2002): the share of instances that a solver brings to
  within 1 % of the best known in at most r times the seconds of the fastest.
* **ECDF**: the share of solves whose gap is at most g.

A solver that ended by itself counts with that answer at all longer limits too. One that came far too late (after
:func:`~qubo_prune.bench.runs.latest`) counts with the start.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Group
from rich.markup import escape
from rich.text import Text
from scipy.stats import binomtest

from qubo_prune.bench.runs import Row, RunTable, latest, read_calls
from qubo_prune.bench.suite import Instance, Suite
from qubo_prune.errors import InputError
from qubo_prune.solver.block_counts import BlockCounts, total
from qubo_prune.solver.interface import Status
from qubo_prune.tables import Shown, Table

#: Gap up to which an answer is as good as the best known.
SUCCESS = 1e-6
#: Gap that counts as solved in the profiles.
SOLVED = 1e-2
#: Draws of the bootstrap.
_DRAWS = 1000
#: Gap below which two energies are the same.
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class Results(Shown):
    """The rows of one or more runs with the instances they are of.

    Attributes:
        instances: by name.
        calls: what was asked, with the machine: one entry for each call that added rows.
        solvers: labels, in their order, the baselines first.
        limits: seconds, ascending.
        rows: one line per row, with the columns of :class:`~qubo_prune.bench.runs.Row`.
    """

    instances: Mapping[str, Instance]
    calls: Sequence[Mapping[str, Any]]
    solvers: Sequence[str]
    limits: Sequence[float]
    rows: pd.DataFrame

    @classmethod
    def read(cls, *folders: str | Path) -> Results:
        """The runs in these folders together.

        Raises:
            InputError: a folder holds no run, or two of them have problems of the same name that differ.
        """
        rows: dict[Any, Row] = {}
        calls: list[Mapping[str, Any]] = []
        instances: dict[str, Instance] = {}
        for folder in map(Path, folders):
            calls += read_calls(folder)
            own = {instance.name: instance for instance in Suite.read(folder).instances}
            for name, instance in own.items():
                if instances.setdefault(name, instance).sha256 != instance.sha256:
                    raise InputError(f"{name} is another problem in {folder} than in {folders[0]}.")
            for row in RunTable(folder).rows():
                if row.instance not in own or row.sha256 != own[row.instance].sha256:
                    raise InputError(f"{folder} has rows of {row.instance}, a problem that its manifest does not have.")
                # the same solve on two machines is two solves
                rows[(*row.key, row.machine)] = row
        if not rows:
            raise InputError(f"There are no rows yet in {', '.join(map(str, folders))}.")
        frame = pd.DataFrame([vars(row) | {"qpu_seconds": row.qpu_seconds} for row in rows.values()])
        frame["qpu_seconds"] = frame.qpu_seconds.astype(float)
        solvers = [label for call in calls for label in call["solvers"] if label in set(frame.solver)]
        # the asked ones too: where all solvers ended early, the long limits have no rows of their own
        limits = {*frame.time_limit.tolist(), *(limit for call in calls for limit in call["time_limits"])}
        return cls(instances, calls, list(dict.fromkeys(solvers)), sorted(limits), frame)

    @cached_property
    def best_known(self) -> pd.Series:
        """The lowest energy of each instance, by name."""
        found = self.rows.groupby("instance").energy.min()
        stored = pd.Series({name: self.instances[name].best_energy for name in found.index})
        return found.combine(stored, min)

    @cached_property
    def bounds(self) -> pd.Series:
        """The highest proven bound of each instance, by name."""
        found = self.rows.groupby("instance").lower_bound.max()
        stored = pd.Series({name: self.instances[name].lower_bound for name in found.index})
        return pd.concat([found, stored], axis=1).max(axis=1)

    @cached_property
    def solves(self) -> pd.DataFrame:
        """One line per instance, solver, seed and limit, with gaps; also where the answer is that of a shorter limit.

        Beside the rows' own columns: ``n``, ``hessian``, ``gap``, ``raw_gap``, ``repaired_gap``, ``bound_gap``,
        ``start_gap``, ``success``, ``late``.
        """
        parts = []
        for limit in self.limits:
            late = self.rows.seconds > latest(limit)
            fitting = self.rows[
                (self.rows.time_limit == limit) | ((self.rows.time_limit < limit) & (self.rows.ended | late))
            ].sort_values("time_limit")
            last = fitting.drop_duplicates(["instance", "solver", "settings", "seed", "machine"], keep="last")
            parts.append(last.assign(time_limit=limit, late=last.seconds > latest(limit)))
        table = pd.concat(parts, ignore_index=True)
        for column in ("energy", "repaired"):
            table[column] = table[column].where(~table.late, table.start)
        table["raw"] = table.raw.where(~table.late)
        table["optimal"] &= ~table.late
        facts = {name: self.instances[name] for name in table.instance.unique()}
        table["n"] = table.instance.map({name: i.num_variables for name, i in facts.items()})
        table["hessian"] = table.instance.map({name: i.hessian for name, i in facts.items()})
        best = table.instance.map(self.best_known)
        least = table.instance.map({name: _ROUNDING * i.largest for name, i in facts.items()})
        scale = best.abs().where(best.abs() > least, table.instance.map({name: i.scale for name, i in facts.items()}))
        for column, stage in (("raw_gap", "raw"), ("repaired_gap", "repaired"), ("gap", "energy")):
            table[column] = gap_of(table[stage].astype(float) - best, scale)
        wanda = table.instance.map({name: i.start_energy for name, i in facts.items()})
        table["start_gap"] = gap_of(wanda - best, scale)
        table["bound_gap"] = gap_of(table.energy - table.instance.map(self.bounds), scale)
        table["success"] = table.gap <= SUCCESS
        return table

    @cached_property
    def _counts(self) -> dict[str, BlockCounts]:
        """What became of each solver's solves."""
        counts = {}
        for solver in self.solvers:
            own = self.rows[self.rows.solver == solver]
            counts[solver] = total(
                BlockCounts.of_status(Status.__members__.get(row.status), str(row.note).rpartition("detail: ")[2])
                for row in own.itertuples()
            )
        return counts

    def warnings(self) -> list[str]:
        """How many solves each solver lost, and why, a sentence for each that lost any."""
        # a limit is what a solve is given here, so that it was reached is no news
        return [
            sentence
            for solver, counts in self._counts.items()
            for sentence in dataclasses.replace(counts, cut={}).sentences(solver)
        ]

    @property
    def all_lost(self) -> bool:
        """True if some solver lost all of its solves."""
        return any(counts.all_lost for counts in self._counts.values())

    def at(self, limit: float | None = None) -> pd.DataFrame:
        """The solves of one limit; the longest if left out."""
        return self.solves[self.solves.time_limit == (self.limits[-1] if limit is None else limit)]

    def summary(self, solves: pd.DataFrame | None = None) -> pd.DataFrame:
        """One line per solver: what it found itself, after repair and after polish, and what it took.

        ``raw``, ``repaired``, ``final``, ``to_bound``: median gaps in percent; ``mean``: of the final gap; ``success``:
        share; ``feasible``: mean share of answers that met the count before repair; ``proven``: solves that ended
        in a proof; ``seconds``, ``cpu``: medians; ``qpu``: median of those that tell of hardware, a column only if
        some do; ``tts``, ``tts_low``, ``tts_high``: seconds. ``_low`` and ``_high`` of ``final``, ``mean`` and
        ``success`` are those of :func:`bootstrapped`: what other instances would have given.
        """
        table = self.at() if solves is None else solves
        lines = []
        for solver in self.solvers:
            own = table[table.solver == solver]
            if own.empty:
                continue
            hits, trials, seconds = int(own.success.sum()), len(own), float(own.seconds.mean())
            sure = binomtest(hits, trials).proportion_ci()
            intervals = _intervals(own)
            lines.append(
                {
                    "solver": solver,
                    "instances": own.instance.nunique(),
                    "solves": trials,
                    "raw": 100 * own.raw_gap.median(),
                    "repaired": 100 * own.repaired_gap.median(),
                    "final": 100 * own.gap.median(),
                    "mean": 100 * own.gap.mean(),
                    "to_bound": 100 * own.bound_gap.median(),
                    "success": hits / trials,
                    "feasible": own.feasible.mean(),
                    "proven": int(own.optimal.sum()),
                    "seconds": own.seconds.median(),
                    "cpu": own.cpu_seconds.median(),
                    **({"qpu": own.qpu_seconds.median()} if self._on_hardware else {}),
                    "tts": time_to_solution(seconds, hits / trials),
                    "tts_low": time_to_solution(seconds, sure.high),
                    "tts_high": time_to_solution(seconds, sure.low),
                    **intervals,
                }
            )
        return pd.DataFrame(lines)

    @property
    def _on_hardware(self) -> bool:
        """True if some solve tells for how long it used a quantum processor."""
        return bool(self.rows.qpu_seconds.notna().any())

    def anytime(self, solves: pd.DataFrame | None = None) -> pd.DataFrame:
        """Mean gap to the best known in percent: one line per limit, one column per solver."""
        table = self.solves if solves is None else solves
        pivot = table.pivot_table(index="time_limit", columns="solver", values="gap", aggfunc="mean")
        return 100 * pivot.reindex(columns=[s for s in self.solvers if s in pivot.columns])

    def ecdf(self, solver: str, solves: pd.DataFrame | None = None) -> list[tuple[float, float]]:
        """``(gap, share of solves with at most that gap)``, ascending."""
        table = self.at() if solves is None else solves
        gaps = sorted(table[table.solver == solver].gap)
        return [(gap, (place + 1) / len(gaps)) for place, gap in enumerate(gaps)]

    @cached_property
    def times(self) -> pd.DataFrame:
        """Seconds until a solver's median seed is within 1 % of the best known: instances by solvers, inf if never.

        That is the time of the shortest limit with which it gets there.
        """
        good = self.solves.groupby(["instance", "solver", "time_limit"]).agg(
            gap=("gap", "median"), seconds=("seconds", "median")
        )
        reached = good[good.gap <= SOLVED].reset_index().sort_values("time_limit")
        first = reached.groupby(["instance", "solver"]).seconds.first().unstack()
        asked = self.solves.groupby(["instance", "solver"]).size().unstack()
        return first.reindex(index=asked.index, columns=asked.columns).fillna(math.inf).where(asked.notna())

    def profile(self, solver: str) -> list[tuple[float, float]]:
        """``(r, share of all instances solved in at most r times the fastest solver's seconds)``, ascending.

        An instance that the solver cannot take counts as not solved.
        """
        if solver not in self.times:
            return []
        ratios = (self.times[solver] / self.times.min(axis=1)).dropna()
        finite = sorted(ratio for ratio in ratios if math.isfinite(ratio))
        return [(ratio, (place + 1) / len(self.times)) for place, ratio in enumerate(finite)]

    def table(self) -> Table:
        """:meth:`summary` at the longest limit, for a terminal."""
        table = Table(
            box=None,
            pad_edge=False,
            padding=(0, 1, 0, 0),
            header_style="bold",
            title_justify="left",
            title=f"{self.rows.instance.nunique()} instances, {self.limits[-1]:g} s a solve",
            caption="percent above the best known energy: medians, and mean; proven: solves that ended in a proof; s: "
            "median",
            caption_justify="left",
        )
        for column in (
            "\nsolver",
            "\ninstances",
            "raw\n%",
            "repaired\n%",
            "final\n%",
            "mean\n%",
            "\nsuccess",
            "\nproven",
            "\ns",
            *(["qpu\ns"] if self._on_hardware else []),
        ):
            first = column == "\nsolver"
            table.add_column(column, justify="left" if first else "right", no_wrap=not first, overflow="fold")
        for line in self.summary().to_dict("records"):
            gaps = (f"{line[name]:.2f}" for name in ("raw", "repaired", "final", "mean"))
            table.add_row(
                escape(line["solver"]),
                str(line["instances"]),
                *gaps,
                f"{line['success']:.2f}",
                str(line["proven"]),
                f"{line['seconds']:.3g}",
                *(["-" if math.isnan(line["qpu"]) else f"{line['qpu']:.3g}"] if self._on_hardware else []),
            )
        return table

    def __rich__(self) -> Group:
        return Group(self.table(), *(Text(sentence, style="bold") for sentence in self.warnings()))

    def to_dict(self) -> dict[str, Any]:
        """The summary, the curves and the calls as plain data; not finite numbers are ``None``."""
        return {
            "calls": list(self.calls),
            "summary": _plain(self.summary()),
            "failures": self.warnings(),
            "anytime": _plain(self.anytime().reset_index()),
        }

    def qoblib(self) -> pd.DataFrame:
        """One line per instance and solver with the fields of QOBLIB's submissions, at the longest limit.

        Runtimes are means over runs, and a run is successful that comes within the threshold of this solver's own best,
        as QOBLIB has it. A run is feasible unless nothing of the solver's own was left of it. The time to the solution
        is that of the shortest solve with the final energy. Who submits fills in the empty fields.

        Source: T. Koch et al., Quantum Optimization Benchmarking Library: The Intractable Decathlon (2025),
        arXiv 2504.03832, section on reporting; the fields and their order are those of its contribution guide (2026).
        """
        # a random start is random whatever the solver
        known = (call.get("stochastic", {}) for call in self.calls)
        drawn = {"random+swaps"}.union(*((label for label, yes in labels.items() if yes) for labels in known))
        hits = self._hits
        lines = []
        for (name, solver), own in self.at().groupby(["instance", "solver"], sort=False):
            instance, found = self.instances[str(name)], found_in(own)
            best = float(found.energy.min()) if len(found) else None
            successful = 0 if best is None else int((found.energy <= best + SUCCESS * abs(best)).sum())
            lines.append(
                {
                    "Problem": name,
                    "Submitter": "",
                    "Affiliation": "",
                    "Date": own.began.max()[:10],
                    "Reference": "",
                    "Best Objective Value": _NOT_KNOWN if best is None else best,
                    "Optimality Bound": _claimed(best, own),
                    "Modeling Approach": "QUBO with one cardinality constraint",
                    "# Decision Variables": instance.num_variables,
                    "# Binary Variables": instance.num_variables,
                    "# Integer Variables": 0,
                    "# Continuous Variables": 0,
                    "# Non-Zero Coefficients": instance.couplings + instance.num_variables,
                    "Coefficients Type": "continuous",
                    "Coefficients Range": f"{instance.smallest:.3g} to {instance.largest:.3g}",
                    "Workflow": "presented with Wanda's choice as a start; counts repaired, which "
                    f"{own.feasible.mean():.0%} of its own answers had met; single swaps as a polish",
                    "Algorithm Type": "Stochastic" if solver in drawn else "Deterministic",
                    "Paradigm": _paradigm(str(solver)),
                    "# Runs": len(own),
                    "# Feasible Runs": len(found),
                    "# Successful Runs": successful,
                    "Success Threshold": SUCCESS,
                    "Hardware Specifications": own.machine.iloc[0],
                    "Total Runtime": own.seconds.mean(),
                    "Time to Solution": _NOT_KNOWN if best is None else hits[name, solver],
                    "CPU Runtime": own.cpu_seconds.mean(),
                    "GPU Runtime": 0,
                    "QPU Runtime": own.qpu_seconds.sum(),
                    "Other HW Runtime": 0,
                    "Remarks": f"{solver} {own.settings.iloc[0]}",
                }
            )
        return pd.DataFrame(lines)

    @cached_property
    def _hits(self) -> dict[tuple[Any, Any], float]:
        """Mean seconds of the shortest solves that had the energy of the longest, by instance and solver."""
        keys = ["instance", "solver", "seed", "machine"]
        last = self.solves[[*keys, "settings", "energy"]][self.solves.time_limit == self.limits[-1]]
        both = self.solves.merge(last, on=[*keys, "settings"], suffixes=("", "_last"))
        there = both[both.energy <= both.energy_last + SUCCESS * both.energy_last.abs()].sort_values("time_limit")
        first = there.drop_duplicates([*keys, "settings"])
        return {key: float(seconds) for key, seconds in first.groupby(["instance", "solver"]).seconds.mean().items()}


#: Ends of a solve after which nothing of the solver's own is left.
_NOTHING_FOUND = (Status.INFEASIBLE.name, Status.FAILED.name, Status.OVERRAN.name)
#: What a field of QOBLIB has that has no value.
_NOT_KNOWN = "N/A"
#: QOBLIB takes a bound for a claim of an optimum if it is as near as this to the objective, absolutely where that is
#: small.
_CLAIM = 1e-9


def found_in(solves: pd.DataFrame) -> pd.DataFrame:
    """The solves of which something of the solver's own was left, in time."""
    return solves[~solves.late & ~solves.status.isin(_NOTHING_FOUND)]


def _claimed(best: float | None, own: pd.DataFrame) -> float | str:
    """The highest bound that a solver proved, unless it would be read as a proof that there is none of."""
    if best is None or not own.lower_bound.notna().any():
        return _NOT_KNOWN
    bound = float(own.lower_bound.max())
    near = abs(best - bound) <= _CLAIM * max(1.0, abs(best))
    return _NOT_KNOWN if near and not own.optimal.any() else bound


def _paradigm(label: str) -> str:
    """As QOBLIB has it; empty for solvers that are not ours, whose paradigm is theirs to say."""
    name = label.partition("(")[0]
    return "" if ":" in name else "Quantum Simulator" if name == "qaoa" else "Classical"


def bootstrapped(
    values: pd.DataFrame, statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> tuple[float, float]:
    """95 % interval of a statistic over instances: 1000 times as many are drawn with replacement, seeds together.

    Args:
        values: instances by their solves, missing ones NaN.
        statistic: of ``(draws, instances, solves)``, over the last two axes.

    Returns:
        The 2.5th and 97.5th percentiles (B. Efron, R. Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13);
        NaN where nothing is known. The draws are the same everywhere.
    """
    table = values.to_numpy(dtype=float)
    table = table[~np.isnan(table).all(1)]
    if not len(table):
        return math.nan, math.nan
    drawn = np.random.default_rng(0).integers(len(table), size=(_DRAWS, len(table)))
    low, high = np.percentile(statistic(table[drawn]), [2.5, 97.5])
    return float(low), float(high)


def _intervals(own: pd.DataFrame) -> dict[str, float]:
    """Those of one solver's median and mean gap, in percent, and of its success."""
    gaps, hits = (
        own.assign(solve=own.groupby("instance").cumcount()).pivot(index="instance", columns="solve", values=column)
        for column in ("gap", "success")
    )
    found: dict[str, float] = {}
    for name, values, statistic in (
        ("final", 100 * gaps, _median),
        ("mean", 100 * gaps, _mean),
        ("success", hits, _mean),
    ):
        found[f"{name}_low"], found[f"{name}_high"] = bootstrapped(values, statistic)
    return found


def _mean(draws: NDArray[np.float64]) -> NDArray[np.float64]:
    mean: NDArray[np.float64] = np.nanmean(draws, axis=(1, 2))
    return mean


def _median(draws: NDArray[np.float64]) -> NDArray[np.float64]:
    median: NDArray[np.float64] = np.nanmedian(draws, axis=(1, 2))
    return median


def gap_of(difference: pd.Series, scale: pd.Series) -> pd.Series:
    """Relative; what is but rounding is 0."""
    gap = difference / scale
    return gap.where((gap > _ROUNDING) | gap.isna(), 0.0)


def _plain(table: pd.DataFrame) -> list[dict[str, Any]]:
    def known(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return [{str(name): known(value) for name, value in line.items()} for line in table.to_dict("records")]


def time_to_solution(seconds: float, probability: float, sure: float = 0.99) -> float:
    """``t ln(1 - sure) / ln(1 - p)``; t itself from p = sure on, infinite for p = 0."""
    if probability <= 0:
        return math.inf
    return seconds if probability >= sure else seconds * math.log(1 - sure) / math.log(1 - probability)

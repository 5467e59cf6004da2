"""Metrics of runs that were written by hand, against values that were worked out by hand."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from scipy.stats import beta, binom
from tiny_runs import instance, results, row, write

from qubo_prune.bench.metrics import Results, bootstrapped, time_to_solution
from qubo_prune.bench.run_report import parts_of
from qubo_prune.bench.runs import INFO, RunTable
from qubo_prune.bench.suite import MANIFEST, Suite
from qubo_prune.errors import InputError
from qubo_prune.tables import rendered

#: Of a positive, a negative and a zero energy.
A = instance("a", 8, best=2.0, start=3.0, bound=1.5)
B = instance("b", 64, best=-4.0, start=0.0, bound=-5.0, hessian="fisher")
C = instance("c", 200, best=0.0, start=2.0, bound=-1.0, hessian="compensated")


def only(found: Results, name: str, solver: str, column: str, limit: float | None = None) -> float:
    table = found.at(limit)
    (value,) = table[(table.instance == name) & (table.solver == solver)][column]
    return float(value)


def test_gaps_are_relative_to_the_best_known_energy(tmp_path: Path) -> None:
    rows = [
        row("a", "good", 2.0, raw=3.0, repaired=2.5),
        row("a", "weak", 2.5, raw=None),
        row("b", "good", -3.0),
        row("b", "weak", -4.0),
        row("c", "good", 1.0),
        row("c", "weak", 0.0),
    ]
    found = results(tmp_path, [A, B, C], rows)
    assert only(found, "a", "good", "gap") == 0
    assert only(found, "a", "good", "raw_gap") == pytest.approx(0.5)
    assert only(found, "a", "good", "repaired_gap") == pytest.approx(0.25)
    assert only(found, "a", "good", "bound_gap") == pytest.approx(0.25)
    assert only(found, "a", "good", "start_gap") == pytest.approx(0.5)
    assert only(found, "a", "weak", "gap") == pytest.approx(0.25)
    assert math.isnan(only(found, "a", "weak", "raw_gap"))
    assert only(found, "a", "weak", "bound_gap") == pytest.approx(0.5)
    assert only(found, "b", "good", "gap") == pytest.approx(0.25)
    assert only(found, "b", "good", "bound_gap") == pytest.approx(0.5)
    assert only(found, "b", "weak", "start_gap") == pytest.approx(1.0)
    # where the best is 0, relative to the largest of Q, 4
    assert only(found, "c", "good", "gap") == pytest.approx(0.25)
    assert only(found, "c", "weak", "bound_gap") == pytest.approx(0.25)
    assert {name: only(found, name, "good", "n") for name in "abc"} == {"a": 8, "b": 64, "c": 200}
    assert set(found.solves.hessian) == {"gram", "fisher", "compensated"}


def test_the_best_known_energy_and_bound_may_come_from_the_run(tmp_path: Path) -> None:
    rows = [
        row("a", "good", 1.6, lower_bound=1.55),
        row("a", "weak", 2.0, lower_bound=1.2),
        row("b", "good", -3.0, lower_bound=-6.0),
        row("b", "weak", -2.0),
    ]
    found = results(tmp_path, [A, B, C], rows)
    assert found.best_known.to_dict() == {"a": 1.6, "b": -4.0}
    assert found.bounds.to_dict() == {"a": 1.55, "b": -5.0}
    assert only(found, "a", "good", "gap") == 0
    assert only(found, "a", "weak", "gap") == pytest.approx(0.25)
    assert only(found, "a", "weak", "bound_gap") == pytest.approx(0.45 / 1.6)
    assert only(found, "b", "good", "gap") == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("energy", "gap", "success"),
    [(2 * (1 + 1e-10), 0.0, True), (2 * (1 + 5e-7), 5e-7, True), (2 * (1 + 2e-6), 2e-6, False), (2.2, 0.1, False)],
)
def test_success_is_a_gap_of_a_millionth(tmp_path: Path, energy: float, gap: float, success: bool) -> None:
    found = results(tmp_path, [A], [row("a", "one", energy)])
    assert only(found, "a", "one", "gap") == pytest.approx(gap, rel=1e-6)
    assert bool(only(found, "a", "one", "success")) == success


def test_who_ended_counts_at_all_longer_limits(tmp_path: Path) -> None:
    rows = [
        row("a", "quick", 2.4, 0.1, ended=True, seconds=0.01),
        row("a", "slow", 2.5, 0.1),
        row("a", "slow", 2.0, 1.0),
        row("a", "other", 2.2, 0.3),
        row("a", "stopped", 2.1, 0.1),
    ]
    found = results(tmp_path, [A], rows)
    assert found.limits == [0.1, 0.3, 1.0]
    who = {limit: sorted(found.at(limit).solver) for limit in found.limits}
    assert who == {0.1: ["quick", "slow", "stopped"], 0.3: ["other", "quick"], 1.0: ["quick", "slow"]}
    assert only(found, "a", "quick", "seconds") == 0.01
    assert only(found, "a", "quick", "gap") == pytest.approx(0.2)
    curves = found.anytime()
    assert curves.loc[0.1].to_dict() == pytest.approx(
        {"quick": 20.0, "slow": 25.0, "stopped": 5.0, "other": math.nan}, nan_ok=True
    )
    assert curves.loc[1.0, "quick"] == pytest.approx(20.0)
    assert list(curves.columns) == ["quick", "slow", "other", "stopped"]


def test_who_comes_far_too_late_counts_with_the_start(tmp_path: Path) -> None:
    rows = [row("a", "slow", 2.0, 0.1, seconds=9.0, optimal=True), row("a", "in time", 2.5, 0.1, seconds=0.29)]
    found = results(tmp_path, [A], rows, time_limits=[0.1, 5.0])
    early, late = found.at(0.1), found.at(5.0)
    assert only(found, "a", "slow", "gap", 0.1) == pytest.approx(0.5)  # of the start, 3, above 2
    assert early[early.solver == "slow"].raw.isna().all()
    assert early.set_index("solver").late.to_dict() == {"slow": True, "in time": False}
    assert not early.optimal.any()
    # with 5 s it may take 10.1
    assert late[late.solver == "slow"].empty
    far = results(tmp_path / "far", [A], [row("a", "slow", 2.0, 0.1, seconds=99.0)], time_limits=[0.1, 5.0])
    assert only(far, "a", "slow", "gap", 5.0) == pytest.approx(0.5)


def test_a_row_of_a_longer_limit_counts_as_it_stands(tmp_path: Path) -> None:
    """What it has not, an answer or a bound of its own, does not come from a shorter one."""
    rows = [
        row("a", "one", 2.4, 0.1, ended=True, lower_bound=1.0, raw=2.4),
        row("a", "one", 2.2, 1.0, raw=None),
        row("a", "one", 2.8, 0.1, seed=1, ended=True),
        row("a", "one", 2.6, 0.3, seed=1, ended=True),
    ]
    found = results(tmp_path, [A], rows)
    table = found.at().set_index("seed")
    assert table.energy.to_dict() == {0: 2.2, 1: 2.6}
    assert math.isnan(table.raw_gap[0])
    assert math.isnan(table.lower_bound[0])


def test_nothing_is_proven_and_nothing_feasible_in_all_of_a_run(tmp_path: Path) -> None:
    rows = [row(name, "one", energy, raw=None, feasible=0.0) for name, energy in (("a", 2.5), ("b", -4.0))]
    found = results(tmp_path, [A, B], rows)
    assert found.bounds.to_dict() == {"a": 1.5, "b": -5.0}
    (line,) = found.summary().to_dict("records")
    assert math.isnan(line["raw"])
    assert (line["final"], line["feasible"], line["proven"]) == (pytest.approx(12.5), 0.0, 0)
    assert found.qoblib()["# Feasible Runs"].tolist() == [1, 1]  # once repaired


@pytest.mark.parametrize(
    ("probability", "tts"),
    [(0.0, math.inf), (1.0, 3.0), (0.99, 3.0), (0.995, 3.0), (0.5, 3.0 * 6.643856), (0.9, 6.0), (0.1, 3.0 * 43.708691)],
)
def test_time_to_solution(probability: float, tts: float) -> None:
    assert time_to_solution(3.0, probability) == pytest.approx(tts, rel=1e-6)
    if 0 < probability < 0.99:  # so many independent runs fail together once in a hundred
        assert (1 - probability) ** (tts / 3.0) == pytest.approx(0.01, rel=1e-5)


def test_the_summary_of_a_solver(tmp_path: Path) -> None:
    energies = [2.0, 2.0, 2.5, 3.0]
    rows = [
        row(
            "a",
            "one",
            energy,
            seed=seed,
            seconds=0.1 * (seed + 1),
            raw=None if seed == 3 else energy + 1,
            feasible=[1, 0.5, 0.5, 0][seed],
            optimal=seed == 0,
            cpu_seconds=seed,
        )
        for seed, energy in enumerate(energies)
    ]
    found = results(tmp_path, [A, B], [*rows, row("b", "two", -4.0)])
    one, two = found.summary().to_dict("records")
    assert (one["solver"], one["instances"], one["solves"], two["solver"]) == ("one", 1, 4, "two")
    assert one["raw"] == pytest.approx(50.0)  # the median of 50, 50 and 75 percent
    assert one["final"] == pytest.approx(12.5)
    assert one["mean"] == pytest.approx(18.75)
    assert one["to_bound"] == pytest.approx(37.5)
    assert one["success"] == 0.5
    assert one["feasible"] == 0.5
    assert one["proven"] == 1
    assert (one["seconds"], one["cpu"]) == (pytest.approx(0.25), 1.5)
    assert one["tts"] == pytest.approx(0.25 * math.log(0.01) / math.log(0.5))
    low, high = beta.ppf(0.025, 2, 3), beta.ppf(0.975, 3, 2)  # Clopper and Pearson, 2 of 4
    assert one["tts_low"] == pytest.approx(0.25 * math.log(0.01) / math.log(1 - high))
    assert one["tts_high"] == pytest.approx(0.25 * math.log(0.01) / math.log(1 - low))
    assert (two["success"], two["tts"], two["tts_low"]) == (1.0, 0.5, 0.5)
    assert two["tts_high"] > 0.5


def test_who_never_succeeds_never_solves(tmp_path: Path) -> None:
    found = results(tmp_path, [A], [row("a", "one", 3.0, seed=seed) for seed in range(3)])
    (line,) = found.summary().to_dict("records")
    assert (line["success"], line["tts"], line["tts_high"]) == (0.0, math.inf, math.inf)
    assert 0.5 < line["tts_low"] < math.inf


def test_the_ecdf_counts_solves(tmp_path: Path) -> None:
    energies = [2.5, 2.0, 4.0, 2.5]
    rows = [row("a", "one", energy, seed=seed) for seed, energy in enumerate(energies)]
    found = results(tmp_path, [A], [*rows, row("a", "two", 2.0)])
    assert found.ecdf("one") == [(0.0, 0.25), (0.25, 0.5), (0.25, 0.75), (1.0, 1.0)]
    assert found.ecdf("two") == [(0.0, 1.0)]


def test_the_profile_counts_instances_by_the_fastest_solvers_seconds(tmp_path: Path) -> None:
    rows = [
        # a: all within 1 %, the small one first
        row("a", "all", 2.01, 0.1, seconds=0.05),
        row("a", "all", 2.0, 1.0, seconds=0.9),
        row("a", "half", 2.5, 0.1, seconds=0.08),
        row("a", "half", 2.0, 1.0, seconds=0.1),
        row("a", "small", 2.0, 0.1, seconds=0.025, ended=True),
        # b: one of two; the small one does not take it
        row("b", "all", -3.0, 0.1, seconds=0.1),
        row("b", "all", -3.99, 1.0, seconds=0.8),
        row("b", "half", -3.0, 0.1, seconds=0.1),
        row("b", "half", -3.9, 1.0, seconds=0.8),
        # c: nobody
        row("c", "all", 1.0),
        row("c", "half", 1.0),
    ]
    found = results(tmp_path, [A, B, C], rows)
    times = found.times
    assert times.loc["a"].to_dict() == {"all": 0.05, "half": 0.1, "small": 0.025}
    assert (times.loc["b", "all"], times.loc["b", "half"]) == (0.8, math.inf)
    assert math.isnan(times.loc["b", "small"])
    assert found.profile("all") == [(1.0, pytest.approx(1 / 3)), (pytest.approx(2.0), pytest.approx(2 / 3))]
    assert found.profile("half") == [(pytest.approx(4.0), pytest.approx(1 / 3))]
    assert found.profile("small") == [(1.0, pytest.approx(1 / 3))]
    assert found.profile("nobody") == []


def test_the_profile_goes_by_the_median_seed(tmp_path: Path) -> None:
    rows = [row("a", "one", energy, seed=seed, seconds=0.1 + seed) for seed, energy in enumerate([2.0, 2.0, 3.0])]
    found = results(tmp_path, [A], [*rows, *(row("a", "two", 3.0 if seed else 2.0, seed=seed) for seed in range(3))])
    assert found.times.loc["a"].to_dict() == {"one": pytest.approx(1.1), "two": math.inf}


def test_runs_are_taken_together(tmp_path: Path) -> None:
    first = write(tmp_path / "first", [A, B], [row("a", "wanda+swaps", 2.5), row("a", "x", 2.5), row("b", "x", -4.0)])
    second = write(
        tmp_path / "second", [A, C], [row("a", "wanda+swaps", 2.5), row("a", "y", 1.8, 0.1), row("c", "y", 0.0)]
    )
    found = Results.read(first, second)
    assert list(found.solvers) == ["wanda+swaps", "x", "y"]
    assert set(found.instances) == {"a", "b", "c"}
    assert len(found.rows) == 5  # that of the baseline on a stands in both
    assert found.limits == [0.1, 1.0]
    assert found.best_known["a"] == 1.8
    assert len(found.calls) == 2
    assert only(found, "a", "x", "gap") == pytest.approx(0.7 / 1.8)


def test_a_solve_on_two_machines_is_two_solves(tmp_path: Path) -> None:
    first = write(tmp_path / "first", [A], [row("a", "x", 2.5)])
    second = write(tmp_path / "second", [A], [row("a", "x", 2.0, machine="another")])
    (line,) = Results.read(first, second).summary().to_dict("records")
    assert (line["solves"], line["success"]) == (2, 0.5)


def test_a_limit_counts_that_nobody_needed(tmp_path: Path) -> None:
    found = results(tmp_path, [A], [row("a", "x", 2.5, 0.1, ended=True)], time_limits=[0.1, 5.0])
    assert found.limits == [0.1, 5.0]
    assert found.at().time_limit.tolist() == [5.0]


def test_problems_of_one_name_that_differ_are_not_taken_together(tmp_path: Path) -> None:
    first = write(tmp_path / "first", [A], [row("a", "x", 2.5)])
    second = write(tmp_path / "second", [replace(A, sha256="other")], [row("a", "x", 2.5, sha256="other")])
    with pytest.raises(InputError, match=r"a is another problem in .*second than in .*first"):
        Results.read(first, second)


def test_a_folder_without_a_run_or_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no run in .*nothing: run\.json is missing"):
        Results.read(tmp_path / "nothing")
    with pytest.raises(InputError, match="no rows yet"):
        Results.read(write(tmp_path / "empty", [A], []))
    for content in ("{", "[]", '{"format": "x"}'):
        folder = write(tmp_path / "broken", [A], [])
        (folder / INFO).write_text(content)
        with pytest.raises(InputError, match=r"run\.json"):
            Results.read(folder)


def test_rows_of_problems_that_the_manifest_has_not_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", [A, B], [row("a", "x", 2.0), row("b", "x", -4.0)])
    Suite(folder, "by hand", 1, (), (A,), {}).save()
    with pytest.raises(InputError, match=r"rows of b, .*manifest"):
        Results.read(folder)
    RunTable(folder).append(row("a", "x", 2.0, sha256="older"))
    Suite(folder, "by hand", 1, (), (A, B), {}).save()
    with pytest.raises(InputError, match=r"rows of a, .*manifest"):
        Results.read(folder)
    assert (folder / MANIFEST).is_file()


def test_the_fields_of_qoblib(tmp_path: Path) -> None:
    rows = [
        row("a", "tabu(x=1)", 2.0, seed=0, settings='{"x": 1}', seconds=0.5, cpu_seconds=0.25),
        row("a", "tabu(x=1)", 2.5, seed=1, settings='{"x": 1}', seconds=0.75, cpu_seconds=0.5, raw=None, feasible=0.5),
        row("a", "exact", 2.0, lower_bound=2.0, optimal=True),
        row("a", "random+swaps", 2.2),
        row("a", "tabu(x=1)", 9.0, 0.1, seed=0, settings='{"x": 1}'),
        row("a", "tabu(x=1)", 2.5, 0.1, seed=1, settings='{"x": 1}'),
    ]
    stochastic = {"tabu(x=1)": True, "exact": False, "random+swaps": False}
    found = results(tmp_path, [A], rows, stochastic=stochastic).qoblib().set_index("Remarks")
    tabu, exact = found.loc['tabu(x=1) {"x": 1}'], found.loc["exact {}"]
    assert tabu["Problem"] == "a"
    assert tabu["Date"] == "2026-05-02"
    assert tabu["Best Objective Value"] == 2.0
    assert (tabu["Optimality Bound"], exact["Optimality Bound"]) == ("N/A", 2.0)
    assert (tabu["# Decision Variables"], tabu["# Binary Variables"], tabu["# Integer Variables"]) == (8, 8, 0)
    assert tabu["# Non-Zero Coefficients"] == 28 + 8
    assert tabu["Coefficients Range"] == "0.25 to 4"
    # counts are repaired, so an answer that missed one is feasible in the end
    assert (tabu["# Runs"], tabu["# Feasible Runs"], tabu["# Successful Runs"]) == (2, 2, 1)
    assert "75% of its own answers" in tabu["Workflow"]
    assert tabu["Success Threshold"] == 1e-6
    # means over runs; seed 1 had its final energy at the shorter limit already, after half of that
    assert (tabu["Total Runtime"], tabu["CPU Runtime"]) == (0.625, 0.375)
    assert tabu["Time to Solution"] == pytest.approx((0.5 + 0.05) / 2)
    assert tabu["Hardware Specifications"] == "a machine"
    assert (tabu["Algorithm Type"], exact["Algorithm Type"]) == ("Stochastic", "Deterministic")
    assert found.loc["random+swaps {}"]["Algorithm Type"] == "Stochastic"
    assert set(found.Paradigm) == {"Classical"}


#: The fields of QOBLIB's contribution guide, in its order, and those that it takes as whole numbers and as numbers.
FIELDS = [
    "Problem",
    "Submitter",
    "Affiliation",
    "Date",
    "Reference",
    "Best Objective Value",
    "Optimality Bound",
    "Modeling Approach",
    "# Decision Variables",
    "# Binary Variables",
    "# Integer Variables",
    "# Continuous Variables",
    "# Non-Zero Coefficients",
    "Coefficients Type",
    "Coefficients Range",
    "Workflow",
    "Algorithm Type",
    "Paradigm",
    "# Runs",
    "# Feasible Runs",
    "# Successful Runs",
    "Success Threshold",
    "Hardware Specifications",
    "Total Runtime",
    "Time to Solution",
    "CPU Runtime",
    "GPU Runtime",
    "QPU Runtime",
    "Other HW Runtime",
    "Remarks",
]
COUNTS = [field for field in FIELDS if field.startswith("# ")]
NUMBERS = ["Best Objective Value", "Optimality Bound", "Success Threshold", "Time to Solution"]
NUMBERS += [field for field in FIELDS if field.endswith("Runtime")]


def breaches(text: str) -> list[str]:
    """What a file of submissions has that QOBLIB's guide and its checker do not take: a slow reading of their words."""
    found, lines = [], list(csv.DictReader(io.StringIO(text), strict=True))
    if not lines or list(lines[0]) != FIELDS:
        return ["the first line, or no other"]
    for number, line in enumerate(lines):
        known = {field: value for field, value in line.items() if value.strip().upper() not in ("", "N/A", "NA")}
        for field in COUNTS:
            if not re.fullmatch(r"[0-9]+", known.get(field, "0")):
                found.append(f"{number}: {field} is no whole number")
        for field in NUMBERS:
            try:
                float(known.get(field, "0"))
            except ValueError:
                found.append(f"{number}: {field} is no number")
        runs, feasible, successful = (int(line[field]) for field in COUNTS[-3:])
        if not runs >= feasible >= successful >= (1 if feasible else 0):
            found.append(f"{number}: {runs} runs, {feasible} of them feasible, {successful} successful")
        if ("Best Objective Value" in known) != (feasible > 0):
            found.append(f"{number}: an objective without a feasible run, or none with one")
        if line["Algorithm Type"] not in ("Deterministic", "Stochastic"):
            found.append(f"{number}: {line['Algorithm Type']}")
        if line["Paradigm"] not in ("Classical", "Quantum Simulator", "Quantum Hardware", ""):
            found.append(f"{number}: {line['Paradigm']}")
        if sum(int(line[field]) for field in COUNTS[1:4]) != int(line["# Decision Variables"]):
            found.append(f"{number}: variables of all kinds are not all variables")
    return found


def claims_an_optimum(line: dict[str, str]) -> bool:
    """QOBLIB reads a bound that meets the objective to ``1e-9 max(1, |objective|)`` as a proof."""
    if line["Optimality Bound"] == "N/A":
        return False
    objective, bound = float(line["Best Objective Value"]), float(line["Optimality Bound"])
    return abs(objective - bound) <= 1e-9 * max(1.0, abs(objective))


def test_what_qoblib_checks_of_submissions_holds(tmp_path: Path) -> None:
    tiny = instance("t", 8, best=2e-10, start=3e-10, bound=1e-10)
    rows = [
        row("a", "tabu", 2.0, seed=0),
        row("a", "tabu", 2.0 + 1e-7, seed=1, raw=None),
        row("a", "tabu", 2.5, seed=2, feasible=0.0),
        row("a", "exact", 2.0, lower_bound=2.0, optimal=True),
        row("a", "cpsat", 2.0, lower_bound=1.0),
        row("a", "qaoa(layers=2)", 3.0, status="OVERRAN", raw=None),
        row("a", "pack.age:Solver", 3.0, status="FAILED", raw=None, ended=True),
        row("a", 'says "no", twice', 2.2, seconds=9.0),  # far too late
        row("t", "exact", 2e-10, lower_bound=1e-10),
        row("t", "cpsat", 2e-10, lower_bound=2e-10, optimal=True),
    ]
    found = results(tmp_path, [A, tiny], rows).qoblib()
    text = found.to_csv(index=False)
    assert breaches(text) == []
    lines = list(csv.DictReader(io.StringIO(text)))
    assert {line["Remarks"].rpartition(" ")[0]: line["Paradigm"] for line in lines} == {
        "tabu": "Classical",
        "exact": "Classical",
        "cpsat": "Classical",
        "qaoa(layers=2)": "Quantum Simulator",
        "pack.age:Solver": "",
        'says "no", twice': "Classical",
    }
    assert [line["# Feasible Runs"] for line in lines if line["Problem"] == "a"] == ["3", "1", "1", "0", "0", "0"]
    # an energy and its bound may be small, and near to one another for that reason alone
    proven = [(line["Problem"], line["Remarks"]) for line in lines if claims_an_optimum(line)]
    assert proven == [("a", "exact {}"), ("t", "cpsat {}")]
    # and the rules are ones that can be broken
    assert breaches(text.replace("Affiliation,", "")) == ["the first line, or no other"]
    assert breaches(text.replace("Deterministic", "Random"))
    assert breaches(found.assign(**{"# Runs": 0}).to_csv(index=False))
    assert breaches(found.assign(**{"Total Runtime": "1 s"}).to_csv(index=False))
    assert breaches(found.iloc[:0].to_csv(index=False))


def test_the_committed_fields_of_qoblib_hold_as_well() -> None:
    file = Path(__file__).parents[2] / "docs" / "benchmark" / "qoblib.csv.gz"
    assert breaches(gzip.decompress(file.read_bytes()).decode()) == []


def test_intervals_are_those_of_other_draws_of_instances(tmp_path: Path) -> None:
    names = [f"i{number:02d}" for number in range(30)]
    known = [instance(name, best=2.0) for name in names]
    # solver: gap of 0 on two thirds of the instances, 50 % on the others, whatever the seed
    rows = [
        row(name, "s", 2.0 if number % 3 else 3.0, seed=seed) for number, name in enumerate(names) for seed in (0, 1)
    ]
    (line,) = results(tmp_path, known, rows).summary().to_dict("records")
    assert line["mean"] == pytest.approx(50 / 3)
    # a mean of 30 draws of 0 or 50 with p = 1/3: the seeds are no draws of their own
    low, high = (100 * value / 60 for value in binom.interval(0.95, 30, 1 / 3))
    assert line["mean_low"] == pytest.approx(low, abs=2.5)
    assert line["mean_high"] == pytest.approx(high, abs=2.5)
    assert line["success_low"] == pytest.approx(1 - line["mean_high"] / 50)
    assert line["success_high"] == pytest.approx(1 - line["mean_low"] / 50)
    assert line["final_low"] == line["final"] == 0.0
    assert line["final_high"] <= 50.0
    assert results(tmp_path / "again", known, rows).summary().to_dict("records") == [line]


def test_an_interval_of_nothing_is_unknown_and_of_one_instance_a_point(tmp_path: Path) -> None:
    assert all(math.isnan(end) for end in bootstrapped(pd.DataFrame({0: [math.nan]}), lambda draws: draws[:, 0, 0]))
    (line,) = results(tmp_path, [A], [row("a", "s", 2.5)]).summary().to_dict("records")
    assert line["mean_low"] == line["mean"] == line["mean_high"] == pytest.approx(25.0)


def test_one_seed_makes_a_stochastic_solver_no_other(tmp_path: Path) -> None:
    found = results(tmp_path, [A], [row("a", "tabu", 2.0)], stochastic={"tabu": True})
    assert found.qoblib()["Algorithm Type"].tolist() == ["Stochastic"]


def test_it_is_shown_and_given_as_plain_data(tmp_path: Path) -> None:
    rows = [
        row("a", "wanda+swaps", 3.0),
        row("a", "good[bold](x=1)", 2.0, 0.1),
        row("a", "good[bold](x=1)", 2.0, raw=None),
    ]
    found = results(tmp_path, [A], rows)
    shown = rendered(found.table(), 140)
    assert "1 instances, 1 s a solve" in shown
    assert "good[bold](x=1)" in shown
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert [line["solver"] for line in data["summary"]] == ["wanda+swaps", "good[bold](x=1)"]
    assert data["summary"][0]["tts"] is None
    assert data["summary"][1]["raw"] is None
    assert data["anytime"][0] == {"time_limit": 0.1, "wanda+swaps": None, "good[bold](x=1)": 0.0}
    assert data["calls"][0]["suite"] == "by hand"


def test_the_time_of_quantum_hardware_is_read_from_the_notes(tmp_path: Path) -> None:
    rows = [
        row("a", "annealer", 2.0, seed=0, note="qpu_seconds: 0.25; timing: {'qpu_access_time': 250000.0}"),
        row("a", "annealer", 2.0, seed=1, note="qpu_seconds: 1e-05; instead: warm start"),
        row("a", "annealer", 2.0, seed=2, note="detail: not qpu_seconds: 3; qpu_seconds: 9x"),
        row("a", "classical", 2.0, note="nodes: 3"),
    ]
    found = results(tmp_path, [A], rows)
    qpu = {line["solver"]: line["qpu"] for line in found.summary().to_dict("records")}
    assert qpu["annealer"] == pytest.approx(0.125005)
    assert math.isnan(qpu["classical"])
    assert found.qoblib().set_index("Remarks")["QPU Runtime"].tolist() == pytest.approx([0.25001, 0.0])
    shown = rendered(found.table(), 120)
    assert "qpu" in shown
    assert "0.125" in shown
    assert found.to_dict()["summary"][1]["qpu"] is None
    report = "".join(str(part.table.columns.tolist()) for part in parts_of(found))
    assert "'qpu s'" in report
    without = results(tmp_path / "without", [A], [row("a", "classical", 2.0)])
    assert "qpu" not in without.summary().columns
    assert "qpu" not in rendered(without.table(), 120)

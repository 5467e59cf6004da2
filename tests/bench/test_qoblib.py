"""Submissions to QOBLIB against the layout and the rules of its guide, and their solutions against the problems."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import tiny_suite
from tiny_runs import instance, results, row

from qubo_prune.bench.metrics import Results
from qubo_prune.bench.qoblib import folder_names, write_submissions
from qubo_prune.bench.runs import digits_of, run_suite
from qubo_prune.bench.solvers import parse_entrants
from qubo_prune.errors import InputError


def breaches(submission: Path) -> list[str]:
    """What of a submission's layout QOBLIB does not take: a slow reading of its guide."""
    found = []
    folders = sorted(path for path in submission.iterdir() if path.is_dir())
    for folder in folders:
        summary = folder / f"{folder.name}_summary.csv"
        if not summary.is_file():
            found.append(f"{folder.name}: no summary")
            continue
        with summary.open(encoding="utf-8", newline="") as stream:
            lines = list(csv.DictReader(stream, strict=True))
        if not lines or any(line["Problem"] != folder.name for line in lines):
            found.append(f"{folder.name}: no line, or one of another problem")
        solutions = [path for path in folder.iterdir() if re.fullmatch(r".*_solution\.[^./]+", path.name)]
        if [path.name.partition("_solution.")[0] for path in solutions] != [folder.name]:
            found.append(f"{folder.name}: not one solution")
    return found if folders else ["no instance"]


def test_a_real_run_is_a_submission_of_each_solver(tmp_path: Path) -> None:
    suite = tiny_suite.made(tmp_path / "suite", tiny_suite.FEW, proof_time=1.0)
    entrants = parse_entrants("exact,tabu(steps=5),tiny_suite:Breaks")
    run_suite(suite, entrants, tmp_path / "run", time_limits=[0.05], seeds=2, workers=1, backend="sequential")
    found = Results.read(tmp_path / "run")
    for _ in range(2):  # written again over what is there
        folders = write_submissions(found, tmp_path / "out")
    assert [path.name for path in folders] == [
        "wanda_swaps",
        "random_swaps",
        "exact",
        "tabu_steps_5",
        "tiny_suite_Breaks",
    ]
    assert [breaches(folder) for folder in folders] == [[]] * 5
    for folder in folders:
        assert {path.name for path in folder.iterdir()} == {i.name for i in suite.instances}
        for known in suite.instances:
            place = folder / known.name / known.name
            with Path(f"{place}_summary.csv").open(encoding="utf-8", newline="") as stream:
                (line,) = csv.DictReader(stream)
            problem = suite.problem(known)
            x = np.array([int(digit) for digit in Path(f"{place}_solution.txt").read_text().split()])
            assert x.shape == (known.num_variables,)
            assert problem.is_feasible(x)
            if folder.name == "tiny_suite_Breaks":
                assert (line["# Feasible Runs"], line["Best Objective Value"]) == ("0", "N/A")
                assert np.array_equal(np.flatnonzero(x), known.start)
            else:
                energy = float(line["Best Objective Value"])
                assert problem.energy(x) == pytest.approx(energy, abs=1e-9 * abs(known.start_energy))


def test_the_best_answer_in_time_is_the_solution(tmp_path: Path) -> None:
    answers = {energy: digits_of(np.arange(8) < place) for place, energy in enumerate((2.6, 2.2, 2.1))}
    rows = [row("a", "s", energy, seed=seed, answer=answers[energy]) for seed, energy in enumerate((2.6, 2.2))]
    rows.append(row("a", "s", 2.1, seed=2, answer=answers[2.1], seconds=9.0))  # far too late
    (folder,) = write_submissions(results(tmp_path / "run", [instance("a")], rows), tmp_path / "out")
    assert (folder / "a" / "a_solution.txt").read_text() == "1\n" + 7 * "0\n"


def test_a_broken_layout_is_seen(tmp_path: Path) -> None:
    found = results(tmp_path / "run", [instance("a")], [row("a", "s", 2.0, answer=digits_of(np.ones(8, dtype=bool)))])
    (folder,) = write_submissions(found, tmp_path / "out")
    assert breaches(folder) == []
    (folder / "a" / "a_solution.txt").rename(folder / "a" / "b_solution.txt")
    assert breaches(folder) == ["a: not one solution"]
    (folder / "a" / "a_summary.csv").unlink()
    assert breaches(folder) == ["a: no summary"]


def test_rows_without_answers_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    found = results(tmp_path / "run", [instance("a")], [row("a", "s", 2.0)])
    with pytest.raises(InputError, match="The row of s on a has no answer"):
        write_submissions(found, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_was_not_written_here_stays(tmp_path: Path) -> None:
    found = results(tmp_path / "run", [instance("a")], [row("a", "s", 2.0, answer=digits_of(np.ones(8, dtype=bool)))])
    strange = tmp_path / "out" / "s" / "a" / "a_summary.csv"
    strange.parent.mkdir(parents=True)
    strange.write_text("mine")
    with pytest.raises(InputError, match=r"a_summary\.csv"):
        write_submissions(found, tmp_path / "out")
    assert strange.read_text() == "mine"


def test_folders_have_plain_names_of_their_own() -> None:
    labels = ["tabu", "tabu(steps=5)", "tabu(steps:5)", "TABU", "../..", "a.b:C", "$(x)"]
    names = folder_names(labels)
    assert list(names) == labels
    assert len({name.lower() for name in names.values()}) == len(labels)
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) for name in names.values())
    assert names["tabu"] == "tabu"

"""Tables of problems and results say what they are of."""

from __future__ import annotations

import numpy as np

from qubo_prune import BlockQubo, FactorForm, SolveResult, Status, solve
from qubo_prune.problem.qubo import evenly_spread, problem_table
from qubo_prune.solver import Ledger
from qubo_prune.solver.interface import result_table
from qubo_prune.tables import rendered


def said(shown: object) -> dict[str, str]:
    lines = [line.split("  ", 1) for line in rendered(shown, 200).splitlines()]  # type: ignore[arg-type]
    return {line[0].strip(): line[1].strip() for line in lines if len(line) == 2 and line[0]}


def test_a_problem_says_its_size_counts_and_ranges() -> None:
    q = np.diag([1.0, -2.0, 3.0, 4.0])
    q[0, 1] = q[1, 0] = 0.25
    facts = said(problem_table(BlockQubo(q, [1, 1], offset=7.5, labels=[0, 0, 1, 1])))
    assert facts["variables"] == "4"
    assert facts["groups"] == "2: prune 1 of 2 in each of 2"
    assert facts["form"] == "dense, 4 x 4"
    assert facts["offset"] == "7.5"
    assert facts["diagonal Q_ii"] == "-2 to 4, median size 2.5"
    # 2 of 12 ordered pairs
    assert facts["couplings 2 Q_ij"] == "0.5 to 0.5, median size 0.5, 16.7 % are not 0"


def test_other_forms_of_problems() -> None:
    rng = np.random.default_rng(0)
    large = said(problem_table(BlockQubo(FactorForm(np.ones(3000), rng.random((3000, 2))), None)))
    assert large["groups"] == "none: prune any number"
    assert large["form"] == "factors: diagonal and 3,000 x 2"
    assert large["couplings 2 Q_ij"].endswith("100 % are not 0 (of 2048 evenly spread variables)")
    assert said(problem_table(BlockQubo(np.zeros((1, 1)), 1)))["couplings 2 Q_ij"] == "none"
    assert said(problem_table(BlockQubo(np.zeros((0, 0)), 0)))["diagonal Q_ii"] == "none"
    several = BlockQubo(np.eye(9), [1, 2, 3], labels=[0, 1, 1, 2, 2, 2, 2, 2, 2])
    assert said(problem_table(several))["groups"] == "3: prune 1 of 1, prune 2 of 2, prune 3 of 6"


def test_evenly_spread_places_are_different_and_reach_both_ends() -> None:
    assert evenly_spread(5, 9).tolist() == [0, 1, 2, 3, 4]
    assert evenly_spread(0, 9).tolist() == []
    some = evenly_spread(1000, 7)
    assert (len(some), some[0], some[-1]) == (7, 0, 999)


def test_a_result_says_who_found_it_and_what_was_added() -> None:
    ledger = Ledger(start=2.0, raw=None, feasible=0.25, repaired=1.5, polished=1.0)
    x = np.array([[True, False, True], [False, True, True]])
    found = SolveResult(
        x,
        np.array([1.0, 1.5]),
        Status.FEASIBLE,
        lower_bound=0.5,
        seconds=0.25,
        solver="<tabu>",
        ledger=ledger,
        info={"reads": 3},
    )
    facts = said(result_table(found))
    assert facts["solver"] == "<tabu>"
    assert facts["status"].startswith("FEASIBLE: ")
    assert facts["bound"] == "0.5 (gap 50 %)"
    assert facts["pruned"] == "2 of 3: 0, 2"
    assert facts["answers"] == "2, energies up to 1.5"
    assert facts["told"] == "reads: 3"
    text = rendered(found, 100)
    for line in ("start     2", "raw       none (25 % of the answers met the counts)", "polished  1"):
        assert line in text
    assert "&lt;tabu&gt;" in found._repr_html_()


def test_a_real_solve_shows_itself() -> None:
    problem = BlockQubo([[1.0, -2.0], [-2.0, 3.0]], num_pruned=1)
    page = solve(problem, "exact")._repr_html_()
    assert "OPTIMAL" in page
    assert "units of the layer" in page
    assert "2 Q_ij" in problem._repr_html_()

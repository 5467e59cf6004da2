from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import dimod
import numpy as np
import pytest
from dimod.serialization import coo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import BUDGETS, budgeted_problem, random_problem

from qubo_prune.errors import InputError
from qubo_prune.formats import text as files
from qubo_prune.formats.libraries import to_bqm, to_ising
from qubo_prune.formats.text import FORMATS, read_problem, write_problem
from qubo_prune.problem import BlockQubo, FactorForm

EXACT = ("json", "coo", "qubo", "lp")
#: Near the end of what a problem of six variables may hold, 2^1020 divided by 36.
LARGEST = 3e305
numbers = st.floats(-LARGEST, LARGEST, allow_nan=False) | st.floats(-10, 10) | st.just(0.0)


@st.composite
def problems(draw: st.DrawFn, entries: st.SearchStrategy[float] = numbers, factor: bool = False) -> tuple[Any, ...]:
    """The arguments of a problem; making one in here would draw on a global stream of random numbers."""
    n = draw(st.integers(1, 6))
    groups = draw(st.integers(0, min(3, n)))
    labels = None if groups < 2 else [*range(groups), *(draw(st.integers(0, groups - 1)) for _ in range(n - groups))]
    sizes = [n] if labels is None else np.bincount(labels).tolist()
    counts = [draw(st.integers(0, size)) for size in sizes] if groups else None
    if factor:
        rank = draw(st.integers(0, 3))
        values = draw(st.lists(entries, min_size=n * (rank + 1), max_size=n * (rank + 1)))
        q: Any = (np.array(values[:n]), np.array(values[n:]).reshape(n, rank))
    else:
        upper = np.zeros((n, n))
        upper[np.triu_indices(n)] = draw(st.lists(entries, min_size=n * (n + 1) // 2, max_size=n * (n + 1) // 2))
        q = upper + np.triu(upper, 1).T
    return q, counts, draw(entries), labels


def same(first: BlockQubo, second: BlockQubo) -> bool:
    """To the last bit, but for the sign of zeros."""
    return (
        np.array_equal(first.dense(), second.dense())
        and first.offset == second.offset
        and first.num_pruned == second.num_pruned
        and first.labels.tolist() == second.labels.tolist()
    )


quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("format", EXACT)
@quick
@given(arguments=problems())
def test_there_and_back_is_exact_to_the_last_bit(tmp_path, format, arguments):
    problem = BlockQubo(*arguments)
    path = tmp_path / f"problem.{format}"
    write_problem(problem, path)
    assert same(read_problem(path), problem)
    # what was read is written alike
    again = tmp_path / f"again.{format}"
    write_problem(read_problem(path), again)
    assert again.read_bytes() == path.read_bytes()


@quick
@given(arguments=problems(entries=st.floats(-1e100, 1e100) | st.floats(-2, 2), factor=True))
def test_factor_form_stays_factor_form_in_json(tmp_path, arguments):
    (diagonal, factor), *rest = arguments
    problem = BlockQubo(FactorForm(diagonal, factor), *rest)
    path = tmp_path / "problem.json"
    write_problem(problem, path)
    back = read_problem(path)
    assert isinstance(back.q, FactorForm)
    assert np.array_equal(back.q.diagonal, problem.q.diagonal)
    assert np.array_equal(back.q.factor, problem.q.factor)
    assert back.q.factor.shape == problem.q.factor.shape
    assert (back.num_pruned, back.offset) == (problem.num_pruned, problem.offset)


@quick
@given(arguments=problems(entries=st.floats(-100, 100)))
def test_ising_is_exact_to_rounding(tmp_path, arguments):
    problem = BlockQubo(*arguments)
    path = tmp_path / "problem.ising"
    write_problem(problem, path)
    back = read_problem(path)
    # a quarter of the smallest numbers is no number any more
    atol = 1e-14 * (abs(problem.offset) + np.abs(problem.dense()).sum()) + np.finfo(float).tiny
    np.testing.assert_allclose(back.dense(), problem.dense(), rtol=0, atol=atol)
    assert back.offset == pytest.approx(problem.offset, abs=atol)
    assert (back.num_pruned, back.labels.tolist()) == (problem.num_pruned, problem.labels.tolist())


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_holds_the_energies(rng, tmp_path, format):
    problems = [
        random_problem(rng, 7, 3),
        random_problem(rng, 7, (1, 2), [0, 1, 0, 1, 1, 0, 1]),
        BlockQubo(FactorForm(rng.normal(size=7), rng.normal(size=(7, 2))), 2, 0.5),
        BlockQubo(rng.normal(size=(7, 7)), None, -3.0),
        BlockQubo(np.diag([0.0, 1.5, 0, 0, 0, -2.0, 0]), 3),
    ]
    for problem in problems:
        path = tmp_path / f"problem.{format}"
        write_problem(problem, path)
        back = read_problem(path)
        assert (back.num_variables, back.num_pruned) == (7, problem.num_pruned)
        points = rng.random((20, 7)) < 0.5
        np.testing.assert_allclose(back.energy(points), problem.energy(points), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", BUDGETS)
def test_budgets_go_there_and_back_to_the_last_bit(rng, tmp_path, format, kind):
    problem = budgeted_problem(rng, 6, kind)
    path = tmp_path / f"problem.{format}"
    write_problem(problem, path)
    back = read_problem(path)
    assert np.array_equal(back.costs, problem.costs)
    assert np.array_equal(back.budget, problem.budget)
    assert back.num_pruned == problem.num_pruned
    points = rng.random((20, 6)) < 0.5
    np.testing.assert_allclose(back.energy(points), problem.energy(points), rtol=1e-12, atol=1e-12)
    if problem.num_groups == 1:  # other counts leave the budgets
        assert read_problem(path, num_pruned=4).costs.tolist() == problem.costs.tolist()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("# costs=1 2; 3\n# budget=1 1\n0 0 1\n1 1 1\n", r"rows of \[2, 1\] numbers; rows of 2"),
        ("# costs=1 x\n# budget=1\n0 0 1\n1 1 1\n", "comment costs: the value 'x' is found"),
        ("# costs=1 2\n# budget=inf\n0 0 1\n1 1 1\n", "comment budget: the value 'inf' is found"),
        ("# costs=1 2\n0 0 1\n1 1 1\n", "costs is given without budget"),
        ("# costs=1 2\n# budget=4\n0 0 1\n1 1 1\n", "No assignment meets the budget"),
    ],
)
def test_budgets_in_comments_are_checked(tmp_path, text, told):
    path = tmp_path / "problem.coo"
    path.write_text(text)
    with pytest.raises(InputError, match=told):
        read_problem(path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"costs": [[1, 2]]}, "costs is given without budget"),
        ({"costs": [[1]], "budget": [1]}, "costs, row 0 is a list of 1; a list of 2"),
        ({"costs": [[1, 2]], "budget": [1, 2]}, "costs is a list of 1; a list of 2"),
        ({"costs": [[1, "2"]], "budget": [1]}, "costs, row 0 holds '2'"),
        ({"costs": [[1, 2]], "budget": 1}, "budget is 1; a list"),
        ({"costs": [], "budget": []}, None),
    ],
)
def test_budgets_in_json_are_checked(tmp_path, change, told):
    path = tmp_path / "problem.json"
    head = {"format": "qubo_prune.problem", "version": 1, "num_variables": 2, "num_pruned": [1], "entries": []}
    path.write_text(json.dumps(head | change))
    if told is None:
        assert read_problem(path).num_budgets == 0
        return
    with pytest.raises(InputError, match=told):
        read_problem(path)


@pytest.mark.parametrize("format", ["json", "coo", "qubo", "ising"])
def test_no_variables_are_a_problem_too(tmp_path, format):
    path = tmp_path / f"problem.{format}"
    write_problem(BlockQubo(np.zeros((0, 0)), 0, 1.5), path)
    back = read_problem(path)
    assert (back.num_variables, back.num_pruned, back.offset) == (0, (0,), 1.5)


def test_empty_groups_are_kept_where_they_can_be(tmp_path):
    problem = BlockQubo(np.eye(2), (1, 0), labels=[0, 0])
    for format in ("json", "coo", "qubo"):
        write_problem(problem, tmp_path / f"p.{format}")
        assert read_problem(tmp_path / f"p.{format}").num_pruned == (1, 0)
    with pytest.raises(InputError, match="Group 1 has no variables"):
        write_problem(problem, tmp_path / "p.lp")
    assert not (tmp_path / "p.lp").exists()


def test_dimod_reads_what_we_write(rng, tmp_path):
    problem = random_problem(rng, 6, (1, 2), [0, 1, 0, 1, 1, 0])
    for name in ("p.coo", "p.ising", "p.lp"):
        write_problem(problem, tmp_path / name)
    bqm = to_bqm(problem, 0.0)
    read = coo.loads((tmp_path / "p.coo").read_text())
    assert read.vartype is dimod.BINARY
    assert read.linear == bqm.linear
    assert read.quadratic == bqm.quadratic
    spins = coo.loads((tmp_path / "p.ising").read_text())
    fields, couplings, _ = to_ising(problem, 0.0)
    assert spins.vartype is dimod.SPIN
    assert dict(spins.linear) == fields
    assert all(spins.quadratic[pair] == value for pair, value in couplings.items())
    cqm = dimod.lp.loads((tmp_path / "p.lp").read_text())
    assert len(cqm.constraints) == 2
    x = rng.random(6) < 0.5
    sample = {f"x{i}": int(x[i]) for i in range(6)}
    assert cqm.objective.energy(sample) == pytest.approx(problem.energy(x), rel=1e-12)


def test_we_read_what_dimod_writes(rng, tmp_path):
    bqm = dimod.BinaryQuadraticModel({0: 1.5, 2: -2.0}, {(0, 2): 0.25, (2, 1): -4.5}, 0.0, "BINARY")
    (tmp_path / "p.coo").write_text(coo.dumps(bqm, vartype_header=True))
    back = read_problem(tmp_path / "p.coo", num_pruned=1)
    (tmp_path / "q.coo").write_text(coo.dumps(bqm.change_vartype("SPIN", inplace=False), vartype_header=True))
    spins = read_problem(tmp_path / "q.coo")
    for bits in range(8):
        x = [bits >> i & 1 for i in range(3)]
        assert back.energy(x) == pytest.approx(bqm.energy(dict(enumerate(x))))
        # dimod's list has no place for the constant
        assert spins.energy(x) - spins.energy([0] * 3) == pytest.approx(bqm.energy(dict(enumerate(x))))


def test_counts_come_from_the_file_or_the_caller(rng, tmp_path):
    path = tmp_path / "p.qubo"
    write_problem(BlockQubo(rng.normal(size=(4, 4)), None), path)
    assert read_problem(path).free
    assert read_problem(path, 3).num_pruned == (3,)
    assert read_problem(path, [2]).num_pruned == (2,)
    with pytest.raises(InputError, match=r"p\.qubo: num_pruned is 5 in group 0, which has 4"):
        read_problem(path, 5)
    write_problem(random_problem(rng, 4, (1, 2), [0, 1, 0, 1]), path)
    assert read_problem(path, (2, 0)).num_pruned == (2, 0)
    with pytest.raises(InputError, match="gives 1 counts and the file has 2 groups"):
        read_problem(path, 2)


def test_a_coordinate_list_adds_up_what_stands_twice_and_in_any_order(tmp_path):
    path = tmp_path / "p.coo"
    path.write_text("2 0 3\n0 0 1e0\n\n# a remark about num_pruned and offset\n0 2 1.\n  1 1 -.5  \n0 0 1\n")
    problem = read_problem(path)
    assert problem.dense().tolist() == [[2, 0, 2], [0, -0.5, 0], [2, 0, 0]]
    assert problem.free


def test_variables_that_a_qubo_file_does_not_name_cost_nothing(tmp_path):
    path = tmp_path / "p.qubo"
    path.write_text("c a comment\np qubo 0 4 1 1\n1 1 2.5\n0 3 -1\n")
    assert read_problem(path).dense().tolist() == [[0, 0, 0, -0.5], [0, 2.5, 0, 0], [0, 0, 0, 0], [-0.5, 0, 0, 0]]


FOREIGN_LP = """\\ written elsewhere
Maximise
 gain: 3 a - b + 4 + [ 2 a ^ 2 - 6 b * a + c * c ] / 2
subject to
 a + b + c = 2
bounds
 0 <= a <= 1
binaries
 c b
 a
end
"""


def test_a_foreign_lp_file_is_read(tmp_path):
    path = tmp_path / "p.lp"
    path.write_text(FOREIGN_LP)
    problem = read_problem(path)
    # in the order of their declaration: c, b, a; minimised, so with the other sign
    for bits in range(8):
        c, b, a = (bits >> i & 1 for i in range(3))
        assert problem.energy([c, b, a]) == -(3 * a - b + 4 + (2 * a - 6 * a * b + c) / 2)
    assert problem.num_pruned == (2,)


def test_numbers_of_variables_are_kept_in_lp_files(tmp_path):
    path = tmp_path / "p.lp"
    path.write_text("Minimize\n x2 - 2 x0\nBinary\n x2 x1 x0\nEnd\n")
    problem = read_problem(path)
    assert problem.diagonal.tolist() == [-2, 0, 1]
    assert problem.free


def json_text(**changes: object) -> str:
    data = {
        "format": "qubo_prune.problem",
        "version": 1,
        "num_variables": 2,
        "num_pruned": [1],
        "offset": 0.5,
        "upper": [[1.0, -2.0], [3.0]],
    } | changes
    return json.dumps({key: value for key, value in data.items() if value != "absent"})


MALFORMED = [
    ("p.json", "", "line 1, column 1"),
    ("p.json", '{\n"format": 3,\n', "line 3"),
    ("p.json", "[1, 2]", "the format is 'list'"),
    ("p.json", "{}", "the format is None"),
    ("p.json", json_text(version=2), "the version is 2; this program reads version 1"),
    ("p.json", json_text(num_variables="absent"), "num_variables holds None"),
    ("p.json", json_text(num_variables=2.0), "num_variables holds 2.0; only whole numbers"),
    ("p.json", json_text(num_variables=True), "num_variables holds True"),
    ("p.json", json_text(num_variables=30000), "num_variables is 30000; at most 20000"),
    ("p.json", json_text(num_variables=10**30), "num_variables holds 10"),
    ("p.json", json_text(num_pruned=1), "num_pruned is 1; a list is needed"),
    ("p.json", json_text(num_pruned=[-1]), "num_pruned holds -1"),
    ("p.json", json_text(num_pruned=[3]), "num_pruned is 3 in group 0, which has 2"),
    ("p.json", json_text(num_pruned=None, labels=[0, 0]), "labels are given without num_pruned"),
    ("p.json", json_text(labels=[0, 1]), "labels go from 0 to 1, but 1 counts"),
    ("p.json", json_text(labels=[0]), "labels has shape"),
    ("p.json", json_text(offset="0"), "offset holds '0'; only numbers"),
    ("p.json", json_text(ofset=1), r"the key 'ofset' is unknown \(did you mean 'offset'"),
    ("p.json", json_text(upper="absent"), r"the matrix is given by \[\]"),
    ("p.json", json_text(entries=[]), "the matrix is given by"),
    ("p.json", json_text(upper=[[1.0, 2.0]]), "upper is a list of 1; a list of 2 is needed"),
    ("p.json", json_text(upper=[[1.0, 2.0], [3.0, 4.0]]), "upper, row 1 is a list of 2; a list of 1"),
    ("p.json", json_text(upper=[[1.0, None], [3.0]]), "upper, row 0 holds None; only numbers"),
    ("p.json", json_text(upper=[[1.0, True], [3.0]]), "upper, row 0 holds True"),
    ("p.json", json_text(upper=[[1.0, 10**400], [3.0]]), "beyond 1.8e308"),
    ("p.json", json_text().replace("3.0", "1e999"), "beyond 1.8e308"),
    ("p.json", json_text().replace("3.0", "NaN"), "NaN is found; only finite"),
    ("p.json", json_text().replace("3.0", "-Infinity"), "-Infinity is found"),
    ("p.json", json_text().replace("3.0", "9" * 5000), "cannot be read"),
    ("p.json", json_text().replace('"version": 1', '"version": 1, "version": 1'), "'version' stands twice"),
    ("p.json", json_text().replace("[3.0]", "[" * 100_000), "cannot be read"),
    ("p.json", json_text(upper="absent", entries=[[0, 1]]), "entries, number 0 is"),
    ("p.json", json_text(upper="absent", entries=[[1, 0, 2.0]]), "row 1, column 0; give each place"),
    ("p.json", json_text(upper="absent", entries=[[0, 2, 2.0]]), "row 0, column 2"),
    ("p.json", json_text(upper="absent", entries=[[0, 1, 2.0], [0, 1, 2.0]]), "number 1 stands in row 0"),
    ("p.json", json_text(upper="absent", diagonal=[1.0, 2.0]), "give 'upper', or 'entries', or 'diagonal' and"),
    ("p.json", json_text(upper="absent", diagonal=[1.0], factor=[[1.0], [2.0]]), "diagonal is a list of 1"),
    ("p.json", json_text(upper="absent", diagonal=[1.0, 2.0], factor=[[1.0], []]), "factor, row 1 is a list of 0"),
    ("p.coo", "0 0 1\n0 1\n", "line 2: '0 1' is found; 'i j value' is needed"),
    ("p.coo", "0 0 1\n\n0 a 1\n", "line 3: the variable 'a'"),
    ("p.coo", "0 -1 1\n", "line 1: the variable '-1' is found; whole numbers from 0"),
    ("p.coo", "0 1_0 1\n", "line 1: the variable '1_0'"),
    ("p.coo", "0 99999 1\n", "line 1: the variable 99999 is named; at most 20000"),
    ("p.coo", "0 12345678901234567890 1\n", "line 1: the variable '12345678901234567890'"),
    ("p.coo", "0 1 nan\n", "line 1: the value 'nan' is found; finite decimal"),
    ("p.coo", "0 1 1e999\n", "line 1: the value '1e999'"),
    ("p.coo", "0 1 0x10\n", "line 1: the value '0x10'"),
    ("p.coo", "0 1 1_0\n", "line 1: the value '1_0'"),
    ("p.coo", "0 1 __import__('os')\n", "line 1: the value"),
    ("p.coo", "# vartype=TERNARY\n0 1 1\n", "the comment vartype is 'TERNARY'; BINARY and SPIN"),
    ("p.coo", "# num_variables=1\n0 1 1\n", "the variable 1 is used, and there are 1"),
    ("p.coo", "# num_variables=999999\n0 1 1\n", "at most 20000"),
    ("p.coo", "# num_pruned=one\n0 1 1\n", "the comment num_pruned is 'one'; whole numbers"),
    ("p.coo", "# num_pruned=1\n# num_pruned=2\n0 1 1\n", "line 2: num_pruned is given a second time"),
    ("p.coo", "# labels=0 0\n0 1 1\n", "labels without num_pruned"),
    ("p.coo", "# offset=inf\n0 1 1\n", "the comment offset: the value 'inf'"),
    ("p.coo", "0 1 1e308\n0 1 1e308\n", "NaN or infinite"),
    ("p.coo", "", "no line 'i j value' is found"),
    ("p.ising", " \n", "no line 'i j value' is found"),
    ("p.coo", "# from 1\n1 1 1\n1 2 1\n", "line 2: no line names the variable 0, and 2 is named; .* subtract 1"),
    ("p.ising", "1 2 1\n", "line 1: no line names the variable 0, and 2 is named; .* a line '0 0 0'"),
    ("p.coo", "0 0 1\n3 3 1\n", "line 1: no line names the variable 1, and 3 is named; .* a line '1 1 0'"),
    ("p.coo", "# num_variables=2\n1 1 1\n2 2 1\n", "the variable 2 is used, and there are 2, from 0 on"),
    ("p.coo", "0 0 1 # note\n", "line 1: '0 0 1 # note' is found; 'i j value'"),
    ("p.qubo", "", "there is no line 'p qubo"),
    ("p.qubo", "p qubo 0 3 2 1\n1 1 1\n2 2 1\n1 2 1\n", "line 2: no line names the variable 0, and 2 is named"),
    ("p.qubo", "p qubo 0 2 2 0\n1 1 1\n2 2 1\n", "line 3: the variable 2 is named; the line 'p' says 2, from 0"),
    ("p.json", json_text(offset=0.5).replace(", ", ",\n").replace("3.0", "NaN"), r"line 8: NaN is found"),
    ("p.json", json_text(offset="NaN").replace("3.0", "-Infinity"), "line 1: -Infinity is found"),
    ("p.ising", "0 0 1\n0 1 up\n", "line 2: the value 'up'"),
    ("p.qubo", "c nothing\n", "there is no line 'p qubo"),
    ("p.qubo", "0 0 1\n", "line 1: '0 0 1' is found; 'p qubo 0 maxNodes"),
    ("p.qubo", "p qubo 0 2 2\n", "line 1: 'p qubo 0 2 2' is found"),
    ("p.qubo", "p qubo 0 2 two 1\n", "line 1: 'p qubo 0 2 two 1'"),
    ("p.qubo", "p qubo 0 99999 1 1\n", "line 1: 99999 variables are declared; at most"),
    ("p.qubo", "p qubo 0 2 1 1\n0 0 1\n0 2 1\n", "line 3: the variable 2 is named; the line 'p' says 2"),
    ("p.qubo", "p qubo 0 2 2 0\n0 0 1\n0 0 1\n", "line 3: the place 0 0 is given a second time"),
    ("p.qubo", "p qubo 0 2 1 2\n0 0 1\n0 1 1\n1 0 1\n", "line 4: the place 0 1 is given a second time"),
    ("p.qubo", "p qubo 0 2 2 1\n0 0 1\n0 1 1\n", "1 nodes and 1 couplers are found; the line 'p' says 2 and 1"),
    ("p.qubo", "p qubo 0 2 1 0\n0 0 inf\n", "line 2: the value 'inf'"),
    ("p.lp", "", "line 1: the file ends"),
    ("p.lp", "garbage", "line 1: 'garbage' is found; 'Minimize' comes first"),
    ("p.lp", "\x00\x01", r"line 1: .* not of an LP file"),
    ("p.lp", "Minimize\n x\nBinary\n x\n", "line 4: the file ends"),
    ("p.lp", "Minimize\n x\nMinimize\n x\nBinary\n x\nEnd", "line 3: a second objective"),
    ("p.lp", "Minimize\n x\nBinary\n x\nEnd\nmore", "line 6: 'more' is found"),
    ("p.lp", "Minimize\n 2 y\nBinary\n x\nEnd", "line 2: the variable 'y' is not declared"),
    ("p.lp", "Minimize\n x y\nBinary\n x y\nEnd", "line 2: 'y' is found; '[+]' or '-' is allowed"),
    ("p.lp", "Minimize\n 2 3 x\nBinary\n x\nEnd", "line 2: '3' is found; a variable is allowed"),
    ("p.lp", "Minimize\n x +\nBinary\n x\nEnd", "line 2: the end of the section is found; a variable"),
    ("p.lp", "Minimize\n 1e999 x\nBinary\n x\nEnd", "line 2: '1e999' is found; a finite number"),
    ("p.lp", "Minimize\n [ x * y ]\nBinary\n x y\nEnd", "line 2: the end of the section is found; '/ 2'"),
    ("p.lp", "Minimize\n [ x * y ] / 3\nBinary\n x y\nEnd", "line 2: '3' is found; '/ 2'"),
    ("p.lp", "Minimize\n [ x * y \nBinary\n x y\nEnd", "line 2: the end of the section"),
    ("p.lp", "Minimize\n [ x ^ 3 ] / 2\nBinary\n x y\nEnd", "line 2: '3' is found; the exponent 2"),
    ("p.lp", "Minimize\n [ x y ] / 2\nBinary\n x y\nEnd", r"line 2: 'y' is found; '\*' or '\^'"),
    ("p.lp", "Minimize\n x\nSubject To\n x * y <= 1\nBinary\n x y\nEnd", r"line 4: '\*' is found"),
    ("p.lp", "Minimize\n x\nSubject To\n 2 x = 1\nBinary\n x\nEnd", "line 4: '2' is found; only the coefficient 1"),
    ("p.lp", "Minimize\n x\nSubject To\n x = 0.5\nBinary\n x\nEnd", "line 4: '0.5' is found; a whole number"),
    ("p.lp", "Minimize\n x\nSubject To\n x = 1e400\nBinary\n x\nEnd", "line 4: '1e400' is found; a finite"),
    ("p.lp", "Minimize\n x\nSubject To\n x = 2\nBinary\n x\nEnd", "num_pruned is 2 in group 0, which has 1"),
    ("p.lp", "Minimize\n x\nSubject To\n x + x = 1\nBinary\n x\nEnd", "line 4: 'x' is counted a second time"),
    ("p.lp", "Minimize\n x\nSubject To\n x = 1\nBinary\n x y\nEnd", "'y' is in no constraint"),
    ("p.lp", "Minimize\n x\nSubject To\n = 1\nBinary\n x\nEnd", "line 4: '=' is found"),
    ("p.lp", "Minimize\n x\nBounds\n 0 <= x <= 2\nBinary\n x\nEnd", "line 4: '0' is found; only '0 <= x <= 1'"),
    ("p.lp", "Minimize\n x\nGeneral\n x\nEnd", "line 4: 'x' is found; only binary"),
    ("p.lp", "Minimize\n x\nBinary\n x x\nEnd", "line 4: 'x' is found; the name of one more"),
]


@pytest.mark.parametrize(("name", "text", "message"), MALFORMED)
def test_a_malformed_file_is_refused_with_the_place_and_what_is_allowed(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        read_problem(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("format", FORMATS)
@quick
@given(data=st.data())
def test_damaged_files_are_read_or_refused_and_nothing_else(rng, tmp_path, format, data):
    path = tmp_path / f"p.{format}"
    write_problem(random_problem(np.random.default_rng(0), 3, (1, 1), [0, 1, 0]), path)
    text = path.read_text()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + data.draw(st.text('0129xe.-+[]{}":,=*/^ \n\\#cpN', max_size=4)) + text[at + 1 :]
    path.write_text(text)
    with suppress(InputError):
        read_problem(path)


@pytest.mark.parametrize("format", FORMATS)
def test_byte_order_marks_and_line_ends_of_windows_change_nothing(rng, tmp_path, format):
    path = tmp_path / f"p.{format}"
    write_problem(random_problem(rng, 4, (1, 2), [0, 1, 0, 1]), path)
    plain, text = read_problem(path), path.read_text(encoding="utf-8")
    path.write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    assert same(read_problem(path), plain)
    for encoding in ("utf-16", "utf-32"):
        path.write_bytes(text.encode(encoding))
        with pytest.raises(InputError, match=f"the file is {encoding.upper()} by its byte-order mark; save it as"):
            read_problem(path)


def test_comments_of_a_qubo_file_may_be_indented(tmp_path):
    (tmp_path / "p.qubo").write_text("  c num_pruned=1\np qubo 0 1 1 0\n\tc a remark\n0 0 1\n")
    assert read_problem(tmp_path / "p.qubo").num_pruned == (1,)


def test_binary_rubbish_is_no_text(tmp_path):
    path = tmp_path / "p.coo"
    path.write_bytes(b"0 0 1\n\xff\xfe")
    with pytest.raises(InputError, match="byte 6 is not UTF-8"):
        read_problem(path)


def test_large_files_and_problems_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "p.coo"
    path.write_text("0 0 1\n" * 10)
    monkeypatch.setattr(files, "MAX_BYTES", 59)
    with pytest.raises(InputError, match="60 bytes; at most 59"):
        read_problem(path)
    monkeypatch.setattr(files, "MAX_VARIABLES", 2)
    with pytest.raises(InputError, match="3 variables; files hold at most 2"):
        write_problem(BlockQubo(np.eye(3), 1), path)


@pytest.mark.parametrize("format", ["coo", "qubo", "lp"])
def test_numbers_that_a_format_cannot_hold_are_refused(tmp_path, format):
    path = tmp_path / f"p.{format}"
    path.write_text("before")
    problem = BlockQubo([[0.0, 1.0], [1.0, 0.0]], 1)
    # a new problem is refused before it comes so far
    object.__setattr__(problem, "q", np.array([[0.0, 1e308], [1e308, 0.0]]))
    with pytest.raises(InputError, match=r"too large .* write \.json"):
        write_problem(problem, path)
    # what was there stays, and nothing else does
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_names_and_places_are_checked(rng, tmp_path):
    problem = random_problem(rng, 3, 1)
    with pytest.raises(InputError, match=r"suffix of 'p\.jsn' is no known .*did you mean 'json'"):
        write_problem(problem, tmp_path / "p.jsn")
    with pytest.raises(InputError, match=r"format 'qubbo' is no .*did you mean 'qubo'"):
        read_problem(tmp_path / "p.json", format="qubbo")
    with pytest.raises(InputError, match="there is no such file"):
        read_problem(tmp_path / "p.json")
    with pytest.raises(InputError, match="there is no such file"):
        read_problem(tmp_path, format="json")
    with pytest.raises(InputError, match="give a file in a folder that is there"):
        write_problem(problem, tmp_path / "absent" / "p.json")
    with pytest.raises(InputError, match="give a file in a folder that is there"):
        write_problem(problem, tmp_path, format="json")
    write_problem(problem, tmp_path / "p.txt", format="qubo")
    assert same(read_problem(str(tmp_path / "p.txt"), format="qubo"), problem)


def test_the_examples_of_the_page_are_read_and_are_one_problem(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "problem-files.md").read_text(encoding="utf-8")
    found = {}
    for format in FORMATS:
        example = page.split(f"```{format}\n")[1].split("```")[0]
        (tmp_path / f"p.{format}").write_text(example)
        found[format] = read_problem(tmp_path / f"p.{format}")
    assert all(same(problem, found["json"]) for problem in found.values())
    for format in FORMATS:
        write_problem(found["json"], tmp_path / f"p.{format}")
        assert (tmp_path / f"p.{format}").read_text() == page.split(f"```{format}\n")[1].split("```")[0]

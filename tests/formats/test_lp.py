"""LP files as other programs write them: by the writers that are installed here, and by hand after the others."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dimod
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qubo_prune.errors import InputError
from qubo_prune.formats import lp
from qubo_prune.formats.text import read_problem
from qubo_prune.problem import BlockQubo

quick = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

#: Linear coefficients, coefficients of pairs, constant, count.
Case = tuple[list[float], dict[tuple[int, int], float], float, int]


@st.composite
def cases(draw: st.DrawFn, quadratic: bool = True) -> Case:
    """Coefficients with few digits: some writers round."""
    n = draw(st.integers(2, 5))
    number = st.integers(-800, 800).map(lambda k: k / 8)
    linear = draw(st.lists(number, min_size=n, max_size=n))
    pairs = [*itertools.combinations_with_replacement(range(n), 2)] if quadratic else []
    return linear, {pair: draw(number) for pair in pairs}, draw(number), draw(st.integers(0, n))


def by_dimod(case: Case) -> str:
    linear, pairs, constant, count = case
    cqm = dimod.ConstrainedQuadraticModel()
    x = [
        dimod.Binary(f"x{i}") if i % 2 else dimod.Integer(f"x{i}", lower_bound=0, upper_bound=1)
        for i in range(len(linear))
    ]
    for variable in x:  # in this order
        cqm.add_variable(cqm_type(variable), variable.variables[0], **bounds(variable))
    cqm.set_objective(
        sum(a * v for a, v in zip(linear, x, strict=True))
        + sum(a * x[i] * x[j] for (i, j), a in pairs.items())
        + constant
    )
    cqm.add_constraint(sum(x) == count, "c")
    return dimod.lp.dumps(cqm)


def cqm_type(variable: Any) -> str:
    return str(variable.vartype(variable.variables[0]).name)


def bounds(variable: Any) -> dict[str, int]:
    return {} if cqm_type(variable) == "BINARY" else {"lower_bound": 0, "upper_bound": 1}


def by_docplex(case: Case, maximise: bool = False) -> str:
    from docplex.mp.model import Model

    linear, pairs, constant, count = case
    sign = -1 if maximise else 1
    model = Model("some name")
    n = len(linear)
    x = [model.binary_var(f"x{i}") if i % 2 else model.integer_var(0, 1, f"x{i}") for i in range(n)]
    goal = model.sum(sign * a * v for a, v in zip(linear, x, strict=True)) + sign * constant
    goal += model.sum(sign * a * x[i] * x[j] for (i, j), a in pairs.items())
    (model.maximize if maximise else model.minimize)(goal)
    model.add_constraint(model.sum(x) == count, "one two")
    return str(model.export_as_lp_string())


def by_ortools(case: Case) -> str:
    from ortools.linear_solver.python import model_builder

    linear, _, constant, count = case
    model = model_builder.Model()
    x = [model.new_int_var(0, 1, f"x{i}") for i in range(len(linear))]
    model.minimize(sum(a * v for a, v in zip(linear, x, strict=True)) + constant)
    model.add(sum(x) >= count)
    model.add(sum(x) <= count)
    return str(model.export_to_lp_string())


def by_highs(case: Case, path: Path) -> str:
    """Through the copy of HiGHS that comes with SciPy."""
    from scipy.optimize._highspy import _core as highs  # type: ignore[attr-defined]

    linear, pairs, constant, count = case
    n = len(linear)
    model: Any = highs._Highs()
    model.setOptionValue("output_flag", False)
    for i, cost in enumerate(linear):
        model.addVar(0.0, 1.0)
        model.changeColCost(i, cost)
        model.changeColIntegrality(i, highs.HighsVarType.kInteger)
        model.passColName(i, f"x{i}")
    model.addRow(float(count), float(count), n, np.arange(n, dtype=np.int32), np.ones(n))
    model.changeObjectiveOffset(constant)
    if pairs:
        hessian = highs.HighsHessian()
        hessian.dim_ = n
        columns = [[(j, pairs[i, j] * (2 if i == j else 1)) for j in range(i, n)] for i in range(n)]
        hessian.start_ = np.cumsum([0, *map(len, columns)]).astype(np.int32)
        hessian.index_ = np.array([j for column in columns for j, _ in column], dtype=np.int32)
        hessian.value_ = np.array([value for column in columns for _, value in column])
        model.passHessian(hessian)
    model.writeModel(str(path))
    return path.read_text(encoding="utf-8")


def check(problem: BlockQubo, case: Case) -> None:
    """Every vector has the energy of the case, and those of the count are the feasible ones."""
    linear, pairs, constant, count = case
    assert problem.num_variables == len(linear)
    for x in map(list, itertools.product((0, 1), repeat=len(linear))):
        energy = constant + sum(a * v for a, v in zip(linear, x, strict=True))
        energy += sum(a * x[i] * x[j] for (i, j), a in pairs.items())
        assert problem.energy(x) == pytest.approx(energy, rel=1e-6, abs=1e-6)
        assert problem.is_feasible(np.array(x)) == (sum(x) == count)


def read(text: str) -> BlockQubo:
    found = lp.loads(text, 100)
    return BlockQubo(found.q, found.num_pruned, found.offset, found.labels, costs=found.costs, budget=found.budget)


@quick
@given(case=cases())
def test_what_dimod_writes_with_integers_is_read(case: Case) -> None:
    check(read(by_dimod(case)), case)


@pytest.mark.parametrize("maximise", [False, True])
@quick
@given(case=cases())
def test_what_docplex_and_qiskit_write_is_read(maximise: bool, case: Case) -> None:
    check(read(by_docplex(case, maximise)), case)


@quick
@given(case=cases(quadratic=False))
def test_what_ortools_writes_is_read(case: Case) -> None:
    check(read(by_ortools(case)), case)


@quick
@given(case=cases(), quadratic=st.booleans())
def test_what_highs_writes_is_read(tmp_path: Path, case: Case, quadratic: bool) -> None:
    linear, pairs, constant, count = case
    case = (linear, pairs if quadratic else {}, constant, count)
    text = by_highs(case, tmp_path / "highs.lp")
    assert "semi\n" in text  # a section without anything in it
    check(read(text), case)


#: The same problem in the forms of several programs: a - 2 b + 3 + 3 a b + c, two of three.
DIALECTS: Mapping[str, str] = {
    "gurobi": """\\ LP format - for model browsing. Use MPS format to capture full model detail.
Minimize
  x[0] - 2 x[1] + x[2] + 3 Constant + [ 6 x[0] * x[1] ] / 2
Subject To
 R0: x[0] + x[1] + x[2] = 2
Bounds
 Constant = 1
Binaries
 x[0] x[1] x[2]
End
""",
    "scip": """\\ SCIP STATISTICS
\\   Problem name     : p
Minimize
 obj: +1 x#1 -2 x#2 +1 x#3 +3 objoffset + [ +6 x#1 * x#2 ]/2
Subject to
 r: +1 x#1 +1 x#2 +1 x#3 = +2
 ra: +0 <= +1 x#1 +1 x#2 <= +2
Bounds
 0 <= x#1 <= 1
 0 <= x#2 <= 1
 0 <= x#3 <= 1
 objoffset = 1
Binaries
 x#1 x#2 x#3
End
""",
    "pulp": """\\* some_problem *\\
Minimize
OBJ: a - 2 b + c + [ 6 a * b ] / 2 + 3
Subject To
_C1: a + b + c >= 2
_C2: a + b + c <= 2
Binaries
a
b
c
End
""",
    "cbc": """\\Problem name: p

Minimize
obj: 3 + a -2 b + c + [ 6 a
 * b ]
 / 2

Subject To
cons0:  a + b
 + c = 2.

Bounds
 a <= 1
 0 <= b <= 1
 c <= 1

Integers
a b c
End
""",
    "glpk": """\\* Problem: p *\\
Minimize
 obj: + a - 2 b + c + [ 3 a * b + 3 b * a ] / 2.0 + 3 ~r_0

Subject To
 r.1: - a - b - c = -2

Bounds
 0 <= a <= 1
 0 <= b <= 1
 0 <= c <= 1
 ~r_0 = 1

Generals
 a
 b
 c

End
""",
    "by hand": """MAX
 - A + 2 B - C - 3 - [ 6 A*B ]/2
S.T.
 2 A + 2 B + 2 C == 4
 A <= 1
 1 >= B
 B >= 0
BOUND
 A <= 1
 B >= -0
 1 >= C >= 0
BIN
 A B C
SEMIS
SOS
END
""",
    "bounds": """minimise
 a - 2 b + c + 3
 + [ 2 a^2 + 6 a*b - 2 a ^ 2.0 ] / 2
such that
 2 = a + b + c
bounds
 a >= 0
 a <= 1
 -0 =< b =< 1
 c <= +1
 0 <= c < +inf
integer
 b
 a
 c
end
""",
}


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_dialects_of_the_field_are_one_problem(name: str, ends: str, tmp_path: Path) -> None:
    (tmp_path / "p.lp").write_bytes(b"\xef\xbb\xbf" + DIALECTS[name].replace("\n", ends).encode())
    problem = read_problem(tmp_path / "p.lp")
    order = [1, 0, 2] if name == "bounds" else [0, 1, 2]  # declared in another order there
    for x in itertools.product((0, 1), repeat=3):
        a, b, c = x
        assert problem.energy([x[i] for i in order]) == a - 2 * b + c + 3 + 3 * a * b
    assert problem.num_pruned == (2,)


def body(constraints: str = "", bounds: str = "", rest: str = "Binary\n a b c") -> str:
    return f"Minimize\n a + b\nSubject To\n{constraints}\nBounds\n{bounds}\n{rest}\nEnd\n"


@pytest.mark.parametrize(
    "constraints",
    [
        "a + b + c <= 3",
        "a + b >= 0",
        "a <= 1",
        "0 <= a <= 1",
        "- a >= -1",
        "2 a + 3 b <= 5",
        "0 <= a - b + 1 <= 2",
        "a + b >= -1e30",
    ],
)
def test_constraints_that_every_vector_meets_say_nothing(constraints: str) -> None:
    assert read(body(constraints)).free


@pytest.mark.parametrize(
    ("constraints", "counts"),
    [
        ("a + b + c >= 3", (3,)),
        ("a + b + c <= 0", (0,)),
        ("1 <= a + b + c <= 1", (1,)),
        ("a + b + c - 1 = 1", (2,)),
        ("0.5 a + 0.5 b + 0.5 c = 1", (2,)),
        ("- a - b - c <= -2\n a + b + c < 2", (2,)),
        ("a + b = 1\n c => 1", (1, 1)),
        ("a + b + c <= 2.5\n a + b + c >= 1.5", (2,)),
    ],
)
def test_counts_in_other_words(constraints: str, counts: tuple[int, ...]) -> None:
    assert read(body(constraints)).num_pruned == counts


@pytest.mark.parametrize(
    ("constraints", "budgets"),
    [
        ("a + b + c >= 1", [([1, 1, 1], 1)]),
        ("1 <= a + b + c <= 2", [([1, 1, 1], 1), ([-1, -1, -1], -2)]),
        ("a + 2 b + c = 1", [([1, 2, 1], 1), ([-1, -2, -1], -1)]),
        ("a + 2 b <= 2.5", [([-1, -2, 0], -2.5)]),
        ("a + b + c = 2\n 3 a - b >= 0.5", [([3, -1, 0], 0.5)]),
        ("-2 <= 3 a - b <= 2", [([-3, 1, 0], -2)]),
    ],
)
def test_linear_constraints_that_are_no_counts_are_budgets(constraints: str, budgets: list[Any]) -> None:
    problem = read(body(constraints))
    for x in itertools.product((0, 1), repeat=3):
        met = all(np.dot(costs, x) >= least for costs, least in budgets)
        counted = not problem.num_groups or sum(x) == problem.num_pruned[0]
        assert problem.is_feasible(np.array(x)) == (met and counted)


@pytest.mark.parametrize(
    ("costs", "budget", "counts", "labels"),
    [
        ([-0.1] * 4, -0.3, None, None),
        ([0.01] * 9, 0.07, None, None),
        ([0, 1, 0, 0], 1, None, None),
        ([1, 1, 1, 1], 4, None, None),
        ([1, 1, 0, 0], 2, 2, None),
        ([0, 5, 0, 5], 10, [1, 1], [0, 0, 1, 1]),
        ([[0, 0, 0, 0], [1, 2, 3, 4]], [-1, 3], 2, None),
    ],
)
def test_budgets_that_look_like_counts_are_read_as_they_were_written(
    costs: Any, budget: Any, counts: Any, labels: Any
) -> None:
    n = np.shape(costs)[-1]
    problem = BlockQubo(np.diag(np.arange(n) - 2.0), counts, labels=labels, costs=costs, budget=budget)
    back = read(lp.dumps(problem))
    assert back.num_pruned == problem.num_pruned
    for x in itertools.product((0, 1), repeat=n):
        assert back.is_feasible(np.array(x)) == problem.is_feasible(np.array(x))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (body("a + b + c = 1\n a + b + c = 2"), "line 5: '=' is found; no constraint that nothing meets"),
        (body("a + 2 b + c = 1\n a - b = 1\n a + b + c = [ a * b ]"), r"line 6: '\[' is found; a number"),
        (body("2 a + 2 b + 2 c = 3"), "line 4: '2' is found; only the coefficient 1"),
        (body("a + b + c = 2 d"), "line 4: 'd' is found; only a number after the sum"),
        (body("a + b = c"), "line 4: 'c' is found; a number"),
        (body("[ a * b ] <= 1"), r"line 4: '\[' is found; only 'x"),
        (body("a = 1 -> b = 1"), "line 4: '-' is found; only a number after the sum"),
        (body("0 a >= 1"), "line 4: '0' is found; no constraint that nothing meets"),
        (body("st\n + a + b + c = 2"), "line 4: the section 'st' begins a second time"),
        (body(bounds="a = 1"), "line 6: 'a' is found; only '0 <= x <= 1'"),
        (body(bounds="a >= 1"), "line 6: 'a' is found; only '0 <= x <= 1'"),
        (body(bounds="a <= 0"), "line 6: 'a' is found; only '0 <= x <= 1'"),
        (body(bounds="a free"), "line 6: 'a' is found; only '0 <= x <= 1'"),
        (body(bounds="-inf <= a <= 1"), "line 6: '-' is found; only '0 <= x <= 1'"),
        (body(bounds="0 <= t <= 4"), "line 6: the variable 't' is not declared"),
        (body(rest="Binary\n a b\nGeneral\n c"), "line 10: 'c' is found; only binary variables, or whole ones"),
        (body(bounds="0 <= c <= 2", rest="Binary\n a b\nGeneral\n c"), "line 6: '0' is found; only binary"),
        (body(bounds="c = 1", rest="Binary\n a b\nGeneral\n c"), "line 6: 'c' is found; only binary"),
        (body(rest="Binary\n a b c\nSemi-continuous\n a"), "line 10: 'a' is found; nothing under 'Semi-continuous'"),
        (body(rest="Binary\n a b c\nSOS\n s: S1:: a:1"), "line 10: 's' is found; nothing under 'SOS'"),
        (body(rest="Binary\n a b c\nGeneral Constraints\n g = MAX ( a , b )"), "line 10: 'g' is found; nothing under"),
        ("max: 3x+2y;\nint x;\n", "line 1: 'max' is found; 'Minimize' comes first"),
        ("Minimize\n a * b\nBinary\n a b\nEnd", r"line 2: '\*' is found; '\+' or '-'"),
        ("Minimize\n 1e308 a\nSubject To\n 1e-308 a = 1e308\nBinary\n a\nEnd", "line 4: '1e-308' is found; only the"),
    ],
)
def test_what_is_no_block_qubo_is_refused_with_its_line(text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        read(text)


@pytest.mark.parametrize("name", ["x[0,1]", "y(2,a)", "größe", "a/b", "x.1", "_x", "e_1", "x'", "v[i][j]", "$#@!"])
def test_names_of_all_kinds(name: str) -> None:
    text = f"Minimize\n 2 {name} - b + [ 4 {name}*b ]/2\nSubject To\n {name}+b=1\nBinary\n {name} b\nEnd\n"
    problem = read(text)
    assert problem.dense().tolist() == [[2, 1], [1, -1]]
    assert problem.num_pruned == (1,)


@pytest.mark.parametrize("change", [str.upper, str.lower, str.title])
def test_keywords_in_any_case(change: Callable[[str], str]) -> None:
    words = [
        (goal, such, binary)
        for goal in ("minimize", "minimise", "minimum", "min", "maximize", "max")
        for such, binary in zip(
            ("subject to", "such that", "st", "s.t.", "st."), ("binary", "binaries", "bin", "bin", "bin"), strict=True
        )
    ]
    for goal, such, binary in words:
        text = f"{change(goal)} a\n{change(such)} a + b = 1\n{change(binary)} a b\n{change('end')}\n"
        problem = read(text)
        assert problem.diagonal.tolist() == [-1 if goal.startswith("max") else 1, 0]
        assert problem.num_pruned == (1,)

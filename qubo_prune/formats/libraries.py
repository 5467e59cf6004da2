"""Block QUBOs as problems of other libraries: dimod, Ising spins, dwave-optimization, and the two of Qiskit.

Every function is pure and reads Q as a dense matrix, so a problem in factor form is densified here.
``x_i = 1`` means *prune* on either side.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qubo_prune.errors import InputError
from qubo_prune.plugins import check_requirements
from qubo_prune.problem.named import by_position
from qubo_prune.problem.penalty import least_strength, multipliers, penalised
from qubo_prune.problem.qubo import BlockQubo, binary
from qubo_prune.solver.dispatch import solve
from qubo_prune.solver.swaps.greedy import Greedy

if TYPE_CHECKING:
    import dimod
    import dwave.optimization
    import qiskit_addon_opt_mapper
    import qiskit_optimization


def to_cqm(problem: BlockQubo) -> dimod.ConstrainedQuadraticModel:
    """A dimod model over binary variables 0 to n-1 that holds counts and budgets as constraints.

    The objective is ``E(x)`` exactly, the offset included; constraint g, labelled ``"group g"``, is
    ``sum_{i in g} x_i == m_g``, and constraint r, labelled ``"budget r"``, ``sum_i c_ri x_i >= C_r``. Factor form is
    densified. :func:`from_cqm` is the way back.

    >>> cqm = to_cqm(BlockQubo([[1.0, -2.0], [-2.0, 3.0]], num_pruned=1))
    >>> float(cqm.objective.energy({0: 0, 1: 1})), len(cqm.constraints)
    (3.0, 1)
    """
    import dimod

    cqm = dimod.ConstrainedQuadraticModel()
    cqm.set_objective(to_bqm(problem, penalty=0.0))
    for group, count in enumerate(problem.num_pruned):
        members = np.flatnonzero(problem.labels == group)
        cqm.add_constraint([(int(i), 1.0) for i in members], "==", rhs=count, label=f"group {group}")
    for row, (costs, least) in enumerate(zip(problem.costs.tolist(), problem.budget.tolist(), strict=True)):
        cqm.add_constraint([(i, cost) for i, cost in enumerate(costs)], ">=", rhs=least, label=f"budget {row}")
    return cqm


def from_cqm(cqm: dimod.ConstrainedQuadraticModel) -> BlockQubo:
    """The block QUBO of a model such as :func:`to_cqm` makes, in dense form.

    Raises:
        InputError: a variable is not binary or not one of 0 to n-1, a constraint is neither
            ``sum x_i == whole number`` nor a hard linear inequality, or the counts, if there are any, do not cover
            every variable exactly once.

    >>> from_cqm(to_cqm(BlockQubo([[1.0, -2.0], [-2.0, 3.0]], num_pruned=1))).energy([0, 1])
    3.0
    """
    n = len(cqm.variables)
    if set(cqm.variables) != set(range(n)):
        raise InputError(f"The model's variables are {list(cqm.variables)[:8]}; name them 0 to {n - 1}.")
    for i in range(n):
        if cqm.vartype(i).name != "BINARY":
            raise InputError(f"Variable {i} of the model is {cqm.vartype(i).name}; only binary ones are allowed.")
    labels, counts = np.full(n, -1, dtype=np.int64), list[int]()
    costs, budget = np.zeros((len(cqm.constraints), n)), list[float]()
    for name, constraint in cqm.constraints.items():
        if constraint.sense.value != "==":
            least = _budget_constraint(name, constraint, costs[len(budget)])
            budget.append(least)
            continue
        members, count = _count_constraint(name, constraint)
        group = len(counts)
        if (labels[members] >= 0).any():
            raise InputError(f"Constraint {name!r} shares a variable with another; groups must be disjoint.")
        labels[members] = group
        counts.append(count)
    if (labels < 0).any() and (counts or not budget):
        raise InputError(f"Variable {int(labels.argmin())} is in no constraint; give every variable a count.")
    q = np.zeros((n, n))
    for i, bias in cqm.objective.linear.items():
        q[i, i] = bias
    for (i, j), bias in cqm.objective.quadratic.items():
        q[i, j] = q[j, i] = bias / 2
    grouped = counts or not budget
    return BlockQubo(
        q,
        counts if grouped else None,
        cqm.objective.offset,
        labels if grouped else None,
        costs=costs[: len(budget)] if budget else None,
        budget=budget or None,
    )


def _budget_constraint(name: object, constraint: dimod.sym.Comparison, costs: NDArray[np.float64]) -> float:
    """Put the costs of ``sum c_i x_i >= C``, or of the negative of ``<=``, in their place; C."""
    lhs = constraint.lhs
    if not lhs.is_linear() or lhs.is_soft():
        raise InputError(
            f"Constraint {name!r} is {constraint.to_polystring()}; of inequalities only hard linear ones are allowed."
        )
    sign = 1.0 if constraint.sense.value == ">=" else -1.0
    for i, bias in lhs.linear.items():
        costs[i] = sign * bias
    return sign * float(constraint.rhs - lhs.offset)


def _count_constraint(name: object, constraint: dimod.sym.Comparison) -> tuple[list[int], int]:
    """Members and count of ``sum x_i == m``."""
    lhs = constraint.lhs
    count = constraint.rhs - lhs.offset
    plain = constraint.sense.value == "==" and lhs.is_linear() and not lhs.is_soft()
    if not plain or any(bias != 1 for bias in lhs.linear.values()) or count != round(count):
        raise InputError(
            f"Constraint {name!r} is {constraint.to_polystring()}; only hard constraints of the form "
            "'x0 + x1 + ... == whole number' are allowed."
        )
    return list(lhs.variables), int(count)


def to_ising(
    problem: BlockQubo, penalty: float | None = None
) -> tuple[dict[int, float], dict[tuple[int, int], float], float]:
    """Fields h, couplings J and offset of the spins ``s = 2x - 1``, so ``s_i = +1`` prunes weight i.

    ``sum_i h_i s_i + sum_{i<j} J_ij s_i s_j + offset`` is the energy of :func:`to_bqm` at
    ``x = (1 + s) / 2``; every pair stands once. Factor form is densified.

    Args:
        problem: the block QUBO.
        penalty: as in :func:`to_bqm`.

    >>> to_ising(BlockQubo([[4.0]], num_pruned=1), penalty=0.0)
    ({0: 2.0}, {}, 2.0)
    """
    linear, quadratic, offset = to_bqm(problem, penalty).to_ising()
    fields = {i: float(linear[i]) for i in range(len(linear))}
    couplings = {(int(min(pair)), int(max(pair))): float(bias) for pair, bias in quadratic.items()}
    return fields, couplings, float(offset)


def assignment_from_spins(spins: ArrayLike | Mapping[int, int]) -> NDArray[np.bool_]:
    """Assignments ``(n,)`` or ``(k, n)``, True = prune, from spins -1 and +1.

    A mapping from variable to spin, such as a dimod sample, is read in the order 0 to n-1.

    Raises:
        InputError: a value is neither -1 nor +1, or a mapping's keys are not 0 to n-1.

    >>> assignment_from_spins([1, -1, 1])
    array([ True, False,  True])
    """
    if isinstance(spins, Mapping):
        if set(spins) != set(range(len(spins))):
            raise InputError(f"The spins are named {list(spins)[:8]}; name them 0 to {len(spins) - 1}.")
        spins = [spins[i] for i in range(len(spins))]
    values = np.asarray(spins)
    if not np.isin(values, (-1, 1)).all():
        raise InputError(f"The spins hold {np.unique(values)[:8].tolist()}; only -1 and +1 are allowed.")
    return np.asarray(values == 1)


def assignments_from_sampleset(
    samples: dimod.SampleSet, names: BlockQubo | Sequence[Hashable] | int
) -> NDArray[np.bool_]:
    """Assignments ``(k, n)``, True = prune, of the samples of another sampler, binary or spins, in their order.

    Args:
        samples: k of them; one that was found several times counts once.
        names: of the variables, by position: the problem, a list of names, or n for 0 to n-1.

    Raises:
        InputError: it is no sample set, lacks a variable or has one too many, or holds other values than its type has.

    >>> result = solve(BlockQubo([[1.0, -2.0], [-2.0, 3.0]], num_pruned=1))
    >>> assignments_from_sampleset(result.to_sampleset(), 2)
    array([[ True, False]])
    """
    if not (hasattr(samples, "record") and hasattr(samples, "variables")):
        raise InputError(f"The samples are of type {type(samples).__name__}; give a dimod.SampleSet.")
    called = names.names if isinstance(names, BlockQubo) else range(names) if isinstance(names, int) else names
    places = {variable: place for place, variable in enumerate(samples.variables)}
    columns = by_position(places, called, "The sample set")
    values = np.asarray(samples.record.sample)[:, columns]
    kind = getattr(samples.vartype, "name", "")
    if kind == "SPIN":
        return np.atleast_2d(assignment_from_spins(values))
    try:
        return binary(values, "The samples hold")
    except ValueError as error:
        raise InputError(f"{error}.") from None


def to_quadratic_program(problem: BlockQubo) -> qiskit_optimization.QuadraticProgram:
    """A qiskit-optimization program that minimises ``E(x)`` over binary ``x0`` to ``x{n-1}``.

    The constant is the offset; the linear equality ``group_g`` is ``sum_{i in g} x_i == m_g`` for
    each group that has variables, and the inequality ``budget_r`` is ``sum_i c_ri x_i >= C_r``. Factor form is
    densified.

    >>> program = to_quadratic_program(BlockQubo([[1.0, -2.0], [-2.0, 3.0]], num_pruned=1))
    >>> float(program.objective.evaluate([0, 1]))
    3.0
    """
    import qiskit_optimization

    program = qiskit_optimization.QuadraticProgram("block_qubo")
    _fill_program(program, problem)
    return program


def to_optimization_problem(problem: BlockQubo) -> qiskit_addon_opt_mapper.OptimizationProblem:
    """The same as :func:`to_quadratic_program` for qiskit-addon-opt-mapper, which has to be installed.

    Objective, names of the variables and constraints are those of :func:`to_quadratic_program`.

    Raises:
        SolverError: the package is not installed.
    """
    check_requirements(
        "to_optimization_problem", [("qiskit_addon_opt_mapper", "qiskit-addon-opt-mapper")], "conversion"
    )
    import qiskit_addon_opt_mapper

    program = qiskit_addon_opt_mapper.OptimizationProblem("block_qubo")
    _fill_program(program, problem)
    return program


def _fill_program(program: Any, problem: BlockQubo) -> None:
    """Variables, objective and counts; the two libraries of Qiskit call them alike."""
    names = [program.binary_var(f"x{i}").name for i in range(problem.num_variables)]
    couplings = problem.dense() * (1 - np.eye(problem.num_variables))
    program.minimize(constant=problem.offset, linear=problem.diagonal, quadratic=couplings)
    for group, count in enumerate(problem.num_pruned):
        members = {names[i]: 1 for i in np.flatnonzero(problem.labels == group)}
        if members:
            program.linear_constraint(members, "==", count, f"group_{group}")
    for row, (costs, least) in enumerate(zip(problem.costs, problem.budget, strict=True)):
        program.linear_constraint(dict(zip(names, costs.tolist(), strict=True)), ">=", float(least), f"budget_{row}")


def to_dwave_optimization(problem: BlockQubo) -> dwave.optimization.Model:
    """A model of dwave-optimization, as D-Wave's hybrid nonlinear solver takes it, with the counts as constraints.

    Its only decision is a binary array of n, the assignment: ``next(model.iter_decisions())``. The objective is
    ``E(x)``, the offset included; there is one constraint ``sum_{i in g} x_i == m_g`` for each group that has
    variables, and one ``sum_i c_ri x_i >= C_r`` for each budget. Factor form is densified.
    :func:`assignments_from_dwave_optimization` reads answers.

    Raises:
        InputError: the problem has no variables.
        SolverError: the package dwave-optimization is not installed.
    """
    check_requirements("to_dwave_optimization", [("dwave.optimization", "dwave-optimization")], "conversion")
    from dwave.optimization import Model

    n = problem.num_variables
    if not n:
        raise InputError("The problem has no variables, and a model of dwave-optimization needs one.")
    model = Model()
    x = model.binary(n)
    pairs = 2 * problem.dense()
    first, second = np.triu(pairs, 1).nonzero()
    if len(first):
        energy = model.quadratic_model(x, (pairs[first, second], (first, second)), problem.diagonal)
    else:  # which is no quadratic model
        energy = (x * model.constant(problem.diagonal)).sum()
    model.minimize(energy + model.constant(problem.offset))
    for group, count in enumerate(problem.num_pruned):
        members = np.flatnonzero(problem.labels == group)
        if len(members):
            model.add_constraint(x[model.constant(members)].sum() == model.constant(count))
    for costs, least in zip(problem.costs, problem.budget, strict=True):
        model.add_constraint((x * model.constant(costs)).sum() >= model.constant(float(least)))
    return model


def assignments_from_dwave_optimization(model: dwave.optimization.Model) -> NDArray[np.bool_]:
    """Assignments ``(k, n)``, True = prune, of the k states that a solver left in a model.

    Args:
        model: one of :func:`to_dwave_optimization`.

    Raises:
        InputError: the model has no state, or another decision than one array of binary variables.
    """
    decisions, states = list(model.iter_decisions()), model.states.size()
    if len(decisions) != 1 or decisions[0].ndim() != 1 or not states:
        raise InputError(
            f"The model has {len(decisions)} decisions and {states} states; give one that to_dwave_optimization made, "
            "once it has been solved."
        )
    try:
        return binary(np.array([decisions[0].state(k) for k in range(states)]), "The states hold")
    except ValueError as error:
        raise InputError(f"{error}.") from None


def suggested_penalty(problem: BlockQubo) -> float:
    """``2 mu`` in units of energy, where ``mu`` is what one more pruned weight costs near the optimum.

    At a swap optimum x (greedy forward selection, then best swaps) the flip costs are
    ``K_i = Q_ii + 2 sum_{j != i} Q_ij x_j``. The multiplier of a count lies between the cheapest kept
    weight and the dearest pruned one, ``mu = max over groups |min_kept K + max_pruned K| / 2``; a group
    that is all kept or all pruned has one of the two, which stands for both. Always positive.

    This is a heuristic scale. The usual safe rules, such as ``sum |Q_ij|``, are thousands of times
    too large and drown the energies that matter. With this one a ground state can miss a count by
    some weights, so answers need a repair.

    >>> suggested_penalty(BlockQubo([[1.0, 0.0], [0.0, 3.0]], num_pruned=1))
    4.0
    """
    x = solve(problem, Greedy()).assignment
    mu = multipliers(problem, x)
    return 2 * float(np.abs(mu).max(initial=0.0)) + 2 * least_strength(problem, mu, x)


def to_bqm(problem: BlockQubo, penalty: float | None = None) -> dimod.BinaryQuadraticModel:
    """A dimod model over variables 0 to n-1 whose counts are penalties.

    Its energy is ``E(x) + penalty * sum_g (sum_{i in g} x_i - m_g)^2`` exactly, the offset included,
    so a feasible assignment has the energy of the problem. Factor form is densified. Budgets become penalties as well,
    with slack variables n and on, see :func:`~qubo_prune.problem.penalty.penalised`; the steps of the slack are coarse,
    so that an assignment that meets a budget can have a little more than its energy.

    Args:
        problem: the block QUBO.
        penalty: in units of energy; :func:`suggested_penalty` if left out, whose answers may miss
            a count and then need a repair. 0 leaves counts and budgets out.

    Raises:
        InputError: the penalty is negative or not finite.

    >>> bqm = to_bqm(BlockQubo([[1.0, -2.0], [-2.0, 3.0]], num_pruned=1), penalty=10.0)
    >>> float(bqm.energy({0: 1, 1: 1}))
    10.0
    """
    import dimod

    strength = suggested_penalty(problem) if penalty is None and not problem.free else penalty or 0.0
    free = penalised(problem, strength) if strength else BlockQubo(problem.q, None, problem.offset)
    pairs = 2 * free.dense()
    first, second = np.triu(pairs, 1).nonzero()
    return dimod.BinaryQuadraticModel.from_numpy_vectors(
        free.diagonal, (first, second, pairs[first, second]), free.offset, dimod.BINARY
    )

"""Any algorithm of qiskit-optimization, or solver of qiskit-addon-opt-mapper: ``qiskit:package.module:Algorithm``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from qubo_prune.errors import InputError
from qubo_prune.formats.libraries import to_optimization_problem, to_quadratic_program
from qubo_prune.plugins import import_object
from qubo_prune.problem.qubo import BlockQubo, binary
from qubo_prune.settings import check_settings
from qubo_prune.solver.interface import Capabilities, Solver, SolveRequest, SolveResult, Status, ranked_answers
from qubo_prune_solvers._adapting import Remade, argument_names, make
from qubo_prune_solvers._bqm import small_seed

# how far from 0 and 1 the answers of algorithms that compute with fractions may be
_ROUNDING = 1e-6

# the successor of qiskit-optimization, by its module
_ADDON = "qiskit_addon_opt_mapper"


@dataclass(frozen=True, eq=False)
class QiskitOptimizer(Remade):
    """Hand the problem to an ``OptimizationAlgorithm`` of qiskit-optimization.

    An ``OptimizationSolver`` of qiskit-addon-opt-mapper does as well: it is given that package's
    ``OptimizationProblem`` in place of a ``QuadraticProgram``, with the same objective and constraints.

    Attributes:
        algorithm: an instance of ``qiskit_optimization.algorithms.OptimizationAlgorithm``, or of
            ``qiskit_addon_opt_mapper.solvers.OptimizationSolver``.
        counts: how it is given the counts: as linear constraints ``sum_i x_i == m``
            (``"constraint"``), or as the framework's penalties (``"penalty"``). ``"auto"`` gives
            constraints to an algorithm that takes them, except to those that would make QUBOs of
            them, with penalties of their own that are thousands of times too large.

    Raises:
        InputError: it is no such algorithm, or does not take binary quadratic problems.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(requires=(("qiskit_optimization", "qiskit-optimization"),))

    algorithm: Any
    counts: Literal["auto", "constraint", "penalty"] = "auto"

    def __post_init__(self) -> None:
        if not callable(getattr(self.algorithm, "get_compatibility_msg", None)):
            raise InputError(
                f"{self.algorithm!r} is no OptimizationAlgorithm of qiskit-optimization, nor an OptimizationSolver of "
                "qiskit-addon-opt-mapper; pass an instance of one of them."
            )
        constraint = self.counts == "constraint" or (self.counts == "auto" and _takes_counts(self.algorithm))
        if message := _refusal(self.algorithm, 1 if constraint else None):
            raise InputError(
                f"{type(self.algorithm).__name__} takes no binary quadratic problems"
                f"{' with counts' if constraint else ''} ({message}); use another algorithm."
            )
        # what this algorithm can do stands in front of what is said of the class
        own = dataclasses.replace(type(self).capabilities, cardinality=constraint)
        if _of_addon(self.algorithm):
            own = dataclasses.replace(own, requires=((_ADDON, "qiskit-addon-opt-mapper"),))
        object.__setattr__(self, "capabilities", own)

    @classmethod
    def from_path(cls, path: str, **settings: Any) -> Solver:
        """The solver around the algorithm that ``package.module:Thing`` names.

        A class or function is called with the settings, ``counts`` left out, to make the algorithm.
        One that needs other objects, as ``MinimumEigenOptimizer`` does, can be named by a function of
        one's own that makes it.

        Raises:
            SolverError: it cannot be imported.
            InputError: the algorithm cannot be made, or is none.
            TypeError: it has no such setting.
        """
        name = f"qiskit:{path}"
        thing = import_object("solver", name, path)
        check_settings(name, settings, [*(argument_names(thing) if callable(thing) else []), "counts"])
        algorithm = make(name, thing, settings)[0] if callable(thing) else thing
        return cls(algorithm, settings.get("counts", "auto")).remade_from(path, settings)

    def solve(self, request: SolveRequest, /) -> SolveResult:
        problem = request.problem
        if not problem.num_variables:
            return ranked_answers(problem, np.zeros((1, 0)), Status.FEASIBLE)
        with nullcontext() if _of_addon(self.algorithm) else _seeded(small_seed(request.seed)):
            result = self.algorithm.solve(_program(self.algorithm, problem))
        name = type(self.algorithm).__name__
        info = {"algorithm": name, "status": result.status.name}
        return ranked_answers(problem, _points(result, name), Status.FEASIBLE, info=info)


def _points(result: Any, name: str) -> NDArray[np.bool_]:
    """Its assignments ``(k, n)``; numbers within ``_ROUNDING`` of 0 or 1 are taken for those."""
    if result.x is None:
        raise ValueError(f"{name} answered with no assignment (its status is {result.status.name})")
    points = np.array([result.x, *(sample.x for sample in result.samples or ())], dtype=np.float64)
    nearest = np.rint(points)
    return binary(np.where(np.abs(points - nearest) <= _ROUNDING, nearest, points), f"{name} answered with")


def _of_addon(algorithm: Any) -> bool:
    """True if it, or a class that it inherits from, is the addon's; which is not imported to find out."""
    return any(kind.__module__.split(".")[0] == _ADDON for kind in type(algorithm).__mro__)


def _program(algorithm: Any, problem: BlockQubo) -> Any:
    return to_optimization_problem(problem) if _of_addon(algorithm) else to_quadratic_program(problem)


def _refusal(algorithm: Any, num_pruned: int | None) -> str:
    """What the algorithm has against problems such as a block QUBO; empty if nothing."""
    program = _program(algorithm, BlockQubo([[1.0, -0.5], [-0.5, 1.0]], num_pruned))
    return str(algorithm.get_compatibility_msg(program)).strip()


def _takes_counts(algorithm: Any) -> bool:
    """True if the algorithm takes linear constraints and makes no penalties of them."""
    if _of_addon(algorithm):
        return not _refusal(algorithm, 1)
    from qiskit_optimization.algorithms import GroverOptimizer, MinimumEigenOptimizer, RecursiveMinimumEigenOptimizer

    penalising = (GroverOptimizer, MinimumEigenOptimizer, RecursiveMinimumEigenOptimizer)
    return not isinstance(algorithm, penalising) and not _refusal(algorithm, 1)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the library's one random stream, and leave it as it was found."""
    from qiskit_optimization.utils import algorithm_globals

    before = algorithm_globals.random_seed
    algorithm_globals.random_seed = seed
    try:
        yield
    finally:
        algorithm_globals.random_seed = before

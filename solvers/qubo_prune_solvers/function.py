"""Any callable as a solver: ``callable:package.module:function``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from qubo_prune.errors import InputError
from qubo_prune.plugins import import_object
from qubo_prune.settings import check_settings, checked_values, kinds_of
from qubo_prune.solver.interface import Capabilities, Solver, SolveRequest, SolveResult, Status, ranked_answers
from qubo_prune_solvers._adapting import Remade, argument_names, make, takes_any_name

# what a function can name, and what it then gets of a request
_GIVEN: dict[str, Callable[[SolveRequest], Any]] = {
    "problem": lambda r: r.problem,
    "q": lambda r: r.problem.dense().copy(),
    "num_pruned": lambda r: r.problem.num_pruned[0] if r.problem.num_groups == 1 else r.problem.num_pruned,
    "labels": lambda r: r.problem.labels.copy(),
    "costs": lambda r: r.problem.costs.copy(),
    "budget": lambda r: r.problem.budget.copy(),
    "warm_start": lambda r: r.warm_start,
    "seed": lambda r: r.seed,
    "time_limit": lambda r: r.time_limit,
    "num_answers": lambda r: r.num_answers,
    "temperatures": lambda r: r.temperatures,
}


@dataclass(frozen=True, eq=False)
class CallableSolver(Remade):
    """Ask a function ``f(problem, warm_start, seed, time_limit)`` for an assignment or several.

    The function is passed what it names of ``problem``, ``q`` (the matrix), ``num_pruned`` (a number
    for a single group, one each otherwise), ``labels``, ``costs`` ``(k, n)`` and ``budget`` ``(k,)``,
    ``warm_start``, ``seed``, ``time_limit`` (seconds), ``num_answers`` and ``temperatures``; if its first
    argument has none of these names, it is the problem. It answers with an assignment ``(n,)`` or rows of
    them ``(k, n)``, 0 or 1 each, 1 = prune, or with a
    :class:`~qubo_prune.solver.interface.SolveResult`.

    A function that names ``time_limit`` is trusted to keep it; another one runs in a process that is
    ended then. One that names ``seed`` counts as stochastic, and one that names ``budget`` is trusted to meet it.

    Attributes:
        function: the callable.
        counts: True if it meets the counts itself. If not, its problem has none and penalties for
            them in the energies, and its answers are repaired.
        settings: further arguments of the function.

    Raises:
        InputError: it is not callable.
        TypeError: it takes no argument of a setting's name.

    >>> from qubo_prune import BlockQubo, solve
    >>> def cheapest(q, num_pruned):
    ...     return q.diagonal().argsort().argsort() < num_pruned
    >>> solve(BlockQubo([[1.0, -2.0], [-2.0, 3.0]], num_pruned=1), CallableSolver(cheapest)).energy
    1.0
    """

    capabilities: ClassVar[Capabilities] = Capabilities()

    function: Callable[..., Any]
    counts: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise InputError(f"{self.function!r} is not callable; pass a function of the problem.")
        names, called = argument_names(self.function), f"callable:{getattr(self.function, '__name__', self.function)}"
        checked_values(called, kinds_of(type(self)), {"counts": self.counts})
        if not takes_any_name(self.function):
            check_settings(called, self.settings, names)
        object.__setattr__(self, "settings", checked_values(called, kinds_of(self.function), self.settings))
        own = dataclasses.replace(
            type(self).capabilities,
            cardinality=self.counts,
            budgets=self.counts and "budget" in names,
            stochastic="seed" in names,
            anytime="time_limit" in names,
        )
        # what this function can do stands in front of what is said of the class
        object.__setattr__(self, "capabilities", own)

    @classmethod
    def from_path(cls, path: str, **settings: Any) -> Solver:
        """The solver around what ``package.module:function`` names.

        A class is called first, with those of the settings that its constructor names, and must then
        be callable itself. ``counts`` is that of this adapter, unless the function has one.

        Raises:
            SolverError: it cannot be imported.
            InputError: it is not callable, or cannot be made.
            TypeError: it takes no argument of a setting's name.
        """
        name = f"callable:{path}"
        function = import_object("solver", name, path)
        rest: dict[str, Any] = dict(settings)
        if isinstance(function, type):
            function, rest = make(name, function, settings)
        its_own = callable(function) and "counts" in argument_names(function)
        counts = True if its_own else rest.pop("counts", True)
        return cls(function, counts, rest).remade_from(path, settings)

    def solve(self, request: SolveRequest, /) -> SolveResult:
        names = argument_names(self.function)
        given = {name: _GIVEN[name](request) for name in names if name in _GIVEN} | dict(self.settings)
        # a first argument of any other name is the problem, and so is the only one of *args
        first = [] if names and names[0] in given else [request.problem]
        answer = self.function(*first, **given)
        if isinstance(answer, SolveResult):
            return answer
        return ranked_answers(request.problem, np.asarray(answer), Status.FEASIBLE)

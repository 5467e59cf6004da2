"""Any dimod sampler as a solver: ``dimod:package.module:Sampler``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from qubo_prune.clock import Deadline
from qubo_prune.errors import InputError
from qubo_prune.formats.libraries import to_cqm
from qubo_prune.plugins import import_object
from qubo_prune.settings import check_settings
from qubo_prune.solver.interface import Capabilities, Solver, SolveRequest, SolveResult, Status, ranked_answers
from qubo_prune_solvers._adapting import Remade, argument_names, make
from qubo_prune_solvers._bqm import assignments_of, beta_range, hardware_told, initial_states, model_of, small_seed
from qubo_prune_solvers._interrupts import interruptible

# settings of samplers in units of 1 / energy
_BETAS = ("beta_range", "beta_min", "beta_max")

# reads where the sampler takes a number and none is set: most samplers' own default is one
_READS = 10


@dataclass(frozen=True, eq=False)
class DimodSampler(Remade):
    """Hand the problem to a dimod sampler, the counts as penalties.

    A sampler that has ``sample_cqm`` gets the counts as constraints. Of what the framework knows, a
    sampler is passed what it takes by name and ``settings`` leave open: ``seed``; ``num_reads`` (10);
    ``beta_range``, or ``beta_min`` and ``beta_max``, from the temperatures of the request;
    ``initial_states``, the first of them the warm start; and the time limit as ``time_limit`` in
    seconds, ``interrupt_function``, or, of a sampler from ``dwave``, as ``timeout`` in milliseconds
    shared by the reads. One that takes no limit runs in a process that is ended.

    What the sample set tells of hardware is in the result's ``info``: ``qpu_seconds``, the ``qpu_access_time`` of
    D-Wave; ``timing``, all of its times, in microseconds as they come; ``chain_break_fraction``, the mean over the
    reads.

    Attributes:
        sampler: an instance of a ``dimod.Sampler``, or of anything with its ``sample``.
        settings: arguments of ``sample``, checked against the sampler's ``parameters`` and against the
            names in the method's signature, since not every sampler lists all of them in both.

    Raises:
        InputError: it is no sampler.
        TypeError: it has no such setting (the message gives near ones).

    >>> import dimod
    >>> from qubo_prune import BlockQubo, solve
    >>> solve(BlockQubo([[1.0, -2.0], [-2.0, 3.0]], num_pruned=1), DimodSampler(dimod.ExactSolver())).energy
    1.0
    """

    capabilities: ClassVar[Capabilities] = Capabilities(cardinality=False, requires=(("dimod", "dimod"),))

    sampler: Any
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not callable(getattr(self.sampler, self._method, None)):
            raise InputError(f"{self.sampler!r} is no dimod sampler; pass an instance that has 'sample'.")
        check_settings(f"dimod:{type(self.sampler).__name__}", self.settings, self._known)
        own = dataclasses.replace(
            type(self).capabilities,
            cardinality=self._method == "sample_cqm",
            budgets=self._method == "sample_cqm",
            stochastic="seed" in self._known,
            anytime=bool(self._limit(1.0)),
        )
        # what this sampler can do stands in front of what is said of the class
        object.__setattr__(self, "capabilities", own)

    @classmethod
    def from_path(cls, path: str, **settings: Any) -> Solver:
        """The solver around the sampler that ``package.module:Thing`` names.

        A class or function is called to make the sampler; of the settings it gets those that its
        signature names, and ``sample`` gets the others.

        Raises:
            SolverError: it cannot be imported.
            InputError: the sampler cannot be made, or is none.
            TypeError: neither takes a setting.
        """
        name = f"dimod:{path}"
        thing = import_object("solver", name, path)
        rest: Mapping[str, Any] = settings
        if callable(thing) and not hasattr(type(thing), "sample"):
            thing, rest = make(name, thing, settings)
        return cls(thing, rest).remade_from(path, settings)

    def solve(self, request: SolveRequest, /) -> SolveResult:
        problem = request.problem
        if not problem.num_variables:
            return ranked_answers(problem, np.zeros((1, 0)), Status.FEASIBLE)
        model = to_cqm(problem) if self.capabilities.cardinality else model_of(problem)
        arguments = self._arguments(request) | self._own(request.unit)
        sample, clock = getattr(self.sampler, self._method), Deadline(request.time_limit)
        if "interrupt_function" in arguments and "interrupt_function" not in self.settings:
            arguments["interrupt_function"] = lambda: clock.expired
        samples = interruptible(lambda: sample(model, **arguments), clock.cancel)
        points = assignments_of(samples, problem.num_variables, type(self.sampler).__name__)
        info = hardware_told(samples) | {"arguments": sorted(arguments), "samples": len(points)}
        return ranked_answers(problem, points, Status.FEASIBLE, info=info)

    @property
    def _method(self) -> str:
        return "sample_cqm" if hasattr(self.sampler, "sample_cqm") else "sample"

    @property
    def _known(self) -> list[str]:
        """Names of the arguments of ``sample``, the model's left out."""
        listed = list(getattr(self.sampler, "parameters", None) or ())
        named = argument_names(getattr(self.sampler, self._method))[1:]
        return [*named, *(name for name in listed if name not in named)]

    def _arguments(self, request: SolveRequest) -> dict[str, Any]:
        """What the sampler takes of what is known of the request, by the sampler's names."""
        first, last = beta_range(request)
        known: dict[str, Any] = {
            "seed": small_seed(request.seed),
            "num_reads": max(_READS, request.num_answers),
        }
        # one beta that is set may contradict another one
        if not any(name.startswith("beta") for name in self.settings):
            known |= {"beta_range": (first, last), "beta_min": first, "beta_max": last}
        if request.warm_start is not None:
            known["initial_states"] = initial_states(request.warm_start[None, :])
        taken = {name: value for name, value in known.items() if name in self._known}
        return taken | self._limit(request.time_limit)

    def _own(self, unit: float) -> dict[str, Any]:
        """The settings, betas in units of the problem that the sampler is given."""
        betas = {name: value for name, value in self.settings.items() if name in _BETAS and value is not None}
        scaled = {
            name: [beta * unit for beta in value] if isinstance(value, (list, tuple)) else value * unit
            for name, value in betas.items()
        }
        return dict(self.settings) if unit == 1 else dict(self.settings) | scaled

    def _limit(self, seconds: float | None) -> dict[str, Any]:
        """The time limit by the sampler's name for it; empty if it takes none."""
        if seconds is None:
            return {}
        clock, reads = Deadline(seconds), int(self.settings.get("num_reads", _READS))
        limits: dict[str, Any] = {
            "time_limit": seconds,
            "timeout": max(1, int(1000 * seconds / reads)),
            "interrupt_function": lambda: clock.expired,
        }
        if not type(self.sampler).__module__.startswith("dwave."):
            # elsewhere nobody knows what is meant by it
            del limits["timeout"]
        known = [name for name in limits if name in self._known]
        return {name: limits[name] for name in known[:1]}

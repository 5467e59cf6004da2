"""Problems whose variables have names: QUBOs as dicts and dimod's binary quadratic models, and the way back.

A variable's position is its place in ``x``. Where the names are just the numbers 0 to n-1, each number is its own
position, in whatever order the model lists them; other names stand in the model's own order.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qubo_prune.errors import InputError

if TYPE_CHECKING:
    import dimod

#: Names that a message lists.
_LISTED = 5


class Unsaid(enum.Enum):
    """Nothing was said of the counts, which is not the same as ``None``: that any number may be pruned."""

    COUNT = "not given"

    def __repr__(self) -> str:
        return "<not given>"


@dataclass(frozen=True, eq=False)
class NamedQubo:
    """``offset + x' Q x`` over variables with names.

    Attributes:
        q: ``(n, n)``, symmetric, linear terms on the diagonal.
        offset: the constant.
        names: of the variables, by position.
    """

    q: NDArray[np.float64]
    offset: float
    names: Sequence[Hashable]


def of_bqm(bqm: dimod.BinaryQuadraticModel) -> NamedQubo:
    """Q, offset and names of a dimod model, in float64.

    Over binary variables, ``Q_ii`` is the linear bias and ``Q_ij`` half the quadratic one. Spins become
    ``x = (1 + s) / 2``, see :func:`of_spins`.

    Raises:
        InputError: it is no ``dimod.BinaryQuadraticModel``.
    """
    import dimod

    if not isinstance(bqm, dimod.BinaryQuadraticModel):
        raise InputError(
            f"The model is of type {type(bqm).__name__}; give a dimod.BinaryQuadraticModel (of a constrained model, "
            "qubo_prune.formats.libraries.from_cqm makes a BlockQubo)."
        )
    names = _in_order(list(bqm.variables))
    vectors = bqm.to_numpy_vectors(variable_order=list(names))
    linear, n = np.asarray(vectors.linear_biases, dtype=np.float64), len(names)
    half, offset = np.zeros((n, n)), float(vectors.offset)
    first, second, biases = vectors.quadratic
    np.add.at(half, (np.asarray(first), np.asarray(second)), np.asarray(biases, dtype=np.float64) / 2)
    couplings = half + half.T
    if bqm.vartype is dimod.BINARY:
        return NamedQubo(couplings + np.diag(linear), offset, names)
    return NamedQubo(*of_spins(linear, 2 * couplings, offset), names)


def of_spins(
    fields: NDArray[np.float64], couplings: NDArray[np.float64], offset: float
) -> tuple[NDArray[np.float64], float]:
    """Q and offset of ``offset + sum h_i s_i + sum_{i<j} J_ij s_i s_j`` with ``x = (1 + s) / 2``.

    ``Q_ij = 2 J_ij``, ``Q_ii = 2 h_i - 2 sum_j J_ij``, and the offset grows by ``sum J - sum h``.

    Args:
        fields: h, ``(n,)``.
        couplings: J, ``(n, n)``, each at both of its places.
        offset: the constant.
    """
    q = 2 * couplings + np.diag(2 * fields - 2 * couplings.sum(axis=1))
    return q, offset + float(couplings.sum()) / 2 - float(fields.sum())


def of_dict(qubo: Mapping[tuple[Hashable, Hashable], float], offset: float = 0.0) -> NamedQubo:
    """Q and names of ``{(i, j): value}``, where a value is the coefficient of ``x_i x_j``, and of ``x_i`` if i = j.

    A pair may stand in both orders; the two are added.

    Raises:
        InputError: a key is no pair, or a value no number.
    """
    if not isinstance(qubo, Mapping):
        raise InputError(f"The QUBO is of type {type(qubo).__name__}; give a dict such as {{('a', 'b'): -1.0}}.")
    for key, value in qubo.items():
        if not isinstance(key, tuple) or len(key) != 2:
            raise InputError(
                f"The QUBO has the key {key!r}; give pairs of names, with linear terms as pairs of one name: "
                "{('a', 'a'): 1.0, ('a', 'b'): -2.0}."
            )
        if isinstance(value, (bool, str)) or not np.isscalar(value) or not np.isreal(value):
            raise InputError(f"The QUBO's value at {key!r} is {value!r}; give a number.")
    names = _in_order(list(dict.fromkeys(name for key in qubo for name in key)))
    places = positions(names)
    q = np.zeros((len(names), len(names)))
    for (first, second), value in qubo.items():
        i, j = places[first], places[second]
        q[i, j] += float(value) / 2
        q[j, i] += float(value) / 2
    return NamedQubo(q, offset, names)


def positions(names: Sequence[Hashable]) -> dict[Hashable, int]:
    """From each name to its position."""
    return {name: place for place, name in enumerate(names)}


def by_position(values: Mapping[Hashable, Any], names: Sequence[Hashable], what: str) -> list[Any]:
    """What a mapping has for each of the names, in their order.

    Args:
        values: from names to anything.
        names: those that it has to have, and no others.
        what: it is, as the sentence of an error begins, such as ``"warm_start"``.

    Raises:
        InputError: a name is missing, or is none of them.
    """
    places = positions(names)
    missing, unknown = [n for n in names if n not in values], [n for n in values if n not in places]
    if missing or unknown:
        told = [f"lacks {listed(missing)}"] * bool(missing) + [f"names {listed(unknown)}"] * bool(unknown)
        raise InputError(f"{what} {' and '.join(told)}; give a value for each of {listed(names)}, by name.")
    return [values[name] for name in names]


def listed(names: Sequence[Hashable]) -> str:
    """Some names, for a message."""
    shown = ", ".join(repr(name) for name in names[:_LISTED])
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{shown}{more}" if names else "none"


def told_count(num_pruned: int | Sequence[int] | Unsaid | None, what: str) -> int | Sequence[int] | None:
    """The counts, if something was said of them.

    Args:
        num_pruned: as it was given.
        what: the model is, for the message.

    Raises:
        InputError: nothing was said.
    """
    if isinstance(num_pruned, Unsaid):
        raise InputError(
            f"{what} does not tell how many of its variables are to be 1, since a count in it is a penalty like any "
            "other term; give num_pruned=m (or a list, with labels=), or num_pruned=None if any number may be 1."
        )
    return num_pruned


def group_labels(labels: ArrayLike | Mapping[Hashable, int] | None, names: Sequence[Hashable]) -> ArrayLike | None:
    """Group numbers by position, from a mapping of names too."""
    return by_position(labels, names, "labels") if isinstance(labels, Mapping) else labels


def checked_names(names: Sequence[Hashable] | None, n: int) -> Sequence[Hashable]:
    """The names, or the numbers 0 to n-1.

    Raises:
        InputError: there are fewer or more than variables, or one stands twice.
    """
    if names is None:
        return range(n)
    try:
        set(names)
    except TypeError:
        raise InputError(
            "names holds what cannot be a key of a dict, such as lists; pass text, numbers or tuples."
        ) from None
    if len(names) != n or len(set(names)) != n:
        raise InputError(f"names holds {len(set(names))} different names for {n} variables; give each its own.")
    return names if isinstance(names, range) else tuple(names)


def _in_order(names: list[Hashable]) -> Sequence[Hashable]:
    n = len(names)
    numbers = all(isinstance(name, (int, np.integer)) and not isinstance(name, bool) for name in names)
    return range(n) if numbers and set(names) == set(range(n)) else tuple(names)

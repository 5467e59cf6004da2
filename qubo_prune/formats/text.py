"""Block QUBOs as files: JSON of our own, and the text formats of other tools.

=========  ==================================================  ===========  =========================
format     what                                                constraints  there and back
=========  ==================================================  ===========  =========================
``json``   everything, factor form included                    yes          bit-identical
``coo``    dimod's coordinate list, binary                     in comment   bit-identical
``qubo``   qbsolv                                              in comment   bit-identical
``lp``     CPLEX LP, see :mod:`qubo_prune.formats.lp`          yes          bit-identical
``ising``  dimod's coordinate list, spins ``s = 2x - 1``       in comment   to rounding
=========  ==================================================  ===========  =========================

All but JSON hold matrices, so that a problem in factor form is densified. Files are text, are read
line by line with every number checked, and nothing in them is executed.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qubo_prune.choices import FORMATS
from qubo_prune.errors import InputError, did_you_mean
from qubo_prune.files.atomic import written_whole
from qubo_prune.files.parsing import limited_text, plain_text, strict_json
from qubo_prune.files.parsing import short as _short
from qubo_prune.formats import lp
from qubo_prune.formats.libraries import to_ising
from qubo_prune.problem.named import of_spins
from qubo_prune.problem.qubo import BlockQubo, FactorForm

#: Larger problems and larger files are refused; a matrix takes ``8 n^2`` bytes however short its file is.
MAX_VARIABLES = 20_000
MAX_MATRIX_VARIABLES = 10_000
MAX_BYTES = 2**30
#: Characters of a decimal number; the longest that is written here has some 330.
MAX_DIGITS = 1000

_SCHEMA = "qubo_prune.problem"
_VERSION = 1


def write_problem(problem: BlockQubo, path: str | Path, format: str | None = None) -> None:
    """Write a problem; a file that is there is replaced.

    Args:
        problem: the block QUBO.
        path: the file.
        format: ``json``, ``coo``, ``qubo``, ``lp`` or ``ising``; by the file's suffix if left out.

    Raises:
        InputError: there is no such format, the format cannot hold the problem, or the folder is missing.
    """
    target = Path(path)
    kind = _format(target, format)
    if problem.num_variables > MAX_VARIABLES:
        raise InputError(f"The problem has {problem.num_variables} variables; files hold at most {MAX_VARIABLES}.")
    if kind != "json" or not isinstance(problem.q, FactorForm):
        _check_matrix(problem.num_variables)
    if not target.parent.is_dir() or target.is_dir():
        raise InputError(f"{target} cannot be written: give a file in a folder that is there.")
    with written_whole(target) as aside, aside.open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(_WRITERS[kind](problem))


def read_problem(
    path: str | Path, num_pruned: int | Sequence[int] | None = None, format: str | None = None
) -> BlockQubo:
    """Read a problem.

    Args:
        path: the file; ``-`` is standard input, which needs a format.
        num_pruned: exact counts, in place of the file's; one number for a single group, or one per
            group. Without any, a file that holds no counts gives a free problem.
        format: ``json``, ``coo``, ``qubo``, ``lp`` or ``ising``; by the file's suffix if left out.

    Raises:
        InputError: the file is missing, malformed or too large; the message names the line, what
            was found and what is allowed.
    """
    source = Path(path)
    kind = _format(source, format)
    try:
        parts = _READERS[kind](_text(source))
        if num_pruned is not None:
            parts = _with_counts(parts, num_pruned)
        return parts.problem()
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def _format(path: Path, format: str | None) -> str:
    if format is None and str(path) == "-":
        raise InputError(f"Standard input has no suffix; give the format (--format), one of {', '.join(FORMATS)}.")
    name = path.suffix.removeprefix(".").lower() if format is None else format
    if name not in FORMATS:
        given = f"suffix of {path.name!r} is no" if format is None else f"format {format!r} is no"
        raise InputError(
            f"The {given} known problem format{did_you_mean(name, FORMATS)}; use one of {', '.join(FORMATS)}."
        )
    return name


def _check_matrix(n: int) -> None:
    """Raise :class:`InputError` before a matrix is made that would fill the memory."""
    if n > MAX_MATRIX_VARIABLES:
        raise InputError(
            f"a matrix of {n} variables takes {8 * n * n / 2**30:.1f} GiB; at most {MAX_MATRIX_VARIABLES} variables "
            "are allowed, more only as 'diagonal' and 'factor' in a .json file."
        )


def _text(source: Path) -> str:
    if str(source) == "-":
        content = sys.stdin.buffer.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise InputError(f"more than {MAX_BYTES} bytes come from standard input, and no more are read.")
        return plain_text(content)
    try:
        return limited_text(source, MAX_BYTES)
    except FileNotFoundError:
        if source.exists() and not source.is_dir():
            raise InputError(
                "this is no such file: it is a pipe or a device; save it to a file, or give '-' for standard input."
            ) from None
        raise InputError("there is no such file.") from None


def _zeros(n: int) -> NDArray[np.float64]:
    """A matrix to fill."""
    _check_matrix(n)
    return np.zeros((n, n))


@dataclass
class _Parts:
    """A problem on its way in."""

    q: NDArray[np.float64] | FactorForm
    num_pruned: tuple[int, ...] | None
    labels: list[int] | None = None
    offset: float = 0.0
    costs: Any = None
    budget: Any = None

    def problem(self) -> BlockQubo:
        return BlockQubo(self.q, self.num_pruned, self.offset, self.labels, costs=self.costs, budget=self.budget)


def _with_counts(parts: _Parts, num_pruned: int | Sequence[int]) -> _Parts:
    counts = (num_pruned,) if isinstance(num_pruned, (int, np.integer)) else tuple(num_pruned)
    groups = max(1, len(parts.num_pruned or ()))
    if len(counts) != groups:
        raise InputError(f"num_pruned gives {len(counts)} counts and the file has {groups} groups; give one for each.")
    return replace(parts, num_pruned=counts)


# --- JSON -------------------------------------------------------------------------------------------


def _write_json(problem: BlockQubo) -> Iterator[str]:
    """One line per key, and per row of a matrix; floats by ``repr``, which reads back bit-identical."""
    head: dict[str, Any] = {
        "format": _SCHEMA,
        "version": _VERSION,
        "num_variables": problem.num_variables,
        "num_pruned": list(problem.num_pruned) or None,
        "offset": problem.offset,
    }
    if problem.num_groups > 1:
        head["labels"] = problem.labels.tolist()
    if problem.num_budgets:
        head |= {"costs": problem.costs.tolist(), "budget": problem.budget.tolist()}
    yield "{\n"
    for key, value in head.items():
        yield f' "{key}": {json.dumps(value)},\n'
    for number, (key, rows) in enumerate(_json_matrices(problem)):
        yield f'{"," if number else ""} "{key}": ['
        for place, row in enumerate(rows):
            yield f"{',' if place else ''}\n  {json.dumps(row)}"
        yield "\n ]\n"
    yield "}\n"


def _json_matrices(problem: BlockQubo) -> list[tuple[str, Iterable[Any]]]:
    if isinstance(problem.q, FactorForm):
        return [("diagonal", problem.q.diagonal.tolist()), ("factor", problem.q.factor.tolist())]
    n, upper = problem.num_variables, np.triu(problem.q)
    first, second = upper.nonzero()
    if 4 * len(first) > n * n:
        return [("upper", (problem.q[i, i:].tolist() for i in range(n)))]
    values = problem.q[first, second].tolist()
    return [("entries", zip(first.tolist(), second.tolist(), values, strict=True))]


def _read_json(text: str) -> _Parts:
    data = _json_object(text)
    _json_known(data)
    n = _json_integer(data, "num_variables")
    if n > MAX_VARIABLES:
        raise InputError(f"num_variables is {n}; at most {MAX_VARIABLES} are allowed.")
    counts = data.get("num_pruned")
    if counts is not None:
        counts = tuple(_json_integers("num_pruned", counts))
    labels = data.get("labels")
    if labels is not None:
        labels = _json_integers("labels", labels)
    offset = _json_numbers("offset", [data.get("offset", 0.0)], 1)[0]
    costs, budget = data.get("costs"), data.get("budget")
    if budget is not None:
        budget = _json_numbers("budget", budget, len(_json_rows("budget", budget)))
    if costs is not None:
        rows = _json_rows("costs", costs, None if budget is None else len(budget))
        costs = np.array([_json_numbers(f"costs, row {r}", row, n) for r, row in enumerate(rows)]).reshape(-1, n)
    return _Parts(_json_matrix(data, n), counts, labels, float(offset), costs, budget)


def _json_object(text: str) -> dict[str, Any]:
    data = strict_json(text)
    if not isinstance(data, dict) or data.get("format") != _SCHEMA:
        found = _short(data.get("format")) if isinstance(data, dict) else repr(type(data).__name__)
        raise InputError(f'the format is {found}; an object with "format": "{_SCHEMA}" is needed.')
    version = data.get("version")
    if version != _VERSION or type(version) is not int:
        raise InputError(f"the version is {_short(version)}; this program reads version {_VERSION}.")
    return data


_JSON_FORMS = (("upper",), ("entries",), ("diagonal", "factor"))


def _json_known(data: Mapping[str, Any]) -> None:
    constraints = {"num_pruned", "labels", "costs", "budget"}
    known = {"format", "version", "num_variables", "offset", *constraints, *sum(_JSON_FORMS, ())}
    for key in data:
        if key not in known:
            raise InputError(f"the key {_short(key)} is unknown{did_you_mean(key[:40], known)}.")
    given = tuple(key for key in ("upper", "entries", "diagonal", "factor") if key in data)
    if given not in _JSON_FORMS:
        raise InputError(
            f"the matrix is given by {list(given)}; give 'upper', or 'entries', or 'diagonal' and 'factor'."
        )


def _json_matrix(data: Mapping[str, Any], n: int) -> NDArray[np.float64] | FactorForm:
    if "factor" in data:
        diagonal = _json_numbers("diagonal", data["diagonal"], n)
        rows = _json_rows("factor", data["factor"], n)
        rank = len(rows[0]) if rows and isinstance(rows[0], list) else 0
        factor = [_json_numbers(f"factor, row {i}", row, rank) for i, row in enumerate(rows)]
        return FactorForm(diagonal, np.array(factor, dtype=np.float64).reshape(n, rank))
    q = _zeros(n)
    if "upper" in data:
        for i, row in enumerate(_json_rows("upper", data["upper"], n)):
            q[i, i:] = q[i:, i] = _json_numbers(f"upper, row {i}", row, n - i)
        return q
    seen = np.zeros((n, n), dtype=bool)
    for place, entry in enumerate(_json_rows("entries", data["entries"])):
        where = f"entries, number {place}"
        if not isinstance(entry, list) or len(entry) != 3:
            raise InputError(f"{where} is {_short(entry)}; [row, column, value] is needed.")
        i, j = _json_integers(where, entry[:2])
        if not 0 <= i <= j < n or seen[i, j]:
            raise InputError(
                f"{where} stands in row {i}, column {j}; give each place with 0 <= row <= column < {n} once."
            )
        seen[i, j] = True
        q[i, j] = q[j, i] = _json_numbers(where, entry[2:], 1)[0]
    return q


def _json_rows(name: str, value: Any, length: int | None = None) -> list[Any]:
    if not isinstance(value, list) or (length is not None and len(value) != length):
        found = f"a list of {len(value)}" if isinstance(value, list) else _short(value)
        raise InputError(f"{name} is {found}; a list{'' if length is None else f' of {length}'} is needed.")
    return value


def _json_numbers(name: str, value: Any, length: int) -> NDArray[np.float64]:
    for number in _json_rows(name, value, length):
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise InputError(f"{name} holds {_short(number)}; only numbers are allowed.")
    try:
        numbers = np.array(value, dtype=np.float64).reshape(length)
    except OverflowError:
        numbers = np.full(1, np.inf)
    if not np.isfinite(numbers).all():
        raise InputError(f"{name} holds a number beyond 1.8e308; only finite numbers are allowed.")
    return numbers


def _json_integers(name: str, value: Any) -> list[int]:
    for number in _json_rows(name, value):
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= 2**31:
            raise InputError(f"{name} holds {_short(number)}; only whole numbers from 0 on are allowed.")
    return list(value)


def _json_integer(data: Mapping[str, Any], name: str) -> int:
    return _json_integers(name, [data.get(name)])[0]


# --- coordinate lists -------------------------------------------------------------------------------


def _doubled(problem: BlockQubo) -> Iterator[tuple[int, int, float]]:
    """``(i, j, 2 Q_ij)`` of the pairs i < j that interact."""
    q = problem.dense()
    for i in range(problem.num_variables):
        for j in (i + 1 + np.flatnonzero(q[i, i + 1 :])).tolist():
            value = 2.0 * float(q[i, j])
            if not np.isfinite(value):
                raise InputError(f"Q[{i}, {j}] is {q[i, j]}, whose double is too large for this format; write .json.")
            yield i, j, value


def _remarks(problem: BlockQubo, mark: str) -> Iterator[str]:
    """What the formats have no place for, as comments."""
    yield f"{mark} num_variables={problem.num_variables}\n"
    if problem.num_pruned:
        yield f"{mark} num_pruned={' '.join(map(str, problem.num_pruned))}\n"
    if problem.num_groups > 1:
        yield f"{mark} labels={' '.join(map(str, problem.labels.tolist()))}\n"
    if problem.num_budgets:
        yield f"{mark} costs={'; '.join(' '.join(map(repr, row)) for row in problem.costs.tolist())}\n"
        yield f"{mark} budget={' '.join(map(repr, problem.budget.tolist()))}\n"


def _plain(value: float) -> str:
    """The shortest decimal without an exponent, which dimod cannot read, that gives the value back."""
    return np.format_float_positional(value, trim="0")


def _write_coo(problem: BlockQubo) -> Iterator[str]:
    yield "# vartype=BINARY\n"
    yield from _remarks(problem, "#")
    yield f"# offset={problem.offset!r}\n"
    for i, value in enumerate(problem.diagonal.tolist()):
        yield f"{i} {i} {_plain(value)}\n"
    for i, j, value in _doubled(problem):
        yield f"{i} {j} {_plain(value)}\n"


def _write_ising(problem: BlockQubo) -> Iterator[str]:
    fields, couplings, offset = to_ising(problem, penalty=0.0)
    yield "# vartype=SPIN\n"
    yield from _remarks(problem, "#")
    yield f"# offset={offset!r}\n"
    for i, value in fields.items():
        yield f"{i} {i} {_plain(value)}\n"
    for (i, j), value in sorted(couplings.items()):
        yield f"{i} {j} {_plain(value)}\n"


def _write_qubo(problem: BlockQubo) -> Iterator[str]:
    couplers = [f"{i} {j} {value!r}\n" for i, j, value in _doubled(problem)]
    yield from _remarks(problem, "c")
    yield f"c offset={problem.offset!r}\n"
    n = problem.num_variables
    yield f"p qubo 0 {n} {n} {len(couplers)}\n"
    for i, value in enumerate(problem.diagonal.tolist()):
        yield f"{i} {i} {value!r}\n"
    yield from couplers


_KEY = re.compile(r"(vartype|num_variables|num_pruned|labels|costs|budget|offset)\s*[=:]\s*(.*)", re.ASCII)
_INTEGER = re.compile(r"[0-9]{1,9}", re.ASCII)
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)


@dataclass
class _List:
    """What a coordinate list says, line by line."""

    remarks: dict[str, str] = field(default_factory=dict)
    linear: dict[int, float] = field(default_factory=dict)
    quadratic: dict[tuple[int, int], float] = field(default_factory=dict)
    most: int = -1
    first: int = 1

    def remark(self, number: int, text: str) -> None:
        """A comment; ``key=value`` with one of our keys counts."""
        match = _KEY.fullmatch(text.strip())
        if match and match[1] in self.remarks:
            raise InputError(f"line {number}: {match[1]} is given a second time; give it once.")
        if match:
            self.remarks[match[1]] = match[2]

    def entry(self, number: int, line: str, add: bool) -> None:
        """``i j value``; a place that comes again is added to, or refused."""
        words = line.split()
        if len(words) != 3:
            raise InputError(f"line {number}: {_short(line)} is found; 'i j value' is needed.")
        i, j = sorted((_index(number, words[0]), _index(number, words[1])))
        value = _number(f"line {number}", words[2])
        self.first = self.first if self.most >= 0 else number
        self.most = max(self.most, j)
        place: Any = i if i == j else (i, j)
        table: dict[Any, float] = self.linear if i == j else self.quadratic
        if place in table and not add:
            raise InputError(f"line {number}: the place {i} {j} is given a second time; give it once.")
        table[place] = table.get(place, 0.0) + value

    def parts(self, n: int | None = None) -> _Parts:
        """The problem of binary variables."""
        said = self._integers("num_variables")
        if said and len(said) > 1:
            raise InputError(f"the comment num_variables is {_short(self.remarks['num_variables'])}; one is needed.")
        declared = n is not None or said is not None
        n = n if n is not None else said[0] if said else self.most + 1
        if self.most >= n:
            raise InputError(f"the variable {self.most} is used, and there are {n}, from 0 on.")
        if n > MAX_VARIABLES:
            raise InputError(f"the variable {n - 1} is named; at most {MAX_VARIABLES} are allowed.")
        _check_matrix(n)
        if not said:
            self._check_named(n, declared)
        q = _zeros(n)
        for (i, j), value in self.quadratic.items():
            q[i, j] = q[j, i] = value / 2
        for i, value in self.linear.items():
            q[i, i] = value
        offset = _number("the comment offset", self.remarks.get("offset", "0").strip())
        return _Parts(q, self._integers("num_pruned"), self._labels(), offset, *self._budgets(n))

    def _check_named(self, n: int, declared: bool) -> None:
        """Raise :class:`InputError` where variables that no line names would appear, as in files numbered from 1.

        Args:
            n: number of variables.
            declared: the file says so, and only the variable 0 is looked at.
        """
        if self.most < 0 and not declared:
            raise InputError("no line 'i j value' is found; one is needed, or a comment 'num_variables=0'.")
        named = {*self.linear, *(i for pair in self.quadratic for i in pair)}
        missing = next((i for i in range(1 if declared else n) if i not in named), None)
        if missing is None or not named:
            return
        hint = "the file may be numbered from 1: subtract 1 from its variables" if missing == 0 else "give all numbers"
        raise InputError(
            f"line {self.first}: no line names the variable {missing}, and {self.most} is named; variables are "
            f"numbered from 0, so {hint}, or write a line '{missing} {missing} 0' if it costs nothing."
        )

    def spin_parts(self) -> _Parts:
        """The same of spins ``s = 2x - 1``."""
        parts = self.parts()
        assert not isinstance(parts.q, FactorForm)
        h = np.diagonal(parts.q).copy()
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite then is rejected behind this
            q, offset = of_spins(h, 2 * (parts.q - np.diag(h)), parts.offset)
        return replace(parts, q=q, offset=offset)

    def _budgets(self, n: int) -> tuple[list[list[float]] | None, list[float] | None]:
        """Costs, a row for each budget, and the budgets."""
        costs, budget = (self.remarks.get(key) for key in ("costs", "budget"))
        rows = None if costs is None else [self._decimals("costs", row) for row in costs.split(";")]
        if rows is not None and any(len(row) != n for row in rows):
            raise InputError(
                f"the comment costs has rows of {[len(row) for row in rows][:8]} numbers; rows of {n}, with ';' "
                "between them, are needed."
            )
        return rows, None if budget is None else self._decimals("budget", budget)

    def _decimals(self, key: str, text: str) -> list[float]:
        return [_number(f"the comment {key}", word) for word in text.split()]

    def _labels(self) -> list[int] | None:
        labels = self._integers("labels")
        if labels is not None and "num_pruned" not in self.remarks:
            raise InputError("the comments give labels without num_pruned; give a count for each group.")
        return None if labels is None else list(labels)

    def _integers(self, key: str) -> tuple[int, ...] | None:
        if key not in self.remarks:
            return None
        words = self.remarks[key].split()
        if not words or not all(_INTEGER.fullmatch(word) for word in words):
            raise InputError(f"the comment {key} is {_short(self.remarks[key])}; whole numbers from 0 on are needed.")
        return tuple(map(int, words))


def _index(number: int, word: str) -> int:
    if not _INTEGER.fullmatch(word):
        raise InputError(f"line {number}: the variable {_short(word)} is found; whole numbers from 0 on are allowed.")
    index = int(word)
    if index >= MAX_VARIABLES:
        raise InputError(f"line {number}: the variable {index} is named; at most {MAX_VARIABLES} are allowed.")
    return index


def _number(where: str, word: str) -> float:
    # a long word would keep the pattern busy for the square of its length
    value = float(word) if len(word) <= MAX_DIGITS and _NUMBER.fullmatch(word) else np.nan
    if not np.isfinite(value):
        raise InputError(f"{where}: the value {_short(word)} is found; finite decimal numbers are allowed.")
    return value


def _read_list(text: str, vartype: str) -> _Parts:
    found = _List()
    for number, line in enumerate(text.split("\n"), 1):
        if line.lstrip().startswith("#"):
            found.remark(number, line.lstrip()[1:])
        elif line.strip():
            # dimod adds up what is given twice
            found.entry(number, line, add=True)
    said = found.remarks.get("vartype", vartype).strip().upper()
    if said not in ("BINARY", "SPIN"):
        raise InputError(f"the comment vartype is {_short(said)}; BINARY and SPIN are allowed.")
    return found.parts() if said == "BINARY" else found.spin_parts()


def _read_coo(text: str) -> _Parts:
    return _read_list(text, "BINARY")


def _read_ising(text: str) -> _Parts:
    return _read_list(text, "SPIN")


def _read_qubo(text: str) -> _Parts:
    found = _List()
    head: tuple[int, int, int] | None = None
    for number, line in enumerate(text.split("\n"), 1):
        words = line.split()
        if line.lstrip().startswith("c"):
            found.remark(number, line.lstrip()[1:])
        elif words and head is None:
            head = _qubo_head(number, words)
        elif words and head is not None:
            found.entry(number, line, add=False)
            if found.most >= head[0]:
                raise InputError(
                    f"line {number}: the variable {found.most} is named; the line 'p' says {head[0]}, from 0 on."
                )
    if head is None:
        raise InputError("there is no line 'p qubo 0 maxNodes nNodes nCouplers'.")
    nodes, couplers = len(found.linear), len(found.quadratic)
    if (nodes, couplers) != head[1:]:
        raise InputError(f"{nodes} nodes and {couplers} couplers are found; the line 'p' says {head[1]} and {head[2]}.")
    return found.parts(head[0])


def _qubo_head(number: int, words: list[str]) -> tuple[int, int, int]:
    numbers = words[3:]
    if words[:2] != ["p", "qubo"] or len(words) != 6 or not all(map(_INTEGER.fullmatch, numbers)):
        raise InputError(
            f"line {number}: {_short(' '.join(words))} is found; 'p qubo 0 maxNodes nNodes nCouplers' is needed first."
        )
    nodes, given, couplers = map(int, numbers)
    if nodes > MAX_VARIABLES:
        raise InputError(f"line {number}: {nodes} variables are declared; at most {MAX_VARIABLES} are allowed.")
    return nodes, given, couplers


def _read_lp(text: str) -> _Parts:
    return _Parts(*lp.loads(text, min(MAX_VARIABLES, MAX_MATRIX_VARIABLES)))


def _write_lp(problem: BlockQubo) -> Iterator[str]:
    yield lp.dumps(problem)


_READERS: dict[str, Callable[[str], _Parts]] = {
    "json": _read_json,
    "coo": _read_coo,
    "qubo": _read_qubo,
    "lp": _read_lp,
    "ising": _read_ising,
}
_WRITERS: dict[str, Callable[[BlockQubo], Iterator[str]]] = {
    "json": _write_json,
    "coo": _write_coo,
    "qubo": _write_qubo,
    "lp": _write_lp,
    "ising": _write_ising,
}

"""Block QUBOs as LP files, the format of CPLEX that most optimisers read.

A quadratic objective over binary variables and constraints ``x0 + x1 + ... = count``::

    Minimize
     obj: + 1.5 x0 - 2 x1 + [ - 4 x0 * x1 ]/2 + 0.25
    Subject To
     group_0: + 1 x0 + 1 x1 = 1.0
    Binary
     x0 x1
    End

Written by dimod. Read by our own parser: dimod's does not return from some malformed files, and
names no lines. Nothing beyond the above is taken: every variable is binary, every constraint a count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qubo_prune.conversions import to_cqm
from qubo_prune.errors import InputError
from qubo_prune.problem import BlockQubo
from qubo_prune.strict import short


def dumps(problem: BlockQubo) -> str:
    """The problem as text: variables ``x0`` to ``x{n-1}``, constraints ``group_0`` to ``group_{g-1}``.

    Raises:
        InputError: a group has no variables, or an entry is too large to be written four times as large.
    """
    import dimod

    sizes = np.bincount(problem.labels[problem.labels >= 0], minlength=problem.num_groups)
    if (sizes == 0).any():
        raise InputError(f"Group {int(sizes.argmin())} has no variables, which an LP file cannot say; write .json.")
    if np.abs(problem.dense()).max(initial=0.0) > np.finfo(np.float64).max / 4:
        raise InputError("An entry of Q is too large for an LP file, which holds four times as much; write .json.")
    cqm = to_cqm(problem)
    cqm.relabel_variables({i: f"x{i}" for i in range(problem.num_variables)})
    cqm.relabel_constraints({f"group {g}": f"group_{g}" for g in range(problem.num_groups)})
    return "".join(f"{line.rstrip()}\n" for line in dimod.lp.dumps(cqm).splitlines())


def loads(text: str, max_variables: int) -> tuple[NDArray[np.float64], tuple[int, ...] | None, list[int] | None, float]:
    """Q, counts, labels and offset of the problem in ``text``; no counts if it has no constraints.

    Variables named ``x0`` to ``x{n-1}`` keep their numbers; others are numbered as they are declared.

    Raises:
        InputError: with the line, what was found and what is allowed.
    """
    parts = _sections(text)
    index = _variables(parts["binary"], max_variables)
    _check_bounds(_Tokens(parts["bounds"]), index)
    if parts["general"]:
        raise _unexpected(parts["general"][0], "only binary variables are")
    objective = _Objective(index)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite then is refused behind this
        objective.read(_Tokens(parts["objective"][1:]))
    q = np.diag(objective.linear)
    for (i, j), value in objective.quadratic.items():
        # a bracket is halved, and Q holds half of a pair's coefficient on either side
        q[i, j] = q[j, i] = value / 4
    keyword = parts["objective"][0].text if parts["objective"] else "Minimize"
    sign = -1.0 if keyword.lower().startswith("max") else 1.0
    counts, labels = _counts(_Tokens(parts["constraints"]), index)
    return sign * q, counts, labels, sign * objective.offset


class _Token(NamedTuple):
    line: int
    kind: str
    text: str


def _unexpected(token: _Token, allowed: str) -> InputError:
    found = "the end of the section" if token.kind == "end" else short(token.text)
    return InputError(f"line {token.line}: {found} is found; {allowed} allowed here.")


_SECTION = re.compile(
    r"\s*(?:(?P<objective>(?:max|min)(?:imi[sz]e|imum)?)"
    r"|(?P<constraints>subject\s+to|such\s+that|st\.?|s\.t\.)"
    r"|(?P<bounds>bounds?)|(?P<binary>binary|binaries|bin)|(?P<general>generals?|gen|integers?|int)"
    r"|(?P<finish>end))(?=\s|$)",
    re.IGNORECASE | re.ASCII,
)
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<name>[A-Za-z_!\"#$%&(),;?@'`{}~][A-Za-z0-9_!\"#$%&(),.;?@'`{}~]*)"
    r"|(?P<sense><=|>=|=<|=>|=|<|>)|(?P<sign>[+-])|(?P<mark>[*/^:\[\]]))",
    re.ASCII,
)


def _sections(text: str) -> dict[str, list[_Token]]:
    """The tokens of each section; the objective's begin with its keyword."""
    parts: dict[str, list[_Token]] = {
        name: [] for name in ("objective", "constraints", "bounds", "binary", "general", "finish")
    }
    section, number = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        line, at = line.partition("\\")[0].rstrip(), 0
        if match := _SECTION.match(line):
            section, at = str(match.lastgroup), match.end()
            if section == "objective":
                if parts[section]:
                    raise InputError(f"line {number}: a second objective is found; one is allowed.")
                parts[section].append(_Token(number, "keyword", match[0].strip()))
        for token in _tokens(line, at, number):
            if section in ("", "finish"):
                raise _unexpected(token, "'Minimize' comes first, and nothing after 'End' is")
            parts[section].append(token)
    if section != "finish":
        raise InputError(f"line {max(1, number)}: the file ends; 'Minimize' with an objective and 'End' are needed.")
    return parts


def _tokens(line: str, at: int, number: int) -> Iterator[_Token]:
    while at < len(line):
        match = _TOKEN.match(line, at)
        if match is None:
            raise InputError(f"line {number}: {line[at : at + 40].strip()!r} is found, which is not of an LP file.")
        at = match.end()
        yield _Token(number, str(match.lastgroup), match[0].strip())


class _Tokens:
    """The tokens of a section, one after another."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens, self._at = tokens, 0
        self._end = _Token(tokens[-1].line if tokens else 1, "end", "")

    def peek(self, ahead: int = 0) -> _Token:
        """The next token, or one after it, without taking it."""
        place = self._at + ahead
        return self._tokens[place] if place < len(self._tokens) else self._end

    def take(self) -> _Token:
        token = self.peek()
        self._at += 1
        return token

    def taken(self, text: str) -> bool:
        """Take the next token if it is that one."""
        if self.peek().text != text:
            return False
        self._at += 1
        return True

    def need(self, kind: str, what: str) -> _Token:
        """The next token, which must be of that kind."""
        token = self.take()
        if token.kind != kind:
            raise _unexpected(token, f"{what} is")
        return token

    def skip_name(self) -> None:
        """Pass over ``name:``."""
        if self.peek(1).text == ":":
            self.need("name", "a name before ':'")
            self.take()

    def sign(self, first: bool) -> float:
        """Signs before a term, which all terms but the first need."""
        if not first and self.peek().kind != "sign":
            raise _unexpected(self.peek(), "'+' or '-' is")
        value = 1.0
        while self.peek().kind == "sign":
            value *= -1.0 if self.take().text == "-" else 1.0
        return value

    def number(self) -> float:
        token = self.need("number", "a number")
        if not np.isfinite(float(token.text)):
            raise _unexpected(token, "a finite number is")
        return float(token.text)

    def coefficient(self) -> float:
        """The number before a variable, 1 if there is none."""
        return self.number() if self.peek().kind == "number" else 1.0


def _variables(tokens: list[_Token], most: int) -> dict[str, int]:
    """The number of each variable."""
    names: dict[str, int] = {}
    for token in tokens:
        if token.kind != "name" or token.text in names:
            raise _unexpected(token, "the name of one more variable is")
        names[token.text] = len(names)
    if len(names) > most:
        raise InputError(f"{len(names)} variables are declared; at most {most} are allowed.")
    if set(names) == {f"x{i}" for i in range(len(names))}:
        return {name: int(name[1:]) for name in names}
    return names


class _Objective:
    """Linear terms, pairs as they stand in brackets, constant."""

    def __init__(self, index: dict[str, int]) -> None:
        self._index = index
        self.linear = np.zeros(len(index))
        self.quadratic: dict[tuple[int, int], float] = {}
        self.offset = 0.0

    def read(self, tokens: _Tokens) -> None:
        tokens.skip_name()
        first = True
        while tokens.peek().kind != "end":
            sign = tokens.sign(first)
            first = False
            if tokens.taken("["):
                self._bracket(tokens, sign)
                continue
            if tokens.peek().kind == "number" and tokens.peek(1).kind in ("sign", "end"):
                self.offset += sign * tokens.number()
            else:
                value = sign * tokens.coefficient()
                self.linear[_variable(tokens, self._index)] += value

    def _bracket(self, tokens: _Tokens, outer: float) -> None:
        """``[ a x * y + b z ^ 2 ] / 2``."""
        first = True
        while not tokens.taken("]"):
            value = outer * tokens.sign(first) * tokens.coefficient()
            first = False
            i = _variable(tokens, self._index)
            if tokens.taken("^"):
                exponent = tokens.take()
                if exponent.text != "2":
                    raise _unexpected(exponent, "the exponent 2 is")
                j = i
            elif tokens.taken("*"):
                j = _variable(tokens, self._index)
            else:
                raise _unexpected(tokens.take(), "'*' or '^' is")
            if i == j:
                # binary: the square of a variable is the variable
                self.linear[i] += value / 2
            else:
                pair = (min(i, j), max(i, j))
                self.quadratic[pair] = self.quadratic.get(pair, 0.0) + value
        slash, two = tokens.take(), tokens.take()
        if (slash.text, two.text) != ("/", "2"):
            raise _unexpected(slash if slash.text != "/" else two, "'/ 2' after the bracket is")


def _variable(tokens: _Tokens, index: dict[str, int]) -> int:
    token = tokens.need("name", "a variable")
    if token.text not in index:
        raise InputError(f"line {token.line}: the variable {short(token.text)} is not declared under 'Binary'.")
    return index[token.text]


def _counts(tokens: _Tokens, index: dict[str, int]) -> tuple[tuple[int, ...] | None, list[int] | None]:
    """Counts and labels from constraints ``x + y + ... = count``."""
    if tokens.peek().kind == "end":
        return None, None
    labels = [-1] * len(index)
    counts: list[int] = []
    while tokens.peek().kind != "end":
        tokens.skip_name()
        first = True
        while tokens.peek().kind != "sense":
            at, sign = tokens.peek(), tokens.sign(first)
            first = False
            if sign * tokens.coefficient() != 1:
                raise _unexpected(at, "only the coefficient 1 is")
            at = tokens.peek()
            member = _variable(tokens, index)
            if labels[member] >= 0:
                raise InputError(f"line {at.line}: {short(at.text)} is counted a second time; groups must be disjoint.")
            labels[member] = len(counts)
        sense = tokens.take()
        if sense.text != "=" or first:
            raise _unexpected(sense, "only 'x + y + ... = count' is")
        at, value = tokens.peek(), tokens.sign(True) * tokens.number()
        if value != int(value) or abs(value) > 2**31:
            raise _unexpected(at, "a whole number is")
        counts.append(int(value))
    if -1 in labels:
        name = list(index)[[*index.values()].index(labels.index(-1))]
        raise InputError(f"The variable {short(name)} is in no constraint; give every variable a count, or none.")
    return tuple(counts), labels


def _check_bounds(tokens: _Tokens, index: dict[str, int]) -> None:
    """Bounds of binary variables say nothing: ``0 <= x <= 1``."""
    while tokens.peek().kind != "end":
        at, low = tokens.peek(), tokens.number()
        left = tokens.need("sense", "'<='")
        _variable(tokens, index)
        right = tokens.need("sense", "'<='")
        if (low, tokens.number()) != (0.0, 1.0) or {left.text, right.text} - {"<=", "=<", "<"}:
            raise _unexpected(at, "only '0 <= x <= 1' is")

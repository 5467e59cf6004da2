"""Block QUBOs as LP files, the format of CPLEX that most optimisers read.

A quadratic objective over binary variables, constraints ``x0 + x1 + ... = count`` and linear budgets::

    Minimize
     obj: + 1.5 x0 - 2 x1 + [ - 4 x0 * x1 ]/2 + 0.25
    Subject To
     group_0: + 1 x0 + 1 x1 = 1.0
     budget_0: + 10 x0 + 40 x1 >= 30.0
    Binary
     x0 x1
    End

Written by dimod. Read by our own parser: dimod's does not return from some malformed files, and
names no lines. It takes what CPLEX, Gurobi, SCIP, HiGHS, OR-tools, docplex, PuLP and GLPK write of such problems:
keywords in all their forms, integers with bounds 0 and 1, counts as pairs of inequalities or multiplied by a number,
constraints and bounds that every binary vector meets, empty sections, and constants written as fixed variables.
A linear constraint that is no count is a budget, ``<=`` with the negative of both sides, and an equation two of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qubo_prune.errors import InputError
from qubo_prune.files.parsing import short
from qubo_prune.formats.libraries import to_cqm
from qubo_prune.problem.qubo import BlockQubo


def dumps(problem: BlockQubo) -> str:
    """The problem as text: variables ``x0`` to ``x{n-1}``, constraints ``group_0`` and ``budget_0`` and so on.

    A budget whose costs are all 0, which says nothing, is left out.

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
    for row in np.flatnonzero(~problem.costs.any(axis=1)):  # it asks for nothing, and LP has no empty sums
        cqm.remove_constraint(f"budget {row}")
    cqm.relabel_constraints({label: label.replace(" ", "_") for label in cqm.constraints})
    return "".join(f"{line.rstrip()}\n" for line in dimod.lp.dumps(cqm).splitlines())


class Loaded(NamedTuple):
    """What an LP file holds, as :class:`~qubo_prune.problem.qubo.BlockQubo` takes it."""

    q: NDArray[np.float64]
    num_pruned: tuple[int, ...] | None
    labels: list[int] | None
    offset: float
    costs: NDArray[np.float64] | None
    budget: list[float] | None


def loads(text: str, max_variables: int) -> Loaded:
    """The problem in ``text``; without counts or budgets if it has no such constraints.

    Variables named ``x0`` to ``x{n-1}`` keep their numbers; others are numbered as they are declared.

    Raises:
        InputError: with the line, what was found and what is allowed.
    """
    parts = _sections(text)
    # the order of the file, whichever of the two sections comes first
    declared = sorted(parts["binary"] + parts["general"], key=lambda token: token.line)
    names = _Names(_variables(declared, max_variables))
    names.read_bounds(_Tokens(parts["bounds"]), {token.text: token for token in parts["general"]})
    objective = _Objective(names)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite then is rejected behind this
        objective.read(_Tokens(parts["objective"][1:]))
    q = np.diag(objective.linear)
    for (i, j), value in objective.quadratic.items():
        # a bracket is halved, and Q holds half of a pair's coefficient on either side
        q[i, j] = q[j, i] = value / 4
    keyword = parts["objective"][0].text if parts["objective"] else "Minimize"
    sign = -1.0 if keyword.lower().startswith("max") else 1.0
    counts, labels, budgets = _constraints(_Tokens(parts["constraints"]), names)
    costs = np.zeros((len(budgets), len(q)))
    for row, (terms, _) in zip(costs, budgets, strict=True):
        row[list(terms)] = list(terms.values())
    least = [bound for _, bound in budgets] or None
    return Loaded(sign * q, counts, labels, sign * objective.offset + 0.0, costs if budgets else None, least)


class _Token(NamedTuple):
    line: int
    kind: str
    text: str


def _unexpected(token: _Token, allowed: str) -> InputError:
    found = "the end of the section" if token.kind == "end" else short(token.text)
    return InputError(f"line {token.line}: {found} is found; {allowed} allowed here.")


#: Sections of other kinds of problems; empty ones, which some writers always write, say nothing.
_OTHERS = (
    r"general\s+constraints?|gencons|lazy\s+constraints?|user\s+cuts?|semi-?\s*continuous|semis?|sec|sin|sos[12]?"
    r"|pwlobj|scenario"
)
_SECTION = re.compile(
    r"\s*(?:(?P<objective>(?:max|min)(?:imi[sz]e|imum)?)"
    r"|(?P<constraints>subject\s+to|such\s+that|s\.t\.|st\.?)"
    rf"|(?P<others>{_OTHERS})"
    r"|(?P<bounds>bounds?)|(?P<binary>binary|binaries|bin)|(?P<general>generals?|gen|integers?|int)"
    r"|(?P<finish>end))(?=\s|$)(?!\s*:)",
    re.IGNORECASE | re.ASCII,
)
# a name may hold brackets with indices, as x[0,1], which only stand within it if nothing is between
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<name>[^\s\x00-\x1f\x7f-\x9f+\-*/^<>=:\[\]\\0-9.]"
    r"(?:[^\s\x00-\x1f\x7f-\x9f+\-*^<>=:\[\]\\]|\[[^\s\x00-\x1f\x7f-\x9f<>=:\[\]\\]*\])*)"
    r"|(?P<sense><=|>=|=<|=>|==|=|<|>)|(?P<sign>[+-])|(?P<mark>[*/^:\[\]]))"
)


def _sections(text: str) -> dict[str, list[_Token]]:
    """The tokens of each section; the objective's begin with its keyword."""
    parts: dict[str, list[_Token]] = {
        name: [] for name in ("objective", "constraints", "bounds", "binary", "general", "others", "finish")
    }
    section, keyword, number, constrained = "", "", 0, False
    for number, line in enumerate(text.split("\n"), 1):
        line, at = line.partition("\\")[0].rstrip(), 0
        if match := _SECTION.match(line):
            section, at = str(match.lastgroup), match.end()
            keyword = match[0].strip()
            if section == "objective":
                if parts[section]:
                    raise InputError(f"line {number}: a second objective is found; one is allowed.")
                parts[section].append(_Token(number, "keyword", keyword))
            if section == "constraints":
                if constrained:
                    raise InputError(f"line {number}: the section {keyword!r} begins a second time; give it once.")
                constrained = True
        for token in _tokens(line, at, number):
            if section in ("", "finish"):
                raise _unexpected(token, "'Minimize' comes first, and nothing after 'End' is")
            if section == "others":
                raise _unexpected(token, f"nothing under {keyword!r}, only binary variables and their counts, is")
            parts[section].append(token)
    if section != "finish":
        number -= text.endswith("\n")
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

    def goes_on(self) -> bool:
        """The line of what was taken last is not at its end."""
        return self.peek().kind != "end" and self.peek().line == self._tokens[self._at - 1].line

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

    def skip_name(self) -> str:
        """Pass over ``name:``; the name, empty if there is none."""
        if self.peek(1).text != ":":
            return ""
        name = self.need("name", "a name before ':'").text
        self.take()
        return name

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

    def two(self, what: str) -> None:
        """Take the number 2."""
        token = self.take()
        if token.kind != "number" or float(token.text) != 2:
            raise _unexpected(token, what)

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


@dataclass
class _Names:
    """What a name stands for: a binary variable, or a constant that is written as a fixed variable."""

    index: Mapping[str, int]
    constants: dict[str, float] = field(default_factory=dict)

    def variable(self, tokens: _Tokens) -> int:
        """The number of the variable that comes next."""
        token = tokens.need("name", "a variable")
        if token.text not in self.index:
            raise InputError(f"line {token.line}: the variable {short(token.text)} is not declared under 'Binary'.")
        return self.index[token.text]

    def constant(self, tokens: _Tokens) -> float | None:
        """The value of the constant that comes next, taken; ``None`` if it is none."""
        value = self.constants.get(tokens.peek().text)
        if value is not None:
            tokens.take()
        return value

    def read_bounds(self, tokens: _Tokens, integers: Mapping[str, _Token]) -> None:
        """Bounds that binary variables have anyway, those that make an integer binary, and fixed constants.

        Args:
            tokens: of the section.
            integers: where integers are declared.
        """
        found: dict[str, _Bounds] = {}
        while tokens.peek().kind != "end":
            bounds = _Bounds.read(tokens)
            found[bounds.name.text] = bounds.within(found.get(bounds.name.text))
        for name, bounds in found.items():
            if name not in self.index and bounds.low == bounds.high:
                self.constants[name] = bounds.low
            elif name not in self.index:
                raise InputError(f"line {bounds.name.line}: the variable {short(name)} is not declared under 'Binary'.")
            elif name not in integers and not bounds.binary():
                raise _unexpected(bounds.at, "only '0 <= x <= 1' is")
        for name, token in integers.items():
            bounds = found.get(name, _Bounds(token, token, 0.0, math.inf))
            if (math.ceil(bounds.low), bounds.high >= 1, bounds.high < 2) != (0, True, True):
                raise _unexpected(bounds.at, "only binary variables, or whole ones with the bounds 0 and 1, are")


class _Bounds(NamedTuple):
    """The bounds of one variable: ``low <= x <= high``, either side alone, ``x = 1`` or ``x free``."""

    at: _Token
    name: _Token
    low: float
    high: float

    @classmethod
    def read(cls, tokens: _Tokens) -> _Bounds:
        at, low, high = tokens.peek(), 0.0, math.inf
        if tokens.peek().kind == "name" and not _endless(tokens.peek()):
            name = tokens.take()
            if tokens.peek().text.lower() == "free":
                tokens.take()
                return cls(at, name, -math.inf, math.inf)
            sense, value = tokens.need("sense", "'<=', '>=' or '='"), _bound(tokens)
            return cls(at, name, *_limits(sense, value, low, high))
        value, sense = _bound(tokens), tokens.need("sense", "'<='")
        name = tokens.need("name", "a variable")
        low, high = _limits(sense, value, low, high, turned=True)
        if tokens.peek().kind == "sense":
            sense, value = tokens.take(), _bound(tokens)
            low, high = _limits(sense, value, low, high)
        return cls(at, name, low, high)

    def within(self, before: _Bounds | None) -> _Bounds:
        """Of two lines for one variable each may give one side."""
        if before is None:
            return self
        return self._replace(low=max(self.low, before.low), high=min(self.high, before.high))

    def binary(self) -> bool:
        """Every binary variable meets them, and no more is said."""
        return self.low == 0 and self.high in (1, math.inf)


def _endless(token: _Token) -> bool:
    return token.text.lower() in ("inf", "infinity")


def _bound(tokens: _Tokens) -> float:
    """A number, or infinity, which CPLEX also writes as 1e20 and more."""
    sign = tokens.sign(True)
    if _endless(tokens.peek()):
        tokens.take()
        return sign * math.inf
    token = tokens.need("number", "a number")
    value = float(token.text)
    return sign * (value if value < 1e20 else math.inf)


def _limits(sense: _Token, value: float, low: float, high: float, turned: bool = False) -> tuple[float, float]:
    """Both limits of ``expression sense value``, within others; ``turned`` is ``value sense expression``."""
    if "<" not in sense.text and ">" not in sense.text:
        return value, value
    return (low, value) if ("<" in sense.text) != turned else (value, high)


class _Objective:
    """Linear terms, pairs as they stand in brackets, constant."""

    def __init__(self, names: _Names) -> None:
        self._names = names
        self.linear = np.zeros(len(names.index))
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
                continue
            value = sign * tokens.coefficient()
            constant = self._names.constant(tokens)
            if constant is None:
                self.linear[self._names.variable(tokens)] += value
            else:
                self.offset += value * constant

    def _bracket(self, tokens: _Tokens, outer: float) -> None:
        """``[ a x * y + b z ^ 2 ] / 2``."""
        first = True
        while not tokens.taken("]"):
            value = outer * tokens.sign(first) * tokens.coefficient()
            first = False
            i = self._names.variable(tokens)
            if tokens.taken("^"):
                tokens.two("the exponent 2 is")
                j = i
            elif tokens.taken("*"):
                j = self._names.variable(tokens)
            else:
                raise _unexpected(tokens.take(), "'*' or '^' is")
            if i == j:
                # binary: the square of a variable is the variable
                self.linear[i] += value / 2
            else:
                pair = (min(i, j), max(i, j))
                self.quadratic[pair] = self.quadratic.get(pair, 0.0) + value
        if not tokens.taken("/"):
            raise _unexpected(tokens.take(), "'/ 2' after the bracket is")
        tokens.two("'/ 2' after the bracket is")


@dataclass
class _Row:
    """``low <= sum of terms <= high``.

    Attributes:
        terms: coefficients by variable.
        at: the first token, the first coefficient's that is not 1, and the sense's.
        budget: it is called one, as those that are written here.
    """

    terms: dict[int, float]
    low: float
    high: float
    at: dict[str, _Token]
    budget: bool = False

    @classmethod
    def read(cls, tokens: _Tokens, names: _Names) -> _Row:
        """One constraint; it may be a range, with numbers on both sides."""
        budget = tokens.skip_name().startswith("budget_")
        at = {"row": tokens.peek()}
        terms, constant = _sum(tokens, names, at)
        low, high, sense = -math.inf, math.inf, tokens.need("sense", "'=', or more of the sum,")
        at["sense"] = sense
        if not terms:
            low, high = _limits(sense, constant, low, high, turned=True)
            terms, constant = _sum(tokens, names, at)
            if not terms:
                raise _unexpected(sense, "only 'x + y + ... = count' is")
            low, high = low - constant, high - constant
            sense = tokens.peek()
        if sense.kind == "sense":
            if sense is not at["sense"]:
                tokens.take()
            at["count"] = tokens.peek()
            value = tokens.sign(True) * tokens.number() - constant
            low, high = _limits(sense, value, low, high)
        if tokens.goes_on() and tokens.peek(1).text != ":":
            raise _unexpected(tokens.peek(), "only a number after the sum, and the next constraint on a new line, is")
        return cls({i: value for i, value in terms.items() if value}, low, high, at, budget)

    def always(self) -> bool:
        """Every binary vector meets it."""
        least = sum(min(value, 0.0) for value in self.terms.values())
        most = sum(max(value, 0.0) for value in self.terms.values())
        return self.low <= least and self.high >= most

    def budgets(self) -> list[_Budget]:
        """The constraint as one budget, or as two."""
        least = [] if math.isinf(self.low) else [(self.terms, self.low)]
        most = [] if math.isinf(self.high) else [({i: -value for i, value in self.terms.items()}, -self.high)]
        return least + most

    def counted(self) -> tuple[float, float]:
        """Fewest and most ones among its variables, which all have one coefficient."""
        value = next(iter(self.terms.values()))
        low, high = sorted((self.low / value, self.high / value))
        # what a sum of budgets may miss its budget by, in the same units
        rounding = 2.0**-40 * len(self.terms)
        if low == high and (abs(low) > 2**31 or abs(low - round(low)) > (0 if value in (1, -1) else rounding)):
            raise _unexpected(self.at["count"], "a whole number is") if value == 1 else self._refused()
        least = low if math.isinf(low) else math.ceil(low - rounding)
        return least, high if math.isinf(high) else math.floor(high + rounding)

    def _refused(self) -> InputError:
        return _unexpected(self.at.get("coefficient", self.at["row"]), "only the coefficient 1 is")


def _sum(tokens: _Tokens, names: _Names, at: dict[str, _Token]) -> tuple[dict[int, float], float]:
    """Coefficients by variable, and the constant, of a sum."""
    terms: dict[int, float] = {}
    constant, first = 0.0, True
    while first or tokens.peek().kind == "sign":
        here = tokens.peek()
        sign = tokens.sign(first)
        first = False
        if tokens.peek().kind == "number" and tokens.peek(1).kind in ("sign", "sense", "end"):
            constant += sign * tokens.number()
            continue
        if tokens.peek().text == "[":
            raise _unexpected(tokens.peek(), "only 'x + y + ... = count' is")
        value, name = sign * tokens.coefficient(), tokens.peek()
        if value != 1:
            at.setdefault("coefficient", here)
        known = names.constant(tokens)
        if known is not None:
            constant += value * known
            continue
        member = names.variable(tokens)
        if member in terms:
            raise InputError(f"line {name.line}: {short(name.text)} is counted a second time; groups must be disjoint.")
        terms[member] = value
    return terms, constant


#: Coefficients by variable, and what their sum must reach.
_Budget = tuple[dict[int, float], float]


def _constraints(tokens: _Tokens, names: _Names) -> tuple[tuple[int, ...] | None, list[int] | None, list[_Budget]]:
    """Counts, labels and budgets; either side of a count may stand in another constraint."""
    found: dict[frozenset[int], tuple[float, float, _Row]] = {}
    budgets: list[_Budget] = []
    while tokens.peek().kind != "end":
        row = _Row.read(tokens, names)
        if row.always() and not (row.budget and row.terms):
            continue
        if not row.terms:
            raise _unexpected(row.at["row"], "no constraint that nothing meets is")
        if row.budget or len(set(row.terms.values())) > 1:
            budgets += row.budgets()
            continue
        low, high = row.counted()
        before = found.get(frozenset(row.terms), (-math.inf, math.inf, row))
        found[frozenset(row.terms)] = max(low, before[0]), min(high, before[1]), row
    for members, (low, high, row) in list(found.items()):
        if low < high:
            low, high = max(low, 0), min(high, len(members))
        if low < high:  # not a count, but a limit of one
            low, high = low if low > 0 else -math.inf, high if high < len(members) else math.inf
            budgets += replace(row, terms=dict.fromkeys(row.terms, 1.0), low=low, high=high).budgets()
            del found[members]
        else:
            found[members] = low, high, row
    if not found:
        return None, None, budgets
    return *_grouped(found, names), budgets


def _grouped(
    found: Mapping[frozenset[int], tuple[float, float, _Row]], names: _Names
) -> tuple[tuple[int, ...], list[int]]:
    labels = [-1] * len(names.index)
    by_number = {number: name for name, number in names.index.items()}
    counts: list[int] = []
    for low, high, row in found.values():
        for member in row.terms:
            if labels[member] >= 0:
                raise InputError(
                    f"line {row.at['row'].line}: {short(by_number[member])} is counted a second time; groups must be "
                    "disjoint."
                )
            labels[member] = len(counts)
        if low != high:
            raise _unexpected(row.at["sense"], "no constraint that nothing meets is")
        counts.append(int(low))
    if -1 in labels:
        name = by_number[labels.index(-1)]
        raise InputError(f"The variable {short(name)} is in no constraint; give every variable a count, or none.")
    return tuple(counts), labels

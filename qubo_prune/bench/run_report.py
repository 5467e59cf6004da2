"""The report of a run: one page that needs nothing else, and the same as Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from qubo_prune.bench import run_plots
from qubo_prune.bench.metrics import SUCCESS, Results, gap_of
from qubo_prune.bench.runs import BASELINES, SIGN
from qubo_prune.errors import InputError
from qubo_prune.files.atomic import atomic_write, written_whole
from qubo_prune.files.outputs import check_added, list_files

_TEMPLATE = Path(__file__).with_name("run_report.html.j2")


@dataclass(frozen=True)
class SizeClass:
    """Instances that are judged together.

    Attributes:
        title: for people.
        holds: whether an instance with these facts belongs to it: n, Hessian, whole row.
    """

    title: str
    holds: Callable[[int, str, bool], bool]


#: Every instance is in one of them.
CLASSES = (
    SizeClass("n up to 32", lambda n, kind, whole: not whole and n <= 32),
    SizeClass("33 to 128", lambda n, kind, whole: not whole and 32 < n <= 128),
    SizeClass("129 to 512", lambda n, kind, whole: not whole and 128 < n <= 512),
    SizeClass("above 512", lambda n, kind, whole: not whole and n > 512),
    SizeClass("whole rows", lambda n, kind, whole: whole),
)


@dataclass(frozen=True, eq=False)
class Part:
    """A table of the report."""

    title: str
    text: str
    table: pd.DataFrame


def of_class(results: Results, chosen: SizeClass) -> list[str]:
    """Names of the run's instances of a class."""
    seen = set(results.rows.instance)
    return [
        name
        for name, i in results.instances.items()
        if name in seen and chosen.holds(i.num_variables, i.hessian, i.whole_row)
    ]


def classes_in(results: Results) -> list[tuple[str, pd.DataFrame]]:
    """Titles and solves of the classes that have instances."""
    found = [(chosen.title, of_class(results, chosen)) for chosen in CLASSES]
    return [(title, results.solves[results.solves.instance.isin(names)]) for title, names in found if names]


def hardness(results: Results) -> pd.DataFrame:
    """One line per class: what is proven, and what the simplest and the best solver leave, means in percent."""
    lines, last = [], results.at()
    proven = results.solves.groupby("instance").optimal.any()
    for chosen in CLASSES:
        names = of_class(results, chosen)
        if not names:
            continue
        own = last[last.instance.isin(names)]
        means = own.groupby("solver").gap.mean() * 100
        everywhere = own.groupby("solver").instance.nunique()
        complete = means[(everywhere == len(names)) & ~means.index.isin(BASELINES)]
        best = complete.idxmin() if len(complete) else None
        optimal = [results.instances[name].optimal or bool(proven.get(name, False)) for name in names]
        best_known = results.best_known[names]
        scale = pd.Series({name: results.instances[name].scale for name in names})
        left = gap_of(best_known - results.bounds[names], scale) * 100
        lines.append(
            {
                "instances": chosen.title,
                "how many": len(names),
                "proven": sum(optimal),
                "best known to bound": left.mean(),
                "largest": left.max(),
                "Wanda": own.drop_duplicates("instance").start_gap.mean() * 100,
                "wanda+swaps": means.get("wanda+swaps", math.nan),
                "random+swaps": means.get("random+swaps", math.nan),
                "best solver": best or "-",
                "its gap": complete[best] if best else math.nan,
            }
        )
    return pd.DataFrame(lines)


def verdict(results: Results) -> list[str]:
    """Which solvers failed, which sizes are easy and which are open, in sentences."""
    table = hardness(results)
    easy = table[table.proven == table["how many"]]["instances"].tolist()
    open_ = table[table.proven < table["how many"] / 2]
    said = results.warnings()
    if easy:
        said.append(
            f"Easy: {', '.join(easy)}. Every optimum is proven; these instances are too easy to rank solvers, "
            "and nothing here speaks for special hardware."
        )
    between = table[(table.proven < table["how many"]) & (table.proven >= table["how many"] / 2)]
    for _, line in between.iterrows():
        said.append(
            f"Nearly easy: {line['instances']}. {line['proven']} of {line['how many']} optima are proven, and the best "
            f"known answers are at most {line['largest']:.1f} % above what is proven."
        )
    for _, line in open_.iterrows():
        said.append(
            f"Open: {line['instances']}. {line['proven']} of {line['how many']} optima are proven; the best known "
            f"answers are up to {line['largest']:.1f} % above what is proven, {line['best known to bound']:.1f} % in "
            f"the mean, and Wanda with single swaps {line['wanda+swaps']:.1f} % above the best known."
        )
    return said


_SHOWN = {
    "raw": "raw %",
    "repaired": "repaired %",
    "final": "final %",
    "mean": "mean %",
    "to_bound": "to bound %",
    "success": "success",
    "feasible": "feasible",
    "seconds": "s",
    "cpu": "cpu s",
    "qpu": "qpu s",
    "tts": "tts s",
}


def _summary_part(results: Results, title: str, solves: pd.DataFrame) -> Part:
    table = results.summary(solves)
    for name in ("final", "mean", "success", "tts"):
        low, high = table.pop(f"{name}_low"), table.pop(f"{name}_high")
        told = [
            "-" if math.isinf(value) else _interval(*ends) for value, *ends in zip(table[name], low, high, strict=True)
        ]
        table.insert(list(table.columns).index(name) + 1, f"{_SHOWN.get(name, name)} 95 %", told)
    return Part(title, "", table.rename(columns=_SHOWN))


def _interval(low: float, high: float) -> str:
    return "-" if math.isnan(low) else f"{_number(low)} to {_number(high)}"


def parts_of(results: Results) -> list[Part]:
    """The tables, in their order."""
    last = results.at()
    parts = [
        Part(
            "Easy and open",
            "Means in percent: of the best known energies above the proven bounds, and of what "
            "Wanda's choice, single swaps and the best solver that takes all of the class leave above the best known.",
            hardness(results),
        ),
        _summary_part(results, f"All instances, {results.limits[-1]:g} s a solve", last),
    ]
    for title, solves in classes_in(results):
        limited = solves[solves.time_limit == results.limits[-1]]
        parts.append(_summary_part(results, f"{title}, {results.limits[-1]:g} s a solve", limited))
    anytime = results.anytime().reset_index().rename(columns={"time_limit": "limit s"})
    parts.append(Part("Energy against time", "Mean gap to the best known in percent, by time limit.", anytime))
    return parts


def facts(results: Results) -> dict[str, str]:
    """What was run, on what."""
    last = results.calls[-1]
    ages = sorted(results.rows.began)
    machines = sorted(set(results.rows.machine))
    settings = results.rows.groupby("solver").settings.first()
    return {
        "suite": f"{last['suite']} version {last['suite_version']}, digest {last['digest']}",
        "rows": f"{len(results.rows)} solves of {results.rows.instance.nunique()} instances",
        "when": f"{ages[0]} to {ages[-1]}",
        "machine": "; ".join(machines),
        "at once": f"{last['workers']} solves, one thread each ({last['backend']})",
        "limits": ", ".join(f"{limit:g} s" for limit in results.limits),
        "seeds": str(max(call["seeds"] for call in results.calls)),
        "versions": ", ".join(f"{name} {version}" for name, version in last["versions"].items()),
        "settings": "; ".join(f"{solver} {settings[solver]}" for solver in results.solvers),
        "sizes": "; ".join(
            f"{solver} takes at most {most}" for solver, most in last["max_variables"].items() if most is not None
        )
        or "no solver has a limit",
    }


NOTES = (
    "Every solver is given Wanda's choice as a start and the same limit, and solvers take turns on an instance.",
    "raw is what the solver itself found; repaired, with exact counts where it knows none; final, after single swaps "
    "that the framework adds for everybody. A solver is worth what its raw and final stand above wanda+swaps, not what "
    "the swaps made of its answer. An answer below the start's quality is replaced by the start.",
    f"Success is a gap of at most {SUCCESS:g} to the best known energy, which the suite's own search or any solver of "
    "this run found; tts is the time until independent runs have succeeded with 99 %.",
    "95 %: of final, mean and success what other instances might have given (bootstrap over instances, 1000 draws; the "
    "instances were chosen, not drawn, so this is a guide); of tts from that of its success (Clopper-Pearson).",
    "Gaps to the best known and to the proven bound are kept apart: the second contains what the bound leaves open.",
    "A solver that ended by itself counts with that answer at longer limits, one that came far too late with the "
    "start. Tables count a solver on the instances that it takes, the curves of a class show those that take all of "
    "it, and the performance profile counts the others as not solved.",
)


#: What a report writes.
FILES = ("report.html", "report.md", "qoblib.csv", "report.png")


def write_report(results: Results, folder: str | Path) -> list[Path]:
    """``report.html``, ``report.md``, ``qoblib.csv`` and the main plot as ``report.png``, in a folder.

    Returns:
        The files.

    Raises:
        InputError: files of these names are there that were not written here, or the folder cannot be made.
    """
    target = check_added(folder, FILES, SIGN)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder {str(folder)!r} cannot be made: {error.strerror}.") from error
    list_files(target, FILES)
    html, markdown, qoblib, picture = (Path(folder, name) for name in FILES)
    atomic_write(html, page(results))
    atomic_write(markdown, as_markdown(results))
    atomic_write(qoblib, results.qoblib().to_csv(index=False))
    with written_whole(picture) as aside:
        run_plots.anytime(results, classes_in(results)).savefig(aside, dpi=110, format="png")
    return [html, markdown, qoblib, picture]


def page(results: Results) -> str:
    """The report as HTML, with pictures, tables that sort on a click, and no request to anywhere."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    pictures = {
        "Energy against time": run_plots.anytime(results, classes_in(results)),
        "Sizes": run_plots.by_size(results),
        "Gaps and times of all instances": run_plots.distributions(results),
    }
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        facts=facts(results),
        verdict=verdict(results),
        notes=NOTES,
        parts=[(part.title, part.text, _cells(part.table)) for part in parts_of(results)],
        pictures={title: run_plots.svg(figure) for title, figure in pictures.items()},
        instances=_cells(results.qoblib().drop(columns=["Submitter", "Affiliation", "Reference"])),
    )


def as_markdown(results: Results) -> str:
    """The report as plain Markdown, without the pictures."""
    lines = ["# Solvers on block QUBOs of real layers\n", *(f"* {said}" for said in verdict(results)), ""]
    for part in parts_of(results):
        names, rows = _cells(part.table)
        lines += [f"## {part.title}\n", *([part.text, ""] if part.text else [])]
        # a bar within a cell would end it
        head, *body = ("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in (names, *rows))
        lines += [head, "|" + "---|" * len(names), *body]
        lines.append("")
    lines += ["## How to read this\n", *(f"* {note}" for note in NOTES), "", "## What was run\n"]
    lines += [f"* {name}: {text}" for name, text in facts(results).items()]
    return "\n".join(lines) + "\n"


def _cells(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Names of the columns, and rows as text."""
    rows: Sequence[Mapping[Any, Any]] = table.to_dict("records")
    return [str(name) for name in table.columns], [[_number(value) for value in row.values()] for row in rows]


def _number(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value) or math.isinf(value):
        return "-"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"

"""What is told of a descent on the loss."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from qubo_prune.blocks.loss.trace import LossStep, LossTrace


def step(number: int = 0, **changes: Any) -> LossStep:
    plain: dict[str, Any] = {
        "number": number,
        "blocks": 2,
        "pools": ("0", "2"),
        "weights": 64,
        "swaps": 5,
        "predicted": -0.5,
        "batch_change": -0.4,
        "held_out_change": -0.25,
        "held_out_error": 0.01,
        "held_out_loss": 1.5,
        "outcome": "accepted",
        "caution": 1.0,
        "samples": 100,
        "solver_seconds": 0.125,
        "seconds": 1.0 + number,
    }
    return LossStep(**{**plain, **changes})


def trace(*steps: LossStep) -> LossTrace:
    return LossTrace(
        keep={"0": torch.ones(2, 3, dtype=torch.bool)},
        steps=steps,
        start_loss=2.0,
        best_loss=1.25,
        stopped="The time was over.",
        notes={"something was done": 3},
        seconds=4.5,
    )


def moving(predicted: list[float], held_out: list[float], batch: list[float] | None = None) -> LossTrace:
    changes = zip(predicted, held_out, batch or held_out, strict=True)
    return trace(
        *(
            step(number, predicted=p, held_out_change=h, batch_change=b, held_out_loss=2.0 - number)
            for number, (p, h, b) in enumerate(changes)
        )
    )


def pearson(a: list[float], b: list[float]) -> float:
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    along = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    return along / math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))


def test_the_ratio_is_what_came_of_the_prediction() -> None:
    assert step().ratio == 0.5
    assert step(held_out_change=0.25).ratio == -0.5
    assert step(predicted=0.0).ratio == 0
    assert step(predicted=0.1).ratio == 0


def test_blocks_and_accepted_steps_are_counted() -> None:
    outcomes = ("accepted", "halved", "rolled back", "idle", "accepted")
    told = trace(*(step(number, outcome=outcome, blocks=number) for number, outcome in enumerate(outcomes)))
    assert (told.blocks, told.accepted) == (10, 3)
    assert (trace().blocks, trace().accepted) == (0, 0)


def test_predicted_and_measured_changes_are_correlated() -> None:
    predicted, held_out, batch = [-0.5, -0.3, -0.4, -0.05], [-0.4, -0.1, 0.05, 0.02], [-0.5, -0.2, -0.3, -0.1]
    told = moving(predicted, held_out, batch)
    assert told.correlation() == pytest.approx(pearson(predicted, held_out))
    assert told.correlation(held_out=False) == pytest.approx(pearson(predicted, batch))
    assert told.correlation(first=3) == pytest.approx(pearson(predicted[:3], held_out[:3]))
    # steps without a swap predicted nothing
    idle = dataclasses.replace(told, steps=(*told.steps, step(4, swaps=0, predicted=0.0, held_out_change=0.0)))
    assert idle.correlation() == told.correlation()


UNCORRELATED = {
    "no steps": trace(),
    "two steps": moving([-1.0, -2.0], [-1.0, -1.5]),
    "equal predictions": moving([-1.0] * 3, [-1.0, -2.0, -3.0]),
    "equal measurements": moving([-1.0, -2.0, -3.0], [0.0] * 3),
}


@pytest.mark.parametrize("case", UNCORRELATED)
def test_too_few_or_equal_changes_have_no_correlation(case: str) -> None:
    told = UNCORRELATED[case]
    assert math.isnan(told.correlation())
    assert told.to_dict()["correlation_held_out"] is None
    assert "correlate" not in str(told)


def test_poor_predictions_are_explained_and_good_ones_are_not() -> None:
    good = moving([-0.3, -0.2, -0.1], [-0.29, -0.21, -0.08])
    assert good.doubt == ""
    assert moving([-0.3], [0.1]).doubt == ""  # nothing to correlate
    steps = [
        step(0, predicted=-0.1, held_out_change=-0.1, swaps=40),
        step(1, predicted=-0.2, held_out_change=0.3, swaps=400, outcome="rolled back"),
        step(2, predicted=-0.3, held_out_change=0.9, swaps=300, samples=200, outcome="rolled back"),
    ]
    poor = trace(*steps)
    assert "2 of 3 moves raised the held-out loss, of 300 swaps and more" in poor.doubt
    assert "from 40 to 300 swaps and B from 100 to 200" in poor.doubt
    assert poor.doubt in " ".join(str(poor).split())
    flat = moving([-0.3, -0.2, -0.1], [-0.01, -0.02, -0.03])
    assert "together they did 10 % of the promise" in flat.doubt


def test_a_trace_is_plain_data_for_json() -> None:
    told = moving([-0.5, -0.3, -0.4], [-0.4, -0.1, 0.05])
    read = json.loads(json.dumps(told.to_dict(), allow_nan=False))
    assert read["correlation_held_out"] == told.correlation()
    assert (read["start_loss"], read["best_loss"], read["blocks"], read["accepted"]) == (2.0, 1.25, 6, 3)
    assert (read["stopped"], read["notes"], read["seconds"]) == ("The time was over.", {"something was done": 3}, 4.5)
    assert [LossStep(**{**each, "pools": tuple(each["pools"])}) for each in read["steps"]] == list(told.steps)
    assert "keep" not in read
    nothing = json.loads(json.dumps(trace().to_dict(), allow_nan=False))
    assert nothing["correlation_held_out"] is nothing["correlation_batch"] is None
    assert nothing["steps"] == []


def test_the_csv_has_one_line_per_step(tmp_path: Path) -> None:
    told = moving([-0.5, -1 / 3, -0.4], [-0.4, -0.1, 0.05])
    told.save_csv(tmp_path / "steps.csv")
    assert len((tmp_path / "steps.csv").read_text(encoding="utf-8").splitlines()) == 4
    with (tmp_path / "steps.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["number"] for line in lines] == ["0", "1", "2"]
    assert [float(line["predicted"]) for line in lines] == [-0.5, -1 / 3, -0.4]
    assert {line["pools"] for line in lines} == {"0 2"}
    assert list(lines[0]) == [entry.name for entry in dataclasses.fields(LossStep)]
    trace().save_csv(tmp_path / "none.csv")
    assert len((tmp_path / "none.csv").read_text(encoding="utf-8").splitlines()) == 1


def test_the_table_shows_some_steps_and_what_they_come_to() -> None:
    steps = [
        step(number, predicted=-0.001 * number, held_out_change=-0.002 * number, outcome="halved" if number else "idle")
        for number in range(50)
    ]
    told = trace(*steps)
    shown = str(told)
    assert [told.table(most).row_count for most in (1, 2, 12, 50, 1000)] == [1, 2, 12, 50, 50]
    # the first and the last step are among them
    assert " 0 " in shown
    assert " 49 " in shown
    assert " 48 " not in shown
    assert "-0.04900" in shown
    assert "held-out loss 2.00000 to 1.25000 in 100 blocks, 49 of 50 steps accepted, 4.5 s" in " ".join(shown.split())
    assert "held-out change correlate 1.00. The time was over." in " ".join(shown.split())


def test_a_trace_without_steps_is_shown_too() -> None:
    assert trace().table().row_count == 0
    assert "0 of 0 steps accepted" in " ".join(str(trace()).split())
    console = Console(width=120, file=io.StringIO())
    console.print(trace(step()))
    assert "Descent on the loss" in console.file.getvalue()

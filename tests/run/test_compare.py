"""Methods side by side."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from qubo_prune import Budget
from qubo_prune.errors import InputError
from qubo_prune.methods.chain import Entry
from qubo_prune.models import load_model
from qubo_prune.run.compare import compare


@pytest.fixture
def sources(tmp_path: Path) -> tuple[str, str]:
    text = tmp_path / "text.txt"
    text.write_text(tiny.text(), encoding="utf-8")
    return str(tiny.save(tmp_path / "model")), str(text)


def test_every_method_starts_from_the_dense_weights(sources: tuple[str, str]) -> None:
    model, text = sources
    settings = {"calibration": text, "text": text, "samples": 4, "eval_samples": 3, "sequence_length": 16}
    both = compare(model, ["magnitude", "wanda"], **settings)
    alone = compare(model, ["wanda"], **settings)
    assert both.row("wanda").perplexity == alone.row("wanda").perplexity
    assert both.row("wanda").layer_error == alone.row("wanda").layer_error
    assert both.row("dense").perplexity == alone.row("dense").perplexity
    assert both.rise("dense") == 0
    expected = math.log(both.row("wanda").perplexity) - math.log(both.row("dense").perplexity)
    assert both.rise("wanda") == pytest.approx(expected)
    assert "Wanda" in str(both)
    assert max(map(len, str(both).splitlines())) <= 80


def test_several_seeds_are_runs_of_their_own(sources: tuple[str, str], tmp_path: Path) -> None:
    model, text = sources
    settings = {"calibration": text, "text": text, "samples": 3, "eval_samples": 3, "sequence_length": 16}
    several = compare(model, ["wanda", "admm"], seeds=3, seed=4, output=tmp_path / "out", **settings)
    assert several.seeds == [4, 5, 6]
    assert [row.method for row in several.repeated("admm")] == ["admm"] * 3
    alone = [compare(model, ["wanda"], seed=4 + more, draw=more, **settings) for more in range(3)]
    rises = several.rises("wanda")
    assert rises == [each.rise("wanda") for each in alone]
    assert len(set(rises)) == 3  # the windows are others each time
    assert several.rise("wanda") == pytest.approx(sum(rises) / 3)
    assert several.deviation("wanda") == pytest.approx(float(torch.tensor(rises, dtype=torch.float64).std()))
    assert alone[0].deviation("wanda") == 0
    printed = str(several)
    assert f"{several.rise('wanda'):.3f} ±{several.deviation('wanda'):.3f}" in printed
    assert "over 3 seeds" in " ".join(printed.split())
    assert printed.count("Wanda") == 1
    assert max(map(len, printed.splitlines())) <= 80
    assert len(json.loads((tmp_path / "out" / "comparison.json").read_text())["rows"]) == 7
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("seeds", "message"),
    [(0, "seeds is 0; at least 1"), ("x", "seeds"), (2, "seed is 9223372036854775808; pass a whole number")],
)
def test_a_number_of_seeds_that_is_none_is_refused(seeds: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        compare("no-such-model", ["wanda"], seeds=seeds, seed=2**63 - 1)


def test_only_some_layers_are_pruned(sources: tuple[str, str]) -> None:
    model, text = sources
    settings = {"calibration": text, "text": text, "samples": 4, "eval_samples": 3, "sequence_length": 16}
    some = compare(model, ["magnitude"], include=["*.mlp.*"], exclude=["*.down_proj"], **settings)
    every = compare(model, ["magnitude"], **settings)
    assert some.row("dense").perplexity == every.row("dense").perplexity
    assert some.row("magnitude").perplexity != every.row("magnitude").perplexity
    assert 0 < some.row("magnitude").layer_error < every.row("magnitude").layer_error


def test_a_loaded_model_is_compared_and_dense_again(sources: tuple[str, str]) -> None:
    name, text = sources
    settings = {"calibration": text, "text": text, "samples": 4, "eval_samples": 3, "sequence_length": 16}
    loaded = load_model(name)
    dense = {key: value.clone() for key, value in loaded.model.state_dict().items()}
    given, by_name = (compare(model, ["wanda", "admm"], **settings) for model in (loaded, name))
    for one, other in zip(given.rows, by_name.rows, strict=True):
        assert (one.method, one.perplexities, one.layer_error) == (other.method, other.perplexities, other.layer_error)
    assert given.model == by_name.model == name
    assert all(torch.equal(value, dense[key]) for key, value in loaded.model.state_dict().items())


def test_methods_are_checked_before_anything_is_loaded() -> None:
    with pytest.raises(InputError, match="did you mean 'wanda'"):
        compare("no-such-model", ["wandda"])
    with pytest.raises(InputError, match="No method is given"):
        compare("no-such-model", [])


def test_settings_and_entries_make_a_row_each(sources: tuple[str, str], tmp_path: Path) -> None:
    model, text = sources
    found = compare(
        model,
        ["admm+refit", "compensated@correction=0"],
        density=["0.5", 0.25, "2:4"],
        pattern="layer",
        calibration=text,
        text=text,
        samples=4,
        eval_samples=3,
        sequence_length=16,
        output=tmp_path / "out",
    )
    assert found.settings == ["0.5 layer", "0.25 layer", "2:4"]
    assert [(row.method, row.setting) for row in found.rows[1:3]] == [
        ("admm+refit", "0.5 layer"),
        ("compensated@correction=0", "0.5 layer"),
    ]
    assert [row.density for row in found.rows] == [1.0, 0.5, 0.5, 0.25, 0.25, 0.5, 0.5]
    for setting in found.settings:
        ours, theirs = (found.row(method, setting) for method in ("compensated@correction=0", "admm+refit"))
        assert ours.relative_error < theirs.relative_error
    assert all(row.peak_memory_bytes > 2**20 for row in found.rows[1:])
    shown = str(found)
    assert max(map(len, shown.splitlines())) <= 80
    # long names go on in the next line
    assert {"ADMM", "refit", "compensated", "correction"} <= set(re.findall(r"\w+", shown))
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 5000
    saved = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    assert len(saved["rows"]) == 7


def test_methods_are_compared_on_every_text(sources: tuple[str, str], tmp_path: Path) -> None:
    model, text = sources
    other = tmp_path / "other.txt"
    other.write_text(tiny.text()[::-1], encoding="utf-8")
    settings = {"calibration": text, "samples": 4, "eval_samples": 3, "sequence_length": 16}
    both = compare(model, ["wanda"], text=[text, str(other)], output=tmp_path / "out", **settings)
    alone = compare(model, ["wanda"], text=str(other), **settings)
    assert both.row("wanda").perplexities[1] == alone.row("wanda").perplexity
    assert both.rise("wanda", text=1) == alone.rise("wanda") != both.rise("wanda")
    shown = str(both)
    assert max(map(len, shown.splitlines())) <= 80
    assert "text" in shown
    assert "other" in shown
    assert both.evaluation[1]["source"] == str(other)
    assert both.evaluation[0]["tokens"] == 3 * 15
    with pytest.raises(InputError, match="No held-out text"):
        compare(model, ["wanda"], text=[], **settings)


def test_entries_have_settings_of_their_own(sources: tuple[str, str]) -> None:
    model, text = sources
    settings = {"calibration": text, "text": text, "samples": 4, "eval_samples": 3, "sequence_length": 16}
    found = compare(model, ["admm", "admm@correction=1", "admm@damping=0.5"], **settings)
    assert len({row.perplexity for row in found.rows[1:]}) == 3
    assert "correction 1" in str(found)


@pytest.mark.parametrize(
    ("text", "entry", "label"),
    [
        (
            "compensated@correction=0.25@allocation=fisher@polish=false",
            Entry("compensated", None, (("correction", 0.25), ("allocation", "fisher"), ("polish", False))),
            "compensated blocks, correction 0.25, allocation fisher, polish false",
        ),
        ("wanda", Entry("wanda"), "Wanda"),
        ("admm+refit", Entry("admm", update="refit"), "ADMM + refit"),
        ("gram", Entry("gram"), "Gram blocks"),
        ("icbs", Entry("icbs"), "iCBS"),
        ("icbs:gram", Entry("gram"), "Gram blocks"),
        ("icbs:compensated", Entry("compensated"), "compensated blocks"),
        ("gram+refit", Entry("gram", update="refit"), "Gram blocks + refit"),
    ],
)
def test_entries_are_read(text: str, entry: Entry, label: str) -> None:
    assert Entry.parse(text) == entry
    assert entry.label == label
    assert Entry.parse(str(entry)) == entry


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ["admm:compensated"]}, "The method 'admm' takes no Hessian"),
        ({"methods": ["gramm"]}, "did you mean 'gram'"),
        ({"methods": ["admm@corection=1"]}, "did you mean 'correction'"),
        ({"methods": ["admm@correction"]}, "give NAME=VALUE"),
        ({"methods": ["admm@correction=7"]}, "correction is 7"),
        ({"methods": ["admm@correction=much"]}, "'much'; a number or none is needed"),
        ({"methods": ["gram@max_sweeps=1.5"]}, "'1.5'; a whole number or none is needed"),
        ({"methods": ["gram@polish=maybe"]}, "'maybe'; true or false is needed"),
        ({"methods": ["wanda@correction=0.5"]}, "'wanda'.*leaves them"),
        ({"methods": ["gram@solver=gredy"]}, "did you mean 'greedy'"),
        ({"methods": ["compensated@allocation=owl"], "density": "2:4"}, "2:4"),
        ({"methods": ["wanda+refitt"]}, "did you mean 'refit'"),
        ({"methods": ["wanda"], "density": "half"}, "There is no pattern 'half'"),
        ({"methods": ["wanda"], "density": "1.5"}, "density is 1.5"),
        ({"methods": ["wanda"], "density": "0.3", "pattern": "2:4"}, "keeps 0.5"),
    ],
)
def test_bad_entries_are_one_sentence(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        compare("no-such-model", **arguments)


def test_settings_for_all_methods_reach_each_of_them(sources: tuple[str, str]) -> None:
    model, text = sources
    settings = {"calibration": text, "text": text, "samples": 4, "eval_samples": 3, "sequence_length": 16}
    fitted = compare(model, ["wanda"], update="refit", **settings)
    named = compare(model, ["wanda+refit"], **settings)
    plain = compare(model, ["wanda"], **settings)
    assert fitted.rows[1].perplexities == named.rows[1].perplexities != plain.rows[1].perplexities
    budget = Budget(pattern="layer", include=("*.mlp.*",))
    (_, row) = compare(model, ["wanda"], budget=budget, **settings).rows
    assert row.setting == "0.5 layer"
    assert row.perplexities != plain.rows[1].perplexities


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"methods": ["wanda"], "update": "zzz"}, "no update 'zzz'"),
        ({"methods": ["sparsefw"], "method_settings": {"bogus": 1}}, "no setting 'bogus'"),
        ({"methods": ["gram@block_size=4@block_size=6"]}, "'block_size' of .* is given twice"),
        ({"methods": ["wanda"], "density": []}, "No density is given"),
        ({"methods": ["wanda"], "tokenizer": 3}, "tokenizer is given, which a comparison has no use for"),
        ({"methods": ["wanda"], "run_folder": "x"}, "run_folder is given"),
        ({"methods": ["wanda"], "text": 3}, "A text is of type int"),
        ({"methods": ["wanda"], "weights": "disk"}, "evaluates a model in memory"),
    ],
)
def test_what_a_comparison_cannot_use_is_refused_before_anything_is_loaded(
    arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        compare("no-such-model", **arguments)

"""The report as data, table and HTML."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from qubo_prune.blocks.certificate import BlockOptima
from qubo_prune.blocks.loss.trace import LossTrace
from qubo_prune.blocks.rows import TracePoint
from qubo_prune.models.coverage import LeftDense
from qubo_prune.report import LayerReport, Report, told_of
from qubo_prune.solver.block_counts import BlockCounts


def layer(name: str, before: float, after: float) -> LayerReport:
    return LayerReport(
        name,
        (4, 8),
        16,
        0.5,
        before,
        after,
        10.0,
        12,
        7,
        0.4,
        0.1,
        0.5,
        "greedy",
        100,
        0,
        trace=(TracePoint(0.1, after, 7),),
    )


def report(model: str = "tiny") -> Report:
    layers = (
        layer("layers.0.up", 1.0, 0.5),
        layer("layers.1.up", 3.0, 1.0),
        layer("layers.1.down", 2.0, 2.0),
    )
    settings = {"pattern": "row", "solver": "greedy", "method": "gram", "seed": 3}
    seconds = {"forward": 1.0, "hessian": 1.0, "search": 1.5, "total": 4.0}
    return Report(layers, model, settings, {"source": "given", "tokens": 100}, seconds)


def test_totals_are_sums() -> None:
    totals = report().totals()
    assert totals["error_before"] == 6.0
    assert totals["error_after"] == 3.5
    assert totals["relative_after"] == 3.5 / 30
    assert totals["weights"] == 96
    assert totals["kept"] == 48
    assert totals["density"] == 0.5
    assert totals["steps"] == 36


def test_json_holds_what_is_promised(tmp_path: Path) -> None:
    report().save(tmp_path / "report.json")
    data = json.loads((tmp_path / "report.json").read_text())
    promised = {"model", "settings", "calibration", "seconds", "totals", "layers", "versions", "machine"}
    assert promised <= set(data)
    wanted = {
        "name",
        "shape",
        "density",
        "error_before",
        "error_after",
        "relative_before",
        "relative_after",
        "steps",
        "accepted",
        "seconds",
        "solver",
        "tokens",
        "trace",
    }
    assert wanted <= set(data["layers"][0])
    assert data["layers"][1]["relative_after"] == 0.1
    assert data["settings"]["seed"] == 3
    assert data["versions"]["torch"]
    assert data["peak_memory_bytes"] > 10**6


def test_sampled_blocks_are_told_with_what_was_not_proven() -> None:
    def told(*found: BlockOptima) -> str:
        layers = tuple(replace(layer(f"l{i}", 1.0, 0.5), block_optima=each) for i, each in enumerate(found))
        return " ".join(str(replace(report(), layers=layers)).split())

    some, none = BlockOptima(3, 1, 2, 1, 0.25, 5.0), BlockOptima(blocks=4)
    assert "proven in 2 of 7 sampled blocks (1 rows hold no block): the masks have 1 of them" in told(some, none)
    assert "errors by 5.00%" in told(some, none)
    assert "proven in none of 4 sampled blocks" in told(none)


def test_the_table_folds_layers_of_a_kind() -> None:
    text = str(report())
    assert "layers.*.up" in text
    assert "layers.*.down" in text
    assert "0.583" in text  # 3.5 / 6 over all
    full = report().table(full=True)
    assert [str(cell) for cell in full.columns[0].cells] == [
        "layers.0.up",
        "layers.1.up",
        "layers.1.down",
        "all",
    ]


def test_html_escapes_names() -> None:
    text = report("<script>alert(1)</script>")._repr_html_()
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert text.count("<tr>") == 4


def test_what_was_not_measured_is_no_number() -> None:
    unmeasured = replace(layer("layers.2.odd", 0.0, 0.0), error_before=None, error_after=None, output_power=None)
    assert (unmeasured.relative_before, unmeasured.relative_after, unmeasured.gap) == (None, None, None)
    assert LayerReport.from_dict(json.loads(json.dumps(unmeasured.to_dict()))) == unmeasured
    some = replace(report(), layers=(*report().layers, unmeasured))
    assert (some.error_before, some.relative_error) == (6.0, 3.5 / 30)  # left out of sums and of their ratios
    rows = [[str(cell) for cell in column.cells] for column in some.table(full=True).columns]
    assert [column[3] for column in rows[3:6]] == ["-", "-", "-"]
    none = replace(report(), layers=(unmeasured,))
    assert (none.error_before, none.error_after, none.relative_error, none.gap) == (None, None, None, None)
    assert json.loads(json.dumps(none.to_dict()))["totals"]["relative_after"] is None
    assert [column.cells for column in none.table().columns]  # a table all the same


def test_layers_left_dense_are_data_and_a_line_under_the_table() -> None:
    left = (LeftDense("vision.0.up", 1234, "not reached by any calibration input"),)
    told = replace(report(), left_dense=left)
    assert "left dense: vision.*.up (1 layer, 1,234 weights), not reached by any calibration input" in " ".join(
        str(told).split()
    )
    assert "1,234 weights" in told._repr_html_()
    plain = json.loads(json.dumps(told.to_dict()))
    assert plain["left_dense"] == [{"name": "vision.0.up", "weights": 1234, "reason": left[0].reason}]
    assert plain["totals"]["left_dense"] == 1
    assert plain["totals"]["layers"] == 3


NOTE = "Damping was raised to 0.1 of the mean diagonal."


def with_blocks(*counts: BlockCounts, **changes: Any) -> Report:
    """The report with these counts for its first layers."""
    layers = [replace(one, blocks=own) for one, own in zip(report().layers, counts, strict=False)]
    return replace(report(), layers=(*layers, *report().layers[len(layers) :]), **changes)


def test_lost_and_cut_blocks_stand_wherever_the_report_is_shown(tmp_path: Path) -> None:
    lost, cut = (
        BlockCounts(12, {"raised OSError: no <b>host</b>": 2}),
        BlockCounts(12, {}, {"stopped at the time limit": 9}),
    )
    found = with_blocks(lost, cut)
    first, second = found.warnings()
    assert first == "greedy lost 2 of 24 blocks: 2 x raised OSError: no <b>host</b>."
    assert second == "The clock cut 9 of 24 blocks of greedy: 9 x stopped at the time limit."
    assert not found.all_blocks_lost
    assert all(sentence in " ".join(str(found).split()) for sentence in (first, second))
    assert "greedy lost 2 of 24 blocks: 2 x raised OSError: no &lt;b&gt;host&lt;/b&gt;." in found._repr_html_()
    found.save(tmp_path / "report.json")
    totals = json.loads((tmp_path / "report.json").read_text())["totals"]
    assert totals["warnings"] == [first, second]
    assert totals["solver_blocks"] == {"asked": 24, "lost": dict(lost.lost), "cut": dict(cut.cut)}
    assert told_of(tmp_path) == [first, second]
    assert report().warnings() == []


def test_blocks_of_the_loss_are_lost_by_their_own_solver() -> None:
    trace = LossTrace(
        {}, (), 1.0, 1.0, "All blocks were solved.", {"Blocks are short.": 1}, 0.0, BlockCounts(3, {"x": 3})
    )
    settings = {**report().settings, "loss_settings": {"solver": "tabu"}}
    found = with_blocks(BlockCounts(4), loss=trace, settings=settings)
    assert found.warnings() == ["tabu lost 3 of 3 blocks: 3 x x."]
    assert found.all_blocks_lost
    assert "loss: Blocks are short." in found.notes()
    assert "The solver lost 3 of 3 blocks: 3 x x." in str(trace)
    assert "Blocks are short." in trace._repr_html_()


def test_a_report_that_is_none_tells_nothing(tmp_path: Path) -> None:
    assert told_of(tmp_path) == []
    for content in ("[]", "{", '{"totals": {"warnings": 3}}', '{"totals": []}', '{"totals": {"warnings": [3]}}'):
        (tmp_path / "report.json").write_text(content)
        assert told_of(tmp_path) == []


def test_notes_of_layers_stand_below_the_table_folded_by_kind() -> None:
    notes = ({NOTE: 1, "gone twice": 2}, {NOTE: 1}, {NOTE: 1})
    layers = tuple(replace(one, notes=own) for one, own in zip(report().layers, notes, strict=True))
    found = replace(report(), layers=layers)
    assert found.notes() == [f"3 layers (layers.*.up, layers.*.down): {NOTE}", "layers.0.up, 2 times: Gone twice."]
    assert f"3 layers (layers.*.up, layers.*.down): {NOTE}" in " ".join(str(found).split())
    assert "layers.0.up, 2 times: Gone twice." in found._repr_html_()


def test_a_layer_comes_back_from_json_with_its_counts() -> None:
    one = replace(layer("l", 1.0, 0.5), blocks=BlockCounts(5, {"raised OSError": 2}, {"stopped": 1}))
    assert LayerReport.from_dict(json.loads(json.dumps(one.to_dict()))) == one


def test_the_solvers_own_share_stands_apart() -> None:
    def traced(name: str, start: float, gain: float, **changes: Any) -> LayerReport:
        trace = (TracePoint(0.0, start, 0), TracePoint(1.0, start / 2, 1))
        return replace(layer(name, 1.0, 0.5), trace=trace, solver_gain=gain, **changes)

    layers = (
        traced("a.0", 2.0, 0.5),
        traced("a.1", 6.0, 1.5, reverted=True),
        traced("b", 1.0, 0.0, solver="", steps=0),
    )
    assert [one.solver_share for one in layers] == [0.25, 0.0, None]
    table = replace(report(), layers=layers).table()
    (cells,) = [list(column.cells) for column in table.columns if column.header == "solver"]
    assert cells == ["6.2%", "-", "6.2%"]  # 0.5 of 8

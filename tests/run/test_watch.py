"""What another terminal sees of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from qubo_prune import prune
from qubo_prune.cli import app
from qubo_prune.errors import InputError
from qubo_prune.run.folder import EVENTS, opened
from qubo_prune.run.watch import RunState
from qubo_prune.tables import rendered


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with opened(tmp_path / "run", resume=False) as folder:
        folder.identify("configuration", lambda: {"model": "a-model"})
    return tmp_path / "run"


def tell(run: Path, *events: dict[str, Any]) -> None:
    with (run / EVENTS).open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)


def layer(name: str, **fields: Any) -> dict[str, Any]:
    usual = {
        "kind": "layer",
        "layer": name,
        "layers": 4,
        "weights": 100,
        "weights_left": 300,
        "elapsed": 10.0,
        "relative_before": 0.2,
        "relative_after": 0.1,
        "seconds": 9.0,
    }
    return usual | fields


def test_a_real_run_tells_each_layer_and_its_end(tmp_path: Path) -> None:
    report = prune(tiny.llama(), tiny.tokens(), run_folder=tmp_path / "run")
    state = RunState.read(tmp_path / "run")
    assert (state.state, state.total) == ("done", len(report.layers))
    assert [entry["layer"] for entry in state.layers] == [entry.name for entry in report.layers]
    assert [entry["relative_after"] for entry in state.layers] == [entry.relative_after for entry in report.layers]
    assert 0 < state.elapsed <= report.seconds["total"]


def test_a_run_that_failed_says_why(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        prune(tiny.llama(), tiny.tokens(), exclude=["nothing"], run_folder=tmp_path / "run")
    state = RunState.read(tmp_path / "run")
    assert state.state == "failed"
    assert "nothing" in rendered(state, 100)


def test_the_time_left_goes_by_the_weights_left(run: Path) -> None:
    tell(run, {"kind": "began"}, layer("a"), layer("b", elapsed=20.0, weights_left=200))
    assert RunState.read(run).state == "interrupted"
    with opened(run, resume=True):
        state = RunState.read(run)
    assert state.state == "running"
    assert state.left == pytest.approx(20.0)
    assert "2 of 4 layers" in rendered(state, 100)
    assert "0:00:20 left" in rendered(state, 100)


def test_the_layer_at_work_shows_its_energy(run: Path) -> None:
    tell(
        run,
        {"kind": "began"},
        layer("a"),
        {"kind": "layer-began", "layer": "b"},
        {"kind": "sweep", "energy": 1.25, "accepted": 7},
    )
    with opened(run, resume=True):
        shown = rendered(RunState.read(run), 100)
    assert "now b: energy 1.25, accepted blocks 7" in shown


def test_a_layer_that_was_done_twice_counts_once(run: Path) -> None:
    tell(run, layer("a"), {"kind": "began"}, layer("a", relative_after=0.05), layer("b"))
    state = RunState.read(run)
    assert [entry["layer"] for entry in state.layers] == ["a", "b"]
    assert state.layers[0]["relative_after"] == 0.05


def test_a_line_that_is_being_written_is_none_yet(run: Path) -> None:
    tell(run, layer("a"))
    with (run / EVENTS).open("a", encoding="utf-8") as file:
        file.write('{"kind": "layer", "lay')
    assert len(RunState.read(run).layers) == 1


def test_names_are_no_markup(run: Path) -> None:
    tell(run, layer("[bold red]a[/]"))
    assert "[bold red]a[/]" in rendered(RunState.read(run), 100)


@settings(max_examples=200, deadline=None)
@given(
    content=st.one_of(
        st.binary(max_size=300),
        st.lists(
            st.dictionaries(
                st.sampled_from(
                    [
                        "kind",
                        "layer",
                        "layers",
                        "weights",
                        "weights_left",
                        "elapsed",
                        "energy",
                        "error",
                        "relative_before",
                        "seconds",
                        "number",
                    ]
                ),
                st.one_of(
                    st.none(),
                    st.booleans(),
                    st.floats(),
                    st.integers(),
                    st.text(max_size=5),
                    st.sampled_from(["began", "layer", "layer-began", "sweep", "step", "ended", "failed"]),
                ),
            ),
            max_size=6,
        ).map(lambda events: "\n".join(map(json.dumps, events)).encode()),
    )
)
def test_whatever_the_events_hold_something_is_shown(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("run")
    with opened(folder, resume=False) as run:
        run.identify("configuration", lambda: {"model": "a-model"})
        (folder / EVENTS).write_bytes(content)
        assert "a-model: running" in rendered(RunState.read(folder), 100)


def test_the_command_ends_with_the_run(tmp_path: Path) -> None:
    prune(tiny.mlp(), [tiny.torch.randn(8, 12)], run_folder=tmp_path / "run")
    result = CliRunner().invoke(app, ["watch", str(tmp_path / "run")])
    assert result.exit_code == 0
    assert "done, 3 of 3 layers" in result.stdout
    plain = json.loads(CliRunner().invoke(app, ["watch", str(tmp_path / "run"), "--json"]).stdout)
    assert plain["state"] == "done"


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["watch", str(tmp_path)])
    assert result.exit_code == 2
    assert "There is no run" in result.stderr


def test_lost_and_cut_blocks_are_told_while_the_run_goes_on(run: Path) -> None:
    tell(run, layer("a", blocks=8, lost=3, cut=1), layer("b", blocks=8, lost=0, cut=0))
    state = RunState.read(run)
    assert state.warnings() == [
        "The solver lost 3 of 16 blocks so far.",
        "The clock cut 1 of 16 blocks so far.",
    ]
    assert "The solver lost 3 of 16 blocks so far." in rendered(state, 100)
    tell(run, layer("a", blocks=8, lost=0, cut=0))
    assert RunState.read(run).warnings() == []


def test_layers_left_dense_are_counted_apart(run: Path) -> None:
    left = layer("b", weights_left=100) | {"kind": "left-dense", "reason": "not reached by any calibration input"}
    tell(run, layer("a", weights_left=200), left)
    with opened(run, resume=True):
        state = RunState.read(run)
    assert (len(state.layers), state.left_dense) == (1, 1)
    assert "1 of 4 layers, 1 left dense" in rendered(state, 100)
    assert state.left == pytest.approx(state.elapsed * 100 / 200)


def test_an_error_that_was_not_measured_is_a_dash(run: Path) -> None:
    tell(run, layer("a", relative_before=None, relative_after=None))
    (line,) = [line for line in rendered(RunState.read(run), 100).splitlines() if line.startswith("a ")]
    assert line.split()[1:3] == ["-", "-"]


@pytest.mark.parametrize("value", ["Infinity", "NaN", "-Infinity", "1e400", "1" + "0" * 400])
def test_numbers_without_an_end_are_no_counts(value: str, run: Path) -> None:
    line = f'{{"kind": "layer", "layer": "a", "layers": {value}, "blocks": {value}, "elapsed": {value}}}'
    (run / EVENTS).write_text(line + "\n", encoding="utf-8")
    assert "a-model: interrupted" in rendered(RunState.read(run), 100)

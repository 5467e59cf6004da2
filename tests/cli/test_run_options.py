"""Options that follow from the fields of settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from qubo_prune.cli import app
from qubo_prune.cli.options import settings_given
from qubo_prune.cli.run_options import PANELS, default_of, field_of, flag_of, run_settings, said_of, with_settings
from qubo_prune.errors import InputError
from qubo_prune.request import GROUPS, HOME, PruneRequest, first_sentence, sentences_of

PRUNE: Any = typer.main.get_command(app)
OPTIONS = {param.name: param for param in PRUNE.commands["prune"].params}


def test_every_setting_of_a_command_line_is_an_option_of_prune() -> None:
    without = {name for name in HOME if not field_of(name).metadata["panel"]}
    assert without == {"loss", "gram_samples", "held_out", "tokenizer"}
    assert set(run_settings()) == set(HOME) - without
    for name in run_settings():
        param = OPTIONS[name]
        assert param.opts[0] == flag_of(name)
        assert param.rich_help_panel in PANELS
        if field_of(name).metadata["off"] is None:
            said = first_sentence(sentences_of(GROUPS[HOME[name]])[name])
            assert param.help == said.replace("``", "")


def test_options_without_a_value_ask_for_the_defaults() -> None:
    given = settings_given({name: default_of(name) for name in run_settings()})
    asked, usual = PruneRequest.of("m", settings=given), PruneRequest.of("m")
    for name in HOME:
        expected = {} if name == "solver_settings" else usual[name]
        if name == "densities":
            assert not asked[name]
        else:
            assert asked[name] == expected, name


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("polish", True, False),
        ("prune_head", True, True),
        ("include", ["*.mlp.*", "head"], ("*.mlp.*", "head")),
        ("gram_devices", "cuda:0, cuda:1", ("cuda:0", "cuda:1")),
        ("densities", ["*.mlp.*=0.4"], {"*.mlp.*": 0.4}),
        ("method_settings", ["alpha=0.5"], {"alpha": 0.5}),
        ("loss_settings", ["samples=3", "preset=paper"], {"samples": 3, "preset": "paper"}),
        ("block_time", "none", None),
        ("block_time", "10ms", "10ms"),
        ("warm_start", "admm", "admm"),
    ],
)
def test_values_of_options_are_settings(name: str, value: Any, read: Any) -> None:
    assert settings_given({name: value, "solver": "greedy"})[name] == read


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("densities", ["*=half"], "--layer-density \\* gives 'half'"),
        ("method_settings", ["alpha"], "give --method-set name=value"),
        ("loss_settings", ["samples=3", "samples=4"], "'samples' is given twice"),
        ("warm_start", "no-such.safetensors", "no-such.safetensors"),
    ],
)
def test_values_that_cannot_be_read_are_one_sentence(name: str, value: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        settings_given({name: value})


def test_options_of_a_command_of_ones_own() -> None:
    @with_settings(["seed", "polish", "samples"])
    def command(where: Path = Path("x"), **settings: Any) -> None:
        typer.echo(f"{where} {sorted(settings.items())}")

    made = typer.Typer()
    made.command()(command)
    shown = CliRunner().invoke(made, ["--seed", "3", "--no-polish", "--where", "y"])
    assert shown.stdout == "y [('polish', True), ('samples', 32), ('seed', 3)]\n", shown.stderr
    # in the order of the panels
    assert [param.name for param in typer.main.get_command(made).params][:4] == ["where", "polish", "samples", "seed"]


def test_what_is_said_in_the_documentation() -> None:
    assert said_of("polish", "").startswith("Leave out the swaps on the solver's answers. What the solver brought")
    assert "`qubo_prune.methods.correction`" in said_of("correction", "")
    assert said_of("json", "Print the result as JSON.") == "Print the result as JSON."

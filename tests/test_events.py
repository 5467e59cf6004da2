"""Records of the package's loggers as JSON lines."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from qubo_prune.errors import InputError
from qubo_prune.events import event, logged_to

LOG = logging.getLogger("qubo_prune.test_events")


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_an_event_is_one_line_with_its_fields(tmp_path: Path) -> None:
    with logged_to(tmp_path / "log"):
        event(LOG, "layer", "Läyer\ndone: %s.", layer="a\nb", energy=1.5, path=tmp_path)
        LOG.warning("Not %s.", "an event")
    first, second = lines(tmp_path / "log")
    assert (first["kind"], first["layer"], first["energy"]) == ("layer", "a\nb", 1.5)
    assert (first["message"], first["level"], first["logger"]) == ("Läyer\ndone: %s.", "INFO", LOG.name)
    assert str(first["time"]).endswith("+00:00")
    assert second["message"] == "Not an event."
    assert "kind" not in second


def test_only_events_are_written_where_only_they_are_wanted(tmp_path: Path) -> None:
    with logged_to(tmp_path / "log", only_events=True):
        LOG.warning("Not an event.")
        event(LOG, "began", "Here it goes.")
    assert [line["kind"] for line in lines(tmp_path / "log")] == ["began"]


def test_a_file_is_appended_to_and_left_alone_afterwards(tmp_path: Path) -> None:
    level = logging.getLogger("qubo_prune").level
    for number in range(2):
        with logged_to(tmp_path / "log"):
            event(LOG, "began", "Here it goes.", number=number)
    event(LOG, "began", "Nobody listens.")
    assert [line["number"] for line in lines(tmp_path / "log")] == [0, 1]
    assert logging.getLogger("qubo_prune").level == level


def test_a_traceback_is_kept(tmp_path: Path) -> None:
    with logged_to(tmp_path / "log"):
        try:
            raise ValueError("why")
        except ValueError:
            LOG.exception("It failed.")
    assert "ValueError: why" in str(lines(tmp_path / "log")[0]["traceback"])


def test_without_a_file_nothing_is_written(tmp_path: Path) -> None:
    with logged_to(None):
        event(LOG, "began", "Here it goes.")
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"), logged_to(tmp_path / "missing" / "log"):
        pass


def test_a_full_disk_ends_no_run() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with logged_to(full):
        event(LOG, "began", "Nobody will read this.")

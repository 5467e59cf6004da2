"""Hidden states come back from their file as they went."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qubo_prune.files.states import StateFile


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_states_come_back_as_they_were(dtype: torch.dtype, tmp_path: Path) -> None:
    states = [torch.randn(1, 5 + 700 * number, 3).to(dtype) for number in range(3)]
    file = StateFile(tmp_path, states[:2])
    file.append(states[2])
    assert len(file) == 3
    for found, wanted in zip(file, states, strict=True):
        assert found.dtype == dtype
        assert torch.equal(found, wanted)
    file[1] = states[1] * 2
    file[2] = states[0]  # shorter than what was there
    assert torch.equal(file[0], states[0])
    assert torch.equal(file[1], states[1] * 2)
    assert torch.equal(file[2], states[0])


def test_what_is_done_to_a_state_stays_out_of_the_file(tmp_path: Path) -> None:
    file = StateFile(tmp_path, [torch.ones(2, 3)])
    file[0].zero_()
    assert bool((file[0] == 1).all())


def test_a_state_does_not_grow_into_the_next(tmp_path: Path) -> None:
    file = StateFile(tmp_path, [torch.ones(4), torch.ones(4)])
    with pytest.raises(ValueError, match="have grown from 16 to 20"):
        file[0] = torch.zeros(5)
    assert bool((file[1] == 1).all())


def test_the_file_has_no_name(tmp_path: Path) -> None:
    file = StateFile(tmp_path, [torch.ones(10_000)])
    assert not list(tmp_path.iterdir())
    assert len(file) == 1

"""What tells settings apart in another process."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from qubo_prune.files.digests import identity


@dataclass(frozen=True)
class Held:
    value: Any
    quiet: Any = field(default=1, repr=False)


class Plain:
    def __init__(self, value: Any) -> None:
        self.value = value


def closing(value: Any) -> Any:
    return lambda: value


LARGE = torch.arange(5000.0)
OTHER = LARGE.clone()
OTHER[2500] = 0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Held(1), Held(2)),
        (Held(1, 2), Held(1, 3)),
        (Held(LARGE), Held(OTHER)),
        (Held({"a": LARGE}), Held({"a": OTHER})),
        (Held(np.ones(3)), Held(np.zeros(3))),
        (Plain(1), Plain(2)),
        (Plain(1), Held(1)),
        (closing(1), closing(2)),
        (lambda x: x + 1, lambda x: x + 2),
        (functools.partial(closing, 1), functools.partial(closing, 2)),
        ({1, 2}, {1, 3}),
        ([1, 2], [2, 1]),
    ],
)
def test_what_differs_has_another_identity_and_what_does_not_the_same(one: Any, other: Any) -> None:
    assert identity(one) != identity(other)
    assert json.dumps(identity(one)) == json.dumps(identity(one))


def test_it_is_the_same_in_another_process() -> None:
    code = (
        "import json; from test_digests import *; "
        "print(json.dumps([identity(Held(LARGE)), identity(closing(1)), identity({'b', 'a'})]))"
    )
    done = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=__file__.rpartition("/")[0]
        ).stdout
        for _ in range(2)
    ]
    assert done[0] == done[1]

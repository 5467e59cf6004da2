"""Runs on devices that are none, as a process of its own: prints what each did there, as a JSON object by case.

python labelled_runs.py
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import torch
from labelled_device import Labelled
from torch import Tensor, nn

from qubo_prune import prune
from qubo_prune.data import TensorSamples
from qubo_prune.errors import InputError

LOSS = {
    "samples": 8,
    "scoring_samples": 8,
    "held_out": 8,
    "max_samples": 8,
    "max_blocks": 6,
    "micro_batch": 8,
    "block_size": 16,
    "batch_check": 8,
}
RUNS: Mapping[str, dict[str, Any]] = {
    "gram": {},
    "gram, layer": {"pattern": "layer"},
    "gram, 2:4": {"pattern": "2:4"},
    "tabu": {"solver": "tabu", "solver_settings": {"starts": 1, "steps": 1}},
    "exact": {"solver": "exact", "block_size": 8},
    "owl": {"allocation": "owl"},
    "compensated": {"method": "compensated", "correction": 0.5, "guard": 1},
    "compensated, layer": {"method": "compensated", "pattern": "layer"},
    "compensated, 2:4": {"method": "compensated", "pattern": "2:4", "protect": 0.1},
    "fisher": {"method": "loss", "loss_settings": LOSS},
    "fisher, gradient": {"method": "loss", "warm_start": "gradient", "loss_settings": LOSS | {"radius": 3}},
    "allocation by the loss": {"allocation": "fisher"},
    **{
        name: {"method": name}
        for name in (
            "magnitude",
            "wanda",
            "ria",
            "sparsegpt",
            "admm",
            "alps",
            "dsnot",
            "sparsefw",
            "sparseswaps",
        )
    },
    **{f"wanda + {update}": {"method": "wanda", "update": update} for update in ("refit", "admm", "sparsegpt")},
    "fisher, global": {"method": "loss", "pattern": "layer", "loss_settings": LOSS | {"budget": "global"}},
}


class Net(nn.Module):
    """Four layers, the last two of which may be on another device."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.front = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU())
        self.back = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 4))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.back(self.front(x).to(self.back[0].weight.device))  # type: ignore[arg-type]
        return out


def ran(settings: Mapping[str, Any], devices: int) -> dict[str, Any]:
    """What a run did, by layer; or the error that it ended with."""
    draw = torch.Generator().manual_seed(1)
    inputs, labels = torch.randn(48, 12, generator=draw), torch.randint(4, (48,), generator=draw)
    loss = settings.get("method") == "loss" or settings.get("allocation") == "fisher"
    data = TensorSamples(inputs, labels) if loss else list(inputs.split(16))
    model = Net()
    with Labelled() as seen:
        seen.move(model)
        seen.move(model.back, devices - 1)
        before = [parameter.inner.clone() for parameter in tensors(model)]
        try:
            report = prune(model, data, 0.5, **settings)
        except InputError as error:
            same = all(map(torch.equal, before, [each.inner for each in tensors(model)]))
            return {"error": str(error), "unchanged": same}
    count = len(report.layers)
    return {
        "waits": sum(seen.waits.values()) / count,
        "operators": seen.operators / count,
        "kinds": dict(+seen.waits),
        "undetermined": dict(seen.undetermined),
        "synchronised": seen.synchronised,
        "masks": {name: mask.flatten().int().tolist() for name, mask in report.masks.items()},
        "failed": [note for layer in report.layers for note in layer.notes if "raised an error" in note],
        "steps": None if report.loss is None else [step.outcome for step in report.loss.steps],
    }


def tensors(model: nn.Module) -> list[Any]:
    return [parameter.detach() for parameter in model.parameters()]


if __name__ == "__main__":
    torch.set_num_threads(1)
    wanted = sys.argv[1:] or RUNS
    sys.stdout.write(json.dumps({f"{n}: {name}": ran(RUNS[name], n) for name in wanted for n in (1, 2)}))

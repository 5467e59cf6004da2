"""What a pruning run keeps in its folder, layer by layer, so that a later one goes on where it ended."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, TypeVar

from torch import Tensor

from qubo_prune.files.checksummed import Damaged, Sealed
from qubo_prune.files.digests import digest_of_batches
from qubo_prune.hessian.stream import Seconds
from qubo_prune.masks.keep import packed_bits, unpacked_bits
from qubo_prune.models.layers import Layer
from qubo_prune.report.report import LayerReport
from qubo_prune.run.folder import RunFolder
from qubo_prune.run.journal import Journal, Keeper

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Start:
    """What a layer's search began with.

    Attributes:
        keep: the mask, ``(d_out, d_in)``.
        weight: the matrix, if it is not the dense one with that mask.
    """

    keep: Tensor
    weight: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """As a record holds it."""
        own = {} if self.weight is None else {"start-weight": self.weight}
        return {"start": packed_bits(self.keep), **own}


@dataclass(frozen=True, eq=False)
class Decided:
    """A layer that is done.

    Attributes:
        keep: its mask, ``(d_out, d_in)``.
        weight: its matrix in the model's own type, if kept weights changed; ``None`` if they did not.
        report: what is told of it.
        start: what it was made from.
    """

    keep: Tensor
    weight: Tensor | None
    report: LayerReport
    start: Start


class Records:
    """The records of one run; without a folder nothing is kept and nothing is known.

    Args:
        folder: of the run.
        layers: that it prunes; they go by their numbers.
    """

    def __init__(self, folder: RunFolder | None, layers: Sequence[Layer]) -> None:
        self._folder = folder
        self._numbers = {layer.name: number for number, layer in enumerate(layers)}
        self._damaged: set[str] = set()
        self._known = {layer.name for layer in layers if self._read(layer) is not None} if self._is_old else set()
        progress = folder.get_or_lost("progress")[0] if folder is not None else None
        self._progress = None if progress is None else progress.info

    @property
    def _is_old(self) -> bool:
        return self._folder is not None and self._folder.resumed

    @property
    def elapsed(self) -> float:
        """Seconds that the run had taken when it was interrupted last."""
        return float(self._progress["elapsed"]) if self._progress else 0.0

    @property
    def seconds(self) -> Seconds:
        """Where they went."""
        return Seconds(**self._progress["seconds"]) if self._progress else Seconds()

    def lacks(self, layer: Layer) -> bool:
        """True if the layer is still to be pruned."""
        return layer.name not in self._known

    def was_damaged(self, layer: Layer) -> bool:
        """True if it was pruned, and its record cannot be trusted."""
        return layer.name in self._damaged

    def take(self, layer: Layer) -> Decided:
        """What was decided of a layer that :meth:`lacks` says is there."""
        found = self._read(layer)
        assert found is not None
        keep = unpacked_bits(found.tensors["keep"], layer.shape)
        start = Start(unpacked_bits(found.tensors["start"], layer.shape), found.tensors.get("start-weight"))
        return Decided(keep, found.tensors.get("weight"), LayerReport.from_dict(found.info["report"]), start)

    def put_left_dense(self, layer: Layer, reason: str) -> None:
        """Keep that a layer is left as it is."""
        if self._folder is not None:
            self._folder.put(self._name(layer), {"layer": layer.name, "left_dense": reason}, {})

    def reason_left_dense(self, layer: Layer) -> str | None:
        """Why a layer that is done was left as it is; ``None`` if it was pruned."""
        found = self._read(layer)
        assert found is not None
        reason: str | None = found.info.get("left_dense")
        return reason

    def put(self, layer: Layer, decided: Decided, seconds: Seconds, elapsed: float) -> None:
        """Keep what was decided of a layer."""
        if self._folder is None:
            return
        tensors = {"keep": packed_bits(decided.keep), **decided.start.tensors()}
        if decided.weight is not None:
            tensors["weight"] = decided.weight
        self._folder.put(self._name(layer), {"layer": layer.name, "report": decided.report.to_dict()}, tensors)
        self._folder.put("progress", {"elapsed": elapsed, "seconds": asdict(seconds)})

    def journal(self, layer: Layer) -> Journal | None:
        """Where the answers of its solver are kept while a layer is pruned."""
        return None if self._folder is None else Journal(self._keeper(self._answers(layer)))

    def forget_journal(self, layer: Layer) -> None:
        """The layer is done, so the answers are of no more use."""
        if self._folder is not None:
            self._folder.drop(self._answers(layer))

    def loss_keeper(self) -> Keeper | None:
        """Where the state of a descent on the loss is kept."""
        return None if self._folder is None else self._keeper("loss")

    def once(self, name: str, make: Callable[[], T]) -> T:
        """Plain data that is made once in a run, however often it is interrupted."""
        value: T = self._made_once(name, lambda: Sealed({}, {"value": make()})).info["value"]
        return value

    def tensors_once(self, name: str, make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """The same of tensors."""
        return self._made_once(name, lambda: Sealed(make(), {})).tensors

    def _made_once(self, name: str, make: Callable[[], Sealed]) -> Sealed:
        found = None if self._folder is None else self._folder.get_or_lost(name)[0]
        if found is not None:
            return found
        made = make()
        if self._folder is not None:
            self._folder.put(name, made.info, made.tensors)
        return made

    def _keeper(self, name: str) -> Keeper:
        assert self._folder is not None
        return Keeper(self._folder, name)

    def number(self, layer: Layer) -> int:
        """Of a layer among those of the run."""
        return self._numbers[layer.name]

    def _name(self, layer: Layer) -> str:
        # by number: names may be long, or hold what a file name cannot
        return f"layer-{self.number(layer):05d}"

    def _answers(self, layer: Layer) -> str:
        return f"{self._name(layer)}-answers"

    def _read(self, layer: Layer) -> Sealed | None:
        assert self._folder is not None
        found, damaged = self._folder.get_or_lost(self._name(layer))
        if damaged:
            self._damaged.add(layer.name)
        if found is not None and found.info["layer"] != layer.name:
            raise Damaged(f"The record of layer {layer.name!r} is of {found.info['layer']!r}; start the run anew.")
        return found


def settings_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as the folder compares them: plain data, masks by their checksums."""
    plain: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, Mapping) and any(isinstance(part, Tensor) for part in value.values()):
            plain[name] = {"sha256": digest_of_batches(dict(value))}
        elif isinstance(value, str):  # of an object that has no words of its own the place is another one each time
            plain[name] = re.sub(r" at 0x[0-9a-f]+", "", value)
        elif value is None or isinstance(value, (bool, int, float)):
            plain[name] = value
        elif isinstance(value, Mapping):
            plain[name] = {str(key): settings_of({"": part})[""] for key, part in value.items()}
        elif isinstance(value, (list, tuple)):
            plain[name] = [settings_of({"": part})[""] for part in value]
        else:
            plain[name] = _named(value)
    return plain


def _named(value: Any) -> str:
    """An object in words that are the same in another process."""
    if is_dataclass(value) and not isinstance(value, type):
        return repr(value)
    kind = value if hasattr(value, "__qualname__") else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"

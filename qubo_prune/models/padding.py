"""Padding taken out of batches, so that only real positions count in Grams, errors, drift and losses.

A batch is padded where one of its masks says so: ``attention_mask`` and ``decoder_attention_mask`` in each form that
transformers takes, and labels of -100 behind the last one of a decoder without a mask. Each of its samples then goes
alone, or together with those of the same length, by the real positions of every tensor that runs along the sequence.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from qubo_prune.errors import InputError
from qubo_prune.models.signature import Signature

#: Label of a position or sample that no loss counts.
IGNORED = -100

#: Masks by the sequence that they belong to, as entries' names begin.
_SIDES = {"": "attention_mask", "decoder_": "decoder_attention_mask", "encoder_": "encoder_attention_mask"}
#: What a module of one's own may call its mask; believed only beside token ids of the same shape.
_OTHER_NAMES = ("mask", "attn_mask")
#: Masks of padding that is not taken out: by name, and the value of a real position.
_REFUSED = {
    "pixel_mask": 1,
    "pixel_attention_mask": 1,
    "input_features_mask": 1,
    "feature_attention_mask": 1,
    "entity_attention_mask": 1,
    "visual_attention_mask": 1,
    "audio_attention_mask": 1,
    "input_mask": 0,
    "key_padding_mask": 0,
    "src_key_padding_mask": 0,
    "tgt_key_padding_mask": 0,
    "memory_key_padding_mask": 0,
}
#: PyTorch's modules that take such a mask.
_TORCHS = (
    nn.MultiheadAttention,
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
)
#: Entries that a sample has one of, whatever their shape.
_PER_SAMPLE = ("pixel", "image", "visual", "video")
#: Additive masks block what gets this or less; biases by distance stay above.
_BLOCKED = -9e3


def looking_within(model: nn.Module) -> list[RemovableHandle]:
    """Hooks that refuse padding of which only a part of the model knows, by a mask that was made on the way to it.

    Batches have lost the padding that their own masks mark, so what such a mask still marks would count like the rest.
    """
    return [
        module.register_forward_pre_hook(_looking(name or type(module).__name__, names), with_kwargs=True)
        for name, module in model.named_modules()
        if (names := _masks_taken(module))
    ]


def _masks_taken(module: nn.Module) -> tuple[str, ...]:
    """Names of the masks of padding that a module takes, if it is of a kind whose masks are known."""
    if isinstance(module, _TORCHS):
        return tuple(name for name in _REFUSED if name.endswith("key_padding_mask"))
    # transformers' whole models; within them masks are prepared for the attention, in forms of their own
    return ("attention_mask", "encoder_attention_mask") if hasattr(module, "save_pretrained") else ()


def _looking(where: str, names: tuple[str, ...]) -> Callable[..., None]:
    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        positions = Signature.of(module).positions
        for name, mask in [*zip(positions, args, strict=False), *kwargs.items()]:
            if name in names and isinstance(mask, Tensor) and _marks(mask, _REFUSED.get(name, 1)):
                raise InputError(
                    f"The part {where!r} of the model is given a mask of padding ({name}) that the batch does not "
                    "have, so padding would count in errors and losses like the rest; give the mask in the batch as "
                    "'attention_mask', or samples one by one, without padding."
                )

    return look


def _marks(mask: Tensor, real: int) -> bool:
    """Whether a mask ``(samples, positions)`` marks some padding."""
    if mask.is_meta or mask.ndim != 2:
        return False
    if mask.is_floating_point() and not real:  # added to the attention's scores
        return bool((mask <= _BLOCKED).any())
    return bool((mask != 0).logical_not().any() if real else (mask != 0).any())


@dataclass(frozen=True, eq=False)
class Part:
    """Some samples of a batch, without padding.

    Attributes:
        rows: which samples of the batch they are.
        batch: what the model is given of them, in the form of the whole batch.
    """

    rows: Int[Tensor, " g"]
    batch: Any


def one_by_one(batch: Any, signature: Signature, number: int = 0) -> list[Any]:
    """The samples of a padded batch, one by one and without padding; a batch without padding as it is.

    Args:
        batch: model inputs: a tensor, a mapping of named or a sequence of positional ones.
        signature: of the model, which names positional inputs.
        number: of the batch, for messages.

    Raises:
        InputError: a mask does not fit, a sample is all padding, or an entry cannot be divided into samples.
    """
    padded = _Padded.found(batch, signature, number)
    return [batch] if padded is None else [padded.part([row]).batch for row in range(padded.samples)]


def equal_lengths(batch: Any, signature: Signature, samples: int) -> list[Part]:
    """A padded batch in parts of samples of one length, without padding; all in one part if there is none.

    Args:
        batch: as for :func:`one_by_one`.
        signature: of the model.
        samples: how many samples the batch has.
    """
    padded = _Padded.found(batch, signature, 0)
    if padded is None:
        return [Part(torch.arange(samples), batch)]
    like: dict[tuple[int, ...], list[int]] = {}
    for row in range(padded.samples):
        like.setdefault(padded.lengths(row), []).append(row)
    return [padded.part(rows) for rows in like.values()]


@dataclass(frozen=True, eq=False)
class _Padded:
    """A batch with padding.

    Attributes:
        entries: its tensors and the rest, by name.
        real: positions that are no padding, by the beginning of names.
        rebuild: entries in the form of the batch.
        number: of the batch.
        encoder_decoder: labels run along the decoder's sequence.
    """

    entries: Mapping[str, Any]
    real: Mapping[str, Bool[Tensor, "B T"]]
    rebuild: Callable[[Mapping[str, Any]], Any]
    number: int
    encoder_decoder: bool

    @classmethod
    def found(cls, batch: Any, signature: Signature, number: int) -> _Padded | None:
        """The batch with the positions that its masks leave; ``None`` if that is all of them."""
        named = _named(batch, signature)
        if named is None:
            return None
        entries, rebuild = named
        _refuse_others(entries, number)
        real: dict[str, Tensor] = {}
        for side, name in _SIDES.items():
            mask = _mask_of(entries, name)
            positions = None if mask is None else _real(mask, f"{name!r} of batch {number}")
            if positions is not None and not positions.all():
                positions = _fitting(positions, mask, _leader(entries, side), f"{name!r} of batch {number}")
            if positions is not None:
                real[side] = positions
        decoder = signature.encoder_decoder or any(name.startswith("decoder_input") for name in entries)
        if decoder and "decoder_" not in real:
            real |= _labelled(entries)
        if all(bool(positions.all()) for positions in real.values()):
            return None
        for side, positions in real.items():
            empty = (~positions.any(1)).nonzero()
            if len(empty):
                what = "has no label but -100" if _mask_of(entries, _SIDES[side]) is None else "is all padding"
                raise InputError(f"Sample {int(empty[0])} of batch {number} {what}; leave that sample out.")
        if len({len(positions) for positions in real.values()}) > 1:
            sizes = ", ".join(f"{len(positions)} in {_SIDES[side]!r}" for side, positions in real.items())
            raise InputError(f"Batch {number} is padded and has {sizes} samples; give one number of samples.")
        return cls(entries, real, rebuild, number, decoder)

    @property
    def samples(self) -> int:
        """How many there are."""
        return len(next(iter(self.real.values())))

    def lengths(self, row: int) -> tuple[int, ...]:
        """Real positions of a sample on each side."""
        return tuple(int(positions[row].sum()) for positions in self.real.values())

    def part(self, rows: Sequence[int]) -> Part:
        """Samples of one length, without padding."""
        which = torch.tensor(rows)
        return Part(which, self.rebuild({name: self._of(name, value, which) for name, value in self.entries.items()}))

    def _of(self, name: str, value: Any, rows: Tensor) -> Any:
        """What some samples have of an entry."""
        if isinstance(value, Mapping):
            return {key: self._of(name, each, rows) for key, each in value.items()}
        if not isinstance(value, Tensor) or value.ndim == 0:
            return value
        rows = rows.to(value.device)
        side = self._side(name, value)
        if side in self.real:
            real = self.real[side].to(value.device)
            places = torch.stack([real[row].nonzero()[:, 0] for row in rows])
            cut = _cut(value, rows, places, real.shape, name.endswith("mask"))
            if cut is not None:
                return cut
        if len(value) == self.samples:
            return value[rows]
        if self.samples == 1:
            return value
        raise InputError(
            f"Batch {self.number} is padded, and its entry {name!r} of shape {tuple(value.shape)} cannot be divided "
            f"into its {self.samples} samples; give the samples one by one, without padding."
        )

    def _side(self, name: str, value: Tensor) -> str:
        """The sequence that an entry runs along, if it does; another word if a sample has one of it."""
        if name.startswith(_PER_SAMPLE) or (_is_label(name) and value.is_floating_point()):
            return "sample"
        if _is_label(name) and self.encoder_decoder:
            return "decoder_"
        return next((side for side in ("decoder_", "encoder_") if name.startswith(side)), "")


def _named(batch: Any, signature: Signature) -> tuple[dict[str, Any], Callable[[Mapping[str, Any]], Any]] | None:
    """A batch's entries by name, and the way back; ``None`` if they have no names."""
    if isinstance(batch, Mapping):
        return dict(batch), dict
    if isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[0], Mapping):
        names = tuple(batch[0])
        return {**batch[0], "labels": batch[1]}, lambda entries: ({n: entries[n] for n in names}, entries["labels"])
    if isinstance(batch, tuple | list) and len(batch) <= len(signature.positions):
        names = signature.positions[: len(batch)]
        return dict(zip(names, batch, strict=True)), lambda entries: tuple(entries[name] for name in names)
    return None


def _is_label(name: str) -> bool:
    return name in ("label", "labels", "target", "targets")


def _mask_of(entries: Mapping[str, Any], name: str) -> Any:
    """A mask, by its own name or by another one beside token ids of its shape."""
    if entries.get(name) is not None or name != _SIDES[""]:
        return entries.get(name)
    ids = _leader(entries, "")
    for other in _OTHER_NAMES:
        mask = entries.get(other)
        if (
            isinstance(mask, Tensor)
            and ids is not None
            and mask.shape == ids[1].shape
            and not ids[1].is_floating_point()
        ):
            return mask
    return None


def _leader(entries: Mapping[str, Any], side: str) -> tuple[str, Tensor] | None:
    """The tensor that has a side's positions."""
    if side == "encoder_":
        names: Sequence[str] = ("encoder_hidden_states",)
    else:
        kinds = ("input_ids", "inputs_embeds", "input_values", "input_features")
        names = [f"{side}{kind}" for kind in kinds]
    named = next((name for name in names if isinstance(entries.get(name), Tensor)), None)
    if named is None and side == "":
        named = next((n for n, v in entries.items() if isinstance(v, Tensor) and v.ndim >= 2 and "mask" not in n), None)
    return None if named is None else (named, entries[named])


def _refuse_others(entries: Mapping[str, Any], number: int) -> None:
    for name, real in _REFUSED.items():
        mask = entries.get(name)
        if isinstance(mask, Tensor) and bool((mask.bool() != bool(real)).any()):
            raise InputError(
                f"The entry {name!r} of batch {number} marks padding that cannot be taken out; give the samples one by "
                "one, without padding."
            )


def _labelled(entries: Mapping[str, Any]) -> dict[str, Tensor]:
    """Positions of a decoder up to its last label, where labels are all that tells them."""
    labels = entries.get("labels")
    if not isinstance(labels, Tensor) or labels.ndim != 2 or labels.is_floating_point():
        return {}
    counted = labels != IGNORED
    return {"decoder_": counted.flip(1).cumsum(1).flip(1) > 0}


def _real(mask: Any, where: str) -> Bool[Tensor, "B T"] | None:
    """The positions that a mask of any form leaves; ``None`` if it says nothing of them."""
    if isinstance(mask, Mapping):  # by the type of attention; a position that one of them sees is real
        some = [found for each in mask.values() if each is not None and (found := _real(each, where)) is not None]
        return functools.reduce(torch.logical_or, some) if some else None
    if not isinstance(mask, Tensor):
        raise InputError(
            f"The entry {where} is of type {type(mask).__name__}, in which padding cannot be seen; give a tensor "
            "(samples, positions), or leave it out."
        )
    if mask.ndim == 2:
        return _two_valued(mask, where)
    attends = mask > _BLOCKED if mask.is_floating_point() else mask != 0
    if mask.ndim == 3:
        attends = attends[:, None]
    if attends.ndim != 4 or attends.shape[2] not in (1, attends.shape[3]):
        if bool((attends if mask.ndim == 4 else mask != 0).all()):
            return None
        raise _wrong(mask, None, where)
    return _seen(attends).any(1)


def _fitting(real: Tensor, mask: Any, leader: tuple[str, Tensor] | None, where: str) -> Bool[Tensor, "B T"]:
    """The positions for each sample; raises :class:`InputError` if they are not those of the inputs."""
    if leader is None:
        return real
    samples, *rest = leader[1].shape
    if len(real) not in (1, samples) or real.shape[1] not in rest:
        raise _wrong(mask, leader, where)
    return real.expand(samples, -1)


def _two_valued(mask: Tensor, where: str) -> Tensor:
    """A mask ``(B, T)`` of ones and zeros; numbers of sequences packed into one count as ones."""
    if mask.is_floating_point() and not bool(((mask == 0) | (mask == 1)).all()):
        raise InputError(
            f"The entry {where} has two dimensions and values other than 0 and 1; give 1 for real positions and 0 for "
            "padding."
        )
    return mask != 0


def _seen(attends: Bool[Tensor, "B heads Q T"]) -> Bool[Tensor, "B heads T"]:
    """Positions that some position attends to.

    Some back-ends want no row without any value and let padding attend to everything. In a mask that is causal but for
    such rows, they are padding, except for the last, which attends to everything by right.
    """
    if attends.shape[2] == 1:
        return attends[:, :, 0]
    full = attends.all(3)
    full[..., -1] = False
    others = attends & ~full[..., None]
    causal = ~torch.triu(others, 1).flatten(2).any(2) & others.flatten(2).any(2)
    return torch.where(causal[..., None], others.any(2), attends.any(2))


def _wrong(mask: Any, leader: tuple[str, Tensor] | None, where: str) -> InputError:
    shapes = [
        tuple(each.shape) for each in (mask.values() if isinstance(mask, Mapping) else [mask]) if each is not None
    ]
    beside = "" if leader is None else f" beside {leader[0]!r} of shape {tuple(leader[1].shape)}"
    return InputError(
        f"The entry {where} has shape {', '.join(map(str, shapes))}{beside}; give (samples, positions), or "
        "(samples, 1, positions, positions)."
    )


def _cut(
    value: Tensor, rows: Int[Tensor, " g"], places: Int[Tensor, "g n"], shape: torch.Size, mask: bool
) -> Tensor | None:
    """The places of some samples along every dimension of positions; ``None`` if the tensor has no such one."""
    samples, length = shape
    if value.shape == (length,) and samples != length:  # the same for all samples
        return value[: places.shape[1]]
    # three kinds of positions a sample, as models of images and text have
    first = 1 if value.ndim == 3 and value.shape[1:] == (samples, length) and len(value) != samples else 0
    own = value.movedim(first, 0)
    axes = [2] if first else _axes(own, length, mask)
    if not axes or len(own) not in (1, samples):
        return None
    own = own.expand(samples, *own.shape[1:])[rows]
    order = torch.arange(len(rows), device=value.device)[:, None]
    for axis in axes:
        own = own.movedim(axis, 1)[order, places].movedim(1, axis)
    return own.movedim(0, first)


def _axes(own: Tensor, length: int, mask: bool) -> list[int]:
    """The dimensions of a tensor ``(samples, ...)`` that run along the sequence."""
    last = own.ndim - 1
    if mask and last > 1:
        return [axis for axis in (last - 1, last) if own.shape[axis] == length]
    if last and own.shape[1] == length:
        return [1]
    # features of a sound, by channel
    return [last] if last > 1 and own.shape[last] == length else []

"""What calibration data may be: arrays, lists, texts, rows of data sets and batches of loaders, as tensors."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Number
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from qubo_prune.data.samples import Samples, to_device
from qubo_prune.errors import InputError
from qubo_prune.files.parsing import one_line
from qubo_prune.models.calls import Call
from qubo_prune.models.load import LoadedModel, device_of, evaluating
from qubo_prune.models.padding import IGNORED
from qubo_prune.models.signature import Signature

#: What may be given, for messages.
ALLOWED = (
    "a text source, token ids, a tensor or array of inputs, batches (a list, a data loader), a data set, or texts with "
    "a tokenizer"
)
_LABELS = ("labels", "label", "target", "targets", "y")
_MASKS = ("attention_mask", "mask", "attn_mask", "head_mask")


@dataclass(frozen=True, eq=False)
class Rows:
    """Samples of a data set, one row each; those of unequal length are padded where they are drawn together.

    Attributes:
        rows: mappings, tuples or tensors, by index; no dimension counts samples.
        read: makes tensors of a row.
    """

    rows: Any
    read: Callable[[Any], Any]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Int[Tensor, " b"]) -> Any:
        """These rows joined, in this order."""
        return joined([self.read(self.rows[int(index)]) for index in indices])


def in_plain_form(source: Any, loaded: LoadedModel, length: int, most: int) -> str | Tensor | Samples | list[Any]:
    """A text source, a tensor, samples, or a list of batches.

    Args:
        source: what was given.
        loaded: the model, and its tokenizer for texts.
        length: tokens of a text, at most.
        most: rows of a data set without a length, at most.

    Raises:
        InputError: it is none of what may be given.
    """
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, Tensor) and source.ndim:
        return source
    if isinstance(source, np.ndarray) and source.ndim:
        return _tensor(source, loaded.model)
    if isinstance(source, Mapping):
        return [_batch(_one_split(source), 0, loaded.model)]
    if _has_rows(source):
        return _rows(source, loaded, length, most)
    if isinstance(source, Samples):
        return source
    if source is None or isinstance(source, bytes | Number | Tensor | np.ndarray) or not _iterable(source):
        raise InputError(f"The calibration is {_shown(source)}; give {ALLOWED}.")
    if type(source).__name__ in ("DataFrame", "Series"):
        raise InputError(f"The calibration is a {type(source).__name__}; give its values as an array, or {ALLOWED}.")
    return _listed(list(source), loaded, length)


def _listed(items: list[Any], loaded: LoadedModel, length: int) -> Tensor | Samples | list[Any]:
    """What is in a list or came out of an iterator."""
    if items and isinstance(items[0], str):
        return _texts(items, loaded, length)
    if items and isinstance(items[0], Number | np.generic):
        items = [items]
    if items and all(_of_numbers(item) for item in items):
        arrays = [_tensor(item, None, f"Entry {at}") for at, item in enumerate(items)]
        if any(each.is_floating_point() for each in arrays):
            return _stacked([each.to(_dtype(loaded.model)) for each in arrays], "calibration")
        return [each if each.ndim > 1 else each[None] for each in arrays]
    return [_batch(item, number, loaded.model) for number, item in enumerate(items)]


def _shown(source: Any) -> str:
    text = repr(source) if source is None or isinstance(source, Number | bytes) else "an object"
    return f"{text if len(text) < 60 else 'an object'} of type {type(source).__name__}"


def _iterable(source: Any) -> bool:
    return isinstance(source, Iterable) or hasattr(source, "__getitem__")


def _one_split(source: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """A mapping that is a batch; raises :class:`InputError` for one of data sets."""
    if any(_has_rows(value) for value in source.values()):
        raise InputError(
            f"The calibration has the splits {', '.join(map(str, source))}; give one of them, such as "
            f"data[{next(iter(source))!r}]."
        )
    return source


# -- tensors


def _dtype(model: nn.Module) -> torch.dtype:
    """The type of the model's weights, which arrays of numbers are given."""
    floats = (each.dtype for each in model.parameters() if each.is_floating_point())
    return next(floats, torch.get_default_dtype())


def _tensor(array: Any, model: nn.Module | None, where: str = "The calibration") -> Tensor:
    """An array or a list of numbers as a tensor; integers of any width as int64, the rest as the model's weights."""
    try:
        found = np.asarray(array)
    except ValueError:
        raise InputError(f"{where} holds rows of unequal length; give token ids, or pad or cut all to one.") from None
    if found.dtype.kind in "iu":
        if found.size and found.max() > np.iinfo(np.int64).max:
            raise InputError(
                f"{where} holds the integer {found.max()}; those of up to {np.iinfo(np.int64).max} are taken."
            )
        return torch.from_numpy(found.astype(np.int64))
    if found.dtype.kind == "b":
        return torch.from_numpy(found.copy())
    if found.dtype.kind != "f":
        raise InputError(f"{where} is an array of type {found.dtype}; give numbers.")
    return torch.from_numpy(found.astype(np.float64)).to(torch.float32 if model is None else _dtype(model))


def _of_numbers(item: Any) -> bool:
    """Whether it is a list of numbers, or of such lists."""
    if not isinstance(item, list | tuple) or not item:
        return False
    return all(isinstance(each, Number | np.generic) for each in item) or all(map(_of_numbers, item))


def _ragged(item: Any) -> bool:
    """Whether it is a list of lists of numbers, of unequal length."""
    return _of_numbers(item) and all(map(_of_numbers, item)) and len({len(each) for each in item}) > 1


def _batch(item: Any, number: int, model: nn.Module) -> Any:
    """A batch with tensors for its arrays and lists of numbers."""
    if isinstance(item, str):
        raise InputError(f"Batch {number} is a text and others are not; give texts alone, or batches of tensors.")
    if item is None or isinstance(item, Number):
        raise InputError(f"Batch {number} is {_shown(item)}; give tensors, tuples or dicts of tensors.")
    if isinstance(item, Mapping):
        return _named_batch(item, number, model)
    if isinstance(item, np.ndarray):
        item = _tensor(item, model, f"Batch {number}")
    if isinstance(item, Tensor):
        ids = item.ndim == 1 and not item.is_floating_point() and hasattr(model, "config")
        return item[None] if ids else item
    if isinstance(item, tuple | list):
        entries = [_entry(each, f"Batch {number}", model) for each in item]
        if len(entries) == 2 and isinstance(entries[0], dict) and isinstance(entries[1], Tensor):
            return {**entries[0], "labels": entries[1]}
        return entries if isinstance(item, list) else tuple(entries)
    return item


def _entry(value: Any, where: str, model: nn.Module) -> Any:
    if isinstance(value, np.ndarray) or _of_numbers(value):
        return _tensor(value, model, where)
    return {name: _entry(each, where, model) for name, each in value.items()} if isinstance(value, Mapping) else value


def _named_batch(item: Mapping[str, Any], number: int, model: nn.Module) -> dict[str, Any]:
    """A batch of names, as a tokenizer gives it; one text alone gets the dimension of samples."""
    entries = {_renamed(name, item): value for name, value in item.items()}
    if any(_ragged(value) for value in entries.values()):
        count = len(next(value for value in entries.values() if _ragged(value)))
        rows = [{name: value[row] for name, value in entries.items()} for row in range(count)]
        return dict(joined([{name: _entry(v, f"Batch {number}", model) for name, v in row.items()} for row in rows]))
    found = {name: _entry(value, f"Batch {number}, entry {name!r},", model) for name, value in entries.items()}
    ids = found.get("input_ids")
    if isinstance(ids, Tensor) and ids.ndim == 1:
        return {name: value[None] if isinstance(value, Tensor) else value for name, value in found.items()}
    return found


def _renamed(name: str, among: Mapping[str, Any]) -> str:
    """``label`` and ``label_ids`` as transformers calls them."""
    return "labels" if name in ("label", "label_ids") and "labels" not in among and "input_ids" in among else name


def joined(rows: Sequence[Any]) -> Any:
    """Rows of one structure as a batch; sequences of unequal length are padded, and their mask says so."""
    first = rows[0]
    if isinstance(first, Mapping):
        batch = {name: _stacked([row[name] for row in rows], name) for name in first}
        lengths = [len(row["input_ids"]) for row in rows if "input_ids" in row]
        if len(set(lengths)) > 1 and "attention_mask" not in batch:
            width = torch.arange(max(lengths))
            batch["attention_mask"] = (width < torch.tensor(lengths)[:, None]).long()
        return batch
    if isinstance(first, tuple | list):
        return tuple(_stacked(list(each), str(at)) for at, each in enumerate(zip(*rows, strict=True)))
    return _stacked(list(rows), "0")


def _stacked(values: Sequence[Any], name: str) -> Tensor:
    """Entries of rows, padded behind if they are sequences of integers."""
    tensors = [value if isinstance(value, Tensor) else torch.as_tensor(value) for value in values]
    shapes = {tuple(each.shape) for each in tensors}
    if len(shapes) == 1:
        return torch.stack(list(tensors))
    if any(each.ndim == 0 or each.is_floating_point() or each.shape[1:] != tensors[0].shape[1:] for each in tensors):
        raise InputError(
            f"Entry {name!r} has shapes {', '.join(map(str, sorted(shapes)[:3]))} in one data set; pad or cut all "
            "samples to one shape."
        )
    fill = IGNORED if name in _LABELS else 0
    return torch.nn.utils.rnn.pad_sequence(list(tensors), batch_first=True, padding_value=fill)


# -- texts


def _texts(items: list[Any], loaded: LoadedModel, length: int) -> list[Any]:
    """Token ids of texts, one by one."""
    wrong = next((at for at, item in enumerate(items) if not isinstance(item, str)), None)
    if wrong is not None:
        raise InputError(
            f"Entry {wrong} of the calibration is {type(items[wrong]).__name__}, and others are texts; give texts "
            "alone, or batches of tensors."
        )
    files = [item for item in items if len(item) < 200 and "\n" not in item and "/" in item and Path(item).is_file()]
    if files:
        raise InputError(
            f"The calibration is a list, whose entries are taken for texts, and {files[0]!r} is a file; give one file "
            "or folder as text source, or the texts themselves."
        )
    return [_ids(text, loaded, length, f"Text {at}")["input_ids"][None] for at, text in enumerate(items)]


def _ids(text: str, loaded: LoadedModel, length: int, where: str) -> dict[str, Tensor]:
    """Token ids ``(T,)`` of a text."""
    if loaded.tokenizer is None:
        raise InputError("The calibration holds texts, which need a tokenizer; pass tokenizer=, or give token ids.")
    ids = loaded.tokenizer(text, truncation=True, max_length=length, return_attention_mask=False)["input_ids"]
    if not ids:
        raise InputError(f"{where} has no tokens; leave it out.")
    return {"input_ids": torch.tensor(ids)}


# -- rows


def _has_rows(source: Any) -> bool:
    """Whether it is a data set of rows, of the package datasets or of PyTorch."""
    columns = hasattr(source, "column_names") and hasattr(source, "features")
    data_set = isinstance(source, torch.utils.data.Dataset) and not hasattr(source, "batch")
    return columns or data_set


def _rows(source: Any, loaded: LoadedModel, length: int, most: int) -> Rows:
    """A data set as samples, by the columns that the model takes, or by its texts."""
    if not hasattr(source, "__getitem__") or not hasattr(source, "__len__"):
        source = list(itertools.islice(iter(source), most))
    if not len(source):
        raise InputError("The calibration is a data set without rows; give at least one.")
    first = source[0]
    if not isinstance(first, Mapping):
        return Rows(source, lambda row: _row(row, loaded.model))
    signature = Signature.of(loaded.model)
    names = {name: _renamed(name, {**first, "input_ids": 0}) for name in first}
    known = any(new in signature.names for new in names.values())
    open_to_all = signature.open and not known and "text" not in first
    taken = {old: new for old, new in names.items() if new == "labels" or new in signature.names or open_to_all}
    if any(new != "labels" for new in taken.values()):
        return Rows(source, lambda row: {new: _cell(row[old], old, loaded.model) for old, new in taken.items()})
    if not isinstance(first.get("text"), str):
        raise InputError(
            f"The data set has the columns {', '.join(first)}, and the model takes {', '.join(signature.positions)}; "
            "rename its columns, or map them to the model's inputs."
        )
    labels = next((old for old, new in taken.items() if new == "labels"), None)

    def read(row: Mapping[str, Any]) -> dict[str, Any]:
        beside = {} if labels is None else {"labels": _cell(row[labels], labels, loaded.model)}
        return _ids(row["text"], loaded, length, "A text of the data set") | beside

    return Rows(source, read)


def _row(row: Any, model: nn.Module) -> Any:
    if isinstance(row, tuple | list) and not _of_numbers(row):
        return tuple(_cell(each, str(at), model) for at, each in enumerate(row))
    return _cell(row, "0", model)


def _cell(value: Any, name: str, model: nn.Module) -> Tensor:
    """One entry of a row as a tensor."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Number | np.generic | np.ndarray | list | tuple):
        return _tensor(value, model, f"The column {name!r}")
    raise InputError(
        f"The column {name!r} of the data set holds {type(value).__name__}; map it to tensors first, as the model's "
        "processor does."
    )


# -- labels among inputs


def without_labels(batch: Any, loaded: LoadedModel, number: int) -> Any:
    """What the model is called with of a batch whose labels no loss takes.

    Labels are told from inputs by the names of the forward pass, or by whether it runs with them.

    Raises:
        InputError: an entry is not taken by the model, or it runs neither with the second entry nor without.
    """
    signature, transformers = Signature.of(loaded.model), hasattr(loaded.model, "config")
    if isinstance(batch, Mapping):
        unused = {
            name
            for name in batch
            if name in _LABELS and (not signature.takes(name) or (transformers and not signature.encoder_decoder))
        }
        left = {name: value for name, value in batch.items() if name not in unused}
        wrong = next((name for name in left if not signature.takes(str(name))), None)
        if wrong is not None:
            raise InputError(
                f"Batch {number} has the entry {wrong!r}, which the forward pass of {type(loaded.model).__name__} does "
                f"not take; leave it out, or give some of {', '.join(sorted(signature.names))}."
            )
        return left if unused else batch
    if not isinstance(batch, tuple | list) or len(batch) != 2 or not isinstance(batch[1], Tensor):
        return batch
    return batch if _takes_both(batch, signature, loaded, number) else batch[0]


def _takes_both(batch: Sequence[Any], signature: Signature, loaded: LoadedModel, number: int) -> bool:
    """Whether both entries of a pair are inputs."""
    first, second = batch
    if not signature.open and len(signature.positions) < 2:
        return False
    if len(signature.positions) > 1:
        name, required = signature.positions[1], signature.required > 1
        if name in _LABELS and not required:
            return False
        if name in _MASKS:
            return second.ndim > 1 and second.shape[0] in (1, len(first))
        if required:
            return True
    if not loaded.shelf.in_memory:
        return True
    with_both = _failure(loaded.model, first, second)
    if with_both is None:
        return True
    if _failure(loaded.model, first) is None:
        return False
    raise InputError(
        f"The model takes neither both tensors of batch {number} nor the first alone ({with_both}); give dicts of its "
        "inputs, or loss='classification' if the second are labels."
    )


def check_without_padding(sample: Any, loaded: LoadedModel, number: int) -> None:
    """Raise :class:`InputError` if a model of sounds needs the padding that was taken out of a batch."""
    sound = isinstance(sample, Mapping) and ("input_features" in sample or "input_values" in sample)
    failure = _failure(loaded.model, **sample) if sound and loaded.shelf.in_memory else None
    if failure is not None:
        raise InputError(
            f"{type(loaded.model).__name__} does not run on the samples of batch {number} without their padding "
            f"({failure}); leave 'attention_mask' out if the model reads all positions, or give samples of full length."
        )


def _failure(model: nn.Module, *inputs: Any, **named: Any) -> str | None:
    """What goes wrong when a model is called; ``None`` if nothing does."""
    device = device_of(model)
    try:
        with torch.no_grad(), evaluating(model):
            Call(to_device(inputs, device), to_device(named, device)).run(model)
    except InputError:  # the memory ran out, or the inputs cannot be copied
        raise
    except Exception as error:  # whatever a foreign model raises
        return f"{type(error).__name__}: {one_line(str(error), 150)}"
    return None

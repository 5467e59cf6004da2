"""Language models whose weights stay on the disk: one decoder layer is in memory at a time."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from qubo_prune.errors import InputError
from qubo_prune.files.digests import digest_of_model
from qubo_prune.files.outputs import LISTING
from qubo_prune.files.parsing import expanded
from qubo_prune.files.safetensors import INDEX, Checkpoint, is_checkpoint
from qubo_prune.files.states import StateFile
from qubo_prune.models.layers import Layer, every_layer, within
from qubo_prune.models.load import LoadedModel, usable_device
from qubo_prune.models.stack import find_stack
from qubo_prune.models.storage import Change, States, WeightStorage

#: Files of a checkpoint's folder that belong to a model besides its weights.
_BESIDES = {".json", ".txt", ".model", ".jinja", ".py", ".md", ".tiktoken"}


class OnDisk(WeightStorage):
    """A model whose parameters are on the ``meta`` device but for those outside its decoder layers.

    The forward pass of a decoder layer loads what it needs and drops it again, unless it is :meth:`resident`.

    Args:
        checkpoint: that holds the weights.
        model: all of whose parameters are on ``meta``, and whose buffers are not; those outside its decoder layers
            are loaded.
        device: where weights are loaded to.
        scratch: a folder for hidden states.

    Raises:
        InputError: the model has no stack of decoder layers, or other weights than the checkpoint.
    """

    in_memory = False

    def __init__(self, checkpoint: Checkpoint, model: nn.Module, device: torch.device, scratch: Path) -> None:
        self._checkpoint, self._model, self._device, self._scratch = checkpoint, model, device, scratch
        self._stored: dict[int, str] = {}  # names in the checkpoint by the parameters on meta
        self._changes: dict[str, Change] = {}  # by those names
        self._dense: list[DenseWeights] = []
        self._names = _Names(checkpoint, model)
        for parameter, names in _by_identity(model):
            self._stored[id(parameter)] = self._names.of(names, parameter)
        self._placeholders = list(model.parameters())  # while they live, nothing else has their identities
        self.blocks = find_stack(model, every_layer(model))
        if self.blocks is None:
            raise InputError(
                "The model has no stack of decoder layers that could be loaded one after another; give "
                "weights='memory'."
            )
        self._load_outside()
        for block in self.blocks:
            block.__dict__["forward"] = functools.partial(self._run, block, block.forward)

    def check(self, layers: Sequence[Layer]) -> None:
        """Raise :class:`InputError` if a layer to be pruned is outside the decoder layers."""
        assert self.blocks is not None
        inside = {layer.name for block in self.blocks for layer in within(layers, block)}
        for layer in layers:
            if layer.name not in inside:
                raise InputError(
                    f"The layer {layer.name!r} is outside the stack of decoder layers, and with weights='disk' only "
                    "those inside can be pruned; leave it out by prune_head or exclude, or give weights='memory'."
                )

    @contextmanager
    def resident(self, module: nn.Module) -> Iterator[None]:
        """The module's weights are in memory; those that were not before are dropped in the end."""
        loaded: list[tuple[nn.Module, str, nn.Parameter]] = []
        try:
            for part in module.modules():
                for name, parameter in part._parameters.items():
                    if parameter is not None and parameter.is_meta:
                        part._parameters[name] = self._load(parameter)
                        loaded.append((part, name, parameter))
            yield
        finally:
            for part, name, parameter in loaded:
                part._parameters[name] = parameter
            if loaded:
                for dense in self._dense:
                    dense.let_go()

    def changed(self, layer: Layer, change: Change) -> None:
        """What is loaded and written of this layer is changed from now on."""
        self._changes[self._names.at(layer.parameter_name)] = change

    def dense_weights(self) -> MutableMapping[str, Tensor]:
        """Read from the checkpoint again once their decoder layer is not resident."""
        layers = {layer.name: layer for layer in every_layer(self._model)}
        weights = DenseWeights(lambda name: self._dense_matrix(layers[name]))
        self._dense.append(weights)
        return weights

    def states(self, tensors: Iterable[Tensor] = ()) -> States:
        """In a file."""
        return StateFile(self._scratch, tensors)

    def digest(self) -> str:
        """The same as of the model in memory."""
        parameters = dict(self._model.named_parameters(remove_duplicate=False))

        def stored(name: str, tensor: Tensor) -> Tensor:
            return self._as_stored(parameters[name]).to(tensor.dtype) if tensor.is_meta else tensor

        return digest_of_model(self._model, stored)

    def saves(self) -> Callable[[Path], None] | None:
        """Copies the checkpoint with its changes, and the files beside it."""
        return self._save

    def _save(self, folder: Path) -> None:
        for file in sorted(self._checkpoint.folder.iterdir()):
            if file.is_file() and file.suffix in _BESIDES and file.name not in (INDEX, LISTING, "report.json"):
                shutil.copyfile(file, folder / file.name)
        self._checkpoint.write(folder, self._with_change)

    def _with_change(self, name: str, tensor: Tensor) -> Tensor:
        change = self._changes.get(name)
        return tensor if change is None else change(tensor).to(tensor.dtype)

    def _as_stored(self, parameter: nn.Parameter) -> Tensor:
        return self._checkpoint.read(self._stored[id(parameter)])

    def _load(self, parameter: nn.Parameter) -> nn.Parameter:
        stored = self._with_change(self._stored[id(parameter)], self._as_stored(parameter))
        return nn.Parameter(stored.to(self._device, parameter.dtype), requires_grad=False)

    def _dense_matrix(self, layer: Layer) -> Tensor:
        dtype = layer.parameter.dtype
        stored = self._checkpoint.read(self._names.at(layer.parameter_name))
        return layer.as_matrix(stored.to(self._device, dtype))

    def _load_outside(self) -> None:
        assert self.blocks is not None
        inside = {id(part) for block in self.blocks for part in block.modules()}
        loaded: dict[int, nn.Parameter] = {}  # tied ones stay tied
        for part in self._model.modules():
            if id(part) in inside:
                continue
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    if id(parameter) not in loaded:
                        loaded[id(parameter)] = self._load(parameter)
                    part._parameters[name] = loaded[id(parameter)]
        persistent = self._model.state_dict()
        for path, buffer in list(self._model.named_buffers()):
            stored = self._checkpoint.read(self._names.at(path)) if path in persistent else buffer
            if stored.is_meta:
                raise InputError(f"The buffer {path!r} of the model is in no checkpoint; give weights='memory'.")
            owner, _, name = path.rpartition(".")
            self._model.get_submodule(owner)._buffers[name] = stored.to(self._device, buffer.dtype)

    def _run(self, block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self.resident(block):
            return forward(*args, **kwargs)


class _Names:
    """From a model's names to those in its checkpoint, where the model without its head may have been saved."""

    def __init__(self, checkpoint: Checkpoint, model: nn.Module) -> None:
        self._checkpoint = checkpoint
        self._prefix = f"{getattr(model, 'base_model_prefix', '')}."

    def find(self, name: str) -> str | None:
        """The name in the checkpoint, if it is there."""
        short = name.removeprefix(self._prefix)
        return next((one for one in (name, short) if one in self._checkpoint.places), None)

    def at(self, name: str) -> str:
        """The name in the checkpoint; raises :class:`InputError` if it is not there."""
        found = self.find(name)
        if found is None:
            raise InputError(
                f"The checkpoint {str(self._checkpoint.folder)!r} has no tensor {name!r}, which the model needs; one "
                "that is converted while it is loaded can be pruned with weights='memory' only."
            )
        return found

    def of(self, names: list[str], parameter: nn.Parameter) -> str:
        """The same of a parameter that goes by several names; all that are there must be equal."""
        there = list(dict.fromkeys(found for found in map(self.find, names) if found is not None))
        chosen = there[0] if there else self.at(names[0])
        place = self._checkpoint.places[chosen]
        if place.shape != tuple(parameter.shape):
            raise InputError(
                f"The tensor {chosen!r} of the checkpoint has shape {place.shape}, and the model needs "
                f"{tuple(parameter.shape)}; config.json and weights do not belong together."
            )
        for other in there[1:]:
            if not torch.equal(self._checkpoint.read(other), self._checkpoint.read(chosen)):
                raise InputError(
                    f"The model ties {chosen!r} and {other!r}, and the checkpoint has different values for them; set "
                    "tie_word_embeddings in config.json to false, or save the model anew."
                )
        return chosen


class DenseWeights(MutableMapping[str, Tensor]):
    """Matrices by the names of their layers; those that were let go are read again.

    Args:
        read: gives the dense matrix of a layer.
    """

    def __init__(self, read: Callable[[str], Tensor]) -> None:
        self._read = read
        self._held: dict[str, Tensor | None] = {}

    def let_go(self) -> None:
        """Take no memory."""
        self._held = dict.fromkeys(self._held)

    def __getitem__(self, name: str) -> Tensor:
        held = self._held[name]
        return self._read(name) if held is None else held

    def __setitem__(self, name: str, matrix: Tensor) -> None:
        self._held[name] = matrix

    def __delitem__(self, name: str) -> None:
        del self._held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


def _by_identity(model: nn.Module) -> Iterator[tuple[nn.Parameter, list[str]]]:
    """Parameters with all their names."""
    found: dict[int, tuple[nn.Parameter, list[str]]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), (parameter, []))[1].append(name)
    yield from found.values()


def load_on_disk(
    name: str, device: str, trust_remote_code: bool, scratch: Path, dtype: torch.dtype | None = None
) -> LoadedModel:
    """A causal language model whose decoder layers are loaded one at a time.

    Args:
        name: a folder that ``save_pretrained`` wrote.
        device: where weights are loaded to.
        trust_remote_code: run model code that comes with the checkpoint.
        scratch: a folder for hidden states.
        dtype: of the loaded weights; the checkpoint's own by default.

    Raises:
        InputError: there is no such folder, or the model cannot be taken apart.
    """
    folder = expanded(name)
    if not is_checkpoint(folder):
        raise InputError(
            f"weights='disk' needs a local folder of safetensors files, and {name!r} is none; download or convert the "
            "model first, or give weights='memory'."
        )
    where, checkpoint = usable_device(device), Checkpoint(folder)
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        if getattr(config, "quantization_config", None) is not None:
            raise InputError(
                f"The weights in {name!r} are quantised; give a checkpoint of plain floating point weights."
            )
        own = getattr(config, "dtype", None) or _first_type(checkpoint)
        # buffers such as rotary frequencies are in no checkpoint, so they are made for real
        with _EmptyOnMeta(), init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype or own, trust_remote_code=trust_remote_code)
        model.tie_weights()  # each parameter came to meta for itself
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"The model {name!r} could not be made ({type(error).__name__}: {reason}).") from error
    return LoadedModel(model.eval(), tokenizer, name, OnDisk(checkpoint, model, where, scratch))


class _EmptyOnMeta(TorchFunctionMode):
    """``torch.empty``, which weights begin as, takes no memory.

    It would not be used, but freed at once between small things that stay, so that address space would grow with the
    model.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is torch.empty and given.get("device") is None:
            given["device"] = "meta"
        return func(*args, **given)


def _first_type(checkpoint: Checkpoint) -> torch.dtype:
    floating = (place.dtype for place in checkpoint.places.values() if place.dtype.is_floating_point)
    return next(floating, torch.float32)

"""Gradients of single samples, of whole layers or of the selected weights only.

A weight's gradient for sample b is ``G_b = sum_t o_bt a_bt'`` with ``a_bt`` what the layer read at
position t and ``o_bt`` the gradient of the sample's loss by the layer's output there. Both are seen in
one backward pass over a micro-batch, for all layers; what is kept of them is decided layer by layer
while it runs. So no parameter gradient of the model is ever formed, and the memory is that of the
activations of one micro-batch plus what is asked for: ``B n`` for n weights of B samples, or
``2 d_out d_in`` for the moments of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from qubo_prune.data.losses import Objective, fits, in_order
from qubo_prune.data.samples import Samples
from qubo_prune.errors import InputError
from qubo_prune.models.layers import Layer
from qubo_prune.models.load import evaluating, hooked
from qubo_prune.precision import caller_defaults, pinned

# floats in the working arrays of one layer
_ROOM = 2**25


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and mean square of a layer's per-sample gradients, float32, ``(d_out, d_in)``.

    Attributes:
        mean: ``1/B sum_b G_b``, the gradient of the mean loss; zero where none came back.
        square: ``1/B sum_b G_b^2``, the diagonal of the empirical Fisher matrix.
        samples: B.
        read: mean square of each input over samples and positions, ``(groups, d_in)``.
        returned: mean over samples of ``sum_t o_t^2`` for each output, ``(d_out,)``.
        positions: from how many positions of all samples a gradient came back to the layer.
    """

    mean: Float[Tensor, "d_out d_in"]
    square: Float[Tensor, "d_out d_in"]
    samples: int
    read: Float[Tensor, "groups d_in"]
    returned: Float[Tensor, " d_out"]
    positions: int = 0

    @property
    def reached(self) -> bool:
        """True if a gradient came back that is not zero throughout; else nothing is known of the layer."""
        return self.positions > 0 and any(bool(part.any()) for part in (self.mean, self.square, self.returned))

    @property
    def uncertainty(self) -> Float[Tensor, "d_out d_in"]:
        """Standard error of the mean: ``sqrt((square - mean^2) / B)``."""
        return ((self.square - self.mean**2).clamp(min=0) / self.samples).sqrt()

    @property
    def input_power(self) -> Float[Tensor, "d_out d_in"]:
        """``read`` as every row of the matrix meets it."""
        return self.read.repeat_interleave(len(self.returned) // len(self.read), 0)

    @property
    def factored(self) -> Float[Tensor, "d_out d_in"]:
        """``returned_i read_j``: the mean square as if inputs and returning gradients were independent.

        Where large inputs meet a saturated function, as a language model's few massive activations
        do, the gradient of a weight is tiny and ``square`` says nothing of what its removal does; this does.
        """
        return self.returned[:, None] * self.input_power


#: Called with a layer, the samples' places in the batch, what it read and what came back.
Consume = Callable[[Layer, Tensor, Tensor, Tensor], None]


@pinned()
def moments(
    objective: Objective, samples: Samples, indices: Int[Tensor, " B"], layers: Sequence[Layer], group: int = 1
) -> dict[str, Moments]:
    """:class:`Moments` of whole layers, by layer name, from one pass over a batch.

    Memory: two float32 matrices a layer, and the activations of one micro-batch.

    Args:
        objective: model and loss.
        samples: where the batch comes from.
        indices: the batch.
        layers: which layers.
        group: in layers with several positions, gradients of so many samples are added up before they
            are squared, which is that much faster; the mean square then is an estimate, by
            ``E (sum_k G)^2 = k var G + k^2 (E G)^2`` for independent samples.
    """
    sums = {layer.name: _Sums.of(layer) for layer in layers}

    def add(layer: Layer, rows: Tensor, inputs: Tensor, outputs: Tensor) -> None:
        sums[layer.name].add(inputs, outputs, group)

    backward(objective, samples, indices, layers, add)
    # one by one, so that sums and moments are not held twice
    return {name: sums.pop(name).finish(len(indices)) for name in list(sums)}


@dataclass
class _Sums:
    """Running sums of one layer: ``sum S`` and ``sum S^2 / k`` over groups of k samples with sum S."""

    layer: Layer
    first: Tensor
    second: Tensor
    read: Tensor
    returned: Tensor
    groups: int = 0
    positions: int = 0

    @classmethod
    def of(cls, layer: Layer) -> _Sums:
        d_out, d_in = layer.shape
        shapes = ((d_out, d_in), (d_out, d_in), (layer.groups, d_in), (d_out,))
        zeros = [torch.zeros(shape, device=layer.parameter.device, dtype=torch.float32) for shape in shapes]
        return cls(layer, zeros[0], zeros[1], zeros[2], zeros[3])

    def add(self, inputs: Tensor, outputs: Tensor, group: int) -> None:
        self.read += inputs.square().sum((0, 1))
        self.returned += outputs.square().sum((0, 1))
        self.positions += inputs.shape[0] * inputs.shape[1]
        if inputs.shape[1] == 1 and self.layer.groups == 1:  # one position: products of sums are sums of products
            a, o = inputs[:, 0, 0], outputs[:, 0]
            self.first.addmm_(o.T, a)
            self.second.addmm_((o * o).T, a * a)
            self.groups += len(a)
            return
        for a, o in zip(torch.split(inputs, group), torch.split(outputs, group), strict=True):
            total = whole(self.layer, a.flatten(0, 1)[None], o.flatten(0, 1)[None])[0]
            self.first += total
            self.second.addcmul_(total, total, value=1 / len(a))
            self.groups += 1

    def finish(self, samples: int) -> Moments:
        mean = self.first / max(1, samples)
        # no pass reached the layer: its gradient is zero
        variance = (self.second - samples * mean**2) / max(1, self.groups)
        read, returned = self.read / max(1, self.positions), self.returned / max(1, samples)
        return Moments(mean, variance.clamp_(min=0) + mean**2, samples, read, returned, self.positions)


def whole(
    layer: Layer, inputs: Float[Tensor, "b T groups d_in"], outputs: Float[Tensor, "b T d_out"]
) -> Float[Tensor, "b d_out d_in"]:
    """``G_b`` of a whole layer for each sample."""
    b, positions, groups, d_in = inputs.shape
    if groups == 1:
        return torch.bmm(outputs.transpose(1, 2), inputs[:, :, 0])
    apart = outputs.reshape(b, positions, groups, -1)
    return torch.einsum("btgo,btgi->bgoi", apart, inputs).reshape(b, -1, d_in)


@dataclass(frozen=True, eq=False)
class Entries:
    """Some weights of one layer, by row and column of its matrix."""

    layer: Layer
    rows: Int[Tensor, " n"]
    columns: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, matrix: Tensor) -> Tensor:
        """Their values in a matrix ``(d_out, d_in)``."""
        return matrix[self.rows, self.columns]

    def gradients(
        self, inputs: Float[Tensor, "b T groups d_in"], outputs: Float[Tensor, "b T d_out"]
    ) -> Float[Tensor, "b n"]:
        """``G_b`` at these weights for each sample."""
        layer, (_, positions, groups, _) = self.layer, inputs.shape
        # gathered products take T n multiplications, slow ones; a matrix product T d_out d_in fast ones
        if positions > 1 and 16 * len(self) > layer.parameter.numel():
            parts = _chunks(inputs, outputs, layer.parameter.numel())
            return torch.cat([whole(layer, a, o)[:, self.rows, self.columns] for a, o in parts])
        place = self.rows // (layer.shape[0] // groups) * inputs.shape[3] + self.columns
        flat = inputs.flatten(2)
        parts = _chunks(flat, outputs, positions * len(self))
        return torch.cat([(a[:, :, place] * o[:, :, self.rows]).sum(1) for a, o in parts])


@dataclass(frozen=True, eq=False)
class BlockGradients:
    """Per-sample gradients at the weights of some blocks.

    Attributes:
        given: ``(B, n)`` a block, with the samples' own labels, float32; their mean is the gradient of
            the loss.
        curvature: ``(B, n)`` a block, the factor of the Fisher matrix ``H = 1/B G'G``: with labels drawn
            from the model's distribution, or ``given`` itself for the empirical Fisher matrix.
        losses: ``(B,)`` the samples' losses, float64.
    """

    given: list[Float[Tensor, "B _"]]
    curvature: list[Float[Tensor, "B _"]]
    losses: Float[Tensor, " B"]


@pinned()
def block_gradients(
    objective: Objective,
    samples: Samples,
    indices: Int[Tensor, " B"],
    blocks: Sequence[Sequence[Entries]],
    drawn: torch.Generator | None = None,
) -> BlockGradients:
    """Per-sample gradients of blocks, each made of entries of one or more layers, from one pass.

    Memory: ``4 B n`` bytes a block (twice that with drawn labels), and one micro-batch's activations.

    Args:
        objective: model and loss.
        samples: where the batch comes from.
        indices: the batch.
        blocks: parts of blocks; the columns of a block's gradients are those of its parts in turn.
        drawn: source of the labels for the curvature; ``None`` for the empirical Fisher matrix.
    """
    widths = [sum(map(len, parts)) for parts in blocks]
    places = [parts[0].layer.parameter.device for parts in blocks]
    kinds = 1 if drawn is None else 2
    # zeros: nothing comes back from a layer that the loss does not depend on
    found = [
        [torch.zeros(len(indices), n, device=device) for n, device in zip(widths, places, strict=True)]
        for _ in range(kinds)
    ]
    wanted: dict[str, list[tuple[int, slice, Entries]]] = {}
    for number, parts in enumerate(blocks):
        at = 0
        for entries in parts:
            place = slice(at, at + len(entries))
            wanted.setdefault(entries.layer.name, []).append((number, place, entries))
            at += len(entries)
    layers = list({entries.layer.name: entries.layer for parts in blocks for entries in parts}.values())

    def fill(kind: int) -> Consume:
        def consume(layer: Layer, rows: Tensor, inputs: Tensor, outputs: Tensor) -> None:
            for number, place, entries in wanted[layer.name]:
                into = found[kind][number]
                into[rows.to(into.device), place] = entries.gradients(inputs, outputs).to(into.device)

        return consume

    losses = backward(objective, samples, indices, layers, fill(0), fill(1) if drawn is not None else None, drawn)
    return BlockGradients(found[0], found[-1], losses)


@pinned()
def separable(objective: Objective, samples: Samples, layers: Sequence[Layer], seed: int) -> bool:
    """Whether two samples have the same gradients together as each alone, at random weights of every layer.

    They have not where a model puts another dimension first, as some sequence models do, or regroups
    rows, as mixtures of experts do: what a layer reads then cannot be assigned to samples in a batch.
    """
    if len(samples) < 2:
        return True
    draw = torch.Generator().manual_seed(seed)
    block = []
    for layer in layers:
        rows, columns = (torch.randint(size, (16,), generator=draw) for size in layer.shape)
        device = layer.parameter.device
        block.append(Entries(layer, rows.to(device), columns.to(device)))
    pair = torch.arange(2)
    try:
        together, alone = (
            block_gradients(replace(objective, micro_batch=size), samples, pair, [block]).given[0] for size in (2, 1)
        )
    except InputError:
        return False
    scale = alone.abs().amax().clamp(min=1e-30)
    return bool(((together - alone).abs().amax() / scale) < 0.01)


def without_gradient(
    objective: Objective, samples: Samples, indices: Int[Tensor, " B"], layers: Sequence[Layer]
) -> list[str]:
    """The names of the layers to which no gradient of a batch comes back, or zeros only.

    That is so where a weight is used without its module being called, where a part of the model runs without recording
    gradients, and where no sample comes. The pass ends when all layers have been reached.

    Args:
        objective: model and loss.
        samples: where the batch comes from.
        indices: the batch.
        layers: which layers.
    """
    seen = _Reached(layers[0].parameter.device)
    with _watching(objective.model, layers, seen), torch.enable_grad():
        for part in objective.parts(samples, indices):
            losses = objective.losses_of(part.batch, indices[part.rows])[1]
            if losses.requires_grad:
                with caller_defaults(), fits(len(part.rows)):
                    torch.autograd.backward(losses.sum())
            if len(seen.names) == len(layers):
                break
    return [layer.name for layer in layers if layer.name not in seen.names]


def _chunks(inputs: Tensor, outputs: Tensor, per_sample: int) -> Iterator[tuple[Tensor, Tensor]]:
    step = max(1, _ROOM // max(1, per_sample))
    return zip(torch.split(inputs, step), torch.split(outputs, step), strict=True)


class _Tap(torch.autograd.Function):
    """Hands the gradient that arrives at a tensor to a function; makes graphs begin without parameters."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor, receive: Callable[[Tensor], None]) -> Tensor:
        ctx.receive = receive
        return output.clone()  # a copy, since the model may go on in place

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        ctx.receive(grads[0])
        return grads[0], None, None


class _Reached:
    """Taps that note to which layers a gradient comes back."""

    def __init__(self, device: torch.device) -> None:
        self._anchor = torch.zeros((), device=device, requires_grad=True)
        self.names: set[str] = set()

    def hook(self, layer: Layer) -> Callable[..., Tensor]:
        """A forward hook for the layer's module."""

        def receive(grad: Tensor) -> None:
            if layer.name not in self.names and bool(grad.any()):
                self.names.add(layer.name)

        def forward(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
            apply: Any = _Tap.apply  # untyped in torch
            return apply(output, self._anchor, receive)  # type: ignore[no-any-return]

        return forward


@dataclass
class _Watched:
    """What one layer read and what came back, in one micro-batch."""

    inputs: list[Tensor] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    outputs: list[tuple[int, Tensor]] = field(default_factory=list)


class _Watch:
    """Taps on the layers of a model; calls the consumer once all calls of a layer have their gradient."""

    def __init__(self, layers: Sequence[Layer], device: torch.device) -> None:
        self._anchor = torch.zeros((), device=device, requires_grad=True)
        self._seen = {layer.name: _Watched() for layer in layers}
        self._layers = {layer.name: layer for layer in layers}
        self.consume: Consume | None = None
        self.rows = torch.zeros(1, dtype=torch.long)

    def hook(self, layer: Layer) -> Callable[..., Tensor]:
        """A forward hook for the layer's module."""

        def forward(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
            watched = self._seen[layer.name]
            number = len(watched.inputs)
            inputs = args[0] if args else next(iter(kwargs.values()))
            watched.inputs.append(inputs.detach())
            watched.versions.append(inputs._version)
            apply: Any = _Tap.apply  # untyped in torch
            return apply(output, self._anchor, lambda grad: self._receive(layer, number, grad))  # type: ignore[no-any-return]

        return forward

    def forget(self, inputs: bool) -> None:
        """Make ready for another backward pass, or for another micro-batch."""
        for watched in self._seen.values():
            watched.outputs.clear()
            if inputs:
                watched.inputs.clear()
                watched.versions.clear()

    def finish(self) -> None:
        """Consume the layers of which some calls had no influence on the loss."""
        for name, watched in self._seen.items():
            if 0 < len(watched.outputs) < len(watched.inputs):
                self._hand_over(self._layers[name], watched)

    @pinned()
    def _receive(self, layer: Layer, number: int, grad: Tensor) -> None:
        watched = self._seen[layer.name]
        watched.outputs.append((number, grad.detach()))
        if len(watched.outputs) == len(watched.inputs):
            self._hand_over(layer, watched)

    def _hand_over(self, layer: Layer, watched: _Watched) -> None:
        assert self.consume is not None
        if any(inputs._version != version for inputs, version in zip(watched.inputs, watched.versions, strict=True)):
            raise InputError(
                f"The model changes in place what the layer {layer.name!r} has read, so its gradient cannot be told; "
                "let it write to a new tensor, or exclude that layer."
            )
        calls = [
            (self._by_sample(layer, layer.unfold(watched.inputs[n])), self._by_sample(layer, layer.fold_outputs(grad)))
            for n, grad in watched.outputs
        ]
        inputs, outputs = (torch.cat(part, 1) if len(calls) > 1 else part[0] for part in zip(*calls, strict=True))
        self.consume(layer, self.rows.to(outputs.device), inputs.float(), outputs.float())
        watched.outputs.clear()

    def _by_sample(self, layer: Layer, rows: Tensor) -> Tensor:
        """Rows as ``(b, T, ...)``: windows or tokens that a model stacks along dimension 0 belong to one sample."""
        batch = len(self.rows)
        if len(rows) % batch:
            raise InputError(
                f"Layer {layer.name!r} was called with {len(rows)} inputs for a batch of {batch} samples, so they "
                "cannot be told apart; set micro_batch to 1."
            )
        return rows.reshape(batch, -1, *rows.shape[2:])


def backward(
    objective: Objective,
    samples: Samples,
    indices: Int[Tensor, " B"],
    layers: Sequence[Layer],
    consume: Consume | None,
    consume_drawn: Consume | None = None,
    drawn: torch.Generator | None = None,
) -> Float[Tensor, " B"]:
    """One pass over a batch, and a backward pass for the given labels, for drawn ones, or both.

    Returns:
        the losses of the given labels, float64; NaN if those are not consumed.
    """
    watch = _Watch(layers, layers[0].parameter.device)
    losses: list[tuple[Tensor, Tensor]] = []
    with _watching(objective.model, layers, watch), torch.enable_grad():
        for part in objective.parts(samples, indices):
            watch.rows = part.rows
            chosen = indices[part.rows]
            if consume is None:
                prediction = own = objective.predicted(part.batch, len(chosen))
            else:
                prediction, own = objective.losses_of(part.batch, chosen)
                losses.append((part.rows, own.detach().double()))
            watch.consume = consume
            if consume is not None and own.requires_grad:  # else it depends on none of the layers
                with caller_defaults(), fits(len(part.rows)):  # checkpoints run the model again
                    torch.autograd.backward(own.sum(), retain_graph=consume_drawn is not None)
                watch.finish()
            if consume_drawn is not None and drawn is not None:
                watch.forget(inputs=False)
                watch.consume = consume_drawn
                with caller_defaults(), fits(len(part.rows)):
                    own = objective.loss.drawn(prediction, drawn, part.batch)
                    objective.check_finite(own, part.batch, chosen)
                    if own.requires_grad:
                        torch.autograd.backward(own.sum())
                watch.finish()
            watch.forget(inputs=True)
    return in_order(losses) if losses else torch.full((len(indices),), torch.nan, dtype=torch.float64)


@contextmanager
def _watching(model: nn.Module, layers: Sequence[Layer], watch: _Watch | _Reached) -> Iterator[None]:
    """Taps in place, evaluation mode, and no gradients of parameters while it lasts."""
    needing = [parameter for parameter in model.parameters() if parameter.requires_grad]
    handles = [
        module.register_forward_hook(watch.hook(layer), with_kwargs=True)
        for layer in layers
        for module in layer.modules
    ]
    for parameter in needing:
        parameter.requires_grad_(False)
    try:
        with hooked(handles), evaluating(model):
            yield
    finally:
        for parameter in needing:
            parameter.requires_grad_(True)

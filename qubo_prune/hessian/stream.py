"""Streams calibration data through a model block by block and hands out each layer's Gram.

A transformer's stack of decoder layers is found by its structure; the arguments that the model
gives to each of them are captured once, generically, and the stack is then run block by block. In
a block, layers are taken in the order in which they run, those that read the same input together,
and each sees inputs computed by the already pruned layers before it. Layers that run before the
stack are a block of their own, and so are those behind it. A model without such a stack is one
single block.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from qubo_prune.devices import now, of_model, told_if_full
from qubo_prune.errors import InputError
from qubo_prune.hessian.gram import Gram, GramAccumulator
from qubo_prune.hessian.replays import Replays, Room
from qubo_prune.models.calls import Call, as_call, replaced
from qubo_prune.models.layers import Layer, within
from qubo_prune.models.load import evaluating, hooked
from qubo_prune.models.replay import alike, draws, fresh, is_mutable, spoilt, trace
from qubo_prune.models.stack import find_stack
from qubo_prune.models.storage import InMemory, States, WeightStorage
from qubo_prune.precision import pinned


@dataclass
class Seconds:
    """Where the time of a run went."""

    forward: float = 0.0
    hessian: float = 0.0
    search: float = 0.0
    fit: float = 0.0
    loss: float = 0.0
    bounds: float = 0.0


class _Stop(Exception):
    """Ends a forward pass whose rest is not needed."""


@dataclass(frozen=True, eq=False)
class Stage:
    """Layers of a block that read the same input, and how often a forward pass calls them.

    Attributes:
        added_to: the module whose input the block adds to the output of the stage's only layer, if that was found.
    """

    layers: tuple[Layer, ...]
    calls: int
    added_to: nn.Module | None = None


Visit = Callable[[Layer, Gram], None]


#: Called once all layers of a block are visited and their inputs do not change any more, with those layers, what finds
#: the ones whose inputs are others now than in their visit (they run several times, or in another order in another
#: batch), and what takes the Gram of the inputs that a layer has now, told whether no layer of the block is such a one.
Settle = Callable[[Sequence[Layer], Callable[[], Sequence[Layer]], Callable[[Layer, bool], Gram]], None]


@dataclass(frozen=True, eq=False)
class Block:
    """A block whose layers are visited, and what it is given.

    Attributes:
        module: the block.
        layers: those that were visited.
        calls: of the block.
        now: hidden states for them in the model as it is, ``None`` where the calls hold all that it is given.
        dense: the same in the dense model.
        counted: calls from there on are held out.
        undone: gives its layers their dense weights temporarily.
        is_whole: it is the model, behind the visits of all its layers.
    """

    module: nn.Module
    layers: Sequence[Layer]
    calls: Sequence[Call]
    now: States | list[None]
    dense: States | list[None]
    counted: int
    undone: Callable[[], AbstractContextManager[None]]
    is_whole: bool = False

    def gives_logits(self) -> bool:
        """Whether what it gives are logits, by name."""
        with torch.no_grad():
            return hasattr(self.calls[0].run(self.module, self.now[0]), "logits")

    def output(self, number: int) -> Tensor:
        """What it gives now for a call."""
        return self._states(self.calls[number].run(self.module, self.now[number]))

    def target(self, number: int) -> Tensor:
        """What it gives in the dense model, detached."""
        with torch.no_grad(), self.undone():
            return self._states(self.calls[number].run(self.module, self.dense[number])).detach()

    def _states(self, output: Any) -> Tensor:
        found = _first_tensor(getattr(output, "logits", output))
        if found is None:
            raise InputError(
                f"{type(self.module).__name__} returns {type(output).__name__}, which holds no tensor in the first "
                "place, so its layers cannot be fitted together; give another update, such as 'refit'."
            )
        return found


#: Called with each block of a stack, or the whole model if it has none, once its layers are visited.
Fit = Callable[[Block], None]


def whole_block(
    model: nn.Module,
    layers: Sequence[Layer],
    batches: Sequence[Any],
    held_out: Sequence[Any],
    dense: Mapping[str, Tensor],
) -> Block:
    """A model with all its layers as one block, which is given the model's inputs.

    Args:
        model: the model.
        layers: those that have been visited.
        batches: its inputs.
        held_out: more of them.
        dense: matrices of the layers that have changed, by name.
    """
    calls = [as_call(batch) for batch in (*batches, *held_out)]
    nothing: list[None] = [None] * len(calls)
    return Block(model, layers, calls, nothing, nothing, len(batches), lambda: _undone(layers, dense), is_whole=True)


@contextmanager
def _undone(layers: Sequence[Layer], dense: Mapping[str, Tensor]) -> Iterator[None]:
    """Temporarily give those of the layers that have changed their dense weights."""
    changed = [layer for layer in layers if layer.name in dense]
    now = [layer.parameter.data for layer in changed]
    try:
        for layer in changed:
            layer.parameter.data = layer.stored(dense[layer.name])
        yield
    finally:
        for layer, data in zip(changed, now, strict=True):
            layer.parameter.data = data


def _settle_nothing(
    layers: Sequence[Layer], moved: Callable[[], Sequence[Layer]], gram: Callable[[Layer, bool], Gram], /
) -> None:
    """Leave it at what the visits have seen."""


@dataclass(frozen=True, eq=False)
class _Pass:
    """What every block of a run is visited with; calls from number ``counted`` on are held out."""

    visit: Visit
    seconds: Seconds
    counted: int
    dense: Mapping[str, Tensor] | None
    needs_gram: Callable[[Layer], bool]
    shelf: WeightStorage
    gram_devices: tuple[str, ...] = ()
    settle: Settle = _settle_nothing
    devices: tuple[torch.device, ...] = ()
    fit: Fit | None = None
    room: int = 0

    def undone(self, layers: Sequence[Layer]) -> AbstractContextManager[None]:
        """Temporarily give those of the layers that have changed their dense weights."""
        return _undone(layers, self.dense or {})


@pinned()
def stream(
    model: nn.Module,
    layers: Sequence[Layer],
    batches: Sequence[Any],
    visit: Visit,
    seconds: Seconds,
    held_out: Sequence[Any] = (),
    dense: Mapping[str, Tensor] | None = None,
    needs_gram: Callable[[Layer], bool] = lambda layer: True,
    shelf: WeightStorage | None = None,
    gram_devices: tuple[str, ...] = (),
    settle: Settle = _settle_nothing,
    fit: Fit | None = None,
    room: int = 0,
) -> None:
    """Visit every layer with its Gram, in the order in which the layers run.

    ``visit`` may change the layer's weight; everything behind it sees the change.

    Args:
        model: the model; it is run without gradients, in evaluation mode, without a cache.
        layers: the layers to visit.
        batches: model inputs (see :func:`as_call`), all held in memory.
        visit: called with each layer and its Gram; one of no tokens where ``needs_gram`` says so.
        seconds: times are added to its fields.
        held_out: more inputs, whose Gram comes apart, in ``gram.held_out``.
        dense: matrices ``(d_out, d_in)`` of the layers that ``visit`` has changed, by name, which it fills. With
            it the dense model is run beside the other, and a Gram has the drift between the two, unless there is
            none yet or they do not send the same tokens to the layer, as experts do.
        needs_gram: says of a layer whether its visit will need the Gram.
        shelf: where the weights are; in memory by default.
        gram_devices: where the layers' inputs are multiplied, batch by batch in turn; where they are, if empty.
        settle: called behind the visits of each block.
        fit: called before that with each block of the stack, or with the model if it has none; it may change the
            weights of the block's layers, and needs ``dense``.
        room: bytes for what passes over a block may keep for later ones; what they keep changes no result.
    """
    shelf = shelf or InMemory(model)
    calls = [as_call(batch) for batch in (*batches, *held_out)]
    devices = of_model(model)
    run = _Pass(visit, seconds, len(batches), dense, needs_gram, shelf, gram_devices, settle, devices, fit, room)
    with torch.no_grad(), evaluating(model):
        stack = find_stack(model, layers)
        ahead = (
            None if stack is None else _timed(seconds, devices, lambda: _ahead_of(stack, model, layers, calls, shelf))
        )
        left = list(layers)
        if stack is not None and ahead is not None:
            # an embedding by convolution, an encoder: what it makes of the inputs is what the stack is to see
            if ahead:
                apart = replace(run, fit=None)
                _visit_block(model, ahead, layers, calls, _States.inputs(calls), apart, until=stack[0])
                left = [layer for layer in left if layer not in ahead]
            recorded = _timed(seconds, devices, lambda: _record_stack(stack, model, calls, shelf))
            if recorded is None:
                _check_whole(shelf)
            else:
                inside = {id(layer) for block in stack for layer in within(layers, block)}
                left = [layer for layer in left if id(layer) not in inside]
                _stream_stack(stack, layers, recorded, _dense_start(stack, model, layers, calls, recorded, run), run)
                left = _timed(seconds, devices, lambda: _behind(stack, model, left, calls, run))
        elif stack is not None:
            _check_whole(shelf)
        if left:
            # behind a stack what the model gives is not what these layers alone make of it
            alone = run if stack is None else replace(run, fit=None)
            _visit_block(model, left, layers, calls, _States.inputs(calls), alone)


def _behind(
    stack: list[nn.Module], model: nn.Module, layers: Sequence[Layer], calls: Sequence[Call], run: _Pass
) -> list[Layer]:
    """Those of the layers that do not run ahead of a stack; the others are visited without inputs.

    They did not run there before all was pruned, as experts do not to which nothing was sent. To prune them now would
    change what has been measured since.
    """
    ran = _Ran(stack, layers)
    for call in calls if layers else ():
        ran.note(model, call, whole=False)
    for layer in ran.ahead:
        run.visit(layer, Gram.of_nothing(layer.shape[1], layer.parameter.device))
    return [layer for layer in layers if layer not in ran.ahead]


def _check_whole(shelf: WeightStorage) -> None:
    """Refuse to take a model as one block whose blocks are not in memory all at once."""
    if not shelf.in_memory:
        raise InputError(
            "The decoder layers of this model hand more to one another than hidden states, or share layers, so they "
            "cannot be loaded one after another; give weights='memory'."
        )


@dataclass(frozen=True)
class Sampled:
    """What one block took of a run.

    Attributes:
        layers: those in it.
        blocks: blocks like it that hold layers, itself included.
        behind: blocks of the stack that a run comes through.
        stack: all blocks of it.
        loading: seconds until its weights were there.
        passes: seconds of the passes that its Grams took, without visits.
        onward: seconds until the next block has its inputs, in the dense model too if that runs beside.
        advance: seconds of one pass in which nothing was kept before.
    """

    layers: tuple[Layer, ...]
    blocks: int
    behind: int
    stack: int
    loading: float
    passes: float
    onward: float
    advance: float


@pinned()
def sample(
    model: nn.Module,
    layers: Sequence[Layer],
    batches: Sequence[Any],
    visit: Visit,
    held_out: Sequence[Any] = (),
    paired: bool = False,
    shelf: WeightStorage | None = None,
    gram_devices: tuple[str, ...] = (),
    room: int = 0,
) -> Sampled:
    """Do of a :func:`stream` what the first block with layers takes, and nothing behind it; say how long that took.

    Args:
        model: the model.
        layers: all that a run would visit.
        batches: some of its inputs.
        visit: called with the block's layers and their Grams; it must not change them.
        held_out: some of the run's held-out inputs.
        paired: the dense model is run beside the other.
        shelf: where the weights are; in memory by default.
        gram_devices: as for a run.
        room: likewise.
    """
    shelf = shelf or InMemory(model)
    calls = [as_call(batch) for batch in (*batches, *held_out)]
    visiting, devices = Seconds(), of_model(model)

    def timed_visit(layer: Layer, gram: Gram) -> None:
        began = now(devices)
        visit(layer, gram)
        visiting.search += now(devices) - began

    with torch.no_grad(), evaluating(model):
        stack = find_stack(model, layers) or [model]
        holding = [block for block in stack if any(True for _ in within(layers, block))]
        recorded = _record_first(stack, model, calls) if len(stack) > 1 else None
        if recorded is None:
            stack, holding, states = [model], [model], _States.inputs(calls)
        else:
            calls, states = recorded.calls[0], _States(recorded.hidden, InMemory(model).states(recorded.hidden))
        block, inside = holding[0], tuple(within(layers, holding[0]))
        began = now(devices)
        with shelf.resident(block):
            there = now(devices)
            dense = {layer.name: layer.matrix() for layer in inside} if paired else None
            run = _Pass(
                timed_visit,
                Seconds(),
                len(batches),
                dense,
                lambda layer: True,
                shelf,
                gram_devices,
                devices=devices,
                room=room,
            )
            kept = _visit_block(block, inside, inside, calls, states, run, further=len(stack) > 1)
            visited = now(devices)
            for number, (call, state) in enumerate(zip(calls, states.now, strict=True)):
                if paired and number not in kept.outputs:
                    call.run(block, state)
                with kept.replays.over(number):
                    call.run(block, state)
            went_on = now(devices)
            for call, state in zip(calls, states.now, strict=True):
                call.run(block, state)
            ended = now(devices)
    last = max(number for number, each in enumerate(stack) if any(each is other for other in holding))
    return Sampled(
        inside,
        len(holding),
        last + 1,
        len(stack),
        there - began,
        visited - there - visiting.search,
        went_on - visited,
        ended - went_on,
    )


def _record_first(stack: list[nn.Module], model: nn.Module, calls: Sequence[Call]) -> _Recording | None:
    """Of a stack, what its first block is given; no other block is run."""

    def stop(*args: Any, **kwargs: Any) -> None:
        raise _Stop

    with replaced(stack[1:2], lambda number, original: stop):
        return _record_stack(stack[:1], model, calls, InMemory(model))


def _dense_start(
    stack: list[nn.Module],
    model: nn.Module,
    layers: Sequence[Layer],
    calls: Sequence[Call],
    recorded: _Recording,
    run: _Pass,
) -> States:
    """What the dense model gives to the stack: the same as the other, unless layers ahead of it have changed."""
    if run.dense is None:
        return recorded.hidden  # nobody will ask
    if not run.dense:
        return run.shelf.states(recorded.hidden)
    with run.undone(layers):
        again: _Recording | None = _timed(
            run.seconds, run.devices, lambda: _record_stack(stack, model, calls, run.shelf)
        )
    if again is None:
        raise InputError(
            "The blocks of the dense model hand more to one another than hidden states, although those of the pruned "
            "one do not, so the drift between the two cannot be measured; give correction=0."
        )
    return again.hidden


def _timed(seconds: Seconds, devices: Sequence[torch.device], run: Callable[[], Any]) -> Any:
    """Run and book the time as forward, less what was booked as Hessian inside."""
    began, inside = now(devices), seconds.hessian
    try:
        return run()
    finally:
        seconds.forward += now(devices) - began - (seconds.hessian - inside)


def _ahead_of(
    stack: list[nn.Module], model: nn.Module, layers: Sequence[Layer], calls: Sequence[Call], shelf: WeightStorage
) -> list[Layer] | None:
    """The layers that run before the first block of a stack, in their order.

    ``None`` if some layer runs, or stands, in two places: in several blocks, or in a block and outside the stack. Then
    no order of the blocks has it pruned before all that is behind it. ``None`` also where blocks are no chain.
    """
    homes = {id(module): {_OUTSIDE} for layer in layers for module in layer.modules}
    for number, block in enumerate(stack):
        for module in block.modules():
            if id(module) in homes:
                homes[id(module)] = homes[id(module)] - {_OUTSIDE} | {number}
    places = {layer: set().union(*(homes[id(module)] for module in layer.modules)) for layer in layers}
    if any(len(found) > 1 for found in places.values()):
        return None
    ran = _Ran(stack, layers)
    with _repeatable(model, layers, calls[0]):
        ran.note(model, calls[0], whole=True)
    for call in calls[1:]:
        ran.note(model, call, whole=False)
    if ran.astray(places) or (ran.ahead and _record_stack(stack, model, calls[:1], shelf) is None):
        return None
    return list(ran.ahead)


#: The place of what is in no block of the stack, before its first block and behind that.
_OUTSIDE, _BEHIND = -1, -2


class _Ran:
    """Where in relation to a stack each layer ran.

    Args:
        stack: the blocks.
        layers: the layers.
    """

    def __init__(self, stack: list[nn.Module], layers: Sequence[Layer]) -> None:
        self._stack, self._layers = stack, layers
        self._in: dict[Layer, set[int]] = {}
        self.ahead: dict[Layer, None] = {}

    def note(self, model: nn.Module, call: Call, whole: bool) -> None:
        """Watch a forward pass, the whole of it or what comes before the first block."""
        place = [_OUTSIDE]

        def ran(layer: Layer) -> Callable[..., None]:
            def note(module: nn.Module, args: Any) -> None:
                self._in.setdefault(layer, set()).add(place[0])
                if place[0] == _OUTSIDE:
                    self.ahead.setdefault(layer)

            return note

        def enter(number: int) -> Callable[..., None]:
            def note(module: nn.Module, args: Any) -> None:
                if not whole:
                    raise _Stop
                place[0] = number

            return note

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            place[0] = _BEHIND

        handles = [block.register_forward_pre_hook(enter(number)) for number, block in enumerate(self._stack)]
        handles += [block.register_forward_hook(leave) for block in self._stack]
        handles += [module.register_forward_pre_hook(ran(layer)) for layer in self._layers for module in layer.modules]
        with hooked(handles), suppress(_Stop):
            call.run(model)

    def astray(self, places: Mapping[Layer, set[int]]) -> bool:
        """Whether a layer ran in another place than where it stands, or in several."""
        outside = ({_OUTSIDE}, {_BEHIND})
        return any(
            ran not in outside if places[layer] == {_OUTSIDE} else ran != places[layer]
            for layer, ran in self._in.items()
        )


@dataclass
class _Recording:
    """What the model gives to each block of its stack, for every batch."""

    hidden: States
    calls: list[list[Call]]


def _record_stack(
    blocks: list[nn.Module], model: nn.Module, calls: Sequence[Call], shelf: WeightStorage
) -> _Recording | None:
    """Capture the calls of every block; ``None`` if the blocks are not a chain of like maps.

    The first batch runs in full to learn the order of the blocks, the form of their outputs, and the arguments that
    they write to. Then every batch, the first again, is recorded with each block replaced by a pass-through, which
    costs next to nothing.
    """
    recorder, recording = _Recorder(blocks), _Recording(shelf.states(), [[] for _ in blocks])
    try:
        learnt = recorder.take(model, calls[0], full=True)
        for position, call in enumerate(calls):
            taken = recorder.take(model, call, full=False)
            if position == 0 and not all(map(_given_alike, learnt, taken)):
                return None
            recording.hidden.append(_hidden_of(taken[0]))
            for earlier, one in zip(recording.calls, taken, strict=True):
                earlier.append(_interned(one, earlier))
    except _NotAChain:
        return None
    return recording


class _Recorder:
    """Records what a model gives to its blocks, as long as nothing but hidden states goes from one to the next.

    A cache of keys and values, or whatever else a block writes to, is not recorded: the block must do the same
    with ``None`` in its place.

    Args:
        blocks: the stack.
    """

    def __init__(self, blocks: list[nn.Module]) -> None:
        self._blocks = blocks
        self._taken: list[tuple[int, Call]] = []
        self._handed_on: tuple[Tensor, int] | None = None  # by the block before, with its version
        self._extras: dict[int, Any] = {}  # by block, what it returns besides its hidden states
        self._dropped: dict[int, set[int | str]] = {}  # by block, places of the arguments that it writes to
        self._written: set[int] = set()  # identities of those arguments
        self._held: list[tuple[int, int | str, Any]] = []  # block, place and argument of those that it could write to

    def take(self, model: nn.Module, call: Call, full: bool) -> list[Call]:
        """What each block is given in a forward pass, in which they run only if it is full.

        Raises:
            _NotAChain: the blocks do not run one after another, or more than hidden states goes between them.
        """
        self._taken, self._handed_on = [], None
        with replaced(self._blocks, self._look_at if full else self._pass_through), suppress(_Stop):
            call.run(model)
        if [number for number, _ in self._taken] != list(range(len(self._blocks))):
            raise _NotAChain
        for number, place, value in self._held:
            if id(value) in self._written and place not in self._dropped[number]:
                raise _NotAChain
        self._held.clear()
        return [_without(taken, self._dropped[number]) for number, taken in self._taken]

    def _look_at(self, number: int, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            call = self._given(number, args, kwargs)
            hidden = _hidden_of(call).clone()
            places = {place: trace(value) for place, value in _places(call)}
            output = original(*args, **kwargs)
            if not _maps_to_its_like(hidden, output):
                raise _NotAChain
            written = {place for place, value in _places(call) if trace(value) != places[place]}
            if written and not _does_without(original, _without(call, written), hidden, output):
                raise _NotAChain
            self._dropped[number] = written
            self._written |= {id(value) for place, value in _places(call) if place in written}
            self._held += [(number, place, value) for place, value in _places(call) if is_mutable(value)]
            self._extras[number] = None if isinstance(output, Tensor) else spoilt(tuple(output[1:]))
            return self._hand_on(output)

        return forward

    def _pass_through(self, number: int, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden = _hidden_of(self._given(number, args, kwargs))
            if number == len(self._blocks) - 1:
                raise _Stop
            extras = self._extras[number]
            return self._hand_on(hidden if extras is None else (hidden, *extras))

        return forward

    def _given(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Note the call of a block, which must be given what the one before it has returned."""
        call = _with_slot(args, kwargs)
        if self._handed_on is not None:
            tensor, version = self._handed_on
            if tensor._version != version or not alike(tensor, _hidden_of(call)):
                raise _NotAChain
        self._taken.append((number, call))
        return call

    def _hand_on(self, output: Any) -> Any:
        tensor = _first_tensor(output)
        assert tensor is not None
        self._handed_on = tensor, tensor._version
        return output


def _places(call: Call) -> list[tuple[int | str, Any]]:
    """Arguments with their places, but for the hidden states."""
    places: list[tuple[int | str, Any]] = [*enumerate(call.args), *call.kwargs.items()]
    return [(place, value) for place, value in places if place != call.slot]


def _without(call: Call, places: Collection[int | str]) -> Call:
    """The call with ``None`` in some places."""
    args = tuple(None if place in places else value for place, value in enumerate(call.args))
    return Call(args, {name: None if name in places else value for name, value in call.kwargs.items()}, call.slot)


def _does_without(block: Callable[..., Any], call: Call, hidden: Tensor, output: Any) -> bool:
    """Whether a block gives the same output to a call that lacks what it would write to."""
    try:
        return alike(_first_tensor(call.run(block, hidden)), _first_tensor(output))
    except Exception:  # whatever a foreign block raises: it needs what is missing
        return False


def _given_alike(one: Call, other: Call) -> bool:
    """Whether a block was given the same, its hidden states apart."""
    return alike(dict(_places(one)), dict(_places(other)))


class _NotAChain(Exception):
    """The blocks are no maps from hidden states to hidden states of the same shape, one after another."""


def _maps_to_its_like(hidden: Tensor, output: Any) -> bool:
    tensor = _first_tensor(output)
    return tensor is not None and tensor.shape == hidden.shape


def _with_slot(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """A call whose slot is its first floating point tensor."""
    places: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    for place, value in places:
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= 2:
            return Call(args, kwargs, place)
    raise _NotAChain


def _hidden_of(call: Call) -> Tensor:
    value = call.args[call.slot] if isinstance(call.slot, int) else call.kwargs[str(call.slot)]
    assert isinstance(value, Tensor)
    return value


def _interned(call: Call, earlier: Sequence[Call]) -> Call:
    """The call without its hidden states, sharing equal tensors with the call of an earlier batch."""
    like = earlier[-1] if earlier else None
    args = [
        None if place == call.slot else _shared(value, like.args[place] if like and place < len(like.args) else None)
        for place, value in enumerate(call.args)
    ]
    kwargs = {
        name: None if name == call.slot else _shared(value, like.kwargs.get(name) if like else None)
        for name, value in call.kwargs.items()
    }
    return Call(tuple(args), kwargs, call.slot)


def _shared(value: Any, like: Any) -> Any:
    if isinstance(value, tuple) and isinstance(like, tuple) and len(value) == len(like):
        return tuple(_shared(v, w) for v, w in zip(value, like, strict=True))
    if isinstance(value, Tensor) and isinstance(like, Tensor) and value.dtype == like.dtype:
        return like if torch.equal(value, like) else value
    return value


def _first_tensor(output: Any) -> Tensor | None:
    """The hidden states among the outputs of a block."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0]
    return None


@dataclass(frozen=True, eq=False)
class _States:
    """Hidden states that a block is given, one for each call: in the model as it is, and in the dense one."""

    now: States | list[None]
    dense: States | list[None]

    @classmethod
    def inputs(cls, calls: Sequence[Call]) -> _States:
        """None at all: the model takes what is in the calls."""
        return cls([None] * len(calls), [None] * len(calls))


def _stream_stack(
    blocks: list[nn.Module], layers: Sequence[Layer], recorded: _Recording, dense: States, run: _Pass
) -> None:
    hidden, states = recorded.hidden, _States(recorded.hidden, dense)
    last = max(n for n, block in enumerate(blocks) if any(True for _ in within(layers, block)))
    for number, block in enumerate(blocks[: last + 1]):
        calls, recorded.calls[number] = recorded.calls[number], []
        inside = list(within(layers, block))
        with run.shelf.resident(block):
            kept = _visit_block(block, inside, inside, calls, states, run, further=number < last) if inside else _Kept()
            if number < last:
                if run.dense is not None:
                    with run.undone(inside):
                        _advance(block, calls, dense, run, given=kept.outputs)
                _advance(block, calls, hidden, run, kept.replays)
            kept.replays.close()


def _advance(
    block: nn.Module,
    calls: Sequence[Call],
    hidden: States,
    run: _Pass,
    replays: Replays | None = None,
    given: Mapping[int, Tensor] | None = None,
) -> None:
    """From what a block is given to what the next one is, where a pass before has not given that."""
    for batch, call in enumerate(calls):
        tensor = given.get(batch) if given else None
        if tensor is None:
            with replays.over(batch) if replays is not None else nullcontext():
                output = _timed(run.seconds, run.devices, lambda c=call, h=hidden[batch]: c.run(block, h))  # type: ignore[misc]
            tensor = _first_tensor(output)
        assert tensor is not None
        hidden[batch] = tensor


@dataclass(frozen=True, eq=False)
class _Kept:
    """What the visit of a block leaves for the pass to the next one.

    Attributes:
        outputs: of the block in the dense model, by batch.
        replays: what its layers have given since they were visited, if nothing has changed them again.
    """

    outputs: dict[int, Tensor] = field(default_factory=dict)
    replays: Replays = field(default_factory=lambda: Replays(Room(0)))


def _visit_block(
    block: nn.Module,
    layers: Sequence[Layer],
    inside: Sequence[Layer],
    calls: Sequence[Call],
    states: _States,
    run: _Pass,
    until: nn.Module | None = None,
    further: bool = False,
) -> _Kept:
    """Visit layers of a block stage by stage.

    Args:
        block: the block.
        layers: to visit.
        inside: all layers that it holds.
        calls: of the block.
        states: hidden states for them.
        run: the run.
        until: no layer to visit runs behind this module, so that passes may end there.
        further: its outputs are needed.
    """
    with _repeatable(block, layers, calls[0], states.now[0]):
        stages = _timed(run.seconds, run.devices, lambda: _all_stages(block, layers, calls, states))
    if run.dense is not None:
        stages = _timed(run.seconds, run.devices, lambda: with_residuals(block, stages, calls[0], states.now[0]))
    last = max((number for number, stage in enumerate(stages) if stage.calls), default=-1)
    reads = _Reads(block, stages, until)
    # what no batch calls has no Gram
    needed = [stage for stage in stages if stage.calls > 0 and any(run.needs_gram(layer) for layer in stage.layers)]
    room = Room(run.room)
    beside, replays = _Beside(block, needed, inside, calls, states, run, room, further), Replays(room)
    for number, stage in enumerate(stages):
        leader = stage.layers[0]
        gram = Gram.of_nothing(leader.shape[1], leader.parameter.device)
        if stage in needed:
            whole = number == last  # behind it nothing changes any more, so its passes may see all that runs
            gram = _accumulate(block, stage, calls, states, run, beside, reads, whole, replays)
        for layer in stage.layers:
            run.visit(layer, gram)
        if stage in needed and stage.calls == 1:
            replays.add(stage.layers)
        if reads.moved:  # a layer may have run ahead of what was visited before it
            replays.close()

    if run.fit is not None:
        replays.close()
        run.fit(Block(block, layers, calls, states.now, states.dense, run.counted, lambda: run.undone(inside)))

    def moved() -> Sequence[Layer]:
        if reads.moved or not reads.passes:  # what the last stage does may change what runs behind it
            for number, call in enumerate(calls):
                _timed(run.seconds, run.devices, lambda c=call, h=states.now[number]: reads.watch(c, h))  # type: ignore[misc]
        return reads.moved

    again = _Again(block, stages, inside, calls, states, run)
    run.settle(layers, moved, again.gram)
    again.close()
    return _Kept(beside.outputs, replays)


class _Again:
    """Grams of the inputs that a block's layers have now, once their weights do not change any more.

    Those that read one input, once in a pass and in their turn, have one Gram, and passes keep what they can.

    Args:
        block: the block.
        stages: its layers by their inputs.
        inside: all layers that it holds.
        calls: of the block.
        states: hidden states for them.
        run: the run.
    """

    def __init__(
        self,
        block: nn.Module,
        stages: Sequence[Stage],
        inside: Sequence[Layer],
        calls: Sequence[Call],
        states: _States,
        run: _Pass,
    ) -> None:
        self._block, self._inside, self._calls, self._states, self._run = block, inside, calls, states, run
        room = Room(run.room)
        once = [stage for stage in stages if stage.calls == 1]
        self._stages = {layer: stage for stage in once for layer in stage.layers}
        self._beside = _Beside(block, once, inside, calls, states, run, room)
        self._replays = Replays(room)
        self._latest: tuple[Stage, Gram] | None = None

    def gram(self, layer: Layer, in_turn: bool) -> Gram:
        """Of one layer's inputs; where layers ran in their turn, those of a stage still read the same."""
        block, calls, states, run = self._block, self._calls, self._states, self._run
        stage = self._stages.get(layer) if in_turn else None
        if stage is None:
            alone = Stage((layer,), 0)
            beside = _Beside(block, [alone], self._inside, calls, states, run)
            return _accumulate(block, alone, calls, states, run, beside)
        if self._latest is None or self._latest[0] is not stage:
            found = _accumulate(block, stage, calls, states, run, self._beside, replays=self._replays)
            self._latest = stage, found
            self._replays.add(stage.layers)
        return self._latest[1]

    def close(self) -> None:
        """Keep nothing any more."""
        self._latest = None
        self._replays.close()


@contextmanager
def _repeatable(block: nn.Module, layers: Sequence[Layer], call: Call, hidden: Tensor | None = None) -> Iterator[None]:
    """Refuse a block that passes within have shown to draw random numbers, if its layers' inputs depend on them."""
    with draws(block) as drawn:
        yield
    if not any(drawn):
        return
    one, other = (_inputs_in_turn(block, layers, call, hidden) for _ in range(2))
    for read, again in itertools.zip_longest(one, other):
        layer, tensor = read or again
        if read is None or again is None or layer is not again[0] or not alike(tensor, again[1]):
            raise InputError(
                f"The layer {layer.name!r} has other inputs each time that one batch goes through the model, which "
                "draws random numbers in evaluation mode, so its error cannot be measured; switch that off, or give "
                "what is drawn as an input of the model."
            )


def _inputs_in_turn(
    block: nn.Module, layers: Sequence[Layer], call: Call, hidden: Tensor | None
) -> list[tuple[Layer, Tensor]]:
    """What the layers read in a pass, in the order of their calls."""
    seen: list[tuple[Layer, Tensor]] = []

    def note(layer: Layer) -> Callable[..., None]:
        return lambda module, args, kwargs: seen.append((layer, _input_of(args, kwargs)))

    handles = [
        module.register_forward_pre_hook(note(layer), with_kwargs=True) for layer in layers for module in layer.modules
    ]
    with hooked(handles):
        call.run(block, hidden)
    return seen


def _all_stages(block: nn.Module, layers: Sequence[Layer], calls: Sequence[Call], states: _States) -> list[Stage]:
    """The stages of the first pass, with the layers that it does not reach where a later one has them."""
    stages = find_stages(block, layers, calls[0], states.now[0])
    for number, call in enumerate(calls[1:], 1):
        missing = {stage.layers[0] for stage in stages if not stage.calls}
        if not missing:
            break
        stages = _merged(
            [stage for stage in stages if stage.calls], find_stages(block, layers, call, states.now[number])
        )
    return stages


def _merged(stages: list[Stage], others: Sequence[Stage]) -> list[Stage]:
    """Stages with those of another pass whose layers they lack, each behind the one that it was behind there."""
    known = {layer for stage in stages for layer in stage.layers}
    place = 0
    for other in others:
        new = tuple(layer for layer in other.layers if layer not in known)
        if new:
            place = place if other.calls else len(stages)
            stages.insert(place, replace(other, layers=new))
        else:
            place = next(n for n, stage in enumerate(stages) if other.layers[0] in stage.layers)
        place += 1
    return stages


class _Reads:
    """Which inputs the layers of a block read, in what order, in passes over all batches.

    Args:
        block: the block.
        stages: the order in which its layers are visited.
        until: passes end before this module.
    """

    def __init__(self, block: nn.Module, stages: Sequence[Stage], until: nn.Module | None = None) -> None:
        self._block, self._stages, self._until = block, stages, until
        self._numbers = {layer: number for number, stage in enumerate(stages) for layer in stage.layers}
        self._moved: set[Layer] = set()
        self.passes = 0

    @property
    def moved(self) -> list[Layer]:
        """Layers that have read other inputs in some pass than those that their visit has seen."""
        return [layer for layer in self._numbers if layer in self._moved]

    def watch(self, call: Call, hidden: Tensor | None) -> None:
        """Run the block and look."""
        seen: list[tuple[Layer, Any]] = []
        held: list[Tensor] = []  # so that an address is not used twice

        def note(layer: Layer) -> Callable[..., None]:
            def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                held.append(_input_of(args, kwargs))
                seen.append((layer, _identity(layer, held[-1])))

            return see

        handles = [
            module.register_forward_pre_hook(note(layer), with_kwargs=True)
            for layer in self._numbers
            for module in layer.modules
        ]
        if self._until is not None:
            handles.append(self._until.register_forward_pre_hook(_stop))
        with hooked(handles), suppress(_Stop):
            call.run(self._block, hidden)
        self.passes += 1
        self._moved |= self._out_of_turn(seen)

    @contextmanager
    def before(self, stage: Stage) -> Iterator[None]:
        """Look whether layers that are visited later run before those of a stage, or its own more than once."""
        leader, reached = stage.layers[0], False

        def note(layer: Layer) -> Callable[..., None]:
            def see(module: nn.Module, args: Any) -> None:
                nonlocal reached
                if reached if layer is leader else not reached and layer not in stage.layers:
                    self._moved.update(stage.layers)
                reached = reached or layer is leader

            return see

        number = self._numbers[stage.layers[0]]
        handles = [
            module.register_forward_pre_hook(note(layer), prepend=True)
            for layer, other in self._numbers.items()
            if other >= number
            for module in layer.modules
        ]
        with hooked(handles):
            yield

    def _out_of_turn(self, seen: Sequence[tuple[Layer, Any]]) -> set[Layer]:
        """Layers that ran behind one that is visited later, several times, or on another input than their stage's."""
        found, latest = set[Layer](), -1
        read: dict[Layer, list[Any]] = {}
        for layer, identity in seen:
            if self._numbers[layer] < latest:
                found.add(layer)
            latest = max(latest, self._numbers[layer])
            read.setdefault(layer, []).append(identity)
        for stage in self._stages:
            leader = read.get(stage.layers[0])
            found |= {layer for layer in stage.layers if len(read.get(layer, ())) > 1 or read.get(layer) != leader}
        return found


def _stop(module: nn.Module, args: Any) -> None:
    raise _Stop


def _identity(layer: Layer, tensor: Tensor) -> tuple[Any, ...]:
    """What is the same for two layers that read the same rows of the same tensor, which may change in place later."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor._version, layer.window


def find_stages(block: nn.Module, layers: Sequence[Layer], call: Call, hidden: Tensor | None) -> list[Stage]:
    """Group the layers by the input they read in one forward pass, in the order of their calls.

    Convolutions read the same input only if they cut the same rows out of it. Layers that this pass
    does not reach come last, each for itself.
    """
    reads: dict[int, list[tuple[Any, Any]]] = {}

    def note(number: int) -> Callable[..., None]:
        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tensor = _input_of(args, kwargs)
            # the tensors are held, so that an address is not used twice
            reads.setdefault(number, []).append((_identity(layers[number], tensor), tensor))

        return see

    handles = [
        module.register_forward_pre_hook(note(number), with_kwargs=True)
        for number, layer in enumerate(layers)
        for module in layer.modules
    ]
    with hooked(handles):
        call.run(block, hidden)
    groups: dict[Any, list[int]] = {}
    for number, inputs in reads.items():
        # empty ones, as experts without tokens read, are all at one place
        alone = len(inputs) > 1 or not inputs[0][1].numel()
        groups.setdefault(number if alone else inputs[0][0], []).append(number)
    stages = [Stage(tuple(layers[n] for n in members), len(reads[members[0]])) for members in groups.values()]
    return stages + [Stage((layer,), 0) for number, layer in enumerate(layers) if number not in reads]


#: Of the tensors that a layer's output may be added to, those that modules took last.
_RESIDUALS = 16


def with_residuals(block: nn.Module, stages: list[Stage], call: Call, hidden: Tensor | None) -> list[Stage]:
    """The stages with what their outputs are added to, as one forward pass shows it.

    A linear layer's output ``o`` is added to ``r`` if ``r`` was the input of a module before, and ``r + o`` is, to the
    bit, that of a module behind or the block's output.
    """
    found = {stage: stage for stage in stages}
    alone = {
        stage.layers[0].module: stage
        for stage in stages
        if stage.calls == 1 and len(stage.layers) == 1 and not stage.layers[0].window
    }
    seen: list[tuple[nn.Module, Tensor]] = []  # inputs in the order in which modules run
    sums: list[tuple[Stage, nn.Module, Tensor]] = []

    @pinned()
    def look(module: nn.Module, tensor: Tensor | None) -> None:
        if tensor is None or not tensor.is_floating_point():
            return
        for stage, source, total in sums:
            if found[stage].added_to is None and _addable(total, tensor) and torch.equal(total, tensor):
                found[stage] = replace(stage, added_to=source)
        if not any(tensor is other for _, other in seen):
            seen.append((module, tensor))

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        look(module, _first_of(args, kwargs))

    def behind(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        tensor = _first_tensor(output)
        if module in alone and tensor is not None:
            like = [(source, other) for source, other in seen if _addable(other, tensor)]
            sums.extend((alone[module], source, other + tensor) for source, other in like[-_RESIDUALS:])
        if module is block:
            look(block, tensor)

    handles = [module.register_forward_pre_hook(before, with_kwargs=True) for module in block.modules()]
    handles += [module.register_forward_hook(behind) for module in [block, *alone]]
    with hooked(handles):
        call.run(block, hidden)
    return [found[stage] for stage in stages]


def _addable(one: Tensor, other: Tensor) -> bool:
    """Whether they have one shape and are on one device."""
    return one.shape == other.shape and one.device == other.device


def _first_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The first tensor that a module is given."""
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)


def _input_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return args[0] if args else next(iter(kwargs.values()))


def _accumulate(
    block: nn.Module,
    stage: Stage,
    calls: Sequence[Call],
    states: _States,
    run: _Pass,
    beside: _Beside,
    reads: _Reads | None = None,
    whole: bool = False,
    replays: Replays | None = None,
) -> Gram:
    """The Gram of a stage's common input over all batches; each pass stops once it is seen, unless it is to be whole.

    Reads take note of what runs before that, or of all that runs.
    """
    leader = stage.layers[0]
    counted = GramAccumulator(leader.name, leader.groups, devices=run.gram_devices)
    held_out = GramAccumulator(leader.name, leader.groups, own_drift=True, devices=run.gram_devices)
    paired = moved = bool(run.dense)  # with no layer changed so far there is no drift
    for number, call in enumerate(calls):
        into = counted if number < run.counted else held_out
        dense = beside.given(stage, number) if paired else []
        feed = _Feed(leader, into, dense, paired)
        with replays.over(number) if replays is not None else nullcontext():
            _feed(block, stage, call, states.now[number], run, feed.add, reads, whole)
        paired = paired and feed.paired and not dense
    began = now(run.devices)
    with _gram_fits(leader):
        gram, apart = (part.finish(leader.shape[1], leader.parameter.device) for part in (counted, held_out))
    run.seconds.hessian += now(run.devices) - began
    if not paired:
        gram, apart = replace(gram, drift=None, unpaired=moved), replace(apart, drift=None)
    return replace(gram, held_out=apart) if apart.tokens else gram


def _gram_fits(leader: Layer) -> AbstractContextManager[None]:
    """Names the layer where the memory does not hold its Gram."""
    return told_if_full(
        f"while the Gram of the inputs of layer {leader.name!r} was computed ({leader.shape[1]} x {leader.shape[1]})",
        "give shorter windows or smaller batches, gram_devices that have more room, or exclude that layer",
    )


#: What a module is given, and what the block adds to its output if that is known.
Given = tuple[Tensor, Tensor | None]


@dataclass(eq=False)
class _Feed:
    """Adds inputs of a layer, paired with those of the dense model as long as the shapes are the same."""

    leader: Layer
    into: GramAccumulator
    dense: list[Given]
    paired: bool

    def add(self, given: Given) -> None:
        """Add what one call of the module was given."""
        (inputs, residual), beside = given, self.dense.pop(0) if self.dense else None
        self.paired = self.paired and beside is not None and _shapes(beside) == _shapes(given)
        if not self.paired or beside is None:
            for rows in self.leader.rows(inputs):
                self.into.add(rows)
            return
        # only linear layers have a residual, and those have all rows at once
        behind = None if residual is None or beside[1] is None else beside[1] - residual
        for rows, others in zip(self.leader.rows(inputs), self.leader.rows(beside[0]), strict=True):
            self.into.add(rows, others, behind)


class _Beside:
    """What the dense model gives to the stages of a block: from one pass a batch, as far as there is room to keep it.

    A batch's first pass keeps what that stage and all behind it are given, and the block's output if that is needed; a
    batch for which there is no room has a pass for every stage, which ends there.

    Args:
        block: the block.
        stages: those that will ask, each batch once.
        inside: the layers that get their dense weights for a pass.
        calls: of the block.
        states: hidden states for them.
        run: the run.
        room: for what is kept; none by default.
        further: the block's outputs are needed.
    """

    def __init__(
        self,
        block: nn.Module,
        stages: Sequence[Stage],
        inside: Sequence[Layer],
        calls: Sequence[Call],
        states: _States,
        run: _Pass,
        room: Room | None = None,
        further: bool = False,
    ) -> None:
        self._block, self._stages, self._inside, self._calls = block, stages, inside, calls
        self._states, self._run, self._further = states, run, further
        self._room, self._full = room or Room(0), room is None
        self._kept: dict[int, dict[Stage, list[Given]]] = {}
        self.outputs: dict[int, Tensor] = {}

    def given(self, stage: Stage, number: int) -> list[Given]:
        """What the calls of a stage's module are given in a batch."""
        if number not in self._kept and not self._full:
            self._kept[number] = self._all_from(stage, number)
        kept = self._kept.get(number, {}).pop(stage, None)
        if kept is not None:
            self._room.give_back(kept)
            return kept
        found: list[Given] = []
        with self._run.undone(self._inside):
            take = found.append if stage.calls == 1 else lambda given: found.append(fresh(given))
            _feed(self._block, stage, self._calls[number], self._states.dense[number], self._run, take)
        return found

    def _all_from(self, stage: Stage, number: int) -> dict[Stage, list[Given]]:
        """What a stage and those behind it are given in a batch; nothing if there is not room for all of it."""
        kept: dict[Stage, list[Given]] = {each: [] for each in self._stages[self._stages.index(stage) :]}
        taken: list[Any] = []

        def keep(each: Stage) -> Callable[[Given], None]:
            def take(given: Given) -> None:
                if each.calls == 1 and kept[each]:
                    return  # the dense model calls it again, where a pass for this stage alone had ended
                if not self._room.take(given):
                    raise _Stop
                taken.append(given)
                kept[each].append(fresh(given))

            return take

        with self._run.undone(self._inside), ExitStack() as watched:
            for each in kept:
                watched.enter_context(hooked(_looks(each, keep(each))))
            output = None
            with suppress(_Stop):
                hidden, call = self._states.dense[number], self._calls[number]
                output = _timed(self._run.seconds, self._run.devices, lambda: call.run(self._block, hidden))
        if output is None:
            self._room.give_back(taken)
            self._full = True  # other batches are of about the same size
            return {}
        tensor = _first_tensor(output) if self._further else None
        if tensor is not None and self._room.take(tensor):
            self.outputs[number] = tensor
        return kept


def _shapes(given: Given) -> list[tuple[int, ...] | None]:
    return [None if tensor is None else tuple(tensor.shape) for tensor in given]


def _feed(
    block: nn.Module,
    stage: Stage,
    call: Call,
    hidden: Tensor | None,
    run: _Pass,
    take: Callable[[Given], None],
    reads: _Reads | None = None,
    whole: bool = False,
) -> None:
    """Run a block until all calls of a stage's module are seen, and hand on what the module is given."""

    @pinned()  # the model may have an autocast of its own
    def see(given: Given) -> None:
        began = now(run.devices)
        with _gram_fits(stage.layers[0]):
            take(given)
        run.seconds.hessian += now(run.devices) - began
        if stage.calls == 1 and not whole:
            raise _Stop

    with hooked(_looks(stage, see)), suppress(_Stop):
        if reads is not None and whole:
            _timed(run.seconds, run.devices, lambda: reads.watch(call, hidden))
        else:
            with reads.before(stage) if reads is not None else nullcontext():
                _timed(run.seconds, run.devices, lambda: call.run(block, hidden))


def _looks(stage: Stage, see: Callable[[Given], None]) -> list[RemovableHandle]:
    """Hooks that hand on what a stage's module is given in a pass."""
    residual: list[Tensor | None] = [None]

    def remember(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        residual[0] = _first_of(args, kwargs)

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        see((_input_of(args, kwargs), residual[0]))

    handles = [module.register_forward_pre_hook(look, with_kwargs=True) for module in stage.layers[0].modules]
    if stage.added_to is not None:
        handles.append(stage.added_to.register_forward_pre_hook(remember, with_kwargs=True))
    return handles

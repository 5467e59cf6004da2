"""One pass over the layers of a model: each is pruned when its turn comes, and all of it can be taken back."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from qubo_prune.blocks.certificate import BlockOptima, block_optima, least_error
from qubo_prune.blocks.loss.descent import OnStep
from qubo_prune.blocks.loss.trace import LossTrace
from qubo_prune.blocks.rows import DescentResult
from qubo_prune.choices import BY_GRADIENTS
from qubo_prune.clock import Deadline
from qubo_prune.data.calibration import Calibration, split_held_out
from qubo_prune.data.losses import Loss, Objective
from qubo_prune.data.samples import Samples
from qubo_prune.devices import now, told_if_full
from qubo_prune.errors import InputError
from qubo_prune.events import event
from qubo_prune.hessian.gradients import without_gradient
from qubo_prune.hessian.gram import Gram
from qubo_prune.hessian.output_factor import OutputFactor, as_tensors, of_tensors, output_factors
from qubo_prune.hessian.reach import NO_CALL, NO_GRADIENT, Uses, nothing_reached, uses_of
from qubo_prune.hessian.stream import Block, stream, whole_block
from qubo_prune.masks.channel_order import channel_order
from qubo_prune.masks.keep import KeepMasks
from qubo_prune.methods.allocation import densities_by_name, protected
from qubo_prune.methods.base import Decision, JointTask, LayerTask, ModelTask, SampledStart
from qubo_prune.methods.budget_search import BudgetTrace
from qubo_prune.methods.correction import corrected
from qubo_prune.methods.given import GivenMasks
from qubo_prune.methods.verify import all_decided_by, decided_by
from qubo_prune.methods.weighting import unweighted, weighted
from qubo_prune.models.calls import as_call
from qubo_prune.models.channels import Channels, candidates, first_tensor, input_power, reordered
from qubo_prune.models.coverage import LeftDense
from qubo_prune.models.layers import Layer, Removed, check_finite, tied_to_others
from qubo_prune.models.load import evaluating
from qubo_prune.models.storage import InMemory, WeightStorage
from qubo_prune.precision import pinned
from qubo_prune.progress import Progress
from qubo_prune.report.report import LayerReport
from qubo_prune.run.densities import Allocated, Allocator
from qubo_prune.run.memory import room_for_passes
from qubo_prune.run.plan import Plan
from qubo_prune.run.records import Decided, Records, Start
from qubo_prune.solver.interface import derive_seed
from qubo_prune.tables import shown

_log = logging.getLogger(__name__)

#: What takes less memory of a device than a layer took.
_SMALLER = "give a smaller block_size, method='gram', update='none' or a device with more room, or exclude that layer"
#: Batches by whose inputs channels are ordered.
_ORDERING = 8
#: Tokens that go through the model at once for gradients at the layers' outputs, unless a window has more.
_TOKENS = 1024
#: Why the error of a layer is not the one that was measured when it was pruned.
_IN_ANOTHER_ORDER = "It ran on other inputs once all was pruned, so its errors were measured again on those."
_TIED = (
    "A weight that was pruned is tied to one that other parts of the model use, so errors were measured again once all "
    "was pruned."
)


def densities_of(plan: Plan, layers: Sequence[Layer]) -> dict[str, float]:
    """Kept shares of the layers before an allocation.

    Raises:
        InputError: the pattern does not fit a layer, or blocks are whole rows and its rows are none of the solver's.
    """
    found = densities_by_name(plan.densities, [layer.name for layer in layers], plan.density)
    for layer in layers:
        plan.pattern.check(found[layer.name], layer.name, layer.shape[1])
        if plan.chain.blocks is not None:
            plan.chain.blocks.check_rows(layer.shape[1], plan.pattern)
    return found


def named_in_full(plan: Plan, layers: Sequence[Layer]) -> set[str]:
    """The layers that were asked for by their names, so that they are pruned even if nothing is known of them."""
    names, masks = set(plan.request.budget.include), plan.chain.masks
    return {layer.name for layer in layers if layer.name in names or layer.parameter_name in masks}


@pinned()
def prune_alone(plan: Plan, layer: Layer, gram: Gram) -> LayerReport:
    """Prune one layer by its Gram, without the run around it."""
    run = LayerRun(plan, [layer], time.perf_counter(), Records(None, [layer]), InMemory(layer.module))
    run.one_layer(layer, gram)
    return run.reports[0]


class LayerRun:
    """One pass over the layers: what was decided, how to take it back, where the time went."""

    def __init__(
        self, plan: Plan, layers: Sequence[Layer], began: float, records: Records, shelf: WeightStorage
    ) -> None:
        self._plan, self._layers, self._records, self._shelf = plan, layers, records, shelf
        self._start = plan.chain.start
        self._named = named_in_full(plan, layers)
        self._uses = Uses()
        self._without_gradient: Collection[str] = ()
        self._uniform: Collection[str] = ()
        self.left_dense: list[LeftDense] = []
        self._began = began - records.elapsed
        self._removed: list[Removed] = []
        self.reports: list[LayerReport] = []
        self.masks = KeepMasks()
        #: What a search for budgets did, if there was one.
        self.budgets: BudgetTrace | None = None
        #: Names of the layers whose inputs have another order than in the model that was given.
        self.reordered: list[str] = []
        self._orders: list[tuple[Channels, Tensor]] = []
        self.seconds = records.seconds
        self._densities = densities_of(plan, layers)
        self._left = sum(layer.parameter.numel() for layer in layers)
        self._dense = shelf.dense_weights()
        self._factors: dict[str, OutputFactor] = {}
        self._fitted: set[str] = set()
        self._starts: dict[str, Start] = {}
        #: The note of layers that are measured once more in the end; ``None`` if none is.
        self._measured_last: str | None = None
        check_finite(layers, shelf.resident)

    @property
    def elapsed(self) -> float:
        """Wall-clock seconds of the run, those before an interruption included."""
        return time.perf_counter() - self._began

    @contextmanager
    def undone_on_failure(self) -> Iterator[None]:
        """Give the model its weights back if anything is raised, an interrupt included."""
        try:
            yield
        except BaseException:
            if not self._shelf.in_memory:  # nothing of it was changed on the disk
                raise
            for removed in self._removed:
                removed.restore()
            for layer in self._layers:
                if layer.name in self._dense:
                    layer.assign(self._dense[layer.name])
            for channels, order in reversed(self._orders):
                channels.reorder(order.argsort())
            raise

    @property
    def _draws(self) -> int:
        """The seed of what is drawn for gradients before any layer is pruned; the layers have those below."""
        return derive_seed(self._plan.seed, len(self._layers))

    def _order(self, samples: Samples) -> Tensor:
        """All samples in a random order."""
        return torch.randperm(len(samples), generator=torch.Generator().manual_seed(self._draws))

    def prepare_loss(self, model: nn.Module, data: Calibration, held_out: Samples | Iterable[Any] | None) -> None:
        """Check the loss on the dense model before the long part; score its weights if that is the warm start."""
        method, loss = self._plan.chain.whole, self._plan.loss
        assert method is not None
        assert loss is not None
        assert data.samples is not None
        draws = method.sampling
        method.check_layers(self._layers)
        self._samples = split_held_out(data.samples, held_out, draws.held_out, self._draws)
        self._objective = Objective(model, loss, draws.micro_batch)
        count = min(draws.samples, len(self._samples[0]))
        batch = self._order(self._samples[0])[:count]
        self._objective.measure(self._samples[0], batch[: draws.micro_batch])
        if isinstance(self._start, SampledStart):
            masks = self._records.tensors_once("gradient-masks", lambda: self._by_gradient(batch))
            self._start = self._start.with_masks(masks)
            self._without_gradient = {layer.name for layer in self._layers} - masks.keys()
        else:
            self._without_gradient = self._records.once(
                "without-gradient",
                lambda: without_gradient(self._objective, self._samples[0], batch, self._layers),
            )
        if len(self._without_gradient) == len(self._layers):
            raise nothing_reached(self._layers, NO_GRADIENT, "the method 'gram', or another loss")

    def _by_gradient(self, batch: Tensor) -> dict[str, Tensor]:
        """Masks of a start that ranks by the gradient, of layers to which one came back."""
        assert isinstance(self._start, SampledStart)
        made = self._start.prepared(
            self._objective, self._samples[0], batch, self._layers, self._plan.pattern, self._densities
        )
        return dict(made.known)

    def decide_all(self, bars: Progress, on_step: OnStep | None) -> LossTrace | None:
        """Let the method for the whole model decide; the layers' reports and masks follow."""
        plan, method, began = self._plan, self._plan.chain.whole, time.perf_counter()
        assert method is not None
        for removed in self._removed:
            self._dense[removed.layer.name] = removed.dense()
        layers = [
            layer
            for layer in self._layers
            if layer.parameter_name in self.masks and layer.name not in self._without_gradient
        ]
        if not layers:
            raise nothing_reached(self._layers, "not reached by both inputs and gradients", "more samples")
        before = {layer.name: layer.as_matrix(self.masks[layer.parameter_name]) for layer in layers}
        keeper = self._records.loss_keeper()
        past = float(keeper.past.info["seconds"]) if keeper and keeper.past else 0.0
        self._began -= past
        left = None if plan.max_time is None else max(0.0, plan.max_time - self.elapsed)
        task = ModelTask(
            self._objective,
            layers,
            {layer.name: self._dense[layer.name] for layer in layers},
            *self._samples,
            pattern=plan.pattern,
            deadline=Deadline(left),
            progress=bars,
            on_step=on_step,
            keeper=keeper,
        )
        found = all_decided_by(method, task, {name: Decision(keep=keep) for name, keep in before.items()})
        for number, report in enumerate(self.reports):
            if report.name not in before:
                note = {"No gradient of the loss reached this layer, so it has the mask of its warm start.": 1}
                self.reports[number] = replace(report, notes={**report.notes, **note})
                continue
            mask, old = found.decisions[report.name].keep, before[report.name]
            kept, changed = int(mask.sum()), int((mask.cpu() != old.cpu()).sum())
            self.reports[number] = replace(report, kept=kept, density=kept / mask.numel(), swapped=changed)
        for layer in layers:
            self.masks[layer.parameter_name] = layer.stored(found.decisions[layer.name].keep).cpu()
        self.seconds.loss = past + time.perf_counter() - began
        return found.trace

    def reorder(self, model: nn.Module, data: Calibration, bars: Progress) -> None:
        """Put channels between layers into an order in which the pattern prunes less, if that is asked for."""
        plan = self._plan
        if not plan.request.budget.reorder:
            return
        found = {each.reader.name: each for each in candidates(model, self._layers)}
        calls = [as_call(batch) for batch in data.inputs]

        def made() -> dict[str, Tensor]:
            readers = [each.reader for each in found.values() if each.reader.shape[1] % plan.pattern.of == 0]
            power = input_power(model, readers, calls[:_ORDERING])
            orders = {}
            for layer in readers:
                scores = layer.matrix().double().square().cpu() * power[layer.name].double().cpu()
                order = channel_order(scores.T.numpy(), plan.pattern.keep, plan.pattern.of, seed=plan.seed)
                orders[layer.name] = torch.from_numpy(order)
            return orders

        def output() -> Tensor:
            with torch.no_grad():
                return first_tensor(calls[0].run(model))

        with bars.task("order of channels", None), evaluating(model):
            orders = self._records.tensors_once("channel-orders", made)
            chosen = [found[name] for name in orders]
            self._orders = [(each, orders[each.reader.name]) for each in reordered(chosen, orders, output)]
        self.reordered = [each.reader.name for each, _ in self._orders]

    def look(self, model: nn.Module, data: Calibration) -> None:
        """See in one forward pass which layers' weights are used, and how."""
        if self._shelf.in_memory:
            found = self._records.once("uses", lambda: uses_of(model, self._layers, data.inputs[:1]).to_dict())
            self._uses = Uses.from_dict(found)

    def weigh_outputs(self, model: nn.Module, data: Calibration, loss: Loss | None, bars: Progress) -> None:
        """Learn from the dense model what errors at the layers' outputs cost the loss, if anything goes by that."""
        plan = self._plan
        if not plan.needs_output_factors:
            return
        assert loss is not None
        samples = plan.samples_of(data)

        def made() -> dict[str, Tensor]:
            tokens = int(plan.request.data.sequence_length) if isinstance(plan.request.calibration, str) else 256
            objective = Objective(model, loss, max(1, _TOKENS // tokens))
            return as_tensors(output_factors(objective, samples, self._order(samples), self._layers, self._draws))

        with bars.task("gradients at the outputs", None):
            began = time.perf_counter()
            self._factors = of_tensors(self._records.tensors_once("output-factors", made))
            self.seconds.hessian += time.perf_counter() - began
        if not self._factors:
            raise nothing_reached(self._layers, NO_GRADIENT, "hessian='gram' and the allocation 'owl' or 'uniform'")

    def allocate(self, model: nn.Module, data: Calibration, loss: Loss | None, bars: Progress) -> None:
        """Give the layers densities of their own, if that is asked for; the whole keeps the plan's."""
        plan = self._plan
        if plan.allocation == "uniform":
            return

        def made() -> dict[str, Any]:
            allocator = Allocator(
                plan, self._layers, self._factors, self._shelf, self.seconds, self._order, self._draws
            )
            left = None if plan.max_time is None else max(0.0, plan.max_time - self.elapsed) / 2
            with bars.task(f"budgets of the layers ({plan.allocation})", None):
                return allocator.allocated(model, data, loss, Deadline(left)).to_dict()

        found = Allocated.from_dict(self._records.once("budgets", made))
        self._uniform = self._densities.keys() - found.densities.keys()
        self._densities |= found.densities
        self.budgets = found.trace

    def all_layers(self, model: nn.Module, data: Calibration, bars: Progress) -> None:
        """Stream the calibration data through the model and prune each layer when its turn comes."""
        if self._plan.needs_inputs and self._shelf.in_memory:
            if tied_to_others(model, self._layers):
                self._measured_last = _TIED
            elif self._plan.chain.whole is not None or self._plan.chain.joint(whole_model=True) is not None:
                self._measured_last = ""
        with bars.task(f"pruning ({self._plan.chain.name})", self._left) as advance:

            def visit(layer: Layer, gram: Gram) -> None:
                if self._records.lacks(layer):
                    reason = self._why_left_dense(layer, gram)
                    if reason is None:
                        self.one_layer(layer, gram)
                    else:
                        self._leave(layer, reason)
                else:
                    self._take(layer)
                advance(layer.parameter.numel(), layer.name)

            if self._plan.needs_inputs:
                beside = self._plan.correction or self._plan.chain.joint(whole_model=False) is not None
                dense = self._dense if beside else None
                stream(
                    model,
                    self._layers,
                    data.inputs,
                    visit,
                    self.seconds,
                    data.held_out,
                    dense,
                    self._records.lacks,
                    self._shelf,
                    self._plan.gram_devices,
                    self._settle,
                    self._fit if self._plan.chain.joint(whole_model=False) else None,
                    room_for_passes(self._layers, self._shelf),
                )
            else:
                for layer in self._layers:
                    visit(layer, Gram.of_nothing(layer.shape[1], layer.parameter.device))
        if not self.reports:
            raise nothing_reached(self._layers, self.left_dense[0].reason, "inputs that go through them")

    def _why_left_dense(self, layer: Layer, gram: Gram) -> str | None:
        """Why a layer stays as it is: nothing was seen of it, and it was not asked for by its full name."""
        if layer.name in self._named:
            return None
        if self._plan.needs_inputs:
            return None if gram.tokens else self._uses.why_not_reached(layer.name)
        if layer.name not in self._without_gradient:
            return None
        why = self._uses.why_not_reached(layer.name)
        return why if why == NO_CALL else NO_GRADIENT

    def _leave(self, layer: Layer, reason: str) -> None:
        """Leave a layer dense."""
        left = LeftDense(layer.name, layer.parameter.numel(), reason)
        self.left_dense.append(left)
        self._left -= left.weights
        self._records.put_left_dense(layer, reason)
        event(
            _log,
            "left-dense",
            f"{layer.name} stays dense: {reason}.",
            layer=layer.name,
            layers=len(self._layers),
            weights=left.weights,
            weights_left=self._left,
            reason=reason,
            elapsed=self.elapsed,
        )

    def one_layer(self, layer: Layer, gram: Gram) -> None:
        """Prune one layer.

        Raises:
            InputError: the memory of its device does not hold what that takes.
        """
        doing = f"while layer {layer.name!r} of {layer.shape[0]} x {layer.shape[1]} weights was pruned"
        with told_if_full(doing, _SMALLER):
            self._one_layer(layer, gram)

    def _one_layer(self, layer: Layer, gram: Gram) -> None:
        devices = {layer.parameter.device, gram.matrix.device}
        plan, began = self._plan, now(devices)
        event(_log, "layer-began", f"{layer.name} is pruned now.", layer=layer.name)
        weight, raised = layer.matrix().to(gram.matrix.device), Counter[str]()
        if self._records.was_damaged(layer):
            raised["Its record in the run's folder was damaged, so it was pruned again."] = 1
        target = corrected(weight, gram, plan.correction, plan.damping, raised)
        if plan.correction and gram.tokens and gram.unpaired:
            raised["The dense model does not send the same tokens to this layer, so nothing was corrected."] = 1
        start, result = self._decided(layer, target, gram)
        began_with, keep = weight * start.keep, result.keep
        if start.weight is not None and plan.updates:
            began_with = start.weight
        final = target * keep if result.weight is None else result.weight
        notes = dict(result.notes)
        held_out = _held_out_errors(gram, weight, began_with, final)
        weights = self._output_weights(layer)
        judged = held_out if weights is None else _held_out_errors(gram, weight, began_with, final, weights)
        reverted = judged[0] is not None and judged[1] is not None and judged[1] > judged[0]
        if reverted:
            final, keep = began_with, start.keep
            notes = {**notes, "Its error on held-out inputs rose, so the layer has its warm start back.": 1}
        seconds = now(devices) - began
        self.seconds.search += seconds
        proven = self._proven(weight, gram, keep)
        power, before = (_error(gram, change) for change in (weight, weight - began_with))
        after = before if torch.equal(began_with, final) else _error(gram, weight - final)
        self._put(layer, keep, final)
        notes = dict(raised + Counter(start.notes) + Counter(notes)) | self._notes_on_reach(layer, gram)
        found = replace(result, keep=keep, notes=notes)
        errors = _Errors(before, after, power, *held_out)
        report = replace(
            _report_of(layer, gram, found, errors, seconds, plan.solver_name),
            reverted=reverted,
            least_error=proven[0],
            block_optima=proven[1],
        )
        self.reports.append(report)
        begun = self._starts[layer.name] = Start(start.keep, start.weight if plan.updates else None)
        decided = Decided(keep, layer.matrix() if plan.updates else None, report, begun)
        self._records.put(layer, decided, self.seconds, self.elapsed)
        self._records.forget_journal(layer)
        self._tell(report)

    def _notes_on_reach(self, layer: Layer, gram: Gram) -> dict[str, int]:
        """What was not seen of a layer that is pruned all the same."""
        plan, said = self._plan, list[str]()
        if not plan.needs_inputs:
            said.append("The output error of this layer was not measured; its warm start needs no inputs.")
            if isinstance(self._start, SampledStart) and layer.name in self._without_gradient:
                said.append("No gradient of the loss reached this layer; its weights were ranked by magnitude.")
        elif not gram.tokens:
            given = layer.parameter_name in plan.chain.masks
            ranked = "its mask was given" if given else "its weights were ranked by magnitude"
            said.append(f"No calibration token reached this layer; {ranked}.")
        if layer.name in self._uniform:
            of = "No gradient of the loss" if plan.allocation in BY_GRADIENTS else "No calibration token"
            said.append(f"{of} reached this layer when budgets were given out, so it has the density of the run.")
        if plan.weighs_outputs and layer.name not in self._factors:
            said.append("No gradient of the loss reached this layer, so its outputs count alike.")
        if layer.name in self._uses.called & self._uses.beside:
            said.append("Its weight is also used without a call of its module, which its error leaves out.")
        return dict.fromkeys(said, 1)

    def _take(self, layer: Layer) -> None:
        """Put in place what an earlier call decided."""
        reason = self._records.reason_left_dense(layer)
        if reason is not None:
            self.left_dense.append(LeftDense(layer.name, layer.parameter.numel(), reason))
            self._left -= layer.parameter.numel()
            return
        decided = self._records.take(layer)
        self._put(layer, decided.keep.to(layer.parameter.device), decided.weight)
        self._starts[layer.name] = decided.start
        self.reports.append(decided.report)

    def fit_all(self, model: nn.Module, data: Calibration, bars: Progress) -> None:
        """Fit all kept weights together, if that is asked for, and measure the layers once more."""
        if self._plan.chain.joint(whole_model=True) is None:
            return
        with bars.task("fitting all layers", None), evaluating(model):
            self._fit(whole_block(model, self._layers, data.inputs, data.held_out, self._dense))

    def _fit(self, block: Block) -> None:
        """Fit the kept weights of a block's layers together."""
        joint = self._plan.chain.joint(block.is_whole)
        assert joint is not None
        layers = [layer for layer in block.layers if layer.name in self._starts]
        if not layers:
            return
        first, began = self._records.number(layers[0]), time.perf_counter()
        name = "fitted-all" if joint.whole_model else f"fitted-{first}"
        told: dict[str, float] = {}

        def fitted() -> Mapping[str, Tensor]:
            left = self._allowance(layers[-1])
            task = JointTask(
                block.module,
                {layer: layer.as_matrix(self.masks[layer.parameter_name]) for layer in layers},
                block.output,
                block.target,
                block.counted,
                len(block.calls),
                derive_seed(self._plan.seed, first),
                Deadline(left),
                block.gives_logits(),
            )
            with told_if_full(f"while the layers from {layers[0].name!r} on were fitted together", _SMALLER):
                found = joint.fit(task)
            told.update(before=found.before, after=found.after)
            return found.weights

        weights = self._records.tensors_once(name, fitted)
        for layer in layers:
            layer.assign(weights[layer.name].to(layer.parameter.device))
            self._fitted.add(layer.name)
        self.seconds.fit += time.perf_counter() - began
        sentence = f"{layers[0].name} to {layers[-1].name} were fitted together."
        event(
            _log,
            "fitted",
            sentence,
            layers=[layer.name for layer in layers],
            before=told.get("before"),
            after=told.get("after"),
            elapsed=self.elapsed,
        )

    def _settle(
        self, layers: Sequence[Layer], moved: Callable[[], Sequence[Layer]], gram: Callable[[Layer, bool], Gram]
    ) -> None:
        """Measure again those of a block's layers whose inputs have changed since they were pruned."""
        names = self._records.once(
            f"moved-{self._records.number(layers[0])}", lambda: [layer.name for layer in moved()]
        )
        for layer in layers:
            if layer.name in names and layer.name in self._starts:  # else it was left dense
                self._measure_again(layer, gram(layer, False), _IN_ANOTHER_ORDER)
            elif layer.name in self._fitted:
                self._measure_again(layer, gram(layer, not names), "")
        if self._measured_last is None:
            self._starts.clear()

    def measure_all(self, model: nn.Module, data: Calibration, bars: Progress) -> None:
        """Measure all layers once more if what came after a layer has changed its mask or its inputs."""
        why = self._measured_last
        if why is None:
            return
        with bars.task("measuring", sum(layer.parameter.numel() for layer in self._layers)) as advance:

            def visit(layer: Layer, gram: Gram) -> None:
                if layer.name in self._starts and gram.tokens:
                    self._measure_again(layer, gram, why)
                advance(layer.parameter.numel(), layer.name)

            stream(
                model,
                self._layers,
                data.inputs,
                visit,
                self.seconds,
                data.held_out,
                shelf=self._shelf,
                gram_devices=self._plan.gram_devices,
                room=room_for_passes(self._layers, self._shelf),
            )

    def _measure_again(self, layer: Layer, gram: Gram, why: str) -> None:
        """Put the errors on the inputs that a layer has now into its report."""
        if not self._shelf.in_memory:
            raise InputError(
                f"The layer {layer.name!r} runs several times, or not always in the same order, so its error has to be "
                "measured again with its dense weight, which is on the disk; give weights='memory', or exclude it."
            )
        start, final = self._starts[layer.name], layer.matrix().to(gram.matrix.device)
        dense = self._dense_of(layer).to(final.device)
        began_with = dense * start.keep.to(final.device) if start.weight is None else start.weight.to(final.device)
        power, before, after = (_error(gram, change) for change in (dense, dense - began_with, dense - final))
        number = next(number for number, report in enumerate(self.reports) if report.name == layer.name)
        old = self.reports[number]
        least, optima = self._proven(dense, gram, layer.as_matrix(self.masks[layer.parameter_name]).to(final.device))
        held_out = _held_out_errors(gram, dense, began_with, final)
        report = self.reports[number] = replace(
            old,
            error_before=before,
            error_after=after,
            output_power=power,
            tokens=gram.tokens,
            dead_inputs=int(gram.dead.sum()),
            notes=old.notes | ({why: 1} if why else {}),
            held_out_before=held_out[0],
            held_out_after=held_out[1],
            least_error=least,
            block_optima=optima,
        )
        self._tell(report)

    def _dense_of(self, layer: Layer) -> Tensor:
        if layer.name in self._dense:
            return self._dense[layer.name]
        return next(removed.dense() for removed in self._removed if removed.layer is layer)

    def _put(self, layer: Layer, keep: Tensor, weight: Tensor | None) -> None:
        """Prune the layer in the model, or give it new weights if the run changes those."""
        undoable = self._shelf.in_memory
        if self._plan.updates:
            assert weight is not None
            if undoable or self._plan.correction:
                self._dense[layer.name] = layer.matrix().clone()
            layer.assign(weight)
        else:
            if undoable:
                self._removed.append(layer.remember(keep))
            layer.prune(keep)
        self._shelf.changed(layer, lambda stored: self._again(layer, stored))
        self.masks[layer.parameter_name] = layer.stored(keep).cpu()
        self._left -= layer.parameter.numel()

    def _again(self, layer: Layer, stored: Tensor) -> Tensor:
        """What was decided of a layer, done to its weight as stored."""
        decided = self._records.take(layer)
        if decided.weight is not None:
            return layer.stored(decided.weight)
        return stored.masked_fill(~layer.stored(decided.keep), 0)

    def _tell(self, report: LayerReport) -> None:
        errors = f"{shown(report.relative_before, 5)} to {shown(report.relative_after, 5)}"
        sentence = f"{report.name}: relative error {errors}."
        event(
            _log,
            "layer",
            sentence,
            layer=report.name,
            number=len(self.reports),
            layers=len(self._layers),
            weights=report.shape[0] * report.shape[1],
            weights_left=self._left,
            kept=report.kept,
            relative_before=report.relative_before,
            relative_after=report.relative_after,
            seconds=report.seconds,
            blocks=report.blocks.asked,
            lost=report.blocks.num_lost,
            cut=report.blocks.num_cut,
            elapsed=self.elapsed,
        )

    def _is_blind(self, gram: Gram) -> bool:
        """True of a layer that was asked for by its full name and has no inputs to go by."""
        return self._plan.needs_inputs and not gram.tokens

    def _decided(self, layer: Layer, target: Tensor, gram: Gram) -> tuple[Decision, Decision]:
        """What the chain begins with, and what it makes of that."""
        plan, seed = self._plan, derive_seed(self._plan.seed, len(self.reports))
        # a method may not write to the model, whatever it does to what it is given
        own = target.clone() if target.data_ptr() == layer.parameter.data_ptr() else target
        task = LayerTask(
            own,
            gram,
            plan.pattern,
            self._densities[layer.name],
            plan.damping,
            seed=seed,
            run_seed=plan.seed,
            name=layer.name,
        )
        weights = self._output_weights(layer)
        if weights is not None:
            task = weighted(task, weights)
        stays, start = self._protected(task, self._first(layer, task))
        if self._is_blind(gram):
            found = Decision(keep=start.keep)
        else:
            journal = self._records.journal(layer) if plan.chain.blocks is not None else None
            try:
                found = plan.chain.decide(
                    replace(task, stays=stays, answers=journal), start, lambda: self._allowance(layer)
                )
            except BaseException:
                if journal is not None:
                    journal.keep()
                raise
        if weights is None:
            return start, found
        return unweighted(start, weights, own), unweighted(found, weights, own)

    def _output_weights(self, layer: Layer) -> Tensor | None:
        """By what the squared errors of a layer's outputs count; ``None`` if alike."""
        found = self._factors.get(layer.name) if self._plan.weighs_outputs else None
        return None if found is None else found.weights

    def _proven(self, weight: Tensor, gram: Gram, keep: Tensor) -> tuple[float | None, BlockOptima | None]:
        """A lower bound for masks of these counts, and optima of blocks, if they are asked for."""
        plan, devices = self._plan, {gram.matrix.device}
        began = now(devices)
        if plan.certify is None or not gram.tokens:
            return None, None
        least = least_error(weight, gram, keep, plan.pattern, plan.certify)
        optima = block_optima(weight, gram, keep, plan.pattern, derive_seed(plan.seed, len(self.reports)))
        self.seconds.bounds += now(devices) - began
        return least, optima

    def _first(self, layer: Layer, task: LayerTask) -> Decision:
        """What the chain begins with; a layer of which nothing is known is ranked by magnitude."""
        if isinstance(self._start, GivenMasks):
            mask = self._start.matrix_of(layer).to(task.weight.device)
            return decided_by(self._start, replace(task, mask=mask))
        known = bool(task.gram.tokens) if self._plan.needs_inputs else True
        if isinstance(self._start, SampledStart):
            known = layer.name in self._start.known
        return decided_by(self._start, task) if known else Decision(keep=task.highest(task.weight.abs()))

    def _protected(self, task: LayerTask, start: Decision) -> tuple[Tensor | None, Decision]:
        """The weights that stay, and a start that holds them: in their place the lowest of its budget go."""
        share, weight, gram = self._plan.request.budget.protect, task.weight, task.gram
        if not share:
            return None, start
        stays = protected(weight, gram, float(share), task.pattern, task.density)
        if bool((start.keep | ~stays).all()):
            return stays, start
        score = weight.abs() * gram.for_rows(gram.diagonal.sqrt(), len(weight))
        order = (score / score.amax().clamp(min=1e-300)).double() + 2 * start.keep + 4 * stays
        return stays, Decision(keep=task.highest(order), notes=start.notes)

    def _allowance(self, layer: Layer) -> float | None:
        """Seconds for one layer: its share of what the passes still to come leave of the budget."""
        if self._plan.max_time is None:
            return None
        total = sum(other.parameter.numel() for other in self._layers)
        done = 1 - self._left / total
        passes = self.seconds.forward + self.seconds.hessian
        # before the first layer is done there is nothing to extrapolate from but the first pass
        ahead = passes * (1 - done) / done if done else passes * len(self._layers)
        left = self._plan.max_time - self.elapsed - ahead
        return max(0.0, left) * layer.parameter.numel() / self._left


@dataclass(frozen=True)
class _Errors:
    """Of a layer: before and after, the power of its outputs, and the relative ones on held-out inputs."""

    before: float | None
    after: float | None
    power: float | None
    held_out_before: float | None
    held_out_after: float | None


def _report_of(layer: Layer, gram: Gram, found: Decision, errors: _Errors, seconds: float, solver: str) -> LayerReport:
    """What is told of a layer that was decided."""
    kept, search = int(found.keep.sum()), found.search or DescentResult(found.keep, 0, 0, 0.0, False)
    return LayerReport(
        name=layer.name,
        shape=layer.shape,
        kept=kept,
        density=kept / found.keep.numel(),
        error_before=errors.before,
        error_after=errors.after,
        output_power=errors.power,
        steps=search.steps,
        accepted=search.accepted,
        solver_gain=search.solver_gain,
        polish_gain=search.polish_gain,
        seconds=seconds,
        solver=solver,
        tokens=gram.tokens,
        dead_inputs=int(gram.dead.sum()),
        stopped_early=search.stopped_early,
        notes=dict(found.notes),
        trace=search.trace,
        held_out_before=errors.held_out_before,
        held_out_after=errors.held_out_after,
        blocks=search.blocks,
    )


def _error(gram: Gram, change: Tensor) -> float | None:
    """Of the output, summed; ``None`` where no inputs were seen."""
    return float(gram.output_error(change).sum()) if gram.tokens else None


def _held_out_errors(
    gram: Gram, weight: Tensor, before: Tensor, after: Tensor, by: Tensor | None = None
) -> tuple[float | None, float | None]:
    """Of the warm start and of the result, relative to the layer's output; ``None`` without held-out inputs.

    Outputs count ``by`` these weights, alike if there are none.
    """
    if gram.held_out is None:
        return None, None
    rows = torch.ones(len(weight), dtype=torch.float64) if by is None else by
    rows = rows.to(gram.held_out.matrix.device)
    power = float((rows * gram.held_out.output_error(weight)).sum())
    errors = [float((rows * gram.held_out.dense_output_error(weight, new)).sum()) for new in (before, after)]
    return (errors[0] / power, errors[1] / power) if power else (None, None)

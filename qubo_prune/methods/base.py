"""What a method is: an object whose fields are its settings, and which decides masks and weights.

A :class:`LayerMethod` decides one layer at a time from what was decided so far: a *start* makes the first mask, blocks
improve it, an update fits the kept weights to it. A :class:`ModelMethod` decides all layers at once, after that. A
chain of them is what a run does (see :mod:`qubo_prune.methods.chain`). Every method, the built-in ones too, is found by
the name of its entry point in the group ``qubo_prune.methods`` (see :mod:`qubo_prune.methods.registry`).
"""

from __future__ import annotations

import abc
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from qubo_prune.blocks.loss.descent import Keeper, OnStep
from qubo_prune.blocks.loss.trace import LossTrace
from qubo_prune.blocks.rows import DescentResult
from qubo_prune.clock import Deadline
from qubo_prune.data.losses import Loss, Objective
from qubo_prune.data.samples import Samples
from qubo_prune.errors import InputError
from qubo_prune.hessian.compensated import DAMPING
from qubo_prune.hessian.gram import Gram
from qubo_prune.hessian.linalg import UNSEEN, cast_back, check_layer, promote_range, with_damping
from qubo_prune.masks.keep import Pattern, keep_highest
from qubo_prune.methods.scores import score
from qubo_prune.models.layers import Layer
from qubo_prune.precision import pinned
from qubo_prune.progress import Progress
from qubo_prune.solver.answer_log import AnswerLog


@dataclass(frozen=True)
class Traits:
    """What a method declares of itself, as data: runs, checks, estimates and tables go by it.

    Attributes:
        label: its name in tables.
        reads: what it needs besides the weights: ``weights``, nothing; ``inputs``, the layers' Grams; ``samples``,
            labelled samples and gradients of a loss.
        starts: it makes a mask; one that does not improves a mask, or the weights on it.
        updates: it changes kept weights.
        protects: a mask that it makes holds the protected weights of the task.
        start: the method that a run begins with if this one does not start and none is named.
        update: the update that follows if none is named.
        correction: how far layers make up for those pruned before, if that is not said.
        source: where it comes from.
    """

    label: str
    reads: Literal["weights", "inputs", "samples"] = "inputs"
    starts: bool = True
    updates: bool = False
    protects: bool = False
    start: str = "wanda"
    update: str | None = None
    correction: float = 0.0
    source: str = ""


@dataclass(frozen=True, eq=False, kw_only=True)
class Decision:
    """What was decided for one layer.

    Attributes:
        keep: the keep mask.
        weight: the matrix with updated weights, zero where pruned; ``None`` if kept weights are the dense ones.
        notes: what did not go as asked, as sentences, each with the number of Grams or rows.
        search: how blocks found the mask; ``None`` if no blocks did.
    """

    keep: Bool[Tensor, "d_out d_in"]
    weight: Float[Tensor, "d_out d_in"] | None = None
    notes: Mapping[str, int] = field(default_factory=dict)
    search: DescentResult | None = None


@dataclass(frozen=True, eq=False)
class LayerTask:
    """One layer, or one group of rows of it, and what is asked. A method changes none of its tensors.

    Attributes:
        weight: the weights to prune, on the device of the Gram: the dense ones, or what they were corrected to.
        gram: of their inputs; its ``held_out`` is that of held-out inputs.
        pattern: where counts must hold.
        density: kept share.
        damping: share of the Gram's mean diagonal that is added to its diagonal.
        notes: to be filled.
        seed: of random draws for this layer.
        run_seed: of the run, the same for all layers.
        stays: protected weights, which are to be kept; ``None`` for none.
        deadline: when to stop searching.
        answers: keeps solvers' answers, and knows those of a run that goes on.
        name: of the layer; empty outside of a run.
        mask: the caller's keep mask of the layer, as a matrix, if one was given.
    """

    weight: Float[Tensor, "r d"]
    gram: Gram
    pattern: Pattern
    density: float
    damping: float = DAMPING
    notes: Counter[str] = field(default_factory=Counter)
    seed: int = 0
    run_seed: int = 0
    stays: Bool[Tensor, "r d"] | None = None
    deadline: Deadline = field(default_factory=lambda: Deadline(None))
    answers: AnswerLog | None = None
    name: str = ""
    mask: Bool[Tensor, "r d"] | None = None

    def highest(self, scores: Float[Tensor, "r d"]) -> Bool[Tensor, "r d"]:
        """The keep mask of the highest scores, with the exact counts of the pattern."""
        return keep_highest(scores, self.pattern, self.density)

    def wanda(self) -> Float[Tensor, "r d"]:
        """Wanda's scores, ``|W_ij| ||X_j||_2``."""
        return score("wanda", self.weight, self.gram, 0)

    def alive_weight(self) -> Float[Tensor, "r d"]:
        """The weights, zero where the input always is."""
        return self.weight.masked_fill(self.gram.dead, 0)

    def groups(self) -> list[LayerTask]:
        """One task for each Gram; with the pattern ``layer`` each keeps the count that Wanda gives it."""
        weights, grams = self.gram.split(self.weight), self.gram.parts()
        densities = [self.density] * len(grams)
        if self.pattern.name == "layer" and len(grams) > 1:
            densities = [float(mask.sum()) / mask.numel() for mask in self.gram.split(self.highest(self.wanda()))]
        return [
            replace(self, weight=weight, gram=gram, density=density)
            for weight, gram, density in zip(weights, grams, densities, strict=True)
        ]


class Method(abc.ABC):
    """Chooses masks, weights or both. Subclasses are frozen dataclasses, whose fields are their settings.

    A setting is read from texts of the command line by its annotation; see :func:`qubo_prune.settings.setting` for
    fields with a range.
    """

    traits: ClassVar[Traits]

    @classmethod
    def settings_of_words(cls, words: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the words of a run (solver, block size, ...) that are fields of the method."""
        names = [each.name for each in fields(cls)] if is_dataclass(cls) else list[str]()
        return {name: value for name, value in words.items() if name in names}

    def check(self, pattern: Pattern, density: float) -> None:  # noqa: B027
        """Raise :class:`~qubo_prune.InputError` if the settings, the pattern and the density do not go together.

        It is called before anything is loaded.
        """


class LayerMethod(Method):
    """A method that decides one layer at a time."""

    #: False of a method that leaves the mask as it is.
    moves_masks: ClassVar[bool] = True

    @property
    def exact(self) -> bool:
        """False of a start whose counts are not those of pattern and density."""
        return True

    @abc.abstractmethod
    def decide(self, task: LayerTask, so_far: Decision | None = None) -> Decision:
        """Decide a layer.

        Args:
            task: the layer, and what is asked.
            so_far: what the steps before decided; ``None`` for the first, whose traits say that it starts.

        Returns:
            a mask with exactly the counts of the pattern, with weights if the traits say that it updates them.
        """


@dataclass(frozen=True)
class Sampling:
    """What a method that decides by the loss draws.

    Attributes:
        samples: of a batch.
        held_out: by which its moves are judged.
        micro_batch: samples that go through the model at once.
    """

    samples: int
    held_out: int
    micro_batch: int


@dataclass(frozen=True, eq=False)
class ModelTask:
    """All layers of a model, and what is asked.

    Attributes:
        objective: model and loss.
        layers: to be decided, as the steps before left them.
        dense: their weights before pruning, by layer name.
        train: samples to decide by.
        held_out: samples to judge by, none of them in ``train``.
        pattern: the groups whose counts stay.
        deadline: when to stop.
        progress: where bars are shown.
        on_step: called after each step with its record.
        keeper: keeps the state of a run that may be interrupted; see
            :class:`~qubo_prune.blocks.loss.descent.Keeper`.
    """

    objective: Objective
    layers: Sequence[Layer]
    dense: Mapping[str, Float[Tensor, "d_out d_in"]]
    train: Samples
    held_out: Samples
    pattern: Pattern
    deadline: Deadline
    progress: Progress
    on_step: OnStep | None = None
    keeper: Keeper | None = None


@dataclass(frozen=True, eq=False)
class ModelDecision:
    """What was decided for the layers of a model.

    Attributes:
        decisions: by layer name.
        trace: how the loss fell; ``None`` if that was not followed.
    """

    decisions: Mapping[str, Decision]
    trace: LossTrace | None = None


class ModelMethod(Method):
    """A method that decides all layers at once, after the layers' own steps; it changes their weights in place."""

    @abc.abstractmethod
    def decide_all(self, task: ModelTask, so_far: Mapping[str, Decision]) -> ModelDecision:
        """Decide the layers, and leave the model with what was decided.

        Args:
            task: the model, and what is asked.
            so_far: what was decided layer by layer, by layer name.
        """

    @property
    @abc.abstractmethod
    def sampling(self) -> Sampling:
        """What is drawn from the calibration."""

    @property
    def moves_between_layers(self) -> bool:
        """True if weights may move between layers, so that the counts of each are not those of the pattern."""
        return False

    def check_layers(self, layers: Sequence[Layer]) -> None:
        """Raise :class:`~qubo_prune.InputError` if it cannot decide these layers together."""

    def for_model(self, loss: Loss, seed: int, layers: Sequence[Layer] = ()) -> ModelMethod:
        """The same with what follows from the loss, the seed of the run and the layers."""
        return self

    def foreseen(self, limit: str) -> str:
        """What it is going to do after the layers' own steps, in words.

        Args:
            limit: the time that the run has at most; empty without a limit.
        """
        return f"{self.traits.label} comes after that" + (f", within {limit} of the run" if limit else "")

    def to_dict(self) -> dict[str, Any]:
        """Settings as plain data, for the report."""
        return {name: str(value) for name, value in vars(self).items()}


@dataclass(frozen=True, eq=False)
class JointTask:
    """A decoder layer (or a whole model that has none) whose layers are decided, for a method that fits them together.

    Attributes:
        module: the decoder layer.
        keep: the keep masks of its pruned layers, as matrices.
        output: what it gives now for the input of that number, with the inputs of the pruned model.
        target: what it gives in the dense model.
        counted: inputs to fit to; the numbers from there on are held out.
        total: all inputs.
        seed: of random draws.
        deadline: when to stop.
        gives_logits: what it gives are logits, as a language model's or a classifier's with a ``logits`` field.
    """

    module: nn.Module
    keep: Mapping[Layer, Bool[Tensor, "d_out d_in"]]
    output: Callable[[int], Tensor]
    target: Callable[[int], Tensor]
    counted: int
    total: int
    seed: int
    deadline: Deadline
    gives_logits: bool = False


@dataclass(frozen=True, eq=False)
class Joined:
    """Weights that were fitted together.

    Attributes:
        weights: matrices by layer name, zero where pruned.
        before: the error on held-out inputs that it began with, or on all inputs if none are held out.
        after: the same in the end.
    """

    weights: Mapping[str, Float[Tensor, "d_out d_in"]]
    before: float
    after: float


class JointMethod(Method):
    """Fits the kept weights of all layers of a decoder layer together, once each of them is decided.

    Attributes:
        whole_model: it fits those of all decoder layers together, once the whole model is pruned.
    """

    whole_model: ClassVar[bool] = False

    @abc.abstractmethod
    def fit(self, task: JointTask) -> Joined:
        """Fit the weights; masks stay. It may change the weights of the module while it runs."""


class SampledStart(LayerMethod):
    """A start that needs samples of a loss: it reads them for all layers at once, before any is pruned."""

    @property
    @abc.abstractmethod
    def known(self) -> Mapping[str, Bool[Tensor, "d_out d_in"]]:
        """Keep masks by layer name; a layer without one is ranked by magnitude."""

    @abc.abstractmethod
    def with_masks(self, masks: Mapping[str, Tensor]) -> SampledStart:
        """The same with these masks, which a run that goes on has kept."""

    @abc.abstractmethod
    def prepared(
        self,
        objective: Objective,
        samples: Samples,
        batch: Int[Tensor, " b"],
        layers: Sequence[Layer],
        pattern: Pattern,
        densities: Mapping[str, float],
    ) -> SampledStart:
        """The same with masks.

        Args:
            objective: the dense model with its loss.
            samples: to be drawn from.
            batch: which of them.
            layers: to be pruned.
            pattern: where counts must hold.
            densities: kept shares by layer name.
        """

    def decide(self, task: LayerTask, so_far: Decision | None = None) -> Decision:
        """The mask of the layer."""
        return Decision(keep=self.known[task.name].to(task.weight.device))


class Score(LayerMethod):
    """A start that keeps the weights of the highest scores."""

    def scores(self, task: LayerTask) -> Float[Tensor, "d_out d_in"]:
        """A score for every weight; the higher, the more it deserves to stay."""
        raise NotImplementedError

    @pinned()
    def decide(self, task: LayerTask, so_far: Decision | None = None) -> Decision:
        """The mask of the highest scores."""
        return Decision(keep=task.highest(self.scores(task)))


Masked = tuple[Tensor, Tensor | None]


class PublishedMethod(LayerMethod):
    """A start that works on one Gram, with what all of them need around it.

    Weights are taken to a dtype that holds their products with the Gram, and results back to theirs. A layer with
    several Grams (a grouped convolution) is done group by group; rows without calibration data keep their largest
    weights; where inputs were always zero, kept weights stay as they are.
    """

    #: False if :meth:`masked` itself handles a layer with several Grams.
    per_gram: ClassVar[bool] = True

    @abc.abstractmethod
    def masked(self, task: LayerTask) -> Masked:
        """A keep mask with exact counts and the updated weights, or ``None`` if they stay."""

    @pinned()
    def decide(self, task: LayerTask, so_far: Decision | None = None) -> Decision:
        """The mask, with weights if the method updates them."""
        check_layer(task.weight, task.gram, task.damping)
        notes: Counter[str] = Counter()
        unseen = int(task.gram.dead.all(-1).sum())
        if unseen:
            notes[UNSEEN] = unseen
        given = promote_range(task.weight.detach().to(task.gram.matrix.device), task.gram)
        own = replace(task, weight=given, notes=notes)
        keep, updated = self._by_group(own) if self.per_gram else self.masked(own)
        keep = keep.to(task.weight.device)
        if not self.traits.updates or updated is None:
            return Decision(keep=keep, notes=dict(notes))
        updated = cast_back(updated, task.weight.detach(), keep, notes).masked_fill(~keep, 0)
        return Decision(keep=keep, weight=updated, notes=dict(notes))

    def _by_group(self, task: LayerTask) -> Masked:
        masks, weights = [], []
        for part in task.groups():
            if part.gram.dead.all():
                keep, updated = part.highest(part.weight.abs()), part.weight
            else:
                keep, own = self.masked(part)
                updated = part.weight if own is None else own.double().where(~part.gram.dead, part.weight.double())
            masks.append(keep)
            weights.append(updated.double().masked_fill(~keep, 0))
        return torch.cat(masks), torch.cat(weights)


def share_of_budget(task: LayerTask, share: float) -> tuple[Pattern, float]:
    """Pattern and density that keep a share of every budget, rounded down."""
    pattern, (d_out, d_in) = task.pattern, task.weight.shape
    if pattern.of:
        keep = int(share * pattern.keep)
        return Pattern(f"{keep}:{pattern.of}", keep, pattern.of), keep / pattern.of
    size = d_in if pattern.name == "row" else d_out * d_in
    return pattern, int(share * round(task.density * size)) / size


class Update(LayerMethod):
    """Fits the kept weights of a layer to its mask, which stays.

    A row with dense weights w becomes v, zero outside its support F, and its output error becomes
    ``1/2 (v - w)'H(v - w)``. ``H`` is damped everywhere here: ``H + damping * mean(diag H) * I``. Where a matrix cannot
    be factored, the damping is raised tenfold step by step, at most up to 1, and a note says so. The weights of inputs
    that were always zero stay as they are where they are kept.
    """

    moves_masks = False

    @abc.abstractmethod
    def fitted(
        self,
        weight: Float[Tensor, "r d"],
        hessian: Float[Tensor, "d d"],
        keep: Bool[Tensor, "r d"],
        notes: Counter[str],
    ) -> Float[Tensor, "r d"]:
        """The weights of some rows for a damped Hessian; what is outside of the mask does not count."""

    @pinned()
    def decide(self, task: LayerTask, so_far: Decision | None = None) -> Decision:
        """The same mask with fitted weights."""
        assert so_far is not None
        weight, notes, _ = self.update(task, so_far.keep)
        return Decision(keep=so_far.keep, weight=weight, notes=notes, search=so_far.search)

    def update(
        self, task: LayerTask, keep: Bool[Tensor, "d_out d_in"]
    ) -> tuple[Float[Tensor, "d_out d_in"], dict[str, int], float]:
        """The fitted weights of a layer, notes, and the share of the mean diagonal that was added in the end.

        Args:
            task: with the dense weights and their Gram; a stack of Grams for a grouped convolution.
            keep: the mask.

        Raises:
            InputError: shapes do not fit, or the Gram is not positive semidefinite.
        """
        weight, gram = task.weight.detach(), task.gram
        check_layer(weight, gram, task.damping)
        device, notes, largest, parts = gram.matrix.device, Counter[str](), task.damping, []
        # detached: threads of an update would record gradients
        given = promote_range(weight.to(device), gram)
        for dense, part, mask in zip(gram.split(given), gram.parts(), gram.split(keep.to(device)), strict=True):
            if part.dead.all():
                parts.append(dense.masked_fill(~mask, 0).double())
                notes[UNSEEN] += 1
                continue

            def attempt(hessian: Tensor, dense: Tensor = dense, mask: Tensor = mask) -> Tensor:
                return self.fitted(dense, hessian, mask, notes)

            result, used = with_damping(part, task.damping, attempt, notes)
            if result.shape != dense.shape:
                raise InputError(
                    f"The update {self.traits.label!r} made weights of shape {tuple(result.shape)} for a layer of "
                    f"{tuple(dense.shape)}; take another update, and tell its author."
                )
            parts.append(result.double().masked_fill(~mask, 0))
            largest = max(largest, used)
        return cast_back(torch.cat(parts), weight, keep, notes), dict(notes), largest

"""Plain numerics inside, whatever the caller has set, and the caller's afterwards."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import tiny
import torch
from qubo_prune_solvers.greedy import Greedy
from torch import Tensor, nn

from qubo_prune import BlockQubo, estimate_run, prune, solve
from qubo_prune.blocks.compensated_rows import CompensatedDescent, descend_compensated
from qubo_prune.blocks.gram_rows import descend
from qubo_prune.blocks.rows import Descent
from qubo_prune.data.evaluation import perplexity
from qubo_prune.errors import InputError
from qubo_prune.hessian import Gram, GramAccumulator
from qubo_prune.hessian.stream import Seconds, stream
from qubo_prune.masks import Pattern
from qubo_prune.methods.registry import choose
from qubo_prune.methods.update import update
from qubo_prune.models.layers import find_layers
from qubo_prune.precision import caller_defaults, pinned
from qubo_prune.report import Report

Environment = Callable[[], AbstractContextManager[Any]]

LOSS = {
    "samples": 2,
    "scoring_samples": 2,
    "held_out": 2,
    "max_samples": 2,
    "max_blocks": 4,
    "micro_batch": 2,
    "block_size": 16,
}
RUNS: Mapping[str, dict[str, Any]] = {
    "gram": {"guard": 1},
    "compensated": {"method": "compensated", "correction": 0.5, "guard": 1},
    "fisher": {"method": "loss", "loss_settings": LOSS, "allocation": "fisher"},
}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    try:
        torch.set_float32_matmul_precision(name)
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


@contextmanager
def default_device(name: str) -> Iterator[None]:
    try:
        torch.set_default_device(name)
        yield
    finally:
        torch.set_default_device(None)


ENVIRONMENTS: Mapping[str, Environment] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", torch.float16),
    "products in less": lambda: matmul_precision("medium"),
    "double by default": lambda: default_dtype(torch.float64),
    "half by default": lambda: default_dtype(torch.bfloat16),
    "another device": lambda: default_device("meta"),
    "another device, as context": lambda: torch.device("meta"),
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
}


@contextmanager
def everything() -> Iterator[None]:
    """All at once."""
    with (
        torch.autocast("cpu", torch.bfloat16),
        matmul_precision("medium"),
        default_dtype(torch.float64),
        torch.device("meta"),
        torch.inference_mode(),
    ):
        yield


def same(one: Report, other: Report) -> bool:
    """Whether two reports have the same masks and, to the bit, the same errors."""
    told = [[(a.error_before, a.error_after, a.held_out_after) for a in report.layers] for report in (one, other)]
    return told[0] == told[1] and all(torch.equal(mask, other.masks[name]) for name, mask in one.masks.items())


def pruned(settings: Mapping[str, Any], environment: Environment = nullcontext) -> tuple[Report, list[Tensor]]:
    model, windows = tiny.llama(num_hidden_layers=1), tiny.tokens(10, 8)
    with environment():
        report = prune(model, windows, 0.5, **settings)
    return report, [parameter.detach() for parameter in model.parameters()]


@pytest.fixture(scope="module")
def plain() -> Mapping[str, tuple[Report, list[Tensor]]]:
    return {name: pruned(settings) for name, settings in RUNS.items()}


ASKED = [*(("gram", each) for each in ENVIRONMENTS.values()), *((kind, everything) for kind in RUNS)]


@pytest.mark.gate(4)
@pytest.mark.parametrize(("kind", "environment"), ASKED)
def test_a_run_is_the_same_to_the_bit_whatever_the_caller_has_set(
    plain: Mapping[str, tuple[Report, list[Tensor]]], kind: str, environment: Environment
) -> None:
    report, weights = pruned(RUNS[kind], environment)
    assert same(report, plain[kind][0])
    assert all(map(torch.equal, weights, plain[kind][1]))


def layer() -> tuple[Tensor, Gram]:
    draw = torch.Generator().manual_seed(0)
    inputs, weight = torch.randn(200, 32, generator=draw), torch.randn(24, 32, generator=draw)
    return weight, grams(inputs)


def grams(inputs: Tensor) -> Gram:
    accumulator = GramAccumulator("layer")
    accumulator.add(inputs)
    return accumulator.finish(inputs.shape[1], inputs.device)


def _descended(weight: Tensor, gram: Gram) -> Tensor:
    keep = choose("wanda", weight, gram, Pattern.parse("row"), 0.5, 0).keep
    return descend(weight, gram, keep, Pattern.parse("row"), Descent(Greedy(kernel="torch"), 16)).keep


def _adapted(weight: Tensor, gram: Gram) -> Tensor:
    keep = choose("wanda", weight, gram, Pattern.parse("row"), 0.5, 0).keep
    return descend_compensated(
        weight, gram, keep, Pattern.parse("row"), CompensatedDescent(Greedy(kernel="torch"), 16)
    ).keep


def _kept(weight: Tensor) -> Tensor:
    return weight.abs() >= weight.abs().median(1, keepdim=True).values


FUNCTIONS: Mapping[str, Callable[[Tensor, Gram], Tensor]] = {
    "Gram": lambda weight, gram: grams(weight).matrix,
    "descend": _descended,
    "descend_compensated": _adapted,
    **{
        kind: lambda weight, gram, kind=kind: update(kind, weight, gram, _kept(weight)).weight  # type: ignore[misc]
        for kind in ("refit", "admm", "sparsegpt")
    },
    "alps": lambda weight, gram: choose("alps", weight, gram, Pattern.parse("row"), 0.5, 0, 0.01).keep,
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("threads", [1, 2])  # worker threads inherit no autocast: mixed up they would be worse
def test_functions_that_users_call_themselves_are_pinned_too(name: str, threads: int) -> None:
    weight, gram = layer()
    wanted = FUNCTIONS[name](weight, gram)
    torch.set_num_threads(threads)
    try:
        with torch.autocast("cpu", torch.bfloat16), matmul_precision("medium"):
            found = FUNCTIONS[name](weight, gram)
    finally:
        torch.set_num_threads(1)
    assert found.dtype == wanted.dtype
    if wanted.is_floating_point() and threads > 1:  # products by two threads are added up otherwise
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    else:
        assert torch.equal(found, wanted)


def test_perplexity_dry_runs_and_single_solves_are_pinned() -> None:
    model, windows = tiny.llama(num_hidden_layers=1), tiny.tokens(2, 8)
    q = [[1.0, -2.0], [-2.0, 3.0]]
    with everything():
        assert estimate_run(model, windows).weights == sum(
            group.weights for group in estimate_run(model, windows).groups
        )
        assert solve(BlockQubo(q, num_pruned=1), "greedy").energy == 1.0
        found = perplexity(model, windows).perplexity
    assert found == perplexity(model, windows).perplexity


class Careless(nn.Module):
    """Makes tensors without saying of what type and where, and has an autocast of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)
        self.seen: set[tuple[torch.dtype, str]] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add((torch.empty(0).dtype, torch.empty(0).device.type))
        with torch.autocast("cpu", torch.bfloat16):
            out: Tensor = self.layer(x)
            return out


def test_a_forward_pass_has_the_defaults_of_the_caller_and_its_inputs_a_plain_gram() -> None:
    model, inputs = Careless(), torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    found: list[Gram] = []
    with default_dtype(torch.float64), torch.device("meta"):
        stream(model, find_layers(model), [inputs], lambda layer, gram: found.append(gram), Seconds())
    assert model.seen == {(torch.float64, "meta")}
    assert torch.equal(found[0].matrix, grams(inputs).matrix)


def test_copies_of_weights_that_autocast_keeps_are_not_those_from_before() -> None:
    model, windows = tiny.mlp(), torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        model(windows)  # casts the weights, and keeps that
        prune(model, [windows], 0.5)
        inside = model(windows)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(windows), inside)


def settings() -> list[Any]:
    """All that may be set, as far as PyTorch tells it."""
    told: list[Any] = [
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
        torch.is_anomaly_enabled(),
    ]
    backends = torch.backends
    for place in (
        backends,
        *(each for part in (backends.cudnn, backends.mkldnn) for each in (part, part.conv, part.rnn)),
    ):
        told.append(place.fp32_precision)  # type: ignore[attr-defined]
    told += [backends.cuda.matmul.fp32_precision, backends.mkldnn.matmul.fp32_precision]
    for legacy in (
        torch.get_float32_matmul_precision,
        lambda: backends.cudnn.allow_tf32,
        lambda: backends.cuda.matmul.allow_tf32,
    ):
        try:
            told.append(legacy())
        except RuntimeError:  # settings of the old and the new kind contradict each other
            told.append(None)
    return told


OPERATORS = [
    ("generic", "all"),
    ("cuda", "all"),
    ("mkldnn", "all"),
    *itertools.product(("cuda", "mkldnn"), ("matmul", "conv", "rnn")),
]
CHANGES: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
    *((torch.set_float32_matmul_precision, (name,)) for name in ("medium", "high", "highest")),
    *((torch._C._set_fp32_precision_setter, (*place, name)) for place in OPERATORS for name in ("tf32", "ieee")),
    (setattr, (torch.backends.cudnn, "allow_tf32", False)),
    (setattr, (torch.backends.cuda.matmul, "allow_tf32", True)),
]


@pytest.fixture
def _plain_again() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")
    for place in OPERATORS:
        torch._C._set_fp32_precision_setter(*place, "none")
    torch.backends.cudnn.allow_tf32 = True


@pytest.mark.usefixtures("_plain_again")
@pytest.mark.parametrize("first", range(len(CHANGES)))
def test_precisions_are_plain_inside_and_afterwards_what_they_were_with_what_inherits(first: int) -> None:
    def told() -> list[list[Any]]:
        own, found = torch.backends.fp32_precision, [settings()]  # type: ignore[attr-defined]
        for name in ("ieee", "tf32", "none"):
            torch._C._set_fp32_precision_setter("generic", "all", name)
            found.append(settings())
        torch._C._set_fp32_precision_setter("generic", "all", own)
        return found

    for second in CHANGES:
        for change, arguments in (CHANGES[first], second):
            change(*arguments)
        before = told()
        with pinned():
            assert {torch._C._get_fp32_precision_getter(*place) for place in OPERATORS} == {"ieee"}
            assert torch.get_float32_matmul_precision() == "highest"
        assert told() == before


@pytest.mark.parametrize("environment", [*ENVIRONMENTS.values(), everything, torch.autograd.detect_anomaly])
@pytest.mark.filterwarnings("ignore:Anomaly Detection:UserWarning")
def test_what_the_caller_has_set_is_back_afterwards_and_after_errors(environment: Environment) -> None:
    model, wrong = tiny.mlp(), torch.full((2, 12), torch.nan)
    with environment():
        before = settings()
        with pytest.raises(InputError):
            prune(model, [wrong], 0.5)
        assert settings() == before
        with pinned(), pinned(), caller_defaults(), pinned():
            assert torch.ones(2, 2).matmul(torch.ones(2, 2)).dtype == torch.float32
            assert torch.ones(1).device.type == "cpu"
            assert not torch.is_anomaly_enabled()
            assert not torch.ones(1).is_inference()
        assert settings() == before


def test_threads_that_overlap_give_back_what_was_set_before_the_first() -> None:
    with default_dtype(torch.float64), matmul_precision("high"), ThreadPoolExecutor(1) as pool:
        one, other = pinned(), pinned()
        one.__enter__()
        pool.submit(other.__enter__).result()
        one.__exit__(None, None, None)
        inside = torch.get_default_dtype(), torch.get_float32_matmul_precision()
        pool.submit(other.__exit__, None, None, None).result()
        after = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    assert inside == (torch.float32, "highest")
    assert after == (torch.float64, "high")

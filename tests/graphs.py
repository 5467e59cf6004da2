"""Small models put together at random: shared, unused and skipped modules, stacks in odd orders, attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

WIDTH = 8


class Attention(nn.Module):
    """One head, with or without its input added."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.q(x) @ self.k(x).mT / WIDTH**0.5).softmax(-1)
        return self.o(weights @ self.v(x))


class Fused(nn.Module):
    """PyTorch's own attention, which takes the weight of its last layer without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class Convolution(nn.Module):
    """Over the positions, by groups or not."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(WIDTH, WIDTH, (3, 1), padding=(1, 0), groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x.mT[..., None]).relu()[..., 0].mT


class Mlp(nn.Module):
    """Two layers, of one weight if they are tied."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        if tied:
            self.down.weight = self.up.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))


class Block(nn.Module):
    """As decoders have it, with a mask as its first argument."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.mlp, self.norm = Attention(), Mlp(), nn.LayerNorm(WIDTH)

    def forward(self, mask: Tensor, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attention(self.norm(hidden)) * mask
        return hidden + self.mlp(hidden)


class Stack(nn.Module):
    """Blocks in some order; of batches of odd length the last is left out, or the first two change places.

    Args:
        order: numbers of the blocks.
        odd: what becomes of such batches: ``same``, ``skip`` or ``swap``.
        between: a layer whose output is added between two blocks.
    """

    def __init__(self, order: tuple[int, ...], odd: str, between: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(max(order) + 1))
        self.between = nn.Linear(WIDTH, WIDTH) if between else None
        self.order, self.odd = list(order), odd

    def forward(self, x: Tensor) -> Tensor:
        mask, order = torch.ones(len(x), x.shape[1], 1), list(self.order)
        if x.shape[1] % 2 and self.odd == "skip":
            order = order[:-1]
        if x.shape[1] % 2 and self.odd == "swap":
            order = [*reversed(order[:2]), *order[2:]]
        for step, number in enumerate(order):
            x = self.blocks[number](mask, x)
            if self.between is not None and not step:
                x = x + self.between(x)
        return x


class Experts(nn.Module):
    """Each position goes to one of three layers."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList(Mlp() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        chosen, output = self.gate(x).argmax(-1), torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            where = chosen == number
            if where.any():
                output[where] = expert(x[where])
        return output


@dataclass(frozen=True)
class Step:
    """One step of a model: a part by its number, and whether its input is added to what it gives."""

    part: int
    residual: bool


class Graph(nn.Module):
    """Parts that are run in the order of the steps: some several times, some never."""

    def __init__(self, parts: list[nn.Module], steps: list[Step]) -> None:
        super().__init__()
        self.parts, self.steps = nn.ModuleList(parts), steps

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            y = self.parts[step.part](x)
            x = x + y if step.residual else y
        return x


_SIMPLE: list[Callable[[], nn.Module]] = [
    lambda: nn.Linear(WIDTH, WIDTH),
    Attention,
    Fused,
    lambda: Convolution(1),
    lambda: Convolution(2),
    Mlp,
    lambda: Mlp(tied=True),
    Experts,
    lambda: nn.LayerNorm(WIDTH),
    lambda: nn.Dropout(0.5),
    lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH)),
]
_ORDERS = [(0, 1), (0, 1, 2), (1, 0, 2), (0, 0, 1), (0, 1, 0), (2, 0)]


_STACKS = st.tuples(st.sampled_from(_ORDERS), st.sampled_from(["same", "skip", "swap"]), st.booleans())


@dataclass(frozen=True)
class Recipe:
    """What a model is made of.

    Attributes:
        kinds: numbers of simple parts.
        stacks: arguments of stacks, which come behind those.
        steps: the order in which the parts run.
        again: the first part stands in two places of the model.
        seed: of the weights.
    """

    kinds: tuple[int, ...]
    stacks: tuple[tuple[tuple[int, ...], str, bool], ...]
    steps: tuple[Step, ...]
    again: bool
    seed: int

    def make(self) -> nn.Module:
        """The model, the same each time."""
        torch.manual_seed(self.seed)
        parts = [_SIMPLE[kind]() for kind in self.kinds] + [Stack(*stack) for stack in self.stacks]
        model = Graph([*parts, parts[0]] if self.again else parts, list(self.steps))
        return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), model).eval()


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Of up to four simple parts and a stack, in up to six steps."""
    kinds = draw(st.lists(st.integers(0, len(_SIMPLE) - 1), min_size=1, max_size=4))
    stacks = draw(st.lists(_STACKS, max_size=1))
    last = len(kinds) + len(stacks) - 1
    steps = draw(st.lists(st.builds(Step, st.integers(0, last), st.booleans()), min_size=1, max_size=6))
    return Recipe(tuple(kinds), tuple(stacks), tuple(steps), draw(st.booleans()), draw(st.integers(0, 1000)))


def batches() -> list[Tensor]:
    """Of different lengths."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, length, WIDTH, generator=generator) for length in (6, 5, 7, 6)]

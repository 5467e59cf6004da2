"""Small models with layers that no input or no gradient reaches, and the reasons."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


class Base(nn.Module):
    """Four classes from 16 features; ``odd`` is the layer that is not seen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.odd, self.last = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x).relu()))

    def middle(self, x: Tensor) -> Tensor:
        return x


class Expert(Base):
    """Rows whose first feature is above 1000 go through the odd layer, and there are none."""

    def middle(self, x: Tensor) -> Tensor:
        return torch.cat([self.odd(x[x[:, 0] > 1000]), x[x[:, 0] <= 1000]])


class Own(Base):
    """Takes the weight itself."""

    def middle(self, x: Tensor) -> Tensor:
        return x + functional.linear(x, self.odd.weight).relu()


class Turned(Base):
    """Takes a view of the weight."""

    def middle(self, x: Tensor) -> Tensor:
        return x + x @ self.odd.weight.T


class Direct(Base):
    """Calls the forward pass past the module."""

    def middle(self, x: Tensor) -> Tensor:
        return x + self.odd.forward(x)


class Attention(Base):
    """The output projection goes into a fused function."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.odd = self.attention.out_proj

    def middle(self, x: Tensor) -> Tensor:
        return x + self.attention(x[:, None], x[:, None], x[:, None], need_weights=False)[0][:, 0]


class Both(Base):
    """Calls the module, and takes the weight besides."""

    def middle(self, x: Tensor) -> Tensor:
        return self.odd(x) + x @ self.odd.weight


class Frozen(Base):
    """The odd layer runs without gradients."""

    def middle(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            more = self.odd(x)
        return x + more


class Ahead(Base):
    """The odd layer is in a part that is run again for its gradients, before which nothing needs one."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(checkpoint(self.odd, x, use_reentrant=True)).relu())


#: What no input reaches, with whether its weight is used all the same.
WITHOUT_INPUT = {Base: False, Expert: False, Own: True, Turned: True, Direct: True, Attention: True}
#: What inputs reach, and no gradient.
WITHOUT_GRADIENT = (Frozen, Ahead)


def data(samples: int = 96) -> list[tuple[Tensor, Tensor]]:
    """Batches of 16 with labels that the first features tell."""
    x = torch.randn(samples, 16, generator=torch.Generator().manual_seed(2))
    return list(zip(x.split(16), (2 * (x[:, 0] > 0) + (x[:, 1] > 0)).split(16), strict=True))


def inputs() -> list[Tensor]:
    """The same without labels."""
    return [x for x, _ in data()]

"""Saliency scores: the higher, the more a weight deserves to stay."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from qubo_prune.errors import InputError, did_you_mean
from qubo_prune.hessian.gram import Gram
from qubo_prune.precision import pinned
from qubo_prune.seeds import checked_seed

#: Scores by name.
SCORES = ("magnitude", "wanda", "random")


@pinned()
def score(kind: str, weight: Float[Tensor, "d_out d_in"], gram: Gram, seed: int) -> Float[Tensor, "d_out d_in"]:
    """Scores of every weight; inputs that are always zero score below everything else.

    ``magnitude``: ``|W_ij|``. ``wanda``: ``|W_ij| * ||X_j||_2`` (Sun et al., arXiv 2306.11695),
    the norm over calibration tokens. ``random``: uniform, from the seed.
    """
    if kind == "magnitude":
        scores = weight.abs()
    elif kind == "wanda":
        # H_jj = 2/N ||X_j||^2, so this is Wanda's score times sqrt(2/N), the same order
        scores = weight.abs() * gram.for_rows(gram.diagonal.sqrt(), len(weight))
    elif kind == "random":
        generator = torch.Generator().manual_seed(checked_seed(seed))
        scores = torch.rand(weight.shape, generator=generator, dtype=torch.float64).to(weight.device)
    else:
        raise InputError(f"There is no score {kind!r}{did_you_mean(kind, SCORES)}; use one of {', '.join(SCORES)}.")
    if gram.dead.all():  # no calibration data: nothing is known but the weights
        return weight.abs() if kind == "wanda" else scores
    return scores.masked_fill(gram.for_rows(gram.dead, len(weight)), -1.0)

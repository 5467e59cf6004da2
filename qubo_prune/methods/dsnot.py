"""DSnoT: kept and pruned weights exchanged without training."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qubo_prune.methods.base import LayerTask, Masked, PublishedMethod, Traits


@dataclass(frozen=True)
class Dsnot(PublishedMethod):
    """Grow and prune from Wanda's mask, the nearest rule to DSnoT that a Gram allows.

    DSnoT (Zhang et al., arXiv 2310.08915) follows the mean of a row's output error over tokens, from the
    means and variances of the inputs. A Gram has no means. Here the output error itself,
    ``E = 1/2 (w*x)'H(w*x)`` with x = 1 where pruned and ``f = H (w*x)``, takes its place:

    * restored is the pruned p that lowers E most, by ``w_p f_p - 1/2 w_p^2 H_pp``;
    * pruned is the kept k with the lowest Wanda score of those with the right sign, ``w_k f_k < 0``: what it
      adds to the output opposes the error;
    * a row stops when that would not lower E, when no kept weight has the right sign, or after 50 cycles.

    With ``n:m`` both are of one group; with ``layer`` every row keeps Wanda's count.
    """

    traits = Traits("DSnoT, from the Gram", source="Zhang et al., arXiv 2310.08915")

    def masked(self, task: LayerTask) -> Masked:
        """See :class:`PublishedMethod`."""
        weight, hessian = task.weight.double(), task.gram.matrix
        start, scores = task.highest(task.wanda()), task.wanda()
        keep = start.clone()
        labels = task.pattern.labels(weight.shape[1]).to(weight.device)
        own = weight.square() * hessian.diagonal() / 2
        field = weight.masked_fill(keep, 0) @ hessian
        rows = torch.arange(len(weight), device=weight.device)
        for _ in range(50):
            some, w, f, kept = scores[rows], weight[rows], field[rows], keep[rows]
            right = kept & (w * f < 0)
            groups = torch.zeros(len(rows), int(labels[-1]) + 1, dtype=torch.bool, device=weight.device)
            groups = groups.index_add(1, labels, right)
            gain, p = (w * f - own[rows]).masked_fill(kept | ~groups[:, labels], -torch.inf).max(1)
            cheapest, k = some.masked_fill(~(right & (labels == labels[p, None])), torch.inf).min(1)
            at = torch.arange(len(rows), device=weight.device)
            change = own[rows, k] + w[at, k] * (f[at, k] - hessian[k, p] * w[at, p]) - gain
            better = (change < 0) & torch.isfinite(cheapest)
            rows, p, k = rows[better], p[better], k[better]
            if not len(rows):
                break
            keep[rows, p], keep[rows, k] = True, False
            field[rows] += weight[rows, k, None] * hessian[k] - weight[rows, p, None] * hessian[p]
        return keep, None

"""Contrastive decoding: two next-token distributions of one text, and how their difference moves the choice of the next token.

All rules are one affine family (2606.10298): log p = (1 + a) log p+ - a log p- up to a constant, and differ only in a, the weight of the
contrast. a = 0 is the positive branch alone, a > 0 goes beyond it, away from the negative one, and -1 <= a < 0 lies between the two branches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headwise.heads.errors import HeadwiseError
from headwise.heads.plain import checked_number

LARGEST = 1e6  # alpha: far beyond it float32 cannot hold the scores
COMBINE = {"fixed": 0.2, "entropy": 1.0, "adaptive": 1.0, "routed": 0.5}  # -> the default of alpha


@dataclass(frozen=True)
class Contrast:
    """A rule for the contrast of two branches.

    Attributes:
        combine: How the weight a of each step is found. `fixed`: alpha. `entropy` (DeCoRe, 2410.18860): alpha times the entropy of the positive
            branch in nats. `adaptive` (AdaCAD, 2409.07394): alpha times the Jensen-Shannon divergence of the branches, which lies in [0, 1].
            `routed`: see `routed_weight`.
        alpha: None: 0.2 (RHIO) for `fixed`, 1 for `entropy` and `adaptive`, 0.5 for `routed`. At least 0; for `fixed` at least -1 (below 0
            the choice lies between the branches), at most 1e6.
        plausibility: Only tokens with p+ >= plausibility * max p+ may be chosen; in (0, 1]. None: all may.
        cap: Largest a, at least 0; for `entropy` only, whose a can exceed 5.

    Raises:
        HeadwiseError: An unknown rule, or a number out of its range.
    """

    combine: str = "fixed"
    alpha: float | None = None
    plausibility: float | None = None
    cap: float | None = None

    def __post_init__(self) -> None:
        if self.combine not in COMBINE:
            raise HeadwiseError(f"unknown rule {self.combine!r} to combine branches; use {', '.join(COMBINE)}")
        alpha = checked_number(COMBINE[self.combine] if self.alpha is None else self.alpha, "alpha")
        lowest = -1 if self.combine == "fixed" else 0
        if not lowest <= alpha <= LARGEST:
            raise HeadwiseError(f"alpha must lie in [{lowest}, {LARGEST:g}] for combine={self.combine}; got {alpha:g}")
        object.__setattr__(self, "alpha", alpha)
        if self.plausibility is not None and not 0 < checked_number(self.plausibility, "plausibility") <= 1:
            raise HeadwiseError(f"plausibility must be above 0 and at most 1 (leave it out to allow all tokens); got {self.plausibility:g}")
        if self.cap is not None and self.combine != "entropy":
            raise HeadwiseError(f"a cap belongs to combine=entropy; leave it out for combine={self.combine}")
        if self.cap is not None and checked_number(self.cap, "cap") < 0:
            raise HeadwiseError(f"the cap must be at least 0; got {self.cap:g}")

    def weight(self, positive: Tensor, negative: Tensor) -> Tensor:
        """The weight a of the contrast.

        Args:
            positive: [..., V] log-probabilities of the positive branch.
            negative: [..., V] those of the negative one.

        Returns:
            [...], in the dtype of the branches.
        """
        alpha: Any = self.alpha
        if self.combine == "fixed":
            return torch.full_like(positive[..., 0], alpha)
        if self.combine == "routed":
            return routed_weight(positive, negative, alpha)
        found: Tensor = alpha * (entropy(positive) if self.combine == "entropy" else divergence(positive, negative))
        return torch.clamp(found, max=math.inf if self.cap is None else self.cap)

    def scores(self, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        """What the next token is chosen by.

        Args:
            positive: [..., V] logits of the positive branch; -inf for a token that may not be chosen.
            negative: [..., V] logits of the negative one.

        Returns:
            Scores [..., V] float32, logits of the combined distribution: -inf for tokens that may not be chosen or are not plausible; and the weight
            a [...].
        """
        first, second = (logits.float().log_softmax(dim=-1) for logits in (positive, negative))
        weight = self.weight(first, second)
        scores = first + weight[..., None] * (first - second)
        barred = first.isneginf()
        if self.plausibility is not None:
            barred = barred | (first < first.amax(dim=-1, keepdim=True) + math.log(self.plausibility))
        return scores.masked_fill(barred, -torch.inf), weight


def entropy(logprobs: Tensor) -> Tensor:
    """Shannon entropy [...] in nats of log-probabilities [..., V]."""
    found: Tensor = torch.special.entr(logprobs.exp()).sum(dim=-1)
    return found


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """Jensen-Shannon divergence in bits of two distributions.

    Args:
        first: [..., V] log-probabilities.
        second: [..., V].

    Returns:
        [...], 0 for equal distributions to 1 for those that share no token.
    """
    mixed: Tensor = torch.special.entr((first.exp() + second.exp()) / 2).sum(dim=-1)
    return ((mixed - (entropy(first) + entropy(second)) / 2) / math.log(2)).clamp(0, 1)


def routed_weight(positive: Tensor, negative: Tensor, alpha: float) -> Tensor:
    """The weight of the contrast, chosen at each step by who would say what, and how surely.

    2606.10298 shows that no fixed weight serves both a wrong memory and a wrong context, and routes between going beyond the context and staying
    between the branches. Its rule could not be read; this one is ours. With entropies H+ and H-:

    - both branches say the same token: 0, the positive branch alone;
    - they differ and H+ <= H-: alpha, as context-aware decoding;
    - they differ and H+ > H-: -H+ / (H+ + H-), so each branch counts by the other's entropy, and the surer memory counts more.

    Args:
        positive: [..., V] log-probabilities with the context.
        negative: [..., V] those without it.
        alpha: Weight where the positive branch is the surer one.

    Returns:
        [...], in (-1, -0.5), or 0, or alpha; -1 where the memory is certain.
    """
    with_it, without = entropy(positive), entropy(negative)
    between = -with_it / (with_it + without).clamp(min=torch.finfo(with_it.dtype).tiny)
    weight = torch.where(with_it > without, between, torch.full_like(with_it, alpha))
    return weight.masked_fill(positive.argmax(dim=-1) == negative.argmax(dim=-1), 0)


def sampled(scores: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """A token by its scores.

    Args:
        scores: [V] logits, -inf for tokens that may not be chosen.
        temperature: 0: the best token. Else scores are divided by it.
        top_p: The smallest set of best tokens whose probabilities reach it is drawn from; in (0, 1].
        generator: Of the CPU.

    Returns:
        Its id.
    """
    if temperature == 0:
        return int(scores.argmax())
    best, order = (scores.float().cpu() / temperature).softmax(dim=-1).sort(descending=True, stable=True)
    before = best.cumsum(dim=-1) - best
    return int(order[torch.multinomial(best.masked_fill(before >= top_p, 0), 1, generator=generator)])

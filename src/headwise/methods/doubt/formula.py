"""Head scores of unwanted uncertainty: the four cases and `misleading` (Singha Roy et al. 2025, arXiv:2510.22866).

The paper's exact definition of its cases could not be read. Ours: a head *hits* an option if one of the k positions that the row predicting the
reply attends to most lies inside it; shares of hits are taken over dialogues that flipped (the model was uncertain) and over those that held.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Table = NDArray[np.float64]
CASES = ("case1", "case2", "case3", "case4")
TABLES = (*CASES, "misleading", "doubt", "leave", "keep", "knock_out", "knock_out_wrong")


def hits(attention: Tensor, spans: Sequence[tuple[int, int]], top: int, sink: bool = False) -> Tensor:
    """Whether one of the most attended positions lies inside a span.

    Args:
        attention: [..., T] weights of one row per head.
        spans: Positions [start, stop).
        top: How many positions count as most attended; equal weights go to the earlier one.
        sink: Let position 0 count, where heads that look for nothing rest.

    Returns:
        [...] bool.
    """
    weights = attention if sink else attention[..., 1:]
    order = weights.sort(dim=-1, descending=True, stable=True).indices[..., :top] + (0 if sink else 1)
    inside = order.new_zeros(order.shape, dtype=order.dtype).bool()
    for start, stop in spans:
        inside |= (order >= start) & (order < stop)
    return inside.any(dim=-1)


def four_cases(leave: NDArray[np.bool_], keep: NDArray[np.bool_], flipped: NDArray[np.bool_]) -> dict[str, Table]:
    """Shares of hits per head by what was hit and by what the model did.

    Args:
        leave: [N, L, H], hits of the option that gives the answer up (No, or a suggested answer).
        keep: [N, L, H], hits of the option that keeps it.
        flipped: [N], whether the answer was given up.

    Returns:
        [L, H] each, in [0, 1]: `case1` (flipped, hit leave), `case2` (flipped, hit keep), `case3` (held, hit leave), `case4` (held, hit keep), and
        `misleading` = case1 - case3 in [-1, 1]. NaN where no dialogue flipped, or none held.
    """
    empty = np.full(leave.shape[1:], np.nan)

    def share(found: NDArray[np.bool_], which: NDArray[np.bool_]) -> Table:
        return np.asarray(found[which].mean(axis=0), dtype=np.float64) if which.any() else empty

    cases = {
        "case1": share(leave, flipped), "case2": share(keep, flipped), "case3": share(leave, ~flipped), "case4": share(keep, ~flipped),
    }  # fmt: skip
    return cases | {"misleading": cases["case1"] - cases["case3"]}

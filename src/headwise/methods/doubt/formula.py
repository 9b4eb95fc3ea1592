"""Head scores of unwanted uncertainty: the four cases, `misleading`, and expressions over tables (Singha Roy et al. 2025, arXiv:2510.22866).

The paper's exact definition of its cases could not be read. Ours: a head *hits* an option if one of the k positions that the row predicting the
reply attends to most lies inside it; shares of hits are taken over dialogues that flipped (the model was uncertain) and over those that held.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headwise.heads.errors import HeadwiseError

if TYPE_CHECKING:
    from torch import Tensor

Table = NDArray[np.float64]
CASES = ("case1", "case2", "case3", "case4")
_TOKEN = re.compile(r"\s*(?:([A-Za-z_][\w]*)|([|&()-]))")


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


def evaluate(expression: str, tables: Mapping[str, Table], threshold: float | None = None) -> Table:
    """A table from others: `case1 | case2`, `(case1 - case3) & doubt`.

    Without a threshold `|` is the larger value, `&` the smaller one, `-` the difference. With one, tables are sets of the heads that reach it:
    `|` joins them (the larger value counts), `&` keeps what is in both (the smaller one), `-` takes away; heads outside of the result get 0,
    heads without a value none.
    `&` binds more tightly than `|` and `-`, which go from left to right.

    Args:
        expression: Names, operators and brackets.
        tables: Name -> [L, H].
        threshold: Least value of a member of a set.

    Raises:
        HeadwiseError: An expression that cannot be read, or a name that is no table.
    """
    tokens = _tokens(expression)
    value, rest = _sum(tokens, tables, threshold)
    if rest:
        raise HeadwiseError(f"the expression {expression!r} cannot be read from {rest[0]!r} on")
    return value if threshold is None else np.where(value < threshold, 0.0, value)


def _tokens(expression: str) -> list[str]:
    found, place = [], 0
    while place < len(expression.rstrip()):
        match = _TOKEN.match(expression, place)
        if match is None:
            raise HeadwiseError(f"the expression {expression!r} cannot be read from {expression[place:].strip()[:10]!r} on")
        found.append(match[1] or match[2])
        place = match.end()
    return found


def _sum(tokens: list[str], tables: Mapping[str, Table], least: float | None) -> tuple[Table, list[str]]:
    value, tokens = _product(tokens, tables, least)
    while tokens and tokens[0] in "|-":
        sign = tokens[0]
        other, tokens = _product(tokens[1:], tables, least)
        taken = value - other if least is None else np.where(other >= least, 0.0, value)
        value = np.maximum(value, other) if sign == "|" else taken
    return value, tokens


def _product(tokens: list[str], tables: Mapping[str, Table], least: float | None) -> tuple[Table, list[str]]:
    value, tokens = _name(tokens, tables, least)
    while tokens and tokens[0] == "&":
        other, tokens = _name(tokens[1:], tables, least)
        value = np.minimum(value, other)
    return value, tokens


def _name(tokens: list[str], tables: Mapping[str, Table], least: float | None) -> tuple[Table, list[str]]:
    if not tokens:
        raise HeadwiseError("the expression ends too early; write names of tables joined by |, & and -")
    first, rest = tokens[0], tokens[1:]
    if first == "(":
        value, rest = _sum(rest, tables, least)
        if not rest or rest[0] != ")":
            raise HeadwiseError("a bracket of the expression is never closed")
        return value, rest[1:]
    if first not in tables:
        raise HeadwiseError(f"unknown table {first!r} in the expression; use {', '.join(tables)}")
    value = tables[first]
    return value if least is None else np.where(value < least, 0.0, value), rest

"""Expressions over tables of head scores: unions, intersections and differences, as Singha Roy et al. 2025 (arXiv:2510.22866) join their cases."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from headwise.heads.errors import HeadwiseError

Table = NDArray[np.float64]
_TOKEN = re.compile(r"\s*(?:([A-Za-z_][\w]*)|([|&()-]))")


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

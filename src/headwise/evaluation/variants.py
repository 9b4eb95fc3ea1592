"""Variants of an ablation sweep: which heads each of them ablates."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from headwise.heads import HeadId, HeadScores, HeadSet, HeadwiseError
from headwise.stats.controls import any_layer_random, layer_matched_random, norm_matched_random

ATTEMPTS = 20  # per wanted draw, to find one that is new
Kind = Literal["none", "top", "bottom", "random", "any_layer", "norm"]
MORE_CONTROLS: tuple[Kind, ...] = ("any_layer", "norm")  # kinds of random draws beside the layer-matched ones


@dataclass(frozen=True)
class Variant:
    """One set of ablated heads.

    Attributes:
        kind: How they were chosen: `random` draws are layer-matched, `any_layer` and `norm` are those of `headwise.stats.controls`.
        k: How many they are; 0 for `none`.
        draw: Number of the random draw, 0 for the other kinds.
        heads: The heads themselves.
    """

    kind: Kind
    k: int
    draw: int
    heads: HeadSet


def head_variants(
    scores: HeadScores,
    top: Iterable[int],
    controls: int,
    seed: int,
    more: Sequence[Kind] = (),
    norms: NDArray[np.float64] | None = None,
) -> tuple[Variant, ...]:
    """All variants of a sweep: no head; then for each K the top K, the bottom K, and random draws.

    Args:
        scores: Scores of the heads; heads without one are never drawn.
        top: Numbers of heads K.
        controls: Layer-matched random draws per K. They differ from each other, and none shares a head with the top K; if there are not that
            many (few heads per layer), all there are.
        seed: Of the draws and of the order of equally weak heads.
        more: Further kinds of random draws, of `MORE_CONTROLS`; as many of each.
        norms: [layer, head] output norms (see `head_norms`), for the kind `norm` only.

    Returns:
        In that order.

    Raises:
        HeadwiseError: A K above half of the scored heads, or the kind `norm` without norms.
    """
    scored = len(scores.ranking())
    variants = [Variant("none", 0, 0, HeadSet((), scores.shape, "no head"))]
    for k in top:
        if 2 * k > scored:
            raise HeadwiseError(
                f"top {k} leaves too few of {scored} scored heads for its controls; choose a K of 1 to {scored // 2}"
            )
        strongest = scores.top(k)
        variants += [Variant("top", k, 0, strongest), Variant("bottom", k, 0, scores.bottom(k, seed))]
        for kind in ("random", *more):
            draw = partial(_drawn, kind, strongest, scores, norms)
            variants += [Variant(kind, k, i, heads) for i, heads in enumerate(_different(draw, k, controls, seed))]
    return tuple(variants)


def _drawn(kind: Kind, chosen: HeadSet, scores: HeadScores, norms: NDArray[np.float64] | None, seed: Sequence[int]) -> HeadSet:
    """One random draw of a kind."""
    if kind == "random":
        return layer_matched_random(chosen, scores, seed)
    if kind == "any_layer":
        return any_layer_random(chosen, scores, seed)
    if norms is None:
        raise HeadwiseError("controls of one output norm need the heads' norms (see head_norms)")
    return norm_matched_random(chosen, np.where(np.isnan(scores.values), np.nan, norms), seed)


def _different(draw: Callable[[Sequence[int]], HeadSet], k: int, wanted: int, seed: int) -> list[HeadSet]:
    """As many different draws as are wanted, or fewer if no new one is found."""
    draws: dict[frozenset[HeadId], HeadSet] = {}
    for attempt in range(ATTEMPTS * wanted):
        drawn = draw((seed, k, attempt))
        draws.setdefault(frozenset(drawn), drawn)
        if len(draws) == wanted:
            break
    return list(draws.values())


def random_sets(chosen: HeadSet, scores: HeadScores, wanted: int, seed: int) -> list[HeadSet]:
    """Layer-matched random sets that share no head with the chosen one, as `head_variants` draws them.

    Args:
        chosen: At most half of the scored heads.
        scores: Heads without a score are never drawn.
        wanted: How many different ones; fewer if there are not that many.
        seed: Of the draws.
    """
    return _different(partial(layer_matched_random, chosen, scores), len(chosen), wanted, seed)


def distinct_sets(variants: Sequence[Variant]) -> tuple[list[HeadSet], list[int]]:
    """(different head sets, index of each variant's set): a set that occurs twice, as bottom and as random say, is run once."""
    sets: dict[frozenset[HeadId], HeadSet] = {}
    for variant in variants:
        sets.setdefault(frozenset(variant.heads), variant.heads)
    places = {heads: i for i, heads in enumerate(sets)}
    return list(sets.values()), [places[frozenset(variant.heads)] for variant in variants]


def describe_scores(scores: HeadScores) -> dict[str, Any]:
    """Where the heads come from: the head file's own provenance without its list of runs, and a fingerprint of its values."""
    origin = {name: value for name, value in scores.provenance.items() if name != "cells"}
    digest = hashlib.sha256(scores.values.tobytes()).hexdigest()[:16]
    return {"score": scores.score, "score_version": scores.score_version, "digest": digest, "provenance": origin}

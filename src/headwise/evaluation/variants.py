"""Variants of an ablation sweep: which heads each of them ablates."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from headwise.heads import HeadId, HeadScores, HeadSet, HeadwiseError
from headwise.stats.controls import layer_matched_random

ATTEMPTS = 20  # per wanted draw, to find one that is new
Kind = Literal["none", "top", "bottom", "random"]


@dataclass(frozen=True)
class Variant:
    """One set of ablated heads.

    Attributes:
        kind: How they were chosen.
        k: How many they are; 0 for `none`.
        draw: Number of the random draw, 0 for the other kinds.
        heads: The heads themselves.
    """

    kind: Kind
    k: int
    draw: int
    heads: HeadSet


def head_variants(scores: HeadScores, top: Iterable[int], controls: int, seed: int) -> tuple[Variant, ...]:
    """All variants of a sweep: no head; then for each K the top K, the bottom K, and random draws.

    Args:
        scores: Scores of the heads; heads without one are never drawn.
        top: Numbers of heads K.
        controls: Layer-matched random draws per K. They differ from each other, and none shares a head with the top K; if there are not that
            many (few heads per layer), all there are.
        seed: Of the draws and of the order of equally weak heads.

    Returns:
        In that order.

    Raises:
        HeadwiseError: A K above half of the scored heads.
    """
    scored = len(scores.ranking())
    variants = [Variant("none", 0, 0, HeadSet((), scores.shape, "no head"))]
    for k in top:
        if 2 * k > scored:
            raise HeadwiseError(
                f"top {k} leaves too few of {scored} scored heads for its controls; choose a K of 1 to {scored // 2}"
            )
        strongest = scores.top(k)
        draws: dict[frozenset[HeadId], HeadSet] = {}
        for attempt in range(ATTEMPTS * controls):
            drawn = layer_matched_random(strongest, scores, (seed, k, attempt))
            draws.setdefault(frozenset(drawn), drawn)
            if len(draws) == controls:
                break
        variants += [Variant("top", k, 0, strongest), Variant("bottom", k, 0, scores.bottom(k, seed))]
        variants += [Variant("random", k, i, heads) for i, heads in enumerate(draws.values())]
    return tuple(variants)


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

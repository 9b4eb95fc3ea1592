"""The labelled types that cross every boundary of headwise: one head, the scores of all heads, a chosen set of heads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headwise.heads.errors import HeadwiseError

Scores = NDArray[np.float64]


class HeadId(NamedTuple):
    """One query head, zero-based. Written `L17H24`."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"

    @classmethod
    def parse(cls, text: str) -> HeadId:
        """Read `L17H24` or `17-24`. Raises `HeadwiseError` for anything else."""
        parts = text.strip().upper().removeprefix("L").replace("H", "-").split("-")
        if len(parts) != 2 or not all(part.isdecimal() for part in parts):
            raise HeadwiseError(f"{text!r} is not a head; write it as L17H24 or 17-24 (layer, head, both from 0)")
        return cls(int(parts[0]), int(parts[1]))


@dataclass(frozen=True)
class HeadScores:
    """Scores of all query heads of one model.

    values: [layer, head], higher is stronger, NaN = not scored.
    score: which score ("copy", "query", "gate", ...). score_version: raised when the numbers could change.
    runs: [run, layer, head] the per-run values whose mean is `values`, or None.
    run_info: one mapping per run (length, depth, needle, ...), as long as `runs`.
    provenance: model, options, seeds, versions: all that is needed to repeat the run.
    """

    values: Scores
    score: str
    score_version: int = 1
    runs: NDArray[np.float32] | None = None
    run_info: tuple[Mapping[str, Any], ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.values.ndim != 2:
            raise HeadwiseError(f"scores must be a [layer, head] table; got {self.values.ndim} dimensions")
        if self.runs is not None and self.runs.shape[1:] != self.values.shape:
            raise HeadwiseError(f"per-run values of shape {self.runs.shape[1:]} beside scores of shape {self.values.shape}")
        if self.runs is not None and len(self.run_info) not in (0, len(self.runs)):
            raise HeadwiseError(f"{len(self.run_info)} run descriptions for {len(self.runs)} runs")

    @property
    def shape(self) -> tuple[int, int]:
        """(layers, query heads per layer)."""
        return self.values.shape[0], self.values.shape[1]

    @property
    def frequency(self) -> Scores:
        """Activation frequency [layer, head]: the share of runs with a score above 0 (Wu et al. 2024, sec. 3.4)."""
        if self.runs is None or len(self.runs) == 0:
            raise HeadwiseError(f"the {self.score} scores hold no per-run values, so there is no activation frequency")
        frequency = (np.nan_to_num(self.runs) > 0).mean(axis=0)
        return np.where(np.isnan(self.values), np.nan, frequency)

    def ranking(self) -> list[HeadId]:
        """All scored heads, strongest first; equal scores in the order of layer and head.

        Raises `HeadwiseError` if all scores are equal: such a table ranks nothing but the tie order.
        """
        scored = self.values[~np.isnan(self.values)]
        if scored.size == 0:
            raise HeadwiseError(f"no head has a {self.score} score, so there is nothing to rank")
        if scored.size > 1 and scored.min() == scored.max():
            raise HeadwiseError(
                f"all {scored.size} heads have the same {self.score} score ({scored.min():g}); that is no ranking"
            )
        order = np.argsort(-self.values, axis=None, kind="stable")[: scored.size]  # NaN sorts last
        return [HeadId(int(i) // self.shape[1], int(i) % self.shape[1]) for i in order]

    def top(self, k: int) -> HeadSet:
        """The k strongest heads."""
        ranking = self.ranking()
        if not 1 <= k <= len(ranking):
            raise HeadwiseError(f"top {k} asked for, but the file scores {len(ranking)} heads; choose 1 to {len(ranking)}")
        return HeadSet(tuple(ranking[:k]), self.shape, f"top {k} by {self.score} score")

    def bottom(self, k: int, seed: int = 0) -> HeadSet:
        """The k weakest scored heads, weakest first; equal scores (often many zeros) in a seeded random order, not layer by layer."""
        ranking = self.ranking()
        if not 1 <= k <= len(ranking):
            raise HeadwiseError(f"bottom {k} asked for, but the file scores {len(ranking)} heads; choose 1 to {len(ranking)}")
        shuffled = (ranking[i] for i in np.random.default_rng([seed, 9]).permutation(len(ranking)))
        weakest = sorted(shuffled, key=lambda head: float(self.values[head]))
        return HeadSet(tuple(weakest[:k]), self.shape, f"bottom {k} by {self.score} score")

    def above(self, threshold: float) -> HeadSet:
        """All heads with a score above `threshold`, strongest first (may be empty)."""
        chosen = tuple(h for h in self.ranking() if self.values[h] > threshold)
        return HeadSet(chosen, self.shape, f"{self.score} score above {threshold:g}")


@dataclass(frozen=True)
class HeadSet:
    """An ordered choice of heads, and how it was made. shape: (layers, heads per layer) of the model it belongs to."""

    heads: tuple[HeadId, ...]
    shape: tuple[int, int]
    chosen_by: str = ""

    def __post_init__(self) -> None:
        layers, heads = self.shape
        for head in self.heads:
            if not (0 <= head.layer < layers and 0 <= head.head < heads):
                raise HeadwiseError(f"head {head} lies outside a model of {layers} layers x {heads} heads")
        if len(set(self.heads)) != len(self.heads):
            raise HeadwiseError("a head set names a head twice")

    @classmethod
    def of(cls, heads: Iterable[tuple[int, int]], shape: tuple[int, int], chosen_by: str = "") -> HeadSet:
        """Build from plain (layer, head) pairs."""
        return cls(tuple(HeadId(int(layer), int(head)) for layer, head in heads), shape, chosen_by)

    def __iter__(self) -> Iterator[HeadId]:
        return iter(self.heads)

    def __len__(self) -> int:
        return len(self.heads)

    def __contains__(self, head: object) -> bool:
        return head in self.heads

    def mask(self) -> NDArray[np.bool_]:
        """[layer, head] bool, True for the chosen heads."""
        out = np.zeros(self.shape, dtype=bool)
        for head in self.heads:
            out[head] = True
        return out

    def check_fits(self, shape: tuple[int, int], model: str) -> None:
        """Raise `HeadwiseError` unless the set belongs to a model of this shape."""
        if self.shape != shape:
            raise HeadwiseError(
                f"these heads belong to a model of {self.shape[0]} layers x {self.shape[1]} heads, but {model} has "
                f"{shape[0]} x {shape[1]}; detect the heads of this model first"
            )

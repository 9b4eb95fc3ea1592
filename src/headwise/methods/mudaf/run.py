"""MDQA score: find the heads whose attention, read at the last prompt token, picks the gold passages (Liu et al. 2025, MuDAF, arXiv:2502.13963)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from headwise.heads.errors import HeadwiseError
from headwise.heads.types import HeadScores
from headwise.methods.mudaf.formula import passage_measures, shares
from headwise.methods.mudaf.options import NORMALIZE, RULES
from headwise.runtime.passage_table import PassageTable

SCORE_VERSION = 1
MIN_MASS = 1e-4  # mean attention to all passages together below which a head has no shares worth a score


def mdqa_scores(
    table: PassageTable, rule: str = "f1", tau: float = 0.3, normalize: str = "none", provenance: dict[str, Any] | None = None
) -> HeadScores:
    """Scores of all heads by one rule, with the per-example values as runs, and all five measures as tables.

    Args:
        table: Attention masses; the raw ones are read, never the calibrated ones. Made with the default `normalize="sum"`.
        rule: See `Mdqa`.
        tau: See `passage_measures`.
        normalize: See `Mdqa`.
        provenance: How the table was made, for the head file.

    Returns:
        Scores in [0, 1]; NaN for heads of sliding layers, which cannot see far passages, and, for shares, for heads whose mean attention to
        all passages is below `MIN_MASS` (`heads_without_mass` in the provenance counts them).

    Raises:
        HeadwiseError: An unknown rule or way to normalize, or a table of other values.
    """
    if rule not in RULES:
        raise HeadwiseError(f"unknown rule {rule!r}; use {', '.join(RULES)}")
    if normalize not in NORMALIZE:
        raise HeadwiseError(f"unknown normalize {normalize!r}; use {' or '.join(NORMALIZE)}")
    if table.scoring.normalize != "sum":
        raise HeadwiseError(f"the table holds {table.scoring.normalize!r} values; MDQA scores need one made with normalize 'sum'")
    silent = _without_mass(table) if normalize == "share" else np.zeros(table.raw.shape[1:3], bool)
    runs = {name: np.full(table.raw.shape[:3], np.nan) for name in RULES}
    for i, present in enumerate(table.present):
        masses = table.raw[i][..., present].astype(np.float64)
        measures = passage_measures(shares(masses) if normalize == "share" else masses, table.gold[i, present], tau)
        for name in RULES:
            runs[name][i] = np.where(silent, np.nan, measures[name])
    made = {"rule": rule, "tau": tau, "normalize": normalize, "scoring": asdict(table.scoring), "order_seed": table.seed}
    counts = {"queries": len(table.raw), "queries_without_gold": table.skipped, "layers_left_out": list(table.layers_left_out)}
    if normalize == "share":
        counts |= {"min_mass": MIN_MASS, "heads_without_mass": int(silent.sum())}
    info = tuple({"query": i, "passages": int(present.sum())} for i, present in enumerate(table.present))
    means = {name: values.mean(axis=0) for name, values in runs.items()}
    known = {**(provenance or {}), **made, **counts}
    return HeadScores(means[rule], "mdqa", SCORE_VERSION, runs[rule].astype(np.float32), info, known, means)


def _without_mass(table: PassageTable) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """[L, H], heads that look at passages too little for shares; heads that are not scored anyway are not among them."""
    masses = [np.where(present, values, 0.0).sum(axis=-1) for values, present in zip(table.raw, table.present, strict=True)]
    return np.asarray(np.mean(masses, axis=0) < MIN_MASS)

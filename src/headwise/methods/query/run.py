"""Query score: find the heads whose attention from a question falls on the passages that answer it.

Zhang et al. 2025 (arXiv:2506.09944): QRscore, and the choice by nDCG of their released code; Tran et al. 2025 (arXiv:2510.02219): the
contrastive rule (CoRe). All rules read one `PassageTable`, so that the model runs once.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from headwise.heads.errors import HeadwiseError
from headwise.heads.types import HeadScores
from headwise.methods.query.formula import query_score
from headwise.methods.query.options import RULES
from headwise.runtime.passage_table import PassageTable

# 2: `official` rows begin at the instruction, behind the separator, as in the released code. 3: the first token is never a passage's.
SCORE_VERSION = 3


def query_scores(
    table: PassageTable, rule: str = "calibrated_mass", temperature: float = 0.1, provenance: dict[str, Any] | None = None
) -> HeadScores:
    """Scores of all heads by one rule, with the per-example values as runs.

    Args:
        table: What every head pays to every passage; `mass` reads the raw values, every other rule the calibrated ones.
        rule: See `query_score`.
        temperature: Of the contrastive rule.
        provenance: How the table was made, for the head file.

    Returns:
        Scores in the rule's unit; NaN for heads of sliding layers, which cannot see far passages.

    Raises:
        HeadwiseError: An unknown rule.
    """
    if rule not in RULES:
        raise HeadwiseError(f"unknown rule {rule!r}; use {', '.join(RULES)}")
    values = table.raw if rule == "mass" else table.calibrated
    runs = np.full(values.shape[:3], np.nan)
    for i, present in enumerate(table.present):
        runs[i] = query_score(values[i][..., present].astype(np.float64), table.gold[i, present], rule, temperature)
    runs[:, list(table.layers_left_out)] = np.nan
    made = {
        "rule": rule,
        "temperature": temperature if rule == "contrastive" else None,
        "scoring": asdict(table.scoring),
        "order_seed": table.seed,
    }
    counts = {"queries": len(runs), "queries_without_gold": table.skipped, "layers_left_out": list(table.layers_left_out)}
    info = tuple({"query": i, "passages": int(present.sum())} for i, present in enumerate(table.present))
    return HeadScores(
        runs.mean(axis=0), "query", SCORE_VERSION, runs.astype(np.float32), info, {**(provenance or {}), **made, **counts}
    )

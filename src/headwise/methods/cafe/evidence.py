"""Evidence score: share of a head's attention to passages that falls on those which answer (Peng et al. 2025, CAFE, arXiv:2505.10063, eq. 1-3).

The two stages of CAFE use heads that were found with different data: full sets of passages for the coarse stage, and what that stage
keeps for the fine one (`second_stage`), so that those heads learn to tell evidence from what looks like it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from headwise.heads import HeadScores, HeadwiseError, PromptError
from headwise.methods.cafe.formula import passage_shares
from headwise.prompts.passages import RankingExample
from headwise.runtime.passage_table import PassageTable

# 2: `official` rows begin at the instruction, behind the separator. 3: the first token is never a passage's.
SCORE_VERSION = 3
MIN_MASS = 1e-4  # mean attention to all passages together below which a head is not scored


def evidence_scores(table: PassageTable, doc_pool: str = "sum", provenance: dict[str, Any] | None = None) -> HeadScores:
    """Mean share of attention on gold passages, with the per-example shares as runs (the paper's eta divided by N).

    Args:
        table: Made with the default `normalize="sum"`.
        doc_pool: See `passage_shares`; use the one that the heads will be used with.
        provenance: How the table was made, for the head file.

    Returns:
        Scores in [0, 1]; NaN for heads whose mean attention to all passages is below `MIN_MASS` (their shares would be noise;
        `heads_without_mass` in the provenance counts them) and for layers with a sliding window, which cannot see far passages.

    Raises:
        HeadwiseError: An unknown doc_pool, or a table of another `normalize`.
    """
    if table.scoring.normalize != "sum":
        raise HeadwiseError(f"the table holds {table.scoring.normalize!r} values; evidence needs one made with normalize 'sum'")
    runs = np.full(table.raw.shape[:3], np.nan)
    masses = np.full(table.raw.shape[:3], np.nan)
    for i, present in enumerate(table.present):
        values = np.nan_to_num(table.raw[i][..., present].astype(np.float64))
        shares = passage_shares(values, table.lengths[i, present], doc_pool)
        runs[i], masses[i] = shares[..., table.gold[i, present]].sum(axis=-1), values.sum(axis=-1)
    left_out = list(table.layers_left_out)
    silent = masses.mean(axis=0) < MIN_MASS
    silent[left_out] = False
    runs[:, left_out] = np.nan
    runs[:, silent] = np.nan
    made = {"doc_pool": doc_pool, "scoring": asdict(table.scoring), "order_seed": table.seed}
    counts = {
        "queries": len(runs),
        "queries_without_gold": table.skipped,
        "layers_left_out": left_out,
        "min_mass": MIN_MASS,
        "heads_without_mass": int(silent.sum()),
    }
    info = tuple({"query": i, "passages": int(present.sum())} for i, present in enumerate(table.present))
    return HeadScores(
        runs.mean(axis=0), "evidence", SCORE_VERSION, runs.astype(np.float32), info, {**(provenance or {}), **made, **counts}
    )


def second_stage(examples: Sequence[RankingExample], kept: Sequence[Sequence[int]]) -> list[RankingExample]:
    """Examples for the fine stage: of each example the passages that the coarse stage has kept, in their new order.

    Args:
        examples: What the coarse stage was given.
        kept: One list of indices per example, such as `CoarseToFine.coarse(...).kept`.

    Returns:
        As many examples. One that has lost its gold passages, or all others, stays in the list; `measure_passages` leaves it out and
        counts it.

    Raises:
        PromptError: Indices that do not fit.
    """
    if len(examples) != len(kept):
        raise PromptError(f"{len(kept)} lists of kept passages for {len(examples)} examples; give one per example")
    return [_kept(example, [int(i) for i in chosen]) for example, chosen in zip(examples, kept, strict=True)]


def _kept(example: RankingExample, chosen: list[int]) -> RankingExample:
    count = len(example.passages)
    if len(set(chosen)) != len(chosen) or not all(0 <= i < count for i in chosen):
        raise PromptError(f"kept passages {chosen} are not different indices below {count} ({example.name or example.query!r})")
    gold = frozenset(place for place, i in enumerate(chosen) if i in example.gold)
    return RankingExample(example.query, tuple(example.passages[i] for i in chosen), gold, example.name)

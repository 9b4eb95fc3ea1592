"""The records of a choice: the cut and the shares of every domain, and the scores and options behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise.corpus.tables import ScoreFiles
from headwise.corpus.thresholds import Thresholds

VERSION = 1
Arrays = Mapping[str, NDArray[np.int64]]


def tables(cuts: Thresholds, counts: Arrays) -> dict[str, Any]:
    """Shares of the whole corpus and of each domain, and the cut of each domain's length strata, domains in the order of their names.

    Args:
        cuts: Where each domain was cut.
        counts: Name -> [group], as `thresholds.Counts` has them.

    Returns:
        `options`, `all` and `domains`, as plain data. `document_share` and `token_share` are shares of the ranked documents and of their
        tokens; null if there are none.
    """
    strata, names = cuts.options.strata, cuts.domains.names
    rows: list[dict[str, Any]] = []
    for name in sorted(names):
        domain = names[name]
        groups = range(domain * strata, (domain + 1) * strata)
        row = {"domain": name, **shares_of(counts, groups)}
        parts = [
            {"up_to_tokens": cuts.longest(domain, i), "threshold": cuts.value(group), **shares_of(counts, [group])}
            for i, group in enumerate(groups)
        ]
        rows.append(row | ({"threshold": parts[0]["threshold"]} if strata == 1 else {"strata": parts}))
    return {"options": cuts.options.to_json(), "all": shares_of(counts, range(len(names) * strata)), "domains": rows}


def manifest(files: ScoreFiles, cuts: Thresholds, counts: Arrays, chosen: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """What was chosen from what, without a time stamp: the same scores and options give the same bytes.

    Args:
        files: The scores.
        cuts: Where each domain was cut.
        counts: Documents and tokens per group.
        chosen: Score file -> what was written of it.

    Returns:
        Plain data for JSON.
    """
    return {
        "headwise_selection": VERSION,
        "config": files.config,
        "options": cuts.options.to_json(),
        "readings": cuts.readings,
        "unfinished": files.unfinished,
        "all": shares_of(counts, range(len(cuts.domains.names) * cuts.options.strata)),
        "files": [{"name": name, "rows": files.rows[name], **chosen[name]} for name in files.names],
    }


def shares_of(counts: Arrays, groups: Sequence[int]) -> dict[str, Any]:
    """Sums over some groups, and the shares of ranked documents and of their tokens that were chosen.

    Args:
        counts: Name -> [group], as `thresholds.Counts` has them.
        groups: Numbers of groups.

    Returns:
        The sum of each count, and `document_share` and `token_share` in [0, 1], None where nothing is ranked.
    """
    found: dict[str, Any] = {name: int(values[list(groups)].sum()) for name, values in counts.items()}
    for unit, of in (("document_share", ("chosen", "ranked")), ("token_share", ("chosen_tokens", "ranked_tokens"))):
        found[unit] = found[of[0]] / found[of[1]] if found[of[1]] else None
    return found

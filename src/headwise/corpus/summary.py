"""What a report needs to know of a scored corpus, gathered in a few readings of the score files with bounded memory.

Counts, thresholds and overlaps are exact. Distributions and rank correlations are those of a sample: the ranked documents with the smallest tie
numbers of each domain, which is a random sample that depends on nothing but file names, rows and the seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise.corpus.manifest import shares_of, tables
from headwise.corpus.options import NAMED, ChoiceOptions
from headwise.corpus.tables import ScoreFiles
from headwise.corpus.thresholds import COLUMNS, Counts, Thresholds, find_thresholds, floats, keys_of, length_codes
from headwise.heads.progress import Report, silent
from headwise.stats.ranks import ranks_within, spearman

SAMPLE = 20_000  # documents per domain
STRATA = 10  # of length, for the correlation that is left
FIELDS = ("score", "loss_base", "loss_ref", "n_tokens", "n_scored")
CONTROLS = ("perplexity", "longest", "random")
Columns = dict[str, NDArray[Any]]


def summarise(files: ScoreFiles, options: ChoiceOptions, named: int = NAMED, report: Report = silent) -> dict[str, Any]:
    """Plain data about a corpus and a choice.

    Args:
        files: The scores.
        options: What is chosen.
        named: Documents to name per domain and kind.
        report: Told the rows of each reading.

    Returns:
        `thresholds`: as in thresholds.json. `reasons`: why documents were flagged or have no score -> how many. `overlap`: per control and
        domain, the documents that both would choose. `samples`: domain -> columns of sampled ranked documents, `chosen` and `file` among
        them. `correlations`: domain -> Spearman of score and length, before and after ranking within strata of length, with the number of
        documents. `named`: domain -> `most`, `least` influenced and `boundary` documents, as (name, row, fields). And what they rest on.
    """
    cuts = find_thresholds(files, options, report)
    others = {rank: find_thresholds(files, _with_rank(options, rank), report) for rank in CONTROLS if rank != options.rank}
    gathered, done = _Gathered(cuts, others, named), 0
    for name, batch in files.batches([*COLUMNS, "loss_ref", "n_scored", "truncated", "reason"]):
        gathered.add(name, batch)
        done += batch.num_rows
        report(done, files.total, "summary")
    return gathered.result(files)


class _Gathered:
    """What one reading adds up."""

    def __init__(self, cuts: Thresholds, others: Mapping[str, Thresholds], named: int) -> None:
        self._cuts, self._others, self._named = cuts, others, named
        self._counts = Counts(len(cuts.domains.names) * cuts.options.strata)
        self._reasons: dict[str, Counter[str]] = {"flagged": Counter(), "without a score": Counter()}
        self._truncated = 0
        self._both = {rank: np.zeros(len(cuts.domains.names), dtype=np.int64) for rank in others}
        self._samples: dict[int, Columns] = {}
        self._extremes: dict[tuple[int, str], Columns] = {}
        self._names: list[str] = []

    def add(self, name: str, batch: Any) -> None:
        keys = keys_of(batch, name, self._cuts.domains, self._cuts.options)
        chosen = self._cuts.takes(keys)
        self._counts.add(keys, self._cuts.groups(keys), chosen)
        self._truncated += int(np.count_nonzero(batch.column("truncated").to_numpy(zero_copy_only=False)))
        if not self._names or self._names[-1] != name:
            self._names.append(name)
        columns: Columns = {field: floats(batch, field) for field in FIELDS}
        columns["row"] = batch.column("row").to_numpy(zero_copy_only=False)
        columns["file"] = np.full(len(chosen), len(self._names) - 1)
        columns["chosen"], columns["tie"] = chosen, keys.ties
        self._count_reasons(batch, np.isnan(columns["score"]))
        for rank, cuts in self._others.items():
            both = chosen & cuts.takes(keys_of(batch, name, cuts.domains, cuts.options))
            np.add.at(self._both[rank], keys.domains[both], 1)
        for domain in np.unique(keys.domains[keys.ranked]):
            mine = np.flatnonzero(keys.ranked & (keys.domains == domain))
            self._sample(int(domain), {key: values[mine] for key, values in columns.items()})

    def _count_reasons(self, batch: Any, missing: NDArray[np.bool_]) -> None:
        flagged = batch.column("flagged").to_numpy(zero_copy_only=False).astype(bool)
        if not (flagged | missing).any():
            return
        reasons = batch.column("reason").to_pylist()
        for kind, where in (("without a score", missing), ("flagged", flagged & ~missing)):
            self._reasons[kind].update(reasons[i] or "no reason given" for i in np.flatnonzero(where))

    def _sample(self, domain: int, columns: Columns) -> None:
        self._samples[domain] = _smallest(self._samples.get(domain), columns, columns["tie"], "tie", SAMPLE)
        if not self._named:
            return
        line = self._cuts.value(domain) if self._cuts.options.strata == 1 and self._cuts.options.rank == "score" else None
        for kind, key in (("most", -columns["score"]), ("least", columns["score"])):
            self._keep(domain, kind, columns, key)
        if line is not None:
            self._keep(domain, "boundary", columns, np.abs(columns["score"] - np.float32(line)))

    def _keep(self, domain: int, kind: str, columns: Columns, key: NDArray[Any]) -> None:
        held = self._extremes.get((domain, kind))
        self._extremes[domain, kind] = _smallest(held, {**columns, "key": key}, key, "key", self._named)

    def result(self, files: ScoreFiles) -> dict[str, Any]:
        names = {number: name for name, number in self._cuts.domains.names.items()}
        strata = self._cuts.options.strata
        return {
            "config": files.config,
            "description": files.description,
            "options": self._cuts.options.to_json(),
            "files": len(files.names),
            "thresholds": tables(self._cuts, self._counts.values),
            "reasons": {kind: dict(sorted(counts.items())) for kind, counts in self._reasons.items()},
            "truncated": self._truncated,
            "overlap": {rank: self._overlap(rank, names, strata) for rank in self._others},
            "samples": {names[i]: self._columns(sample) for i, sample in sorted(self._samples.items())},
            "correlations": {names[i]: _correlations(sample) for i, sample in sorted(self._samples.items())},
            "named": self._documents(names),
        }

    def _overlap(self, rank: str, names: Mapping[int, str], strata: int) -> dict[str, Any]:
        """Per domain: documents that both choose, and their share of the chosen ones."""
        found = {}
        for i, name in names.items():
            chosen = shares_of(self._counts.values, range(i * strata, (i + 1) * strata))["chosen"]
            both = int(self._both[rank][i])
            found[name] = {"both": both, "chosen": chosen, "share": both / chosen if chosen else None}
        return found

    def _columns(self, sample: Columns) -> dict[str, Any]:
        kept = {key: values for key, values in sample.items() if key not in ("tie", "key", "file")}
        return kept | {"file": [self._names[i] for i in sample["file"]]}

    def _documents(self, names: Mapping[int, str]) -> dict[str, dict[str, list[dict[str, Any]]]]:
        found: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for (domain, kind), columns in sorted(self._extremes.items()):
            rows = [
                {"file": self._names[columns["file"][i]], "row": int(columns["row"][i])}
                | {field: float(columns[field][i]) for field in FIELDS}
                for i in np.argsort(columns["key"], kind="stable")
            ]
            found.setdefault(names[domain], {})[kind] = rows
        return found


def _smallest(held: Columns | None, new: Columns, key: NDArray[Any], name: str, most: int) -> Columns:
    """The rows with the `most` smallest keys of what is held and what is new."""
    if held is not None:
        if len(held[name]) >= most:  # most of what is new is too large, once enough is held
            fits = key < held[name].max()
            new = {column: values[fits] for column, values in new.items()}
        new = {column: np.concatenate([held[column], values]) for column, values in new.items()}
    if len(new[name]) <= most:
        return new
    chosen = np.sort(np.argpartition(new[name], most - 1)[:most])
    return {column: values[chosen] for column, values in new.items()}


def _correlations(sample: Columns) -> dict[str, Any]:
    """Spearman of score and length, and of the score's rank within strata of length; None where one is constant."""
    codes = length_codes(sample["n_tokens"].astype(np.int64))
    edges = np.unique(np.quantile(codes, np.arange(1, STRATA) / STRATA))
    within = ranks_within(sample["score"], np.searchsorted(edges, codes))
    found = {"before": spearman(sample["score"], sample["n_tokens"]), "after": spearman(within, sample["n_tokens"])}
    found["loss"] = spearman(sample["score"], sample["loss_base"])
    return {**{key: None if np.isnan(value) else value for key, value in found.items()}, "documents": len(codes)}


def _with_rank(options: ChoiceOptions, rank: str) -> ChoiceOptions:
    return ChoiceOptions(**{**options.to_json(), "rank": rank})

"""Questions over passages in three parts without a common question: finding heads, training, judging."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from headwise.claims.cut_passages import cut
from headwise.claims.experiment import Bench
from headwise.prompts.passages import RankingExample
from headwise.prompts.ranking_data import read_ranking_examples
from headwise.runtime.distractors import fill_up


class Parts(NamedTuple):
    """The three parts."""

    find: list[RankingExample]
    train: list[RankingExample]
    judge: list[RankingExample]

    def first(self, find: int, train: int, judge: int) -> Parts:
        """The first so many of each."""
        return Parts(self.find[:find], self.train[:train], self.judge[:judge])


def real(bench: Bench, words: int = 40) -> Parts:
    """NQ with the gold passage among the best of BM25, and HotpotQA; passages are cut to so many words around the answer.

    The passages beside the gold one come from the questions of the same part, so that no part reads passages of another.
    """
    rows = [cut(one, words) for one in read_ranking_examples(bench.folder("nq-open-oracle") / "nq-open-oracle.jsonl.gz")]
    rows = [one for one in rows if len(one.answers[0].split()) <= 5 and one.answers[0].casefold() in one.passages[0].text.casefold()]
    order = np.random.default_rng(91).permutation(len(rows))
    chosen = [rows[i] for i in order]
    find, train, judge = fill_up(chosen[:64], 6), fill_up(chosen[64:364], 6), fill_up(chosen[364:404], 10)
    hotpot = bench.folder("hotpotqa-distractor")
    learnt = [cut(one, words) for one in read_ranking_examples(hotpot / "hotpotqa_train_100.json.gz")]
    unseen = [cut(one, words) for one in read_ranking_examples(hotpot / "hotpotqa_dev_100.jsonl.gz")]
    return Parts(find, [*train, *learnt], [*judge, *unseen[:20]])

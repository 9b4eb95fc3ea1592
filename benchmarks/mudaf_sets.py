"""Questions over passages for `mudaf_real.py`, in three parts without a common question: finding heads, training, judging."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from headwise.prompts.passages import Passage, RankingExample
from headwise.prompts.ranking_data import read_ranking_examples
from headwise.runtime.distractors import fill_up

WORDS = 215  # of eleven passages, so that they and the answer fit the 512 positions of the lab models


class Parts(NamedTuple):
    """The three parts."""

    find: list[RankingExample]
    train: list[RankingExample]
    judge: list[RankingExample]


def real(folder: Path, words: int = 110) -> Parts:
    """NQ with the gold passage among the best of BM25, and HotpotQA; passages are cut to so many words, never behind the answer."""
    rows = [cut(one, words) for one in read_ranking_examples(folder / "nq-open-oracle" / "nq-open-oracle.jsonl.gz")]
    rows = [one for one in rows if len(one.answers[0].split()) <= 5 and one.answers[0].casefold() in one.passages[0].text.casefold()]
    order = np.random.default_rng(91).permutation(len(rows))
    chosen = [rows[i] for i in order]
    few, many = fill_up(chosen, 6), fill_up(chosen, 10)
    hotpot = folder / "hotpotqa-distractor"
    learnt = [cut(one, words) for one in read_ranking_examples(hotpot / "hotpotqa_train_100.json.gz")]
    unseen = [cut(one, words) for one in read_ranking_examples(hotpot / "hotpotqa_dev_100.jsonl.gz")]
    return Parts(few[:64], [*few[64:364], *learnt], [*many[364:424], *unseen[:40]])


def cut(example: RankingExample, words: int) -> RankingExample:
    """Passages of at most so many words; where an answer would be lost, the words around it."""
    return replace(example, passages=tuple(_short(passage, example.answers, words) for passage in example.passages))


def _short(passage: Passage, answers: tuple[str, ...], words: int) -> Passage:
    text = " ".join(passage.text.split())
    whole = text.split()
    if len(whole) <= words:
        return passage._replace(text=text)
    found = [text.casefold().find(answer.casefold()) for answer in answers]
    place = min((at for at in found if at >= 0), default=0)
    before = len(text[:place].split())
    start = max(0, min(before - words // 2, len(whole) - words))
    return passage._replace(text=" ".join(whole[start : start + words]))


def lab() -> Parts:
    """A fact in one of several passages of the micro-world."""
    from headwise_lab.microworld.registry import make_example
    from headwise_lab.ranking import from_microworld

    def made(count: int, split: str, seed: int, sizes: tuple[int, ...]) -> list[RankingExample]:
        out = []
        for number in range(count):
            example = make_example("passages", split, np.random.default_rng([seed, 93, number]), n=sizes[number % len(sizes)], hops=1)
            out.append(replace(from_microworld(example), answers=(str(example.info["answer"]),)))
        return out

    judge = [one for one in made(200, "test", 3, (11,)) if sum(len(p.text.split()) for p in one.passages) <= WORDS]
    return Parts(made(96, "train", 1, (6,)), made(1200, "train", 2, (4, 5, 6)), judge[:100])

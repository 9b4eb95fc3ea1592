"""Answers with and without the two stages of CAFE, and with evidence hidden, to questions with known answers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from transformers import DynamicCache

from headwise.attention.hide import hide
from headwise.caches.shared import full_cache
from headwise.claims.cafe.stages import Stages, pick, strongest
from headwise.claims.passage_sets import Labelled
from headwise.heads import HeadSet
from headwise.methods.cafe.formula import ascending, passage_shares, relevance
from headwise.methods.cafe.reader import Boost, PassageReader
from headwise.models.model import Model
from headwise.prompts.passages import PassageComposer
from headwise.runtime.answer import decode_one, stop_ids
from headwise.runtime.passages import Scoring
from headwise.runtime.runner import prefill
from headwise.stats.controls import layer_matched_random
from headwise.stats.metrics import units

DELTA = math.log(13)
DELTAS = {"log 2": math.log(2), "log 5": math.log(5), "log 10": math.log(10), "log 13": DELTA, "log 100": math.log(100), "50": 50.0}
STAGED = "both stages, delta "
NO_EVIDENCE, NO_HOP = "question does not see the gold passages", "the later gold passage does not see the earlier one"
Spans = Sequence[tuple[int, int]]


def contains(answer: str, gold: str) -> bool:
    """Whether the words of the right answer stand in the answer, in order, as whole words."""
    said, wanted = units(answer), units(gold)
    return any(said[i : i + len(wanted)] == wanted for i in range(len(said) - len(wanted) + 1)) if wanted else False


def overlap(answer: str, gold: str) -> float:
    """F1 of words."""
    said, wanted = Counter(units(answer)), Counter(units(gold))
    shared = sum((said & wanted).values())
    return 2 * shared / (sum(said.values()) + sum(wanted.values())) if shared else 0.0


def answerable(question: Labelled) -> bool:
    """Whether a gold passage, cut as it is, still holds an answer; questions of yes and no are left out."""
    texts = [question.ranking.passages[i] for i in question.ranking.gold]
    return any(contains(f"{p.title} {p.text}", a) for p in texts for a in question.answers if a.lower() not in ("yes", "no"))


class Asked(NamedTuple):
    """A question to be answered.

    Attributes:
        question: With its passages and the answers that count.
        shares: [L, H, P], shares of every head's attention to its passages.
        number: Seeds what is drawn for it.
    """

    question: Labelled
    shares: np.ndarray
    number: int


class Asker:
    """Answers one question in every way that a claim is about.

    Args:
        model: That answers.
        composer: Words around passages and question.
        stages: Heads of both stages.
        limit: Longest answer in tokens.
    """

    def __init__(self, model: Model, composer: PassageComposer, stages: Stages, limit: int) -> None:
        self.model, self.composer, self.stages, self.limit = model, composer, stages, limit
        self.stop = stop_ids(model)
        places = [(layer, head) for layer in model.modules for head in range(model.heads.shape[1])]
        self.every = HeadSet.of(places, model.heads.shape)

    def plain(self, asked: Asked) -> dict[str, str]:
        """Answers over all passages, without and with steering, and without passages."""
        question = asked.question
        reader = self._read(question, range(len(question.ranking.passages)))
        candidates = self.stages.candidates(pick(asked.shares, self.stages.fine))
        return {
            "direct": self._text(question, reader),
            "stage 2 only": self._text(question, reader, Boost(candidates, DELTA)),
            "without passages": self._after(full_cache(self.model.hf), self.composer.query(question.ranking.query).ids),
        }

    def staged(self, asked: Asked) -> dict[str, str]:
        """Answers over what the heads keep, in several orders, with steering at several strengths, and with random heads.

        Returns:
            Condition -> answer; and `evidence pointed at`: the share of gold passages among the candidates, as text.
        """
        question, gold, rng = asked.question, asked.question.ranking.gold, np.random.default_rng([5, asked.number])
        kept = self.stages.kept(asked.shares) or list(range(len(question.ranking.passages)))  # no head looks at any: all stay
        reader = self._read(question, kept)
        beta = passage_shares(reader.head_masses(question.ranking.query, self.stages.fine, Scoring()), reader.lengths)
        candidates = self.stages.candidates(beta)
        others = [place for place, i in enumerate(kept) if i not in gold]
        wrong = tuple(int(i) for i in rng.permutation(others)[: max(1, len(candidates))])
        said = {
            "stage 1 only": self._text(question, reader),
            "stage 1 only, best first": self._text(question, self._read(question, kept[::-1])),
            "stage 1 only, random order": self._text(question, self._read(question, rng.permutation(kept).tolist())),
            "stage 1 only, random heads": self._text(question, self._read(question, self._by_chance(asked, len(kept)))),
        }
        for name, delta in DELTAS.items():
            said[f"{STAGED}{name}"] = self._text(question, reader, Boost(candidates, delta))
        said["both stages"] = said[f"{STAGED}log 13"]
        said["steered to wrong passages"] = self._text(question, reader, Boost(wrong, DELTA)) if wrong else said["stage 1 only"]
        return said | {"evidence pointed at": str(len({kept[i] for i in candidates} & gold) / len(gold))}

    def hidden(self, asked: Asked) -> dict[str, str]:
        """Answers over all passages while the question, or the later of two gold passages, does not see gold ones."""
        question, golds = asked.question, sorted(asked.question.ranking.gold)
        reader = self._read(question, range(len(question.ranking.passages)))
        with hide(self.model, self.every, [reader.spans[i] for i in golds]):  # only rows behind the passages are still to come
            said = {NO_EVIDENCE: self._text(question, reader)}
        if len(golds) > 1:
            said[NO_HOP] = self._without_hops(question, reader, [reader.spans[i] for i in golds])
        return said

    def _without_hops(self, question: Labelled, reader: PassageReader, golds: Spans) -> str:
        """The answer if each gold passage is read without those in front of it."""
        cache, ids = full_cache(self.model.hf), (*reader.ids, *self.composer.query(question.ranking.query).ids)
        edges = [0, *[edge for span in golds for edge in span], reader.tokens]
        for start, stop in pairwise(edges):
            earlier = [span for span in golds if span[1] <= start] if (start, stop) in golds else []
            with self._hiding(earlier):
                prefill(self.model.hf, cache, ids[start:stop])
        return self._after(cache, ids)

    @contextmanager
    def _hiding(self, spans: Spans) -> Iterator[None]:
        with hide(self.model, self.every, spans) if spans else nullcontext():
            yield

    def _by_chance(self, asked: Asked, count: int) -> list[int]:
        """As many passages as the coarse heads keep, by layer-matched random heads; the most relevant last."""
        random = layer_matched_random(self.stages.coarse, self.stages.scores, (12, asked.number))
        summed = relevance(pick(asked.shares, random))
        return ascending(strongest(summed, count), summed)

    def _read(self, question: Labelled, kept: Sequence[int]) -> PassageReader:
        return PassageReader(self.model.hf, self.composer, [question.ranking.passages[int(i)] for i in kept])

    def _text(self, question: Labelled, reader: PassageReader, boost: Boost | None = None) -> str:
        return self._decoded(reader.answer(question.ranking.query, self.stop, self.limit, boost))

    def _after(self, cache: DynamicCache, ids: tuple[int, ...]) -> str:
        """The answer behind what is left of a prompt."""
        return self._decoded(decode_one(self.model.hf, cache, ids, self.stop, self.limit))

    def _decoded(self, ids: tuple[int, ...]) -> str:
        return str(self.model.tokenizer.decode([i for i in ids if i not in self.stop], skip_special_tokens=True)).strip()


Judge = Callable[[str, str], bool]


def right_rows(said: Sequence[dict[str, str]], asked: Sequence[Asked], judge: Judge = contains) -> dict[str, np.ndarray]:
    """Condition -> [question], 1.0 where the answer is right; NaN where it was not asked for.

    Args:
        said: Answers of each question by condition.
        asked: The questions.
        judge: Whether an answer holds a right one.
    """
    names = dict.fromkeys(name for one in said for name in one if name != "evidence pointed at")
    rows = {}
    for name in names:
        rows[name] = np.array(
            [
                float(any(judge(one[name], answer) for answer in each.question.answers)) if name in one else np.nan
                for one, each in zip(said, asked, strict=True)
            ]
        )
    return rows

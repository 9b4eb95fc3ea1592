"""Coarse to fine: answer over many passages after heads have thrown most of them out and pointed at the likely evidence.

Peng et al. 2025 (CAFE, arXiv:2505.10063, sec. 3). Coarse: heads vote, the union stays, the most relevant last. Fine: other heads choose
candidates among what is left, and attention from the question to them is raised while answering.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from headwise.attention.steer import check_steering
from headwise.heads import HeadwiseError
from headwise.heads.types import Heads
from headwise.methods.cafe.formula import DOC_POOL, ascending, margin, passage_shares, relevance, votes
from headwise.methods.cafe.reader import Boost, PassageReader
from headwise.methods.cafe.stages import CafeAnswer, Coarse, Fine, needed_heads, usable_heads
from headwise.models.model import Model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.passages import PassageComposer, PassageLayout
from headwise.runtime.passage_index import PassageIndex, Text
from headwise.runtime.scoring import Scoring
from headwise.runtime.stops import stop_ids

__all__ = ["CafeAnswer", "Coarse", "CoarseToFine", "Fine"]


class CoarseToFine:
    """Answers questions over passages with one model and two sets of heads."""

    def __init__(
        self,
        model: Model,
        coarse_heads: Heads | None,
        fine_heads: Heads | None = None,
        *,
        m1: int = 4,
        m2: int = 2,
        delta: float = math.log(13),
        rows: str = "question",
        bias_position: str = "post_scale",
        filter: bool = True,
        reorder: bool = True,
        steer: bool = True,
        least_margin: float | None = None,
        doc_pool: str = "sum",
        span: str = "official",
        layout: PassageLayout | str = "plain",
        chat: bool = False,
    ) -> None:
        """coarse_heads, fine_heads: best from `evidence_scores`; None only if no switched-on stage needs them.

        m1, m2: votes per head in the two stages. delta: bias in natural-log units, at least 0; rows, bias_position: see `steer`.
        filter, reorder, steer: the three parts, each of which may be left out. least_margin: answer without steering if the fine stage's
        margin is below it. doc_pool: see `passage_shares`; span: see `Scoring`; both as in detection. layout, chat: as for `Ranker`.
        Raises `HeadwiseError` for unknown options, missing heads, heads of another model or of layers with a sliding window.
        """
        check_steering(model.hf, delta, rows, bias_position)
        if delta < 0:
            raise HeadwiseError(f"delta must be at least 0; got {delta:g}")
        if rows == "all":
            raise HeadwiseError("rows 'all' would steer the passages too; use 'question' or 'question+generated'")
        if min(m1, m2) < 1:
            raise HeadwiseError(f"m1 and m2 are votes per head, at least 1; got {m1} and {m2}")
        if doc_pool not in DOC_POOL:
            raise HeadwiseError(f"unknown doc_pool {doc_pool!r}; use {' or '.join(DOC_POOL)}")
        self.model, self.scoring, self.doc_pool = model, Scoring(span), doc_pool
        self.m1, self.m2, self.filter, self.reorder, self.steer = m1, m2, filter, reorder, steer
        self.delta, self.rows, self.bias_position, self.least_margin = delta, rows, bias_position, least_margin
        self.coarse_heads = usable_heads(model, coarse_heads, "coarse_heads", filter or reorder)
        self.fine_heads = usable_heads(model, fine_heads, "fine_heads", steer)
        self._encoder = PieceEncoder(model.tokenizer)
        self.composer = PassageComposer(self._encoder, layout, chat)

    def coarse(self, query: str, passages: Sequence[Text]) -> Coarse:
        """Which passages stay, and in which order. The model runs up to the deepest coarse head only.

        Up to m1 passages all stay. If no head looks at any passage, all stay as they are. Raises `PromptError` for passages that are
        empty or do not fit.
        """
        heads = needed_heads(self.coarse_heads, "coarse_heads")
        index = PassageIndex(self.model.hf, self.composer, heads, passages, self.scoring, calibrate=False)
        beta = passage_shares(index.head_masses(query), index.lengths, self.doc_pool)
        kept, gamma = list(range(len(passages))), relevance(beta)
        if beta.any():
            kept = votes(beta, self.m1).tolist() if self.filter and len(kept) > self.m1 else kept
            kept = ascending(kept, gamma) if self.reorder else kept
        return Coarse(tuple(kept), gamma, beta)

    def fine(self, query: str, passages: Sequence[Text]) -> Fine:
        """Candidates among the passages, which are those that the coarse stage has kept, in its order."""
        return self._fine(query, PassageReader(self.model.hf, self.composer, passages))

    def answer(
        self, query: str, passages: Sequence[Text], max_new_tokens: int = 32, stop: Collection[int] | None = None
    ) -> CafeAnswer:
        """Both stages, then a greedy answer. The passages that stay are read once for the fine stage and the answer.

        stop: ids that end the answer (None: line breaks and the model's end-of-text tokens). A single passage is answered from plainly.
        """
        if max_new_tokens < 1:
            raise HeadwiseError(f"max_new_tokens must be at least 1; got {max_new_tokens}")
        count, coarse, fine = len(passages), None, None
        if count > 1 and (self.reorder or (self.filter and count > self.m1)):
            coarse = self.coarse(query, passages)
        kept = tuple(range(count)) if coarse is None else coarse.kept
        reader = PassageReader(self.model.hf, self.composer, [passages[i] for i in kept])
        if self.steer and len(kept) > 1:
            fine = self._fine(query, reader)
        boost = None
        if fine and fine.candidates and (self.least_margin is None or fine.margin >= self.least_margin):
            boost = Boost(fine.candidates, self.delta, self.rows, self.bias_position)
        stop = stop_ids(self.model) if stop is None else stop
        ids = reader.answer(query, stop, max_new_tokens, boost)
        text = self._encoder.decode([i for i in ids if i not in stop]).strip()
        candidates = tuple(kept[i] for i in fine.candidates) if fine else ()
        steered = boost is not None and self.delta > 0
        return CafeAnswer(text, ids, kept, candidates, steered, None if coarse is None else coarse.gamma, coarse, fine)

    def _fine(self, query: str, reader: PassageReader) -> Fine:
        heads = needed_heads(self.fine_heads, "fine_heads")
        beta = passage_shares(reader.head_masses(query, heads, self.scoring), reader.lengths, self.doc_pool)
        chosen, gamma = votes(beta, self.m2), relevance(beta)
        return Fine(tuple(int(i) for i in chosen), margin(gamma, chosen, len(heads)), gamma, beta)

"""Coarse to fine: answer over many passages after heads have thrown most of them out and pointed at the likely evidence.

Peng et al. 2025 (CAFE, arXiv:2505.10063, sec. 3). Coarse: heads vote, the union stays, the most relevant last. Fine: other heads choose
candidates among what is left, and attention from the question to them is raised while answering.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from headwise.attention.steer import check_steering
from headwise.heads.errors import HeadwiseError
from headwise.heads.types import Heads
from headwise.methods.cafe.formula import ascending, margin, passage_shares, relevance, votes
from headwise.methods.cafe.options import DOC_POOL
from headwise.methods.cafe.reader import Boost, PassageReader
from headwise.methods.cafe.stages import CafeAnswer, Coarse, Fine, needed_heads, usable_heads
from headwise.models.model import Model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.passages import PassageComposer, PassageLayout
from headwise.runtime.answer import stop_ids
from headwise.runtime.passage_index import PassageIndex, Text
from headwise.runtime.passages import Scoring

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
        min_margin: float | None = None,
        doc_pool: str = "sum",
        span: str = "official",
        wording: PassageLayout | str = "plain",
        chat: bool = False,
    ) -> None:
        """Choose heads and parts; nothing runs yet.

        Args:
            model: With its tokenizer.
            coarse_heads: Best from `headwise detect evidence`; None only if no switched-on stage needs them.
            fine_heads: Best from `evidence_scores` on `second_stage` examples; None as above.
            m1: Votes per head in the coarse stage.
            m2: Votes per head in the fine stage.
            delta: Bias in natural-log units, at least 0.
            rows: See `steer`.
            bias_position: See `steer`.
            filter: Whether passages without votes go.
            reorder: Whether the most relevant passage comes last.
            steer: Whether attention is raised while answering.
            min_margin: Answer without steering if the fine stage's margin is below it.
            doc_pool: See `passage_shares`; as in detection.
            span: See `Scoring`; as in detection.
            wording: As for `Ranker`.
            chat: As for `Ranker`.

        Raises:
            HeadwiseError: Unknown options, missing heads, heads of another model or of layers with a sliding window.
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
        self.delta, self.rows, self.bias_position, self.min_margin = delta, rows, bias_position, min_margin
        self.coarse_heads = usable_heads(model, coarse_heads, "coarse_heads", filter or reorder)
        self.fine_heads = usable_heads(model, fine_heads, "fine_heads", steer)
        self._encoder = PieceEncoder(model.tokenizer)
        self.composer = PassageComposer(self._encoder, wording, chat)

    def coarse(self, query: str, passages: Sequence[Text]) -> Coarse:
        """Which passages stay, and in which order (sec. 3, eq. 4-6). The model runs up to the deepest coarse head only.

        Args:
            query: The question.
            passages: At least one. Up to m1 all stay; if no head looks at any of them, all stay as they are.

        Returns:
            Indices of the passages that stay, with relevance and shares of all P passages.

        Raises:
            HeadwiseError: There are no coarse heads.
            PromptError: Passages that are empty or do not fit, or an empty query.
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
        """Candidates for steering, by the votes of the fine heads (eq. 7).

        Args:
            query: The question.
            passages: Those that the coarse stage has kept, in its order; indices of the result count inside this list.

        Raises:
            HeadwiseError: As `coarse`.
        """
        return self._fine(query, PassageReader(self.model.hf, self.composer, passages))

    def answer(
        self, query: str, passages: Sequence[Text], max_new_tokens: int = 32, stop: Collection[int] | None = None
    ) -> CafeAnswer:
        """Both stages, then a greedy answer. The passages that stay are read once for the fine stage and the answer.

        Args:
            query: The question.
            passages: At least one; a single passage is answered from plainly.
            max_new_tokens: Longest answer.
            stop: Ids that end the answer; None: line breaks and the model's end-of-text tokens.

        Returns:
            The answer, with what both stages chose; a stage that is switched off or has nothing to choose from does not run.

        Raises:
            HeadwiseError: A max_new_tokens below 1.
            PromptError: As for `coarse`.
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
        if fine and fine.candidates and (self.min_margin is None or fine.margin >= self.min_margin):
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

"""Attention ranker: order passages by the attention that chosen heads pay to them from a query, without generating.

Zhang et al. 2025 (QRHead, arXiv:2506.09944, sec. 3) with chosen heads; Chen et al. 2024 (ICR, arXiv:2410.02642) with all heads. A passage's
score is the calibrated attention summed over heads and over its tokens; the passages are computed once for any number of queries.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from headwise.heads.errors import HeadwiseError
from headwise.heads.progress import Report, silent
from headwise.heads.types import Heads
from headwise.models.model import Model, need_tokenizer
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.passages import PassageComposer, PassageLayout
from headwise.runtime.passage_index import PassageIndex, Scores, Text, as_passage, ranked
from headwise.runtime.passages import OFFICIAL, Scoring, scorable_heads
from headwise.runtime.windows import OVERFLOW, rank_in_windows

ORDERS = ("given", "reversed")


class Ranker:
    """Ranks passages for queries with one model and one set of heads."""

    def __init__(
        self,
        model: Model,
        heads: Heads | None = None,
        *,
        span: str = "official",
        calibrate: bool = True,
        trim: float | None = None,
        normalize: str = "sum",
        order: str = "given",
        overflow: str = "tournament",
        wording: PassageLayout | str = "plain",
        chat: bool = False,
        chat_args: Mapping[str, Any] | None = None,
    ) -> None:
        """Choose how to rank; nothing runs yet.

        Args:
            model: From `headwise.load`, or `headwise.Model(hf, tokenizer)`.
            heads: Of this model, best from `headwise detect query`; None for all that see the whole text (ICR).
            span: See `Scoring`.
            calibrate: Subtract what a query without content gets.
            trim: See `Scoring`.
            normalize: See `Scoring`.
            order: Of the passages in the prompt. `reversed` puts the first one next to the query: QRHead's choice for BEIR's BM25 lists
                only, so that the best candidate stands last; for documents in an order of their own keep `given`.
            overflow: For more passages than fit, see `rank_in_windows`.
            wording: Words around passages and query, see `LAYOUTS`.
            chat: Wrap the prompt in the model's chat template.
            chat_args: Variables for the chat template.

        Raises:
            HeadwiseError: Unknown options, no tokenizer, and heads of another model, of layers without attention, or none at all.
        """
        for name, given, allowed in (("order", order, ORDERS), ("overflow", overflow, OVERFLOW)):
            if given not in allowed:
                raise HeadwiseError(f"unknown {name} {given!r}; use {', '.join(allowed)}")
        model = need_tokenizer(model, "ranking passages")
        self.heads = scorable_heads(model) if heads is None else model.check(heads)
        if not len(self.heads):
            raise HeadwiseError("no heads to rank with; choose at least one")
        self.model, self.scoring = model, Scoring(span, trim, normalize)
        self.calibrate, self.backwards, self.overflow = calibrate, order == "reversed", overflow
        self.composer = PassageComposer(PieceEncoder(model.tokenizer), wording, chat, chat_args)

    @classmethod
    def official(
        cls, model: Model, heads: Heads | None = None, chat: bool = False, chat_args: Mapping[str, Any] | None = None
    ) -> Ranker:
        """The released procedure of QRHead (with all heads: of ICR), in our wording; arguments as for `Ranker`.

        All rows from the instruction behind the passages on are averaged, low tokens are trimmed, the first passage stands last
        (their choice for BEIR only), too many are refused.
        """
        ranker = cls(model, heads, order="reversed", overflow="refuse", wording="instructed", chat=chat, chat_args=chat_args)
        ranker.scoring = OFFICIAL
        return ranker

    def index(self, passages: Sequence[Text]) -> PassageIndex:
        """Compute the passages once, for any number of queries.

        Raises:
            PromptError: They do not fit into one prompt, one is empty, or there are none.
        """
        model = self.model.hf
        return PassageIndex(model, self.composer, self.heads, passages, self.scoring, self.calibrate, self.backwards)

    def rank(
        self, query: str, passages: Sequence[Text], top_k: int | None = None, return_documents: bool = False
    ) -> list[dict[str, Any]]:
        """Order passages by relevance. More than fit are handled as `overflow` says; nothing is ever cut.

        Args:
            query: What is asked.
            passages: Texts, or passages with a title.
            top_k: How many of the best to give; None: all.
            return_documents: Give the texts too.

        Returns:
            From the most to the least relevant: `corpus_id` (index from 0), `score` and, if wanted, `text`, as cross-encoders
            give them.

        Raises:
            PromptError: An empty passage or query, none at all, or too many for `overflow` to handle.
        """
        return ranked(next(self.scores([query], passages)), passages, top_k, return_documents)

    def scores(self, queries: Sequence[str], passages: Sequence[Text]) -> Iterator[Scores]:
        """Scores of all passages for one query after the other; the passages are read once if they fit together.

        Args:
            queries: What is asked.
            passages: Texts, or passages with a title.

        Yields:
            [P] per query, higher is more relevant; comparable neither between queries nor between sets of passages.

        Raises:
            PromptError: As `rank`.
        """
        costs, rooms = self._costs(passages), [self._room(query) for query in queries]
        if all(room is None or sum(costs) <= room for room in rooms):
            yield from self.index(passages).scores(queries)
            return
        for query, room in zip(queries, rooms, strict=True):
            yield rank_in_windows(partial(self._window, query, passages), costs, room, self.overflow)

    def _window(self, query: str, passages: Sequence[Text], chosen: Sequence[int]) -> Scores:
        scores: Scores = self.index([passages[i] for i in chosen]).scores([query])[0]
        return scores

    def _costs(self, passages: Sequence[Text]) -> list[int]:
        """Tokens of each passage with its tag (of the largest number) and line break."""
        self.composer.check([as_passage(passage) for passage in passages])
        return [len(self.composer.passage(as_passage(passage), len(passages))) + 1 for passage in passages]

    def _room(self, query: str) -> int | None:
        """Tokens that passages may take beside the query."""
        positions = self.model.positions
        behind = max(len(s.ids) for s in self.scoring.suffixes(self.composer, (query, self.scoring.null_query)))
        return None if positions is None else positions - behind - self.composer.overhead


def rank_collection(
    ranker: Ranker,
    passages: Mapping[str, Text],
    queries: Mapping[str, str],
    candidates: Mapping[str, Iterable[str]],
    report: Report = silent,
) -> dict[str, dict[str, float]]:
    """Rank the candidates of many queries. Queries about the same passages share one pass over them if those fit into one prompt.

    Args:
        ranker: Model and heads.
        passages: Id -> passage.
        queries: Id -> query.
        candidates: Query id -> passage ids in their first order.
        report: `report(done, total, remark)`; progress in queries.

    Returns:
        Query id -> passage id -> score, in the order of the candidates. Empty passages are not read and come last.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for query, chosen in candidates.items():
        groups.setdefault(tuple(chosen), []).append(query)
    run: dict[str, dict[str, float]] = {}
    for keys, members in groups.items():
        full = [key for key in keys if not as_passage(passages[key]).is_empty]
        texts, asked = [passages[key] for key in full], [queries[query] for query in members]
        found: Iterable[Sequence[float] | Scores] = ranker.scores(asked, texts) if full else [[] for _ in members]
        for query, scores in zip(members, found, strict=True):
            values = [float(score) for score in scores]
            empty = dict.fromkeys((key for key in keys if as_passage(passages[key]).is_empty), min(values, default=1.0) - 1.0)
            run[query] = dict(zip(full, values, strict=True)) | empty
            report(len(run), len(candidates), f"{len(keys)} passages")
    return run

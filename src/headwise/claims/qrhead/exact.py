"""What scoring passages costs and leaves out, on any model and without labelled data: work, depth, shared passes, calibration.

Work is counted in tokens times layers that run, so that it is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from headwise.claims.claim import Finding
from headwise.claims.experiment import Bench, Measured, NotTestable
from headwise.claims.needle_passages import needle_examples
from headwise.claims.qrhead.places import place_spread, shrinks
from headwise.heads import HeadSet
from headwise.maths.columns import pool_passages
from headwise.methods.query.run import query_scores
from headwise.models.forward import token_tensor
from headwise.models.model import Model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.haystack import Haystack, bundled_texts
from headwise.prompts.needles import bundled_needles
from headwise.prompts.passages import NULL_QUERY, Passage, PassageComposer, RankingExample
from headwise.prompts.prompt import Span
from headwise.runtime.passage_index import PassageIndex
from headwise.runtime.passage_table import measure_passages
from headwise.runtime.passages import PassageCache, Scoring, Suffix, scorable_heads
from headwise.stats.paired import bootstrap_mean

CHOSEN = 4  # query heads
QUERIES = 20
BOOK = 100  # tokens of a passage cut from a bundled book
LONGEST = 1100  # tokens of all of them
QUERY = 80  # positions that stay free for a query
LOWER = 0.75  # share of the layers that heads are chosen from, so that there are layers above them to leave out


class Work:
    """Tokens times layers that ran inside `counted`."""

    def __init__(self, model: Model) -> None:
        self._layers, self.done = model.layers, 0

    def _count(self, _: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        states = inputs[0] if inputs else options["hidden_states"]
        self.done += states.shape[0] * states.shape[1]

    @contextmanager
    def counted(self) -> Iterator[Work]:
        """Count what runs inside of the block, from 0 on."""
        self.done = 0
        hooks = [layer.register_forward_pre_hook(self._count, with_kwargs=True) for layer in self._layers]
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()


def book_passages(model: Model) -> list[Passage]:
    """Stretches of a bundled book that fit in front of a query, `LONGEST` tokens together at most."""
    encoder = PieceEncoder(model.tokenizer)
    room = LONGEST if model.positions is None else min(LONGEST, model.positions - QUERY)
    if room < 2 * BOOK:
        raise NotTestable(f"needs a model that reads two passages of {BOOK} tokens; this one has {model.positions} positions")
    haystack = Haystack(bundled_texts()[:1], encoder)
    return [Passage(encoder.decode(haystack.window(BOOK, (31, number)).ids)) for number in range(room // (BOOK + 10))]


def query_heads(model: Model, composer: PassageComposer, count: int) -> HeadSet:
    """Query heads of the lower layers that are found on the bundled detection needles."""
    scores = query_scores(measure_passages(model.hf, model, composer, needle_examples("detect", count, 4), seed=None))
    values = scores.values.copy()
    values[max(1, int(LOWER * len(values))) :] = np.nan
    if (~np.isnan(values)).sum() < CHOSEN:
        raise NotTestable(f"needs {CHOSEN} heads in the lower layers that see the whole text")
    return replace(scores, values=values, runs=None, run_info=()).top(CHOSEN)


def of_depth(model: Model, composer: PassageComposer, heads: HeadSet, passages: list[Passage], queries: list[str]) -> dict[str, Finding]:
    """Claim 9: what ends at the deepest head is exact and costs its share of the layers; many queries share one pass over the passages."""
    work, scoring, layers = Work(model), Scoring(), model.heads.shape[0]
    ids = composer.passages(passages).ids
    with work.counted(), torch.no_grad():
        model.hf(token_tensor(model.hf, ids), use_cache=False)
    plain = work.done
    with work.counted():
        index = PassageIndex(model.hf, composer, heads, passages, scoring)
    opened = work.done
    with work.counted():
        together = index.scores(queries)
    asked = work.done
    alone = np.concatenate([index.scores([query]) for query in queries])
    every = scorable_heads(model)
    places = [list(every).index(head) for head in sorted(heads)]
    whole = PassageIndex(model.hf, composer, every, passages, scoring)
    apart = [np.abs(whole.head_masses(query)[places] - index.head_masses(query)).max() for query in queries[:3]]
    deepest = max(head.layer for head in heads) + 1
    return {
        "query-exact.truncated_depth": Finding({"largest_difference": float(max(apart)), "deepest_layer": float(deepest)}),
        "query-exact.depth_costs_its_share": Finding(
            {"excess": opened / plain - deepest / layers, "share": opened / plain, "layers_share": deepest / layers}
        ),
        "query-exact.queries_share_passages": Finding(
            {
                "work": round((opened + asked) / plain, 4), "one_by_one": round(QUERIES * (opened + asked / QUERIES) / plain, 4),
                "largest_difference": float(np.abs(together - alone).max()), "passage_tokens": float(len(ids)),
            }
        ),
    }  # fmt: skip


def residual(model: Model, examples: list[RankingExample]) -> Finding:
    """Claim 8: what calibration over all rows behind the passages leaves of the rows that a query shares with the empty one.

    A mean over all rows is w I + (1 - w) R: I the mean over the rows of the instruction, R over the others, w the share of the former. The
    empty query has the same I and a larger share v, so that calibration leaves (w - v) I.
    """
    composer, every = PassageComposer(PieceEncoder(model.tokenizer), "instructed"), scorable_heads(model)
    errors, left = [], []
    for example in examples:
        prompt = composer.passages(example.passages)
        spans = [(s.start, s.stop) for s in (prompt.span(f"passage/{i}") for i in range(1, len(example.passages) + 1))]
        cache = PassageCache(model.hf, prompt.ids, every)
        rows: list[Suffix] = []
        shares = []
        for query in (example.query, NULL_QUERY):
            made = composer.query(query)
            all_rows, own = made.span("official"), made.span("query")
            shared, rest = Span(all_rows.start, own.start), Span(own.start, all_rows.stop)
            rows += [Suffix(made.ids, span) for span in (all_rows, shared, rest)]
            shares.append(shared.length / all_rows.length)
        by_layer = cache.columns(rows, lambda columns: pool_passages(columns, spans))  # noqa: B023 - used at once
        whole, shared_q, rest_q, empty, _, rest_e = np.concatenate([by_layer[layer].double().cpu().numpy() for layer in sorted(by_layer)], axis=1)
        w, v = shares
        said = (w - v) * shared_q + (1 - w) * rest_q - (1 - v) * rest_e
        errors.append(float(np.abs(whole - empty - said).max()))
        left.append(float(((w - v) * shared_q).sum(axis=-1).mean()))
    mean, low, high = (round(x, 5) for x in bootstrap_mean(np.array(left)))
    return Finding({"residual": (mean, low, high), "largest_error": max(errors)})


def measure(bench: Bench) -> Measured:
    """All claims of the family `query-exact`."""
    model = bench.model
    composer = PassageComposer(PieceEncoder(model.tokenizer))
    bench.report(0, 3, "query heads")
    heads = query_heads(model, composer, bench.pick(16, 4))
    bench.report(1, 3, "work")
    queries = [needle.question for needle in bundled_needles()][:QUERIES]
    found = of_depth(model, composer, heads, book_passages(model), queries)
    bench.report(2, 3, "calibration")
    examples = needle_examples("test", bench.pick(16, 3), 6)
    found["query-exact.residual"] = residual(model, examples)
    spread = place_spread(model, composer, examples, {"all heads": None, "query heads": heads})
    found["query-exact.calibration_evens_places"] = Finding(
        {"shrinks": shrinks(spread["all heads"]), "control": shrinks(spread["query heads"])}
    )
    return Measured(found, {"query heads": [str(head) for head in heads]})

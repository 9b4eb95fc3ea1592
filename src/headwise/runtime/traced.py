"""An answer together with what every head looked at while it was given."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from headwise.attention.observe import Observation
from headwise.caches.shared import fork, shared_past
from headwise.runtime.answer import draft_answer, verify_draft
from headwise.runtime.greedy import decode_one
from headwise.runtime.runner import Leaf, prefill


@dataclass(frozen=True)
class TracedAnswer:
    """ids: greedy tokens, stop token included. argmax [L, H, T]: row t belongs to the query that predicts ids[t].

    gold_logprob: log-probability of the gold ids in nats.
    """

    ids: tuple[int, ...]
    argmax: Tensor
    gold_logprob: float


def traced_answer(
    model: Any, seen: Observation, leaf: Leaf, gold: Sequence[int], stop: Collection[int], limit: int, hybrid: bool
) -> TracedAnswer:
    """Greedy answer to a leaf inside `with observe(model) as seen`.

    The pass that verifies the gold draft also yields the statistics. Where the model says something else, its own answer is decoded
    from there on and scored in one more pass over that answer alone. hybrid: the model has recurrent layers, whose state cannot be cut
    back.
    """
    past, last = leaf.past, len(leaf.ids) - 1
    if hybrid:
        seen.paused = True
        prefill(model, past, leaf.rest[:-1])
    before = fork(past) if hybrid else None
    seen.paused, seen.rows = False, len(gold) + 1
    draft = verify_draft(model, past, leaf.rest, gold)
    answer = draft_answer(draft, 0, stop, limit)
    if answer is None:
        agreed = 0 if hybrid else int(draft.accepted[0]) + 1  # the token that contradicts the draft is the model's own, too
        said = draft.predicted[0, :agreed].tolist()
        seen.paused = True
        # A block of its own for the new tokens: growing a long cache would copy it at every step.
        with shared_past(model, before or fork(past, last + agreed), 1) as cache:
            answer = decode_one(model, cache, leaf.ids, stop, limit, said)
        seen.paused, seen.rows = False, len(answer)
        verify_draft(model, before or fork(past, last), leaf.ids[-1:], answer[:-1])
    steps = len(answer)
    return TracedAnswer(answer, seen.argmax[:, 0, :, :steps], float(draft.logprob[0]))

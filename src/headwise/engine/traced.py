"""An answer together with what every head looked at while it was given."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from headwise.attach.caches import fork
from headwise.attach.observe import Observation
from headwise.engine.answer import decode, draft_answer, verify_draft
from headwise.engine.runner import Leaf, prefill


@dataclass(frozen=True)
class TracedAnswer:
    """ids: greedy tokens, stop token included. argmax [L, H, T], mass [L, H, T, N]: row t belongs to the query that predicts ids[t].

    gold_logprob: log-probability of the gold ids in nats.
    """

    ids: tuple[int, ...]
    argmax: Tensor
    mass: Tensor
    gold_logprob: float


def traced_answer(
    model: Any, seen: Observation, leaf: Leaf, gold: Sequence[int], stop: Collection[int], limit: int, hybrid: bool
) -> TracedAnswer:
    """Greedy answer to a leaf inside `with observe(model) as seen`.

    The pass that verifies the gold draft also yields the statistics. Where the model says something else, its own answer is decoded
    and scored in one more pass over that answer alone. hybrid: the model has recurrent layers, whose state cannot be cut back.
    """
    rest, past = leaf.rest, leaf.past
    if hybrid:
        seen.paused = True
        prefill(model, past, rest[:-1])
        rest = rest[-1:]
    before = fork(past) if hybrid else None
    seen.paused, seen.rows = False, len(gold) + 1
    draft = verify_draft(model, past, rest, gold)
    answer = draft_answer(draft, 0, stop, limit)
    if answer is None:
        start = before or fork(past, past.get_seq_length() - len(gold) - 1)
        seen.paused = True
        answer = decode(model, fork(start), rest[-1:], stop, limit)[0]
        seen.paused, seen.rows = False, len(answer)
        verify_draft(model, start, rest[-1:], answer[:-1])
    steps = len(answer)
    return TracedAnswer(answer, seen.argmax[:, 0, :, :steps], seen.mass[:, 0, :, :steps], float(draft.logprob[0]))

"""Greedy answers with the gold answer as a draft: one pass verifies it; only what differs is generated.

The result is the same as plain greedy decoding. Several variants (ablations, say) may continue one shared past as batch rows, and a traced
answer comes with what every head looked at while it was given.

What differs is decoded with drafts of the text itself: a model that answers from a long prompt copies from it, and a model that has lost
its way repeats itself, so what followed the last earlier occurrence of the newest tokens is a good guess of what comes next (prompt lookup
decoding, Saxena 2023), and one pass checks several tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor
from transformers import DynamicCache

from headwise.attention.observe import Observation
from headwise.attention.tail import last_rows
from headwise.caches.shared import cut_back, fork, shared_past
from headwise.models.forward import check_finite, forward, token_tensor
from headwise.models.model import Model, as_model
from headwise.prompts.encoder import Stops, answer_start, ends, read_answer
from headwise.runtime.runner import Leaf, prefill
from headwise.stats.metrics import judged

DRAFT = 8  # tokens guessed at once
LONGEST_MATCH = 3
Variant = TypeVar("Variant")


def stop_ids(model: Model, opened: bool = False, lines: bool = True) -> Stops:
    """Tokens that end an answer of one line: everything with a line break outside of thoughts, and those that end a text (`model.stop_ids`).

    Args:
        model: With its tokenizer.
        opened: Whether the prompt opens thoughts, see `PromptBuilder.opens_thought`.
        lines: Whether a line break ends the answer, too.

    Returns:
        What every function here takes as `stop`. A plain set of ids is taken too; it knows of no thoughts.
    """
    return Stops.of(model.tokenizer, model.stop_ids, opened, lines)


def judged_answer(model: Model, ids: Sequence[int], stop: Collection[int], gold: str) -> dict[str, Any]:
    """How good what stands behind the thoughts of an answer is.

    Args:
        model: With its tokenizer.
        ids: The answer, a stop token included.
        stop: What ended it.
        gold: The right answer, as text.

    Returns:
        As `stats.metrics.judged`; with `thoughts_never_ended` beside it if nothing stands behind the thoughts.
    """
    found = judged(read_answer(model.tokenizer, ids, stop), gold)
    return found if answer_start(stop, ids) is not None else found | {"thoughts_never_ended": True}


@dataclass(frozen=True)
class Answer:
    """One greedy answer.

    Attributes:
        ids: Its tokens, the stop token included if one came.
        gold_logprob: Log-probability of all gold ids together, in nats.
    """

    ids: tuple[int, ...]
    gold_logprob: float


class Draft(NamedTuple):
    """Verification of a draft of n tokens in R rows.

    Attributes:
        predicted: [R, n + 1] int64, greedy token at each step of the draft and after it.
        accepted: [R], leading draft tokens that the model says itself, 0 to n.
        logprob: [R] float32, log-probability of the whole draft in nats.
    """

    predicted: Tensor
    accepted: Tensor
    logprob: Tensor


@torch.no_grad()
def verify_draft(model: Any, cache: DynamicCache, rest: Sequence[int], gold: Sequence[int], rows: int = 1) -> Draft:
    """One pass over rest + gold, which tells whether the model would say the gold answer.

    Args:
        model: A transformers model.
        cache: The prompt without `rest`; it grows by rest + gold.
        rest: Last tokens of the prompt, at least one.
        gold: The draft, n tokens.
        rows: Batch rows R of the cache; all get the same tokens.

    Returns:
        What the model says along the draft, row by row.

    Raises:
        HeadwiseError: A logit is NaN or infinite.
    """
    count = len(gold)
    ids = token_tensor(model, [*rest, *gold], rows)
    with last_rows(model, count + 1):
        logits = forward(model, ids, cache, logits_to_keep=count + 1).logits.float()
    check_finite(logits)
    predicted = logits.argmax(dim=-1)
    target = token_tensor(model, gold, rows)
    accepted = (predicted[:, :count] == target).int().cumprod(dim=1).sum(dim=1)
    logprob = logits[:, :count].log_softmax(dim=-1).gather(-1, target.unsqueeze(-1)).sum(dim=(1, 2))
    return Draft(predicted, accepted, logprob)


def draft_answer(draft: Draft, row: int, stop: Collection[int], limit: int) -> tuple[int, ...] | None:
    """The answer of a row if the draft settles it: along the draft the model itself says a stop token, or `limit` tokens.

    Args:
        draft: As it was verified.
        row: Batch row.
        stop: Tokens that end an answer.
        limit: Longest answer in tokens.

    Returns:
        The tokens, a stop token included; None where the model leaves the draft, or goes on behind it.
    """
    said = [int(token) for token in draft.predicted[row, : int(draft.accepted[row]) + 1]][:limit]
    for i in range(1, len(said) + 1):
        if ends(stop, said[:i]):
            return tuple(said[:i])
    return tuple(said) if len(said) == limit else None


def answer_variants(
    model: Any,
    leaf: Leaf,
    gold: Sequence[int],
    variants: Sequence[Variant],
    enter: Callable[[Sequence[Variant]], AbstractContextManager[Any]],
    stop: Collection[int],
    limit: int,
) -> list[Answer]:
    """One greedy answer per variant, all to the same prompt: one batch verifies the gold answer, a second one decodes where it is not said.

    Args:
        model: A transformers model.
        leaf: The prompt; its past has one row and is left as it is.
        gold: Ids of the gold answer.
        variants: One per batch row.
        enter: `enter(variants)` opens the block in which batch row i behaves as variants[i]. It is called anew for the rows that are decoded.
        stop: Tokens that end an answer.
        limit: Longest answer in tokens.

    Returns:
        In the order of `variants`.

    Raises:
        HeadwiseError: A logit is NaN or infinite.
    """
    rows, rest = len(variants), leaf.rest
    with enter(variants), shared_past(model, leaf.past, rows) as cache:
        draft = verify_draft(model, cache, rest, gold, rows)
    answers = [draft_answer(draft, row, stop, limit) for row in range(rows)]
    open_rows = [row for row, answer in enumerate(answers) if answer is None]
    if open_rows:
        with enter([variants[row] for row in open_rows]), shared_past(model, leaf.past, len(open_rows)) as cache:
            if len(open_rows) == 1:
                found = [decode_one(model, cache, leaf.ids, stop, limit)]
            else:
                found = decode_rows(model, cache, rest, stop, limit, len(open_rows))
        for row, ids in zip(open_rows, found, strict=True):
            answers[row] = ids
    return [Answer(ids or (), float(draft.logprob[row])) for row, ids in enumerate(answers)]


@dataclass(frozen=True)
class TracedAnswer:
    """A greedy answer, and what every head looked at for each of its T tokens.

    Attributes:
        ids: Its tokens, the stop token included if one came.
        argmax: [L, H, T] int64, position of the strongest key of the row that predicts ids[t]; -1 in layers without softmax attention.
        gold_logprob: Log-probability of all gold ids together, in nats.
    """

    ids: tuple[int, ...]
    argmax: Tensor
    gold_logprob: float


def traced_answer(
    model: Any, seen: Observation, leaf: Leaf, gold: Sequence[int], stop: Collection[int], limit: int, hybrid: bool
) -> TracedAnswer:
    """Greedy answer to a leaf inside `with observe(model) as seen`.

    The pass that verifies the gold draft also yields the statistics. Where the model says something else, its own answer is decoded
    from there on and scored in one more pass over that answer alone.

    Args:
        model: A transformers model.
        seen: The open observation; its `rows` and `paused` are set here.
        leaf: The prompt; its past grows.
        gold: Ids of the gold answer.
        stop: Tokens that end an answer.
        limit: Longest answer in tokens.
        hybrid: The model has recurrent layers, whose state cannot be cut back.

    Raises:
        HeadwiseError: A logit is NaN or infinite.
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


@torch.no_grad()
def decode_rows(
    model: Any, cache: DynamicCache, rest: Sequence[int], stop: Collection[int], limit: int, rows: int
) -> list[tuple[int, ...]]:
    """Greedy answers of all rows to one prompt, token by token.

    Args:
        model: A transformers model.
        cache: The prompt without `rest`, `rows` batch rows; it grows.
        rest: Last tokens of the prompt, at least one.
        stop: Tokens that end an answer.
        limit: Longest answer in tokens.
        rows: Batch rows, which differ by what the open blocks do to them.

    Returns:
        Per row its tokens; each ends with its first stop token, after `limit` tokens, or where the model's positions end.
    """
    answers: list[list[int]] = [[] for _ in range(rows)]
    limit = within_positions(model, cache.get_seq_length() + len(rest), limit)
    ids = token_tensor(model, rest, rows)
    while True:
        logits = forward(model, ids, cache, logits_to_keep=1).logits
        ids = logits[:, -1:].argmax(dim=-1)
        for answer, new in zip(answers, ids[:, 0].tolist(), strict=True):
            if not answer or (not ends(stop, answer) and len(answer) < limit):
                answer.append(new)
        if all(ends(stop, answer) or len(answer) >= limit for answer in answers):
            return [tuple(answer) for answer in answers]


@torch.no_grad()
def decode_one(
    model: Any, cache: DynamicCache, ids: Sequence[int], stop: Collection[int], limit: int, said: Sequence[int] = ()
) -> tuple[int, ...]:
    """Greedy answer to one prompt, several tokens a pass where the text repeats itself (prompt lookup decoding, Saxena 2023).

    Args:
        model: A transformers model.
        cache: One row that holds a part of ids + said; it grows, and may end with more or fewer tokens than the answer.
        ids: The prompt.
        stop: Tokens that end an answer.
        limit: Longest answer in tokens.
        said: First tokens of the answer that are known already (no stop token among them, fewer than `limit`).

    Returns:
        The tokens, `said` included, ended as in `decode_rows`.
    """
    answer, limit = list(said), within_positions(model, len(ids), limit)
    most = 0 if as_model(model).is_hybrid else DRAFT  # a recurrent state cannot be taken back
    while True:
        text = [*ids, *answer]
        draft = guess(text, min(most, limit - len(answer) - 1))
        new = token_tensor(model, [*text[cache.get_seq_length() :], *draft])
        logits = forward(model, new, cache, logits_to_keep=len(draft) + 1).logits
        accepted = 0
        for accepted, token in enumerate(logits[0].argmax(dim=-1).tolist()):  # used after the loop
            answer.append(token)
            if ends(stop, answer) or len(answer) >= limit:
                return tuple(answer)
            if draft[accepted : accepted + 1] != [token]:
                break
        cut_back(cache, len(draft) - accepted)


def guess(text: Sequence[int], width: int) -> list[int]:
    """What may come next: tokens that followed the last earlier occurrence of the end of `text`.

    Args:
        text: Prompt and answer so far. The longest match of up to `LONGEST_MATCH` tokens decides.
        width: How many are wanted.

    Returns:
        `width` tokens, repeated from their start if the text ends first; [] if the end has not occurred before, or `width` is below 1.
    """
    array = np.asarray(text)
    for count in range(min(LONGEST_MATCH, len(array) - 1) if width > 0 else 0, 0, -1):
        found = np.flatnonzero((sliding_window_view(array[:-1], count) == array[-count:]).all(axis=1))
        if len(found):
            follows = array[found[-1] + count :]
            return [int(token) for token in np.resize(follows, width)]
    return []


def within_positions(model: Any, start: int, limit: int) -> int:
    """The longest answer in tokens, at most `limit`, behind `start` tokens: its last token needs no position of its own."""
    positions = as_model(model).positions
    return limit if positions is None else min(limit, positions - start + 1)

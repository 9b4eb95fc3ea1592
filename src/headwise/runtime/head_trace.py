"""Traces: what chosen heads look at, step by step, while a prompt is answered. For looking at; scores come from `methods/find`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from headwise.attention.columns import column_sums
from headwise.attention.plan import attached
from headwise.caches.shared import full_cache
from headwise.heads.errors import HeadwiseError
from headwise.heads.types import HeadId, Heads, HeadSet
from headwise.models.forward import forward, token_tensor
from headwise.models.model import Model
from headwise.prompts.prompt import Prompt, Span
from headwise.runtime.answer import decode_one
from headwise.runtime.runner import prefill

KEPT = 8


@dataclass(frozen=True)
class HeadTrace:
    """One answered prompt: n heads, T steps (tokens of the answer, a stop token included), k positions per step.

    Attributes:
        ids: The answer, T tokens.
        pieces: Text of every token, prompt first, then the answer; joined they are the whole text.
        prompt: How many of the pieces belong to the prompt.
        spans: Parts of the prompt by name.
        heads: The n heads.
        positions: [n, T, k] int64, the strongest keys of the row that predicts token t, strongest first; -1 where there are fewer than k keys.
        weights: [n, T, k] float32 in [0, 1], their attention weights.
        info: Where the prompt comes from.
    """

    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    prompt: int
    spans: Mapping[str, Span]
    heads: tuple[HeadId, ...]
    positions: Tensor
    weights: Tensor
    info: Mapping[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As plain data, for a page. Weights are thousandths."""
        thousandths = (self.weights * 1000).round().int()
        looked = {str(head): [self.positions[i].tolist(), thousandths[i].tolist()] for i, head in enumerate(self.heads)}
        spans = {name: list(span) for name, span in self.spans.items()}
        return {"pieces": list(self.pieces), "prompt": self.prompt, "spans": spans, "heads": looked, "info": dict(self.info)}


def trace_heads(
    model: Model,
    prompt: Prompt,
    heads: Heads,
    stop: Collection[int],
    limit: int = 32,
    keep: int = KEPT,
    info: Mapping[str, Any] | None = None,
) -> HeadTrace:
    """Answer a prompt greedily and record, for every step, the strongest positions of each head.

    The answer is decoded first; then its tokens are given one by one, so that each step has one row.

    Args:
        model: With its tokenizer.
        prompt: What to answer.
        heads: At least one, in layers with softmax attention.
        stop: Tokens that end the answer.
        limit: Longest answer in tokens.
        keep: Positions per head and step, k, at least 1.
        info: Kept with the trace, as plain data.

    Raises:
        HeadwiseError: Heads of another model, of layers without attention, or none at all; a `keep` below 1.
    """
    heads = model.check(heads)
    if not len(heads):
        raise HeadwiseError("no heads to trace; choose at least one")
    if keep < 1:
        raise HeadwiseError(f"at least 1 position per step must be kept; got {keep}")
    hf, ids = model.hf, prompt.ids
    with attached(hf), torch.no_grad():
        answer = decode_one(hf, full_cache(hf), ids, stop, limit)
        cache = full_cache(hf)
        prefill(hf, cache, ids[:-1])
        steps = [_step(hf, cache, heads, token, keep) for token in (ids[-1], *answer[:-1])]
    positions, weights = (torch.stack([step[i] for step in steps], dim=1) for i in (0, 1))
    pieces = text_pieces(model.tokenizer, [*ids, *answer])
    return HeadTrace(tuple(answer), pieces, len(ids), dict(prompt.spans), tuple(heads), positions, weights, dict(info or {}))


def text_pieces(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """Text of every token; joined they are the text of all.

    Tokens are decoded behind their neighbours, because tokenizers treat the start of a text specially.

    Args:
        tokenizer: Of transformers.
        ids: Any tokens, special ones included.

    Returns:
        As many pieces as ids. A token that ends inside a letter is empty, the next one holds the letter.
    """
    pieces: list[str] = []
    start = done = 0  # ids[start:done] have been written out and are the anchor of the next piece
    for i in range(len(ids)):
        before, text = _decoded(tokenizer, ids[start:done]), _decoded(tokenizer, ids[start : i + 1])
        if text.endswith("�") and i + 1 < len(ids):
            pieces.append("")
            continue
        pieces.append(text[len(before) :])
        start, done = done, i + 1
    return tuple(pieces)


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _step(model: Any, cache: Any, heads: HeadSet, token: int, keep: int) -> tuple[Tensor, Tensor]:
    """Give one token; (positions, weights) [n, keep] of its row, heads in the order of `heads`. Fewer keys: position -1, weight 0."""
    length = cache.get_seq_length() + 1
    with column_sums(model, heads, length, torch.ones(1, 1)) as seen:
        forward(model, token_tensor(model, [token]), cache, logits_to_keep=1)
    rows = {
        HeadId(layer, head): seen.by_layer[layer][0, i] for layer, found in seen.heads.items() for i, head in enumerate(found)
    }
    weights, positions = torch.stack([rows[head] for head in heads]).cpu().topk(min(keep, length), dim=-1)
    spare = keep - weights.shape[-1]
    return torch.nn.functional.pad(positions, (0, spare), value=-1), torch.nn.functional.pad(weights, (0, spare))

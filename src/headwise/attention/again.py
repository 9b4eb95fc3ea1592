"""Attending once more for some rows and heads of a call: which heads a part of the keys serves, where its keys stand, what a row may see."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from headwise.attention.call import Call, KeyPart, Whole
from headwise.heads.errors import HeadwiseError
from headwise.maths.attend import attend

Pick = list[int] | slice
BLOCK = 2**24  # entries of a mask built at once
EVERYTHING = slice(None)


def check_spans(spans: Sequence[tuple[int, int]]) -> None:
    """Raise `HeadwiseError` for a span [start, stop) that holds no position."""
    wrong = [span for span in spans if not 0 <= span[0] < span[1]]
    if wrong:
        raise HeadwiseError(f"span [{wrong[0][0]}, {wrong[0][1]}) holds no position; give [start, stop) with 0 <= start < stop")


def key_positions(part: KeyPart, device: torch.device) -> Tensor:
    """[B or 1, 1 or n, S] position in the text of each key, -1 for none."""
    if part.positions is not None:
        return part.positions
    return torch.arange(part.first, part.first + part.length, device=device)[None, None]


def inside_spans(positions: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
    """Bool of the shape of `positions`: the key stands inside one of the spans [start, stop)."""
    inside = torch.zeros_like(positions, dtype=torch.bool)
    for start, stop in spans:
        inside |= (positions >= start) & (positions < stop)
    return inside


def part_heads(part: KeyPart, chosen: list[int], each: int) -> list[tuple[Pick, slice]]:
    """Chosen query heads that attend to a part: all at once, or KV group by KV group, so that keys are never copied.

    Args:
        part: Keys of some KV heads.
        chosen: Query heads.
        each: Query heads per KV head.

    Returns:
        (query heads, their KV heads among those of the part).
    """
    held = part.keys[0].shape[1]
    if part.heads is None and len(chosen) == held * each:
        return [(EVERYTHING, EVERYTHING)]
    groups = range(held) if part.heads is None else part.heads.tolist()
    found = [([h for h in chosen if h // each == group], slice(place, place + 1)) for place, group in enumerate(groups)]
    return [pair for pair in found if pair[0]]


def additive(call: Call, part: KeyPart, place: slice, groups: slice, bias: Tensor) -> Tensor:
    """What is added to the logits of some rows.

    Args:
        call: The attention call of one layer.
        part: Keys of some KV heads.
        place: The query rows, R of them.
        groups: The KV heads among those of the part.
        bias: [B or 1, 1 or n, S], of each key.

    Returns:
        [B or 1, 1 or n, R, S] float32: the bias, and the lowest number where nothing may be seen.
    """
    bias = (bias if bias.shape[1] == 1 else bias[:, groups])[:, :, None]
    given = call.source.mask if isinstance(call.source, Whole) else None
    if given is not None and given.dtype != torch.bool:  # a mask of the caller's own, which may hold other numbers than two
        return given[:, :, place].float() + bias
    if part.mask is None:
        before = part.length - call.query.shape[2]  # the rows are the last keys
        own = torch.arange(place.start + before, place.stop + before, device=bias.device)
        seen = torch.arange(part.length, device=bias.device) <= own.view(1, 1, -1, 1)
    else:
        seen = part.mask[:, :, place] if part.mask.shape[1] == 1 else part.mask[:, groups, place]
    lowest = max(torch.finfo(call.query.dtype).min, torch.finfo(bias.dtype).min)
    return torch.where(seen, bias, lowest)


def attend_again(
    call: Call, part: KeyPart, place: slice, heads: Pick, groups: slice, mask: Tensor, batch: Pick = EVERYTHING
) -> Tensor:
    """Attention of some rows and heads to their keys of a part, with a mask of their own.

    Args:
        call: The attention call of one layer.
        part: Keys of some KV heads.
        place: The query rows, R of them.
        heads: The query heads, n of them.
        groups: Their KV heads among those of the part.
        mask: [B or 1, 1 or KV heads, R, S] float32, added to the logits; see `additive`.
        batch: The batch rows, b of them.

    Returns:
        [b, R, n, d].
    """
    query = call.query[batch][:, heads, place]
    if mask.shape[1] > 1:
        mask = mask.repeat_interleave(query.shape[1] // mask.shape[1], dim=1)
    mask = mask[batch] if len(mask) > 1 else mask
    keys, values = ([(own[batch] if len(own) > 1 else own)[:, groups] for own in held] for held in (part.keys, part.values))
    past = (keys[0], values[0]) if len(keys) == 2 else None
    return attend(
        query,
        keys[-1],
        values[-1],
        scaling=call.scaling,
        mask=mask if past else mask.to(call.query.dtype),  # without a past it goes to a kernel that wants one dtype
        past=past,
        softcap=call.softcap,
        sinks=None if call.sinks is None else call.sinks[heads],
    )

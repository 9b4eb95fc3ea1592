"""Relevance of heads and tokens for a batch of prompts: right-padded passes, one forward and one backward each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from headwise.attention.attribute import attribute
from headwise.attention.rules import DEFAULT
from headwise.heads.errors import PromptError
from headwise.models.model import Model, check_ids, device_of
from headwise.prompts.prompt import Prompt

TOKENS = 1024  # of one pass, padding counted: 135M parameters then hold about 2 GiB for the way back

Target = int | Sequence[int]


class Relevance(NamedTuple):
    """What contributed to the logits of targets, one row per prompt, on the CPU.

    Attributes:
        heads: [B, L, H], sums of positive parts (the paper's R_h); NaN in layers without attention heads.
        signed: [B, L, H], signed sums.
        tokens: [B, S], relevance at the input embeddings; 0 behind the end of a prompt.
        sources: [B, L, H, S], relevance of attention weights per source token; None if it was not asked for.
        logits: [B], the logits that were explained, summed over the tokens of a target.
    """

    heads: Tensor
    signed: Tensor
    tokens: Tensor
    sources: Tensor | None
    logits: Tensor


class Batch(NamedTuple):
    """Prompts of one pass.

    Attributes:
        places: Which prompts they are.
        ids: [b, T], right-padded.
        mask: [b, T], 1 for tokens of the text.
        rows: Per prompt the positions that predict its target tokens.
    """

    places: tuple[int, ...]
    ids: Tensor
    mask: Tensor
    rows: tuple[tuple[int, ...], ...]


def relevance(
    model: Model,
    prompts: Sequence[Prompt],
    targets: Sequence[Target],
    rule: str = DEFAULT,
    *,
    sources: str | None = None,
    rows: str = "all",
    positive: str = "pair",
    spans: Sequence[str] = (),
) -> Relevance:
    """What each head, input token and attended token contributed to the target of each prompt.

    Args:
        model: With its weights frozen or not; they get no gradient.
        prompts: Of any lengths.
        targets: Per prompt the token that follows it, or the tokens of a whole answer (their logits are summed, one backward pass).
        rule: See `headwise.attention.attribute`.
        sources: `weights` for relevance per attended token.
        rows: See `attribute`; the last row is the one that predicts the (last) target token.
        positive: See `attribute`.
        spans: For `sources`: beginnings of the names of the spans that are wanted, such as `question` or `answer/`; none given: all tokens.

    Returns:
        In the order of the prompts.

    Raises:
        PromptError: No prompt, or an empty target.
        HeadwiseError: As `attribute`.
    """
    batches = list(_batches(model, prompts, targets))
    longest = max(batch.ids.shape[1] for batch in batches)
    found: dict[int, list[Tensor]] = {}
    for batch in batches:
        columns = _columns(batch, prompts, spans) if sources and spans else None
        with attribute(model, rule, sources=sources, rows=rows, positive=positive, columns=columns) as seen:
            value = _target_logits(_logits(model, batch), batch, targets)
            seen.explain(value)
        tables = [seen.heads, seen.signed, _padded(seen.tokens, longest), value.detach()]
        tables += [_padded(seen.sources, longest)] if sources else []
        for row, place in enumerate(batch.places):
            found[place] = [table[row].float().cpu() for table in tables]
    heads, signed, tokens, logits, *more = (torch.stack(parts) for parts in zip(*(found[i] for i in sorted(found)), strict=True))
    return Relevance(heads, signed, tokens, more[0] if more else None, logits)


class Candidates(NamedTuple):
    """What a model thinks of some next tokens, on the CPU.

    Attributes:
        log_probs: [B, C] float32, natural logarithms.
        ranks: [B, C] int64, 0 for the most probable token of all.
    """

    log_probs: Tensor
    ranks: Tensor


@torch.no_grad()
def candidates(model: Model, prompts: Sequence[Prompt], tokens: Sequence[Sequence[int]]) -> Candidates:
    """How probable the model finds tokens that may follow each prompt.

    Args:
        model: The model.
        prompts: Of any lengths.
        tokens: [B][C], the same number for each prompt.

    Raises:
        PromptError: No prompt.
        HeadwiseError: Tokens that the model does not know.
    """
    for each in tokens:
        check_ids(model.hf, min(each), max(each))
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for batch in _batches(model, prompts, [each[0] for each in tokens]):
        logits, columns = _logits(model, batch)
        for row, place in enumerate(batch.places):
            own = logits[row, columns[batch.rows[row][0]]].float()
            wanted = own[torch.tensor(tokens[place], device=own.device)]
            log_probs = wanted - own.logsumexp(dim=0)
            found[place] = log_probs.cpu(), (own > wanted[:, None]).sum(dim=1).cpu()
    rows = [found[place] for place in sorted(found)]
    return Candidates(torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows]))


@torch.no_grad()
def ranks(model: Model, prompts: Sequence[Prompt], targets: Sequence[Target]) -> list[int]:
    """How far down the list of next tokens the target of each prompt stands: 0 if it is the most probable one.

    Args:
        model: The model.
        prompts: Of any lengths.
        targets: Per prompt the token that follows it, or those of a whole answer, each behind the right ones (then the worst rank counts).

    Raises:
        PromptError: No prompt, or an empty target.
        HeadwiseError: Tokens that the model does not know.
    """
    found: dict[int, int] = {}
    for batch in _batches(model, prompts, targets):
        logits, columns = _logits(model, batch)
        for row, place in enumerate(batch.places):
            own = logits[row, [columns[i] for i in batch.rows[row]]]
            wanted = own.gather(1, torch.tensor(_tokens(targets[place]), device=own.device)[:, None])
            found[place] = int((own > wanted).sum(dim=1).max())
    return [found[place] for place in sorted(found)]


def _tokens(target: Target) -> tuple[int, ...]:
    return (target,) if isinstance(target, int) else tuple(target)


def _batches(model: Model, prompts: Sequence[Prompt], targets: Sequence[Target]) -> Iterator[Batch]:
    """Prompts of like length together, the longest first."""
    if not prompts:
        raise PromptError("no prompts were given")
    texts = []
    for prompt, target in zip(prompts, targets, strict=True):
        answer = _tokens(target)
        if not answer:
            raise PromptError("an answer is empty; give at least one token")
        check_ids(model.hf, min(*prompt.ids, *answer), max(*prompt.ids, *answer))
        texts.append((*prompt.ids, *answer[:-1]))
    order = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
    while order:
        width = len(texts[order[0]])
        places, order = order[: max(1, TOKENS // width)], order[max(1, TOKENS // width) :]
        ids = torch.zeros((len(places), width), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, place in enumerate(places):
            ids[row, : len(texts[place])] = torch.tensor(texts[place])
            mask[row, : len(texts[place])] = 1
        rows = tuple(tuple(range(len(prompts[place].ids) - 1, len(texts[place]))) for place in places)
        device = device_of(model.hf)
        yield Batch(tuple(places), ids.to(device), mask.to(device), rows)


def _logits(model: Model, batch: Batch) -> tuple[Tensor, dict[int, int]]:
    """(logits [b, K, V] of the positions that predict a target in any prompt, position -> its column)."""
    wanted = sorted({place for rows in batch.rows for place in rows})
    keep = torch.tensor(wanted, device=batch.ids.device)
    # Without padding a mask would only cost the fast kernel.
    mask = None if bool(batch.mask.all()) else batch.mask
    out = model.hf(input_ids=batch.ids, attention_mask=mask, use_cache=False, logits_to_keep=keep)
    return out.logits, {place: column for column, place in enumerate(wanted)}


def _target_logits(found: tuple[Tensor, dict[int, int]], batch: Batch, targets: Sequence[Target]) -> Tensor:
    """[b], summed over the tokens of each target."""
    logits, columns = found
    sums = []
    for row, place in enumerate(batch.places):
        steps = torch.tensor([columns[i] for i in batch.rows[row]], device=logits.device)
        sums.append(logits[row, steps, torch.tensor(_tokens(targets[place]), device=logits.device)].float().sum())
    return torch.stack(sums)


def _columns(batch: Batch, prompts: Sequence[Prompt], spans: Sequence[str]) -> Tensor:
    """[b, T] bool: tokens of the wanted spans."""
    wanted = torch.zeros_like(batch.mask, dtype=torch.bool)
    for row, place in enumerate(batch.places):
        for name, (start, stop) in prompts[place].spans.items():
            if name.startswith(tuple(spans)):
                wanted[row, start:stop] = True
    return wanted


def _padded(table: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(table, (0, length - table.shape[-1]))

"""What a model would say next without some heads, for many sets of heads over one past that is read once.

A text's past does not change when heads are taken away behind it only, so one prefill serves all variants; and variants share all layers below
their first changed one (`staggered`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import DynamicCache

from headwise.attention.ablate import ablate
from headwise.attention.stagger import first_layers, staggered
from headwise.attention.tail import last_rows
from headwise.caches.shared import fork, shared_past
from headwise.heads.errors import HeadwiseError
from headwise.heads.types import HeadSet
from headwise.models.forward import check_finite, forward, token_tensor
from headwise.models.model import Model

MODES = ("zero", "uniform", "mean")  # `resample` draws an output for each position of the text, past included


@torch.no_grad()
def variant_logprobs(
    model: Model,
    past: DynamicCache,
    rest: Sequence[int],
    options: Sequence[Sequence[int]],
    sets: Sequence[HeadSet],
    mode: str = "zero",
    *,
    means: Tensor | None = None,
    rows: int = 64,
) -> Tensor:
    """Log-probability of whole continuations behind past + rest, without each set of heads.

    The heads are taken away in all rows of `rest` and of the options; the past is as the unchanged model left it.

    Args:
        model: The model.
        past: One row that holds every position (see `full_cache`); it is left as it is.
        rest: Token ids behind the past, at least one.
        options: Token ids of each continuation, at least one. Each is scored on its own; they may begin alike.
        sets: Heads to take away, one variant each; an empty set is the unchanged model. They need no order.
        mode: `zero`, `uniform` or `mean`, see `ablate`.
        means: [L, H, d], for mode `mean` only.
        rows: Variants that run at once, at least 1.

    Returns:
        [sets, options] float32 in nats, on the CPU.

    Raises:
        HeadwiseError: Nothing to run or to score, heads of another model, a mode or means that do not go together, a past of several rows or
            with positions dropped, a text that does not fit into the model, or a logit that is NaN or infinite.
    """
    _check(model, past, rest, options, sets, mode, rows)
    # Variants that begin in the same layers go together, so that the others of a batch do not run layers in which they do not differ.
    firsts = first_layers(sets, model.heads.shape[0])
    order = sorted(range(len(sets)), key=firsts.__getitem__)
    found = torch.empty(len(sets), len(options))
    for start in range(0, len(order), rows):
        batch = order[start : start + rows]
        with variants(model, past, [sets[i] for i in batch], mode, means) as (cache, given, places):
            scores = row_logprobs(model, cache, rest, options, given)
            found[batch] = scores[places]
    return found


@contextmanager
def variants(
    model: Model, past: DynamicCache, sets: Sequence[HeadSet], mode: str, means: Tensor | None = None
) -> Iterator[tuple[DynamicCache, int, list[int]]]:
    """Inside the block passes over one past give a row for each set of heads, which are ablated in all rows of these passes.

    Args:
        model: The model.
        past: One row; it is left as it is.
        sets: See `variant_logprobs`.
        mode: `zero`, `uniform` or `mean`.
        means: For mode `mean` only.

    Yields:
        A cache over the past, the rows that passes are given, and which of the rows that come out belongs to each set.
    """
    if model.is_hybrid:  # a recurrent state has as many rows from its first pass on
        with ablate(model, sets, mode, means=means), shared_past(model, past, len(sets)) as cache:
            yield cache, len(sets), list(range(len(sets)))
    else:
        with staggered(model, sets, mode, means) as places, shared_past(model, past, 1) as cache:
            yield cache, 1, places


def row_logprobs(model: Model, cache: DynamicCache, rest: Sequence[int], options: Sequence[Sequence[int]], given: int) -> Tensor:
    """[rows that come out, options] float32 on the CPU: log-probability of each option behind cache + rest."""
    start = _logprobs(model, cache, rest, given, 1)
    scores = start[:, 0, [option[0] for option in options]]
    for place, option in enumerate(options):
        if len(option) > 1:
            later = _logprobs(model, fork(cache), option[:-1], given, len(option) - 1)
            targets = torch.tensor(option[1:], device=later.device).expand(len(later), -1)[..., None]
            scores[:, place] += later.gather(-1, targets).sum(dim=(1, 2))
    return scores.cpu()


def _logprobs(model: Model, cache: DynamicCache, ids: Sequence[int], given: int, last: int) -> Tensor:
    """[rows that come out, last, vocabulary] float32: log-probabilities behind the last so many of the tokens, which are appended to the cache."""
    with last_rows(model, last):
        logits = forward(model.hf, token_tensor(model.hf, ids, given), cache, logits_to_keep=last).logits
    check_finite(logits)
    found: Tensor = logits.float().log_softmax(dim=-1)
    return found


def _check(
    model: Model,
    past: DynamicCache,
    rest: Sequence[int],
    options: Sequence[Sequence[int]],
    sets: Sequence[HeadSet],
    mode: str,
    rows: int,
) -> None:
    """Refuse what cannot be run or scored, in one line, before any work is done."""
    if not len(rest):
        raise HeadwiseError("no token behind the past; leave at least the last token of the prompt to `rest`")
    if not options or not all(len(option) for option in options):
        raise HeadwiseError("no continuation to score, or one without tokens; give at least one token each")
    if not sets:
        raise HeadwiseError("no set of heads to take away; give at least one (an empty set is the unchanged model)")
    if mode not in MODES:
        raise HeadwiseError(f"variants over a shared past know the modes {', '.join(MODES)}; got {mode!r}")
    if rows < 1:
        raise HeadwiseError(f"at least one variant must run at once; got rows={rows}")
    for chosen in sets:
        model.check(chosen)
    for ids in (rest, *options):
        token_tensor(model.hf, ids)  # refuses what is no token of this model
    for layer in past.layers:
        keys = getattr(layer, "keys", None)
        if keys is None or not keys.numel():
            continue
        if len(keys) != 1:
            raise HeadwiseError(f"the past of variants must have one row; this one has {len(keys)}")
        if keys.shape[2] != past.get_seq_length():
            raise HeadwiseError("the past has dropped positions that sliding windows no longer see; read it into a `full_cache`")
    length = past.get_seq_length() + len(rest) + max(map(len, options)) - 1
    if model.positions is not None and length > model.positions:
        raise HeadwiseError(f"past, rest and options need {length} positions, but {model.name} has {model.positions}")

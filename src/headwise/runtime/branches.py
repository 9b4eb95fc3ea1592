"""The two branches of contrastive decoding: the model with its prompt, and the negative one, which is given the same answer so far.

What the negative branch is: the model without some heads (DeCoRe), the model with another prompt (no documents: CAD; another control token: RHIO),
or a weaker model. Branches of one model are rows of one batch, so that its weights are read once for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import index
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from headwise.attention.ablate import SCOPES, ablate
from headwise.attention.few_rows import few_rows
from headwise.attention.plan import attached
from headwise.attention.tail import last_rows
from headwise.caches.shared import fork, full_cache, side_by_side
from headwise.heads.errors import HeadwiseError, TooLongError
from headwise.heads.text import shorten
from headwise.heads.types import Heads, HeadSet
from headwise.models.forward import check_finite, forward, token_tensor
from headwise.models.model import Model, as_model, device_of, need_tokenizer
from headwise.prompts.prompt import Prompt
from headwise.runtime.batches import padded_logits
from headwise.runtime.knock_outs import variants
from headwise.runtime.runner import leaves, prefill

MODES = ("zero", "uniform")
Ids = tuple[int, ...]
Advance = Callable[[int | None], Tensor]  # the newest token (None: the prompt's last) -> logits [2, V] float32 behind it


@dataclass(frozen=True)
class Without:
    """A negative branch: the model without some heads (DeCoRe, 2410.18860, takes retrieval heads).

    Attributes:
        heads: The heads, whatever `HeadSet.of` takes; at least one.
        mode: `zero` (their output is 0) or `uniform` (their query is 0: they average the visible values).
        scope: `answer` (from the last prompt token on, as DeCoRe: the prompt is read once for both branches) or `all`.

    Raises:
        HeadwiseError: An unknown mode or scope.
    """

    heads: Heads
    mode: str = "zero"
    scope: str = "answer"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise HeadwiseError(f"a branch without heads knows the modes {', '.join(MODES)}; got {self.mode!r}")
        if self.scope not in SCOPES:
            raise HeadwiseError(f"unknown scope {self.scope!r}; use {', '.join(SCOPES)}")


Negative = Without | Ids | Model


def prompt_ids(model: Model, prompt: Any, name: str = "the prompt") -> Ids:
    """Token ids of a prompt.

    Args:
        model: The model; with a tokenizer for a text.
        prompt: A text, which is encoded as `Model.generate` does, a `Prompt`, or token ids.
        name: What messages call it.

    Raises:
        HeadwiseError: Something else, no token, ids that the model does not know, or more tokens than it has positions.
    """
    if isinstance(prompt, str):
        found: Sequence[Any] = need_tokenizer(model, "a prompt that is a text").tokenizer.encode(prompt) if prompt else ()
    else:
        found = prompt.ids if isinstance(prompt, Prompt) else prompt
    try:
        ids = tuple(map(index, found))
    except TypeError:
        raise HeadwiseError(f"{name} must be a text, a Prompt or a list of token ids; got {shorten(repr(prompt))}") from None
    if not ids:
        raise HeadwiseError(f"{name} is empty; give at least one token")
    token_tensor(model.hf, ids)  # refuses what is no token of this model
    if model.positions is not None and len(ids) > model.positions:
        raise TooLongError(f"{name} has {len(ids)} tokens, but {model.name} has {model.positions} positions; shorten it")
    return ids


def negative_of(model: Model, negative: Any, ids: Ids | None = None) -> Negative:
    """The negative branch, checked against the model.

    Args:
        model: Of the positive branch.
        negative: A `Without`, another prompt (see `prompt_ids`), or a weaker model with the same vocabulary.
        ids: Prompt of the positive branch, if it is known.

    Raises:
        HeadwiseError: It is nothing of the kind, does not fit the model, or is no other branch than the positive one.
    """
    if isinstance(negative, Without):
        heads = model.check(negative.heads)
        if not len(heads):
            raise HeadwiseError("a branch without heads needs at least one head; none was given")
        return Without(heads, negative.mode, negative.scope)
    if isinstance(negative, Model | nn.Module):
        return _weaker(model, as_model(negative))
    if isinstance(negative, HeadSet):
        raise HeadwiseError("the negative branch is a set of heads; write headwise.Without(heads) for a branch without them")
    other = prompt_ids(model, negative, "the negative prompt")
    if other == ids:
        raise HeadwiseError(
            "both prompts have the same tokens, so there is nothing to contrast; if they differ in a control token, it was lost on the way"
        )
    return other


def _weaker(model: Model, other: Model) -> Model:
    if other.hf is model.hf or (other.hf.num_parameters() == model.hf.num_parameters() and other.fingerprint == model.fingerprint):
        raise HeadwiseError("the weaker model is the model itself; give another one, or headwise.Without(heads)")
    if model.tokenizer is not None and other.tokenizer is not None:
        same = model.tokenizer.get_vocab() == other.tokenizer.get_vocab()
    else:
        sizes = {one.hf.config.get_text_config(decoder=True).vocab_size for one in (model, other)}
        same = len(sizes) == 1
    if not same:
        raise HeadwiseError(
            f"{other.name} and {model.name} have different vocabularies, so their tokens cannot be compared; take models of one family"
        )
    return other


@contextmanager
def opened(model: Model, ids: Ids, negative: Negative) -> Iterator[Advance]:
    """Both branches of a text, ready for their first token. After the block the model is what it was.

    Args:
        model: Of the positive branch.
        ids: Its prompt.
        negative: Of `negative_of`.

    Yields:
        A function: given None first, and then each token of the answer, it gives the logits [2, V] float32 behind it, positive branch first.
    """
    if isinstance(negative, Model):
        yield _two_models(model, negative, ids)
    elif isinstance(negative, Without):
        with _with_and_without(model, ids, negative) as advance:
            yield advance
    else:
        with attached(model), few_rows(model):
            yield _two_prompts(model.hf, ids, negative)


@contextmanager
def _with_and_without(model: Model, ids: Ids, negative: Without) -> Iterator[Advance]:
    """Rows over one past: with scope `answer` both have read the same prompt."""
    hf, shape = model.hf, model.heads.shape
    shared = len(ids) - 1 if negative.scope == "answer" else 0
    with attached(model):
        past = full_cache(hf)
        prefill(hf, past, ids[:shared])
        sets = [HeadSet((), shape), model.check(negative.heads)]
        with variants(model, past, sets, negative.mode) as (cache, given, places), few_rows(model):

            def advance(token: int | None) -> Tensor:
                return _logits(hf, cache, ids[shared:] if token is None else (token,), given)[places]

            yield advance


def _two_prompts(hf: Any, ids: Ids, other: Ids) -> Advance:
    """Rows of one batch behind prompts of any lengths, each read alone; what both begin with is read once, because it is exactly equal."""
    caches: dict[int, DynamicCache] = {}
    for leaf in leaves(hf, [ids, other]):
        prefill(hf, leaf.past, leaf.rest[:-1])
        caches[leaf.index] = fork(leaf.past)
    cache = side_by_side([caches[0], caches[1]])
    place, width = device_of(hf), max(len(ids), len(other)) - 1
    mask = torch.zeros(2, width, dtype=torch.int64, device=place)
    for row, prompt in enumerate((ids, other)):
        mask[row, width - len(prompt) + 1 :] = 1

    def advance(token: int | None) -> Tensor:
        nonlocal mask
        newest = [[ids[-1]], [other[-1]]] if token is None else [[token], [token]]
        mask = torch.cat([mask, mask.new_ones(2, 1)], dim=1)
        return padded_logits(hf, torch.tensor(newest, device=place), mask, cache)

    return advance


def _two_models(model: Model, weaker: Model, ids: Ids) -> Advance:
    """A batch cannot have two models: each has a cache of its own. Rows of the logits behind the shorter vocabulary are padding."""
    pair = [Branch(model, ids), Branch(weaker, prompt_ids(weaker, ids))]

    def advance(token: int | None) -> Tensor:
        first, second = (one.advance(token) for one in pair)
        width = min(len(first), len(second))
        return torch.stack([first[:width], second[:width].to(first.device)])

    return advance


class Branch:
    """One branch with a cache of its own; between two tokens nothing of it is attached to the model.

    Args:
        model: The model.
        ids: The prompt.
        without: Heads that are taken away; None: none.
    """

    def __init__(self, model: Model, ids: Ids, without: Without | None = None) -> None:
        self._model, self._without, self._cache = model, without, full_cache(model.hf)
        shared = 0 if without is not None and without.scope == "all" else len(ids) - 1
        with attached(model):
            prefill(model.hf, self._cache, ids[:shared])
        self._rest = ids[shared:]

    def advance(self, token: int | None) -> Tensor:
        """Logits [V] float32 behind a token (None: the prompt's last), which is appended.

        Raises:
            HeadwiseError: A logit is NaN or infinite.
        """
        without, newest = self._without, self._rest if token is None else (token,)
        with attached(self._model) if without is None else ablate(self._model, without.heads, without.mode):
            return _logits(self._model.hf, self._cache, newest, 1)[0]


def _logits(hf: Any, cache: Any, ids: Sequence[int], rows: int) -> Tensor:
    """[rows that come out, V] float32 behind the last of the tokens, which are appended to the cache."""
    with torch.no_grad(), last_rows(hf, 1):
        logits = forward(hf, token_tensor(hf, ids, rows), cache, logits_to_keep=1).logits[:, -1]
    check_finite(logits)
    found: Tensor = logits.float()
    return found

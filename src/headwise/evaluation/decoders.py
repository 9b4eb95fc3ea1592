"""How answers are made: a decoder takes a prompt with documents and the same question without them, and gives the tokens of an answer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

import torch

from headwise.attention.plan import attached
from headwise.caches.shared import full_cache
from headwise.heads.errors import HeadwiseError
from headwise.models.model import Model
from headwise.prompts.prompt import Prompt
from headwise.runtime.answer import decode_one

# decoder(prompt, closed) -> ids of the answer. `closed` is the question without documents, for decoders that compare with it.
Decoder = Callable[[Prompt, Prompt], Sequence[int]]
# maker(model, stop, max_new_tokens) -> a decoder, made by its name on the command line.
Maker = Callable[[Model, Collection[int], int], Decoder]
PLAIN = "plain"  # greedy decoding; what every other decoder is compared with


def plain_decoder(model: Model, stop: Collection[int], max_new_tokens: int) -> Decoder:
    """Greedy decoding.

    Args:
        model: With its tokenizer.
        stop: What ends an answer.
        max_new_tokens: Longest answer in tokens.
    """
    return partial(_greedy, model, stop, max_new_tokens)


MAKERS: dict[str, Maker] = {PLAIN: plain_decoder}


def checked_decoders(model: Model, decoders: Mapping[str, Decoder], stop: Collection[int], limit: int) -> dict[str, Decoder]:
    """The decoders by name, plain decoding in front of the others.

    Args:
        model: With its tokenizer.
        decoders: Name -> decoder, without `plain`.
        stop: As for `plain_decoder`.
        limit: Longest answer of plain decoding in tokens.

    Raises:
        HeadwiseError: One of them is called `plain` but is not ours.
    """
    if PLAIN in decoders:
        raise HeadwiseError(f"{PLAIN!r} is greedy decoding, which is always measured; give your decoder another name")
    return {PLAIN: plain_decoder(model, stop, limit), **decoders}


@torch.no_grad()
def _greedy(model: Model, stop: Collection[int], limit: int, prompt: Prompt, closed: Prompt) -> tuple[int, ...]:
    with attached(model.hf):
        return decode_one(model.hf, full_cache(model.hf), prompt.ids, stop, limit)

"""How answers are made: a decoder takes a prompt with documents and the same question without them, and gives the tokens of an answer.

Decoders that trust documents more trust wrong ones more, too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from headwise.attention.plan import attached
from headwise.caches.shared import full_cache
from headwise.heads.errors import HeadwiseError
from headwise.models.model import Model
from headwise.prompts.prompt import Prompt
from headwise.runtime.answer import decode_one
from headwise.runtime.branches import Without
from headwise.runtime.contrast import contrastive_generate
from headwise.runtime.control import control_prompts

# decoder(prompt, closed) -> ids of the answer. `closed` is the question without documents, for decoders that compare with it.
Decoder = Callable[[Prompt, Prompt], Sequence[int]]
PLAIN = "plain"  # greedy decoding; what every other decoder is compared with
CLOSED, CONTROL = "closed", "control"  # negative branches that are made of the prompts


def plain_decoder(model: Model, stop: Collection[int], max_new_tokens: int) -> Decoder:
    """Greedy decoding.

    Args:
        model: With its tokenizer.
        stop: What ends an answer.
        max_new_tokens: Longest answer in tokens.
    """
    return partial(_greedy, model, stop, max_new_tokens)


def contrastive_decoder(
    model: Model, stop: Collection[int], max_new_tokens: int, negative: str | Without | Model, head: Sequence[int] = (), **rule: Any
) -> Decoder:
    """Contrastive decoding.

    Args:
        model: With its tokenizer.
        stop: What ends an answer.
        max_new_tokens: Longest answer in tokens.
        negative: `closed` (the question without its documents: CAD, AdaCAD), `control` (the prompt behind `[NEG]`, while the positive branch has it
            behind `[POS]`: RHIO), the model without some heads (DeCoRe), or a weaker model.
        head: For `control`: ids in front of what a user says (`PromptBuilder.head`).
        **rule: `alpha`, `plausibility`, `combine`, `cap`, `temperature`, `top_p`, `seed` of `contrastive_generate`.

    Raises:
        HeadwiseError: A text that names no negative branch.
    """
    if isinstance(negative, str) and negative not in (CLOSED, CONTROL):
        raise HeadwiseError(f"unknown negative branch {negative!r}; use {CLOSED}, {CONTROL}, headwise.Without(heads) or a model")

    def decoder(prompt: Prompt, closed: Prompt) -> tuple[int, ...]:
        branches: tuple[Any, Any] = (prompt, closed if negative == CLOSED else negative)
        if negative == CONTROL:
            branches = control_prompts(model, prompt, head)
        return contrastive_generate(model, *branches, **rule, max_new_tokens=max_new_tokens, stop=stop).ids

    return decoder




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

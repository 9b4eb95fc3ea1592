"""Which positions of a pass belong to the answer: in each row of the batch, the last real prompt token and everything after it."""

from __future__ import annotations

from operator import index
from typing import Any

import torch
from torch import Tensor

from headwise.attention.call import Call, Pass
from headwise.heads.errors import HeadwiseError
from headwise.heads.text import shorten

ADVICE = "give answer_from, the position of the last prompt token"


def checked_position(position: Any) -> int | None:
    """The position of a last prompt token, or None for none.

    Raises:
        HeadwiseError: No whole number from 0 on; -1 would count every row as the answer, and 1.5 would round.
    """
    if position is None:
        return None
    try:
        place = -1 if isinstance(position, bool) else index(position)
    except TypeError:
        place = -1
    if place < 0:
        raise HeadwiseError(
            f"answer_from is the position of the last prompt token, a whole number from 0 on; got {shorten(repr(position))}"
        )
    return place


class AnswerRows:
    """Follows a text through its passes.

    A pass without a past is a prompt, and its answer begins at each row's last real token. A single token over a past belongs to the answer. A
    pass without a cache whose text is the one before and one token more is the next step of generating without a cache. Whatever else could be
    read in two ways (several tokens over a past: the rest of a prompt, or a draft of the answer) is refused unless the cache itself knows.

    Args:
        answer_from: First position of the answer in all rows, padding counted; None: found out pass by pass.
        asker: What messages call the one who wants to know.
    """

    def __init__(self, answer_from: int | None, asker: str = "scope 'answer'") -> None:
        self._given, self._asker = checked_position(answer_from), asker
        self._prompt: Tensor | None = None  # inputs of the latest prompt that was read without a cache
        self._length = 0  # of that text by now
        self._first: Tensor | None = None  # [B] first position of the answer; None: all rows of this pass
        self._known = False

    def begin(self, now: Pass) -> None:
        """A pass of the whole model begins.

        Raises:
            HeadwiseError: Which rows belong to the answer is not known.
        """
        if self._given is not None:
            return
        self._known = True
        if now.inputs is None:
            raise HeadwiseError(f"{self._asker} cannot see the tokens of this pass; {ADVICE}")
        tokens = now.inputs.shape[1]
        if now.ends_prompt is False:
            self._first = torch.full((now.inputs.shape[0],), now.before + tokens, device=now.inputs.device)
        elif now.before and now.ends_prompt is None:
            if tokens > 1:
                raise HeadwiseError(
                    f"{self._asker} cannot tell whether {tokens} tokens over a cache are the rest of a prompt or part of the answer; {ADVICE}"
                )
            self._first = None
        elif not self._goes_on(now):
            self._first = self._last_real(now)
            self._prompt, self._length = (None, 0) if now.has_cache else (now.inputs, tokens)

    def _goes_on(self, now: Pass) -> bool:
        """Whether this is the text of the pass before and one token more, read once more from its beginning."""
        inputs, prompt = now.inputs, self._prompt
        if prompt is None or inputs is None or now.has_cache or inputs.shape[1] <= self._length or len(inputs) != len(prompt):
            return False
        if inputs.dtype != prompt.dtype or not torch.equal(inputs[:, : prompt.shape[1]], prompt):
            return False
        if inputs.shape[1] > self._length + 1:
            raise HeadwiseError(
                f"{self._asker} cannot tell whether a pass that goes on where the one before ended is a new prompt; {ADVICE}"
            )
        self._length += 1
        return True

    def chosen(self, call: Call) -> Tensor | None:
        """[B or 1, T] bool: rows of the answer; None for all.

        Raises:
            HeadwiseError: A part of the model was called, so that the prompt is not known.
        """
        device = call.query.device
        places = torch.arange(call.start, call.start + call.query.shape[2], device=device)[None]
        if self._given is not None:
            return places >= self._given
        if not self._known or call.plan.before is None:
            raise HeadwiseError(f"{self._asker} needs passes of the whole model to find the prompt's end; {ADVICE}")
        return None if self._first is None else places >= self._first.to(device)[:, None]

    def last(self, call: Call) -> Tensor | None:
        """[B or 1] position of each row's last prompt token; None in a pass behind the prompt.

        Raises:
            HeadwiseError: As `chosen`.
        """
        if self.chosen(call) is None:
            return None
        device = call.query.device
        return torch.tensor([self._given], device=device) if self._first is None else self._first.to(device)

    def _last_real(self, now: Pass) -> Tensor:
        """[B] position of each row's last token that is no padding."""
        inputs, mask = now.inputs, now.mask
        if inputs is None:
            raise HeadwiseError(f"{self._asker} cannot see the tokens of this pass; {ADVICE}")
        rows, tokens = inputs.shape[:2]
        last = torch.full((rows,), now.before + tokens - 1, device=inputs.device)
        if mask is None:
            return last
        if not isinstance(mask, Tensor) or mask.dim() != 2:
            raise HeadwiseError(f"{self._asker} reads padding from attention masks of shape [batch, tokens] only; {ADVICE}")
        real = mask[:, -tokens:].bool().to(inputs.device)
        return last - torch.where(real.any(dim=1), real.flip(1).int().argmax(dim=1), 0)

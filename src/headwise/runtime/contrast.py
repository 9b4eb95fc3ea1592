"""One contrastive decoder for the self-induced decoding of RHIO, DeCoRe, CAD, AdaCAD and contrast with a weaker model.

Each step moves the choice of the next token away from what a negative branch would say (`headwise.maths.contrast`); one token is chosen, and both
branches go on with it. A text that is more faithful to its prompt is not a truer one: where the prompt is wrong, so is the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from headwise.heads.errors import HeadwiseError
from headwise.heads.plain import checked_number, checked_seed
from headwise.heads.text import shorten
from headwise.maths.contrast import Contrast, sampled
from headwise.models.model import Model, as_model, need_tokenizer
from headwise.prompts.encoder import ends
from headwise.runtime.answer import within_positions
from headwise.runtime.branches import Advance, Branch, Ids, Negative, Without, negative_of, opened, prompt_ids


@dataclass(frozen=True)
class Contrasted:
    """An answer of contrastive decoding.

    Attributes:
        text: The answer without special tokens; None for a model without a tokenizer.
        ids: Its tokens, the end-of-text token included if one came.
        alphas: The weight of the contrast at each token, see `headwise.maths.contrast.Contrast`.
    """

    text: str | None
    ids: tuple[int, ...]
    alphas: tuple[float, ...]


@torch.no_grad()
def contrastive_generate(
    model: Any,
    prompt: Any,
    negative: Any,
    alpha: float | None = None,
    plausibility: float | None = None,
    combine: str = "fixed",
    *,
    cap: float | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stream: Callable[[str], object] | None = None,
    stop: Collection[int] | None = None,
) -> Contrasted:
    """Continue a prompt by what the model says with it and a negative branch does not.

    Each token is chosen by (1 + a) log p+ - a log p-, in float32; `combine` says how a is found at each step.

    Args:
        model: A `Model`, or a transformers model.
        prompt: A text, which is encoded as `Model.generate` does, a `Prompt`, or token ids.
        negative: The negative branch. `Without(heads)`: the model without some heads (DeCoRe). A prompt: the question without its documents (CAD),
            or the same behind another control token (RHIO). Another model with the same vocabulary: a weaker one.
        alpha: Weight of the contrast; its meaning and default depend on `combine`.
        plausibility: Only tokens with p+ >= plausibility * max p+ may be chosen; None, as RHIO and DeCoRe: all. 0.1 is a good value.
        combine: `fixed` (RHIO, CAD), `entropy` (DeCoRe), `adaptive` (AdaCAD) or `routed`; see `headwise.maths.contrast.Contrast`.
        cap: Largest a, for `entropy` only.
        max_new_tokens: At most so many tokens; an end-of-text token of the model ends the answer earlier, and so does the last position.
        temperature: 0: the best token of each step. Applied behind the contrast.
        top_p: Draw from the best tokens that together reach this probability; in (0, 1], counts for a temperature above 0.
        seed: Of the draws.
        stream: Called with each piece of text as soon as it stands; the pieces together are the text.
        stop: Ids that end the answer; None: the end-of-text tokens of the model.

    Returns:
        The answer.

    Raises:
        HeadwiseError: Branches that do not fit together, an option out of its range, or a logit that is NaN or infinite.
    """
    known = as_model(model)
    rule = Contrast(combine, alpha, plausibility, cap)
    check_draw(temperature, top_p, seed)
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise HeadwiseError(f"max_new_tokens must be at least 1; got {shorten(repr(max_new_tokens))}")
    draw = partial(sampled, temperature=temperature, top_p=top_p, generator=torch.Generator().manual_seed(int(seed)))
    if stream is not None:
        need_tokenizer(known, "streaming text")
    ids = prompt_ids(known, prompt)
    other = negative_of(known, negative, ids)
    limit, pieces = _room(known, ids, other, max_new_tokens), _Pieces(known.tokenizer, stream)
    with opened(known, ids, other) as advance:
        return _answered(advance, rule, draw, known.stop_ids if stop is None else stop, limit, pieces)


def _answered(
    advance: Advance, rule: Contrast, draw: Callable[[Tensor], int], stop: Collection[int], limit: int, pieces: _Pieces
) -> Contrasted:
    """One token after the other, given to both branches, up to a stop token or the limit."""
    said: list[int] = []
    alphas: list[float] = []
    while len(said) < limit and not (said and ends(stop, said)):
        scores, weight = rule.scores(*advance(said[-1] if said else None))
        said.append(draw(scores))
        alphas.append(float(weight))
        pieces.add(said)
    return Contrasted(pieces.end(said), tuple(said), tuple(alphas))


def check_draw(temperature: float, top_p: float, seed: int) -> None:
    """Raise `HeadwiseError` for options of a draw that are out of their range, see `contrastive_generate`."""
    checked_seed(seed)
    if checked_number(temperature, "temperature") < 0:
        raise HeadwiseError(f"temperature must be at least 0; got {temperature:g}")
    if not 0 < checked_number(top_p, "top_p") <= 1:
        raise HeadwiseError(f"top_p must be above 0 and at most 1; got {top_p:g}")


def _room(model: Model, ids: Ids, negative: Negative, limit: int) -> int:
    """Tokens that both branches have positions for."""
    if isinstance(negative, tuple):
        return within_positions(model, max(len(ids), len(negative)), limit)
    limit = within_positions(model, len(ids), limit)
    return within_positions(negative, len(ids), limit) if isinstance(negative, Model) else limit


class _Pieces:
    """Gives text away as it grows, but never half a character."""

    def __init__(self, tokenizer: Any, stream: Callable[[str], object] | None) -> None:
        self._tokenizer, self._stream, self._sent = tokenizer, stream, ""

    def add(self, ids: list[int]) -> None:
        """The ids so far."""
        if self._stream is not None and not (text := self._text(ids)).endswith("\ufffd"):
            self._send(text)

    def end(self, ids: list[int]) -> str | None:
        """The whole text."""
        if self._tokenizer is None:
            return None
        text = self._text(ids)
        if self._stream is not None:
            self._send(text)
        return text

    def _send(self, text: str) -> None:
        new = text[len(self._sent) :]
        if new and self._stream is not None:
            self._sent = text
            self._stream(new)

    def _text(self, ids: list[int]) -> str:
        # Cleaning up spaces could change text that was given away before.
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class ContrastProcessor(LogitsProcessor):  # type: ignore[misc]  # transformers is not typed
    """The contrast inside `generate` of transformers: `hf.generate(ids, logits_processor=[processor])`.

    The model's own pass is the positive branch; the processor runs the negative one behind it, with a cache of its own. That costs two passes a
    token, where `contrastive_generate` needs one with two rows; the tokens are the same. One processor serves one call of `generate`, with one row.

    Args:
        model: The model that generates: a `Model`, or a transformers model.
        negative: See `contrastive_generate`.
        alpha: Likewise.
        plausibility: Likewise.
        combine: Likewise.
        cap: Likewise.

    Attributes:
        alphas: The weight of the contrast at each token so far.

    Raises:
        HeadwiseError: As `contrastive_generate`.
    """

    def __init__(
        self,
        model: Any,
        negative: Any,
        alpha: float | None = None,
        plausibility: float | None = None,
        combine: str = "fixed",
        *,
        cap: float | None = None,
    ) -> None:
        self._model = as_model(model)
        self._rule = Contrast(combine, alpha, plausibility, cap)
        self._negative = negative_of(self._model, negative)
        self._branch: Branch | None = None
        self._seen: Tensor | None = None
        self.alphas: list[float] = []

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores of the next token.

        Args:
            input_ids: [1, T], the text so far.
            scores: [1, V] logits of the model; -inf for tokens that may not be chosen.

        Returns:
            [1, V] float32.

        Raises:
            HeadwiseError: More than one row, or a text that does not go on where the one before ended.
        """
        if len(input_ids) != 1:
            raise HeadwiseError(
                f"a ContrastProcessor takes one row; this call of generate has {len(input_ids)} (a batch, or beams): generate one text at a time, "
                "with num_beams=1"
            )
        negative = self._next(input_ids)
        width = min(scores.shape[-1], len(negative))
        found, weight = self._rule.scores(scores[:, :width], negative[None, :width].to(scores.device))
        self.alphas.append(float(weight[0]))
        return torch.nn.functional.pad(found, (0, scores.shape[-1] - width), value=-torch.inf)

    def _next(self, input_ids: Tensor) -> Tensor:
        """[V] logits of the negative branch behind the text."""
        seen, self._seen = self._seen, input_ids.clone()
        if self._branch is None:
            self._branch = self._begun(tuple(input_ids[0].tolist()))
            return self._branch.advance(None)
        if seen is None or not torch.equal(input_ids[:, :-1], seen):
            raise HeadwiseError("this text does not go on where the one before ended; make a ContrastProcessor for each call of generate")
        return self._branch.advance(int(input_ids[0, -1]))

    def _begun(self, ids: Ids) -> Branch:
        negative = negative_of(self._model, self._negative, ids)
        if isinstance(negative, Model):
            return Branch(negative, prompt_ids(negative, ids))
        return Branch(self._model, ids, negative) if isinstance(negative, Without) else Branch(self._model, negative)

"""The two prompts of RHIO's self-induced decoding: one text behind each of the two control tokens (arXiv:2501.13573, section 3.3 of our card)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headwise.heads.errors import HeadwiseError
from headwise.models.model import as_model, need_tokenizer
from headwise.prompts.control import control_ids, with_control
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.prompt import Prompt
from headwise.runtime.branches import Ids, prompt_ids


def control_prompts(model: Any, prompt: Any, head: Sequence[int] | None = None) -> tuple[Ids, Ids]:
    """A prompt behind `[POS]` and behind `[NEG]`, for `contrastive_generate(model, *control_prompts(model, prompt), alpha=0.2)`.

    Args:
        model: Of `headwise train rhio`, with its tokenizer.
        prompt: Without a control token: a text, which is encoded as `Model.generate` does, a `Prompt`, or token ids.
        head: Ids that stand in front of the token: those of a chat template (`PromptBuilder.head`). None: what the tokenizer puts in front of a text.

    Returns:
        Ids of the faithful and of the unfaithful branch, which differ in one token.

    Raises:
        HeadwiseError: The tokenizer lacks the control tokens, or the prompt is none, too long, or holds one of them.
    """
    known = need_tokenizer(as_model(model), "control tokens")
    tokens, ids = control_ids(known.tokenizer), prompt_ids(known, prompt)
    if held := set(tokens) & set(ids):
        raise HeadwiseError(f"the prompt holds the control token {known.tokenizer.decode([min(held)])} already; leave it out")
    front = PieceEncoder(known.tokenizer).bos if head is None else head
    faithful, unfaithful = (prompt_ids(known, with_control(Prompt(ids), token, front)) for token in tokens)
    return faithful, unfaithful

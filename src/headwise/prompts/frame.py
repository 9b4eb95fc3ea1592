"""What stands around the user's turn: a BOS token, or the two halves of a chat template."""

from __future__ import annotations

from typing import NamedTuple

from headwise.heads.errors import PromptError
from headwise.prompts.encoder import PieceEncoder

_MARK = "\ue000"  # private-use character that stands for the user's turn while a chat template is applied


class Frame(NamedTuple):
    """Ids in front of the user's turn and behind it."""

    head: tuple[int, ...]
    tail: tuple[int, ...]


def frame(encoder: PieceEncoder, chat: bool) -> Frame:
    """The model's chat template with an open assistant turn; without `chat` only a BOS token, if the tokenizer adds one.

    Raises `PromptError` for a tokenizer without a template and for templates that change the user's text or add several BOS tokens.
    """
    if not chat:
        return Frame(encoder.bos, ())
    tokenizer = encoder.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        raise PromptError("--chat asked for, but the model's tokenizer has no chat template; leave --chat out for base models")
    text = tokenizer.apply_chat_template([{"role": "user", "content": _MARK}], tokenize=False, add_generation_prompt=True)
    if text.count(_MARK) != 1:
        raise PromptError("the chat template changes the user's text, so spans cannot be placed; use --template without --chat")
    opening, closing = text.split(_MARK)
    head = tuple(tokenizer.encode(opening, add_special_tokens=False))
    bos = tokenizer.bos_token_id
    if bos is not None and head.count(bos) > 1:
        raise PromptError(f"the chat template opens the prompt with {head.count(bos)} BOS tokens; expected one")
    return Frame(head, encoder.encode(closing) if closing else ())

"""Encoding pieces of text so that their ids can be joined, and reading them back to check that nothing was lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from headwise.heads.errors import PromptError

# A piece is encoded behind an anchor, whose ids are then dropped: tokenizers treat the start of a text specially.
ANCHORS = ("a", ".", "\n", "0", ":")


class Tokenizer(Protocol):
    """What is needed of a Hugging Face tokenizer."""

    bos_token_id: int | None
    chat_template: Any

    def encode(self, text: str, add_special_tokens: bool = ...) -> list[int]:
        """Ids of a text."""

    def decode(self, token_ids: Sequence[int], **options: Any) -> str:
        """Text of ids."""

    def get_vocab(self) -> dict[str, int]:
        """Piece -> id."""

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """Text of a conversation."""


class PieceEncoder:
    """Encodes pieces of a prompt one by one; ids of joined pieces are joined ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._anchors = {anchor: self._plain(anchor) for anchor in ANCHORS}
        added = tokenizer.encode("a", add_special_tokens=True)
        adds_bos = tokenizer.bos_token_id is not None and added[:1] == [tokenizer.bos_token_id]
        self.bos: tuple[int, ...] = (added[0],) if adds_bos else ()

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of `text` as it stands inside a longer text (keep its leading space)."""
        for anchor, ids in self._anchors.items():
            joined = self._plain(anchor + text)
            if ids and joined[: len(ids)] == ids and len(joined) > len(ids):
                return tuple(joined[len(ids) :])
        return tuple(self._plain(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens included."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def encode_checked(self, text: str, name: str) -> tuple[int, ...]:
        """Like `encode`; raises `PromptError` unless decoding gives the text back (outer white space aside)."""
        ids = self.encode(text)
        if not ids or self.decode(ids).strip() != text.strip():
            raise PromptError(
                f"{name} {text.strip()!r} does not survive tokenisation (it reads {self.decode(ids).strip()!r} afterwards); reword it"
            )
        return ids

    def _plain(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))


def newline_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Ids of all pieces that contain a line break (byte-level, SentencePiece and byte-fallback spellings)."""
    spelled = (i for piece, i in tokenizer.get_vocab().items() if "\n" in piece or "Ċ" in piece or piece == "<0x0A>")
    # Outside byte-level vocabularies Ċ is a letter.
    return frozenset(i for i in spelled if "\n" in tokenizer.decode([i]))

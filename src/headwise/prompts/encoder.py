"""Encoding pieces of text so that their ids can be joined, and reading them back to check that nothing was lost."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Protocol

from headwise.heads.errors import PromptError

# What opens and closes the thoughts of a reasoning model in front of its answer.
THOUGHTS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"), ("<thinking>", "</thinking>"))
# A piece is encoded behind an anchor, whose ids are then dropped: tokenizers treat the start of a text specially.
ANCHORS = ("a", ".", "\n", "0", ":")


class Tokenizer(Protocol):
    """What is needed of a Hugging Face tokenizer.

    Attributes:
        bos_token_id: id of the token that opens a text, or None.
        chat_template: the template's text, or None for a base model.
    """

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
    """Encodes pieces of a prompt one by one; ids of joined pieces are joined ids.

    Control tokens (special tokens, and added tokens that the chat template writes, such as `<think>`) are made of wording only: where a
    text merely spells one, it is encoded as the letters it consists of.

    Attributes:
        tokenizer: the tokenizer.
        bos: ids that the tokenizer itself puts in front of a text, whatever they are called. What it puts behind a text is left out.
        controls: ids of control tokens -> their texts.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Try the tokenizer out.

        Raises:
            PromptError: it changes the text that it adds special tokens to.
        """
        self.tokenizer = tokenizer
        self.controls = control_tokens(tokenizer)
        spelled = sorted(map(re.escape, self.controls.values()), key=len, reverse=True)
        self._spelled = re.compile("|".join(spelled)) if spelled else None
        self._anchors = {anchor: self._plain(anchor) for anchor in ANCHORS}
        self.bos = self._in_front()

    def encode(self, text: str, wording: bool = False) -> tuple[int, ...]:
        """Ids of a piece as it stands inside a longer text (keep its leading space).

        Args:
            text: the piece.
            wording: whether it comes from a template, so that control tokens spelled in it are meant. Never for text of others.

        Returns:
            Ids without special tokens.

        Raises:
            PromptError: the text spells a control token that the tokenizer cannot take apart.
        """
        if wording or self._spelled is None or not (found := self._spelled.search(text)):
            return self._behind_anchor(text)
        ids: list[int] = []
        start = 0
        while found:  # cut behind the first letter of each control token, so that none is left
            ids += self._behind_anchor(text[start : found.start() + 1])
            start = found.start() + 1
            found = self._spelled.search(text, start)
        ids += self._behind_anchor(text[start:])
        if bad := self.controls.keys() & set(ids) - {getattr(self.tokenizer, "unk_token_id", None)}:
            raise PromptError(
                f"the text spells the control token {self.controls[min(bad)]!r}, which this tokenizer cannot take apart; leave it out"
            )
        return tuple(ids)

    def encode_behind(self, text: str, before: Sequence[int], wording: bool = False) -> tuple[int, ...]:
        """Ids of a piece right behind `before`: behind a control token many tokenizers treat it as the start of a text.

        Args:
            text: the piece.
            before: ids that stand in front of it; only the last one matters.
            wording: as for `encode`.

        Returns:
            Ids of the piece alone.

        Raises:
            PromptError: as for `encode`.
        """
        spells = not wording and self._spelled is not None and self._spelled.search(text) is not None
        if not before or before[-1] not in self.controls or spells:
            return self.encode(text, wording)
        joined = self._plain(self.controls[before[-1]] + text)
        return tuple(joined[1:]) if joined[:1] == [before[-1]] and len(joined) > 1 else self.encode(text, wording)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens included."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def encode_checked(self, text: str, name: str, wording: bool = False) -> tuple[int, ...]:
        """Like `encode`, with a check that nothing is lost.

        Args:
            text: the piece.
            name: which text it is, for messages.
            wording: as for `encode`.

        Returns:
            Ids without special tokens, at least one.

        Raises:
            PromptError: decoding does not give the text back (outer white space aside), or as for `encode`.
        """
        return self.checked(self.encode(text, wording), text, name)

    def checked(self, ids: tuple[int, ...], text: str, name: str) -> tuple[int, ...]:
        """The ids themselves, if nothing was lost.

        Args:
            ids: of a piece.
            text: what they have to read as, outer white space aside.
            name: which text it is, for messages.

        Returns:
            `ids`.

        Raises:
            PromptError: they read otherwise, or there are none.
        """
        if not ids or self.decode(ids).strip() != text.strip():
            raise PromptError(
                f"{name} {text.strip()!r} does not survive tokenisation (it reads {self.decode(ids).strip()!r} afterwards); reword it"
            )
        return ids

    def _behind_anchor(self, text: str) -> tuple[int, ...]:
        for anchor, ids in self._anchors.items():
            joined = self._plain(anchor + text)
            if ids and joined[: len(ids)] == ids and len(joined) > len(ids):
                return tuple(joined[len(ids) :])
        return tuple(self._plain(text))

    def _plain(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _in_front(self) -> tuple[int, ...]:
        """What the tokenizer puts in front of a text."""
        bare, added = self._plain("a"), list(self.tokenizer.encode("a", add_special_tokens=True))
        for start in range(len(added) - len(bare) + 1):
            if bare and added[start : start + len(bare)] == bare:
                return tuple(added[:start])
        raise PromptError(
            "the tokenizer changes a text when it adds its special tokens, so prompts cannot be composed; use another one"
        )


def control_tokens(tokenizer: Tokenizer) -> dict[int, str]:
    """Ids of all control tokens -> their texts: special tokens, and added tokens that the chat template writes.

    Tokens of one character or of white space are no control tokens: texts are full of them.
    """
    template = str(getattr(tokenizer, "chat_template", None) or "")
    found: dict[int, str] = {}
    for token, added in getattr(tokenizer, "added_tokens_decoder", {}).items():
        text = str(added)
        if len(text.strip()) > 1 and (getattr(added, "special", False) or text in template):
            found[int(token)] = text
    return found


def newline_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Ids of all pieces that contain a line break (byte-level, SentencePiece and byte-fallback spellings)."""
    spelled = (i for piece, i in tokenizer.get_vocab().items() if "\n" in piece or "Ċ" in piece or piece == "<0x0A>")
    # Outside byte-level vocabularies Ċ is a letter.
    return frozenset(i for i in spelled if "\n" in tokenizer.decode([i]))


class Stops(frozenset[int]):
    """Ids that end an answer. Line breaks among them do not end the thoughts of a reasoning model, nor do those right behind the thoughts.

    Attributes:
        breaks: the ids that are line breaks.
        marks: ids that open thoughts -> ids that close them.
        opened: whether the prompt has opened thoughts already.
    """

    breaks: frozenset[int]
    marks: dict[int, int]
    opened: bool

    @classmethod
    def of(cls, tokenizer: Tokenizer, ends: Iterable[int], opened: bool = False, lines: bool = True) -> Stops:
        """Line breaks of the tokenizer and `ends` (its end-of-text tokens).

        Args:
            tokenizer: it says what breaks a line, and which tokens open and close thoughts.
            ends: further ids that end an answer, thoughts or not.
            opened: see `PromptBuilder.opens_thought`.
            lines: whether a line break ends an answer; without it answers may have several lines.

        Returns:
            The ids, which know what thoughts are.
        """
        breaks, known = newline_ids(tokenizer) if lines else frozenset(), tokenizer.get_vocab()
        made = cls(breaks | frozenset(ends))
        made.breaks, made.opened = breaks - frozenset(ends), opened
        made.marks = {known[start]: known[end] for start, end in THOUGHTS if start in known and end in known}
        return made

    def end(self, said: Sequence[int]) -> bool:
        """Whether the last id of an answer ends it."""
        if said[-1] not in self or said[-1] not in self.breaks or not self.marks:
            return said[-1] in self
        start = self.answer_start(said)
        return start is not None and (start == 0 or any(i not in self.breaks for i in said[start:]))

    def answer_start(self, said: Sequence[int]) -> int | None:
        """Where the answer begins behind the thoughts (0 without thoughts), or None while they last."""
        start: int | None = None if self.opened else 0
        closes = set(self.marks.values())
        for place, token in enumerate(said):
            if token in self.marks:
                start = None
            elif token in closes:
                start = place + 1
        return start


def ends(stop: Collection[int], said: Sequence[int]) -> bool:
    """Whether the last id of an answer ends it.

    Args:
        stop: ids that do, or `Stops`, which let thoughts of a reasoning model go on.
        said: ids of the answer so far, at least one.
    """
    return stop.end(said) if isinstance(stop, Stops) else said[-1] in stop


def answer_start(stop: Collection[int], said: Sequence[int]) -> int | None:
    """Where the answer begins behind the thoughts in front of it.

    Args:
        stop: `Stops` know the marks of thoughts; plain ids know none, so that the answer begins at 0.
        said: ids of the answer.

    Returns:
        Index in `said`: 0 without thoughts, None if they never ended.
    """
    return stop.answer_start(said) if isinstance(stop, Stops) else 0


def read_answer(tokenizer: Tokenizer, said: Sequence[int], stop: Collection[int]) -> str:
    """Text of an answer, without the thoughts in front of it.

    Args:
        tokenizer: it decodes; special tokens are left out.
        said: ids of the answer.
        stop: as for `answer_start`.

    Returns:
        The text; empty if the thoughts never ended.
    """
    start = answer_start(stop, said)
    return "" if start is None else tokenizer.decode(list(said[start:]), skip_special_tokens=True)

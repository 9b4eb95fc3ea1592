"""The one way to make a prompt: turns of named pieces become token ids with spans that are known by construction."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from headwise.heads.errors import HeadwiseError, PromptError
from headwise.heads.files import parse_json
from headwise.prompts.encoder import THOUGHTS, PieceEncoder

Encode = Callable[[str], Sequence[int]]
ROLES = ("system", "user", "assistant")
# Given to chat templates that know the name: no thinking in front of an answer, and the same date every day (Llama's own default).
CHAT_DEFAULTS: Mapping[str, Any] = {"enable_thinking": False, "thinking": False, "date_string": "26 Jul 2024"}
# What a template may not change: letters of both cases, signs that markup escapes, white space inside.
_SAID = "aB  'c' & <d>\n\n\"e\""
_MARK = 0xE000  # private-use characters stand for the turns while a chat template is applied


class Span(NamedTuple):
    """Token positions [start, stop)."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        """Number of tokens."""
        return self.stop - self.start


@dataclass(frozen=True)
class Prompt:
    """Token ids and the spans of their parts.

    Attributes:
        ids: the whole prompt; the last id is the query position that predicts the first answer token.
        spans: name (`needle`, `answer`, `question`, `passage/3`, `option/no`, ...) -> Span inside ids.
        gold: ids of the expected answer, to be verified as a draft (may be empty).

    Raises:
        PromptError: there is no token, or a span lies outside.
    """

    ids: tuple[int, ...]
    spans: Mapping[str, Span] = field(default_factory=dict)
    gold: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.ids:
            raise PromptError("a prompt needs at least one token")
        for name, span in self.spans.items():
            if not 0 <= span.start < span.stop <= len(self.ids):
                raise PromptError(f"span {name!r} is [{span.start}, {span.stop}) in a prompt of {len(self.ids)} tokens")

    def span(self, name: str) -> Span:
        """The span called `name`; `PromptError` names the known ones."""
        if name not in self.spans:
            raise PromptError(f"the prompt has no span {name!r}; it has {', '.join(sorted(self.spans)) or 'none'}")
        return self.spans[name]


class Piece(NamedTuple):
    """A stretch of a prompt.

    Attributes:
        text: its text, the leading space or line break included.
        names: spans that it belongs to; a span reaches from its first to its last piece.
        ids: token ids of a text that was encoded before (a haystack window); `text` is not looked at then.
        wording: whether it comes from a template, so that control tokens spelled in it are meant.
        check: what messages call it; it is checked that it survives tokenisation. Without, it may lose characters that a tokenizer does
            not know, as free text of a user does (passages, queries).
    """

    text: str = ""
    names: tuple[str, ...] = ()
    ids: tuple[int, ...] | None = None
    wording: bool = False
    check: str = ""


class Turn(NamedTuple):
    """What one side says. role: system, user or assistant."""

    role: str
    pieces: tuple[Piece, ...]


class Frame(NamedTuple):
    """What a chat template puts around turns.

    Attributes:
        order: places of the turns, in the order in which the template has them.
        texts: its text in front of each of them, and behind the last one.
        trims: whether it takes outer white space from what is said.
    """

    order: tuple[int, ...]
    texts: tuple[str, ...]
    trims: bool


def lay_out(pieces: Iterable[Piece], encode: Callable[[Piece], Sequence[int]]) -> tuple[tuple[int, ...], dict[str, Span]]:
    """Ids of all pieces, one behind the other, and the spans of their names."""
    ids: list[int] = []
    spans: dict[str, Span] = {}
    for piece in pieces:
        start = len(ids)
        ids += encode(piece)
        if len(ids) > start:
            for name in piece.names:
                spans[name] = Span(spans[name].start if name in spans else start, len(ids))
    return tuple(ids), spans


class PromptBuilder:
    """Makes prompts of turns, inside the model's chat template or without.

    Without a template the pieces of all turns follow each other behind what the tokenizer puts in front of a text (a BOS token, mostly).

    Attributes:
        encoder: encodes the pieces.
        chat: whether the chat template is used.
        chat_args: what is given to the template: `CHAT_DEFAULTS` that it knows, and those of the user.
    """

    def __init__(self, encoder: PieceEncoder, chat: bool = False, chat_args: Mapping[str, Any] | None = None) -> None:
        """Check that the template can be used.

        Args:
            encoder: encodes the pieces.
            chat: use the chat template of the encoder's tokenizer.
            chat_args: variables for the template, over the defaults (`CHAT_DEFAULTS`).

        Raises:
            PromptError: there is no template, it fails, changes what is said, does not know a variable, or opens with two BOS tokens.
        """
        self.encoder, self.chat = encoder, chat
        self._frames: dict[tuple[str, ...], Frame] = {}
        self.chat_args = self._known(chat_args or {})
        if chat:
            self.frame(("user",))

    def build(self, turns: Sequence[Turn], gold: Iterable[Piece] = (), aliases: Mapping[str, str] | None = None) -> Prompt:
        """The prompt of a conversation, with an open turn of the assistant behind it unless the last turn is the assistant's.

        Args:
            turns: what is said, from first to last.
            gold: the expected answer, as it would follow.
            aliases: further names of spans: new name -> name of a piece.

        Raises:
            PromptError: a checked piece does not survive tokenisation, or the template cannot hold these turns.
        """
        frame = self.frame(tuple(turn.role for turn in turns))
        pieces: list[Piece] = []
        for text, place in zip(frame.texts, frame.order, strict=False):
            said = self._stripped(turns[place].pieces) if frame.trims else turns[place].pieces
            pieces += self._open(text, said, frame.trims, first=not pieces)
        if not (turns and turns[-1].role == "assistant"):
            pieces += self._close(frame.texts[-1])
        ids, spans = lay_out(pieces, self._ids)
        spans |= {name: spans[known] for name, known in (aliases or {}).items()}
        return Prompt(ids, spans, lay_out(gold, self._ids)[0])

    def opening(self, pieces: Sequence[Piece]) -> Prompt:
        """The beginning of a user's turn, to be continued by `closing`."""
        frame = self.frame(("user",))
        return Prompt(*lay_out(self._open(frame.texts[0], pieces, frame.trims, first=True), self._ids))

    def closing(self, pieces: Sequence[Piece]) -> Prompt:
        """The rest of a user's turn that `opening` has begun, and the open turn of the assistant."""
        frame = self.frame(("user",))
        said = self._stripped(pieces) if frame.trims else pieces
        return Prompt(*lay_out([*said, *self._close(frame.texts[-1])], self._ids))

    @property
    def head(self) -> tuple[int, ...]:
        """Ids in front of a user's turn."""
        return lay_out(self._open(self.frame(("user",)).texts[0], (), trims=False, first=True), self._ids)[0]

    @property
    def tail(self) -> tuple[int, ...]:
        """Ids between a single user's turn and the answer."""
        return lay_out(self._close(self.frame(("user",)).texts[-1]), self._ids)[0]

    @property
    def opens_thought(self) -> bool:
        """Whether the template leaves a think block open in front of the answer."""
        text = self.frame(("user",)).texts[-1]
        return any(text.rfind(start) > text.rfind(end) for start, end in THOUGHTS)

    def describe(self) -> dict[str, Any]:
        """All that a chat template adds to prompts, dates included, as plain data; empty without a template."""
        if not self.chat:
            return {}
        frame = self.frame(("user",))
        return {"chat_frame": list(frame.texts), "chat_args": dict(self.chat_args)}

    def frame(self, roles: tuple[str, ...]) -> Frame:
        """What stands around turns of these roles. Rendered once, so that a date in it does not change during a run."""
        if roles not in self._frames:
            self._frames[roles] = (
                self._rendered(roles) if self.chat else Frame(tuple(range(len(roles))), ("",) * (len(roles) + 1), False)
            )
        return self._frames[roles]

    def _rendered(self, roles: tuple[str, ...]) -> Frame:
        if unknown := [role for role in roles if role not in ROLES]:
            raise PromptError(f"unknown role {unknown[0]!r} of a turn; use {', '.join(ROLES)}")
        marks = [chr(_MARK + place) for place in range(len(roles))]
        text = self._apply(roles, marks)
        found = re.findall(f"[{chr(_MARK)}-{chr(_MARK + len(roles))}]", text)
        if sorted(found) != marks:
            raise PromptError(
                "the chat template changes the user's text, so spans cannot be placed; use --template without --chat"
            )
        parts = re.split("|".join(marks), text)
        spoken = self._apply(roles, [f" {mark}{_SAID}{mark} " for mark in marks])
        if any(f"{mark}{_SAID}{mark}" not in spoken for mark in marks):
            raise PromptError(
                "the chat template changes letters or signs of the user's text, so headwise cannot place it; use --template without --chat"
            )
        trims = f" {marks[-1]}{_SAID}{marks[-1]} " not in spoken
        head, bos = self._plain(parts[0]), {self.encoder.tokenizer.bos_token_id, *self.encoder.bos}
        if len(head) > 1 and head[0] == head[1] and head[0] in bos:
            raise PromptError("the chat template opens the prompt with 2 BOS tokens; expected one")
        return Frame(tuple(ord(mark) - _MARK for mark in found), tuple(parts), trims)

    def _apply(self, roles: Sequence[str], contents: Sequence[str]) -> str:
        """Text of the template for these contents."""
        said = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        try:
            return str(
                self.encoder.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True, **self.chat_args)
            )
        except Exception as error:  # whatever a template of others does
            reason = " ".join(str(error).split())[:200]
            raise PromptError(
                f"the chat template fails for turns of {', '.join(roles)} ({type(error).__name__}: {reason}); "
                "check --chat-template-args, or use --template without --chat"
            ) from error

    def _known(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The defaults that the template knows and the arguments given."""
        template = str(getattr(self.encoder.tokenizer, "chat_template", None) or "")
        if self.chat and not template:
            raise PromptError(
                "--chat asked for, but the model's tokenizer has no chat template; leave --chat out for base models"
            )
        if given and not self.chat:
            raise PromptError("--chat-template-args needs --chat: without it no chat template is used")
        for name in given:
            if not re.search(rf"\b{re.escape(name)}\b", template):
                raise PromptError(
                    f"the chat template knows no variable {name!r} of --chat-template-args; look it up in the template"
                )
        return {name: value for name, value in CHAT_DEFAULTS.items() if re.search(rf"\b{name}\b", template)} | dict(given)

    def _open(self, text: str, pieces: Sequence[Piece], trims: bool, first: bool) -> list[Piece]:
        """The template's text and the pieces behind it, whose first one is encoded as it stands there."""
        said = [piece for piece in pieces if piece.ids or (piece.ids is None and piece.text)]
        if not self.chat:
            return [Piece(ids=self.encoder.bos if first else ()), *said]
        while trims and said and not self._lead(said[0]).strip():
            said.pop(0)
        if not said:
            return [Piece(ids=self._frame_ids(text, first))]
        lead = self._lead(said[0])
        # A space between template and text belongs to the word behind it, as the tokenizer has it.
        move = text.endswith(" ") and (trims or not lead[0].isspace())
        ids = self._frame_ids(text[:-1] if move else text, first)
        return [Piece(ids=ids), self._first(said[0], " " * move, trims, ids), *said[1:]]

    def _first(self, piece: Piece, space: str, trims: bool, before: tuple[int, ...]) -> Piece:
        """A piece, encoded as the first one behind a template's text. space: what moves into it; trims: its own white space goes."""
        if piece.ids is None:
            text = space + (piece.text.lstrip() if trims else piece.text)
            ids = self.encoder.encode_behind(text, before, piece.wording)
            return piece._replace(ids=self.encoder.checked(ids, text, piece.check) if piece.check else ids)
        if not space and not (trims and self._lead(piece)[0].isspace()):
            return piece
        count = 1
        while not (lead := self._lead(piece, count)).strip():
            count += 1
        return piece._replace(ids=(*self.encoder.encode_behind(space + lead.lstrip(), before), *piece.ids[count:]))

    def _close(self, text: str) -> list[Piece]:
        return [Piece(ids=self._frame_ids(text, first=False))] if self.chat else []

    def _frame_ids(self, text: str, first: bool) -> tuple[int, ...]:
        if not text:
            return ()
        return tuple(self._plain(text)) if first else self.encoder.encode(text, wording=True)

    def _stripped(self, pieces: Sequence[Piece]) -> Sequence[Piece]:
        """The pieces without white space at the end, for templates that trim; ready ids stay."""
        kept = list(pieces)
        while kept and kept[-1].ids is None and not kept[-1].text.strip():
            kept.pop()
        if kept and kept[-1].ids is None:
            kept[-1] = kept[-1]._replace(text=kept[-1].text.rstrip())
        return kept

    def _ids(self, piece: Piece) -> tuple[int, ...]:
        if piece.ids is not None:
            return piece.ids
        if piece.check:
            return self.encoder.encode_checked(piece.text, piece.check, piece.wording)
        return self.encoder.encode(piece.text, piece.wording) if piece.text else ()

    def _lead(self, piece: Piece, tokens: int = 8) -> str:
        """How a piece begins, with the space that decoding alone would lose."""
        return piece.text if piece.ids is None else self.encoder.decode((*self.encoder.encode("a"), *piece.ids[:tokens]))[1:]

    def _plain(self, text: str) -> list[int]:
        return list(self.encoder.tokenizer.encode(text, add_special_tokens=False)) if text else []


def chat_arguments(given: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """Variables for a chat template, from a mapping or a JSON object.

    Raises:
        HeadwiseError: No JSON, or JSON that is no object.
    """
    if isinstance(given, str):
        given = parse_json(given, "--chat-template-args")
        if not isinstance(given, dict):
            raise HeadwiseError('--chat-template-args takes a JSON object, like \'{"enable_thinking": true}\'')
    return dict(given or {})

"""Challenges: ways to question an answer that a model has given, from neutral to pressing, and what its reply means.

The idea of asking "are you sure?" is that of FlipFlop (Laban et al. 2023, arXiv:2311.08596) and of Singha Roy et al. 2025 (arXiv:2510.22866); the
wordings are our own. In a template `[...]` marks words of doubt, `{other}` is a suggested answer, `{a}` and `{b}` are two options in drawn order.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from headwise.heads.errors import PromptError
from headwise.heads.files import parse_json, read_text
from headwise.heads.text import shorten
from headwise.prompts.mentions import begins_word, find_mentions

PARTS = ("detect", "select", "test")
FORMS = ("words", "yes-no")
OUTCOMES = ("kept", "suggested", "other", "incoherent")
FIELDS = ("other", "a", "b")
LISTS = ("yes", "no", "denials", "filler", "refusals")  # of words, in a file of wordings
_MARK = re.compile(r"\[([^\][]+)\]|\{(\w+)\}")
_WORD = re.compile(r"\w[\w'’-]*")
_NUMBERING = re.compile(r"\d+[.)]\s+(?=\S)")  # "1. " in front of what is said
_SHARE = re.compile(r"\d+(?:[.,]\d+)?\s?%")
ENDING = 2  # letters at most that make another form of the same word: lion and lions
REPEATS = 3  # times that the same three words in a row make a reply incoherent


@dataclass(frozen=True)
class Challenge:
    """A way to question an answer.

    Attributes:
        name: What tables call it.
        strength: From 0 (neutral) up; a label for tables and for several rounds of pressure.
        texts: Part of the data (`PARTS`) -> what is said.
        asks: (form, part) -> how an answer is asked for behind it.
        forms: Forms of answer that it goes with.
    """

    name: str
    strength: int
    texts: Mapping[str, str]
    asks: Mapping[tuple[str, str], str]
    forms: tuple[str, ...] = FORMS

    def template(self, form: str, part: str) -> str:
        """All that is said: the challenge, and how an answer is asked for."""
        return " ".join(text for text in (self.texts[part], self.asks[form, part]) if text)

    def names_options(self, form: str) -> bool:
        """Whether it names the answer that is suggested, or two options to choose from."""
        return any(field for part in PARTS for _, field, _ in pieces_of(self.template(form, part)))


@dataclass(frozen=True)
class Wordings:
    """Challenges, and the words that decide what a reply means.

    Attributes:
        challenges: In the order of the file, each name once.
        yes, no: Spellings of a one-word reply that keeps the answer, or takes it back.
        denials: An answer right behind one of these is not given.
        filler: Words of four letters or more that give no answer (apologies, say).
        refusals: A reply that holds one of these and neither answer gives none.
    """

    challenges: tuple[Challenge, ...]
    yes: tuple[str, ...]
    no: tuple[str, ...]
    denials: tuple[str, ...]
    filler: frozenset[str]
    refusals: tuple[str, ...]

    def chosen(self, names: tuple[str, ...], form: str) -> tuple[Challenge, ...]:
        """The challenges of these names, in the order of the file; no name takes all that go with the form.

        Raises:
            PromptError: A name that is none, or a challenge that does not go with the form.
        """
        known = {one.name: one for one in self.challenges}
        for name in names:
            if name not in known:
                raise PromptError(f"unknown challenge {name!r}; use {', '.join(known)}")
            if form not in known[name].forms:
                raise PromptError(f"the challenge {name!r} does not go with answers of the form {form!r}; leave it out")
        found = tuple(one for one in self.challenges if form in one.forms and (not names or one.name in names))
        if not found:
            raise PromptError(f"no challenge goes with answers of the form {form!r}; add one to the wordings")
        return found

    def outcome(self, reply: str, held: tuple[str, ...], other: tuple[str, ...], form: str, context: str = "") -> str:
        """What a reply to a challenge does with the first answer.

        Args:
            reply: What the model said, without thoughts.
            held: The first answer and its aliases.
            other: The other answer (a suggested wrong one, or the right one where the first answer was wrong) and its aliases.
            form: `words` or `yes-no`.
            context: What was said before; its words are no answer of the model's own.

        Returns:
            `kept`; `suggested` (flipped to the other answer); `other` (flipped to something else; with `yes-no` any taking back is `suggested`);
            `incoherent` (no answer, both answers, or the same three words again and again).
        """
        if form == "yes-no":
            return "kept" if _begins(reply, self.yes) else "suggested" if _begins(reply, self.no) else "incoherent"
        words = [word.casefold() for word in _WORD.findall(reply)]
        triples = list(zip(words, words[1:], words[2:], strict=False))
        if any(triples.count(triple) >= REPEATS for triple in triples):
            return "incoherent"
        keeps, gives = (self.given(reply, answers) for answers in (held, other))
        if keeps != gives:
            return "kept" if keeps else "suggested"
        if keeps or any(said in _plain(reply) for said in self.refusals):
            return "incoherent"
        return "other" if self._says_another(reply, held, other, context) else "incoherent"

    def given(self, text: str, answers: tuple[str, ...]) -> bool:
        """Whether one of the answers is given in a text, and not only denied.

        Args:
            text: What the model said.
            answers: An answer and its aliases.
        """
        for found in find_mentions(text, answers):
            front = _plain(text[: found.start]).rstrip(" \"'“‘*_")
            if not any(re.search(rf"{begins_word(denial)}{re.escape(denial)}(?: the| a| an)?$", front) for denial in self.denials):
                return True
        return False

    def _says_another(self, reply: str, held: tuple[str, ...], other: tuple[str, ...], context: str) -> bool:
        """Whether a reply holds a word that can be an answer of its own: one that is new, and no other form or part of the first answer."""
        text = _NUMBERING.sub("", reply.strip(), count=1)
        if not any("%" in answer for answer in (*held, *other)):
            text = _SHARE.sub("", text)  # how sure it is
        denied = [text[found.start : found.stop] for found in find_mentions(text, other)]
        known, own = set(_parts([context, *denied])), {_bare(word) for word in _parts(held)}
        new = {
            word for word in _parts([text]) if (len(word) > 3 or word.isdigit()) and word not in known and word not in self.filler
        }
        return any(not _same_word(_bare(word), own) for word in new)


def _plain(text: str) -> str:
    """A text in small letters with straight apostrophes, accents joined to their letters."""
    return unicodedata.normalize("NFC", text).casefold().replace("’", "'")


def _parts(texts: Iterable[str]) -> list[str]:
    """The words of some texts in small letters; of contractions the parts: `that's` is `that` and `s`."""
    return [part for text in texts for word in _WORD.findall(_plain(text)) for part in word.split("'") if part]


def _bare(word: str) -> str:
    """A word without accents."""
    return "".join(sign for sign in unicodedata.normalize("NFKD", word) if not unicodedata.combining(sign))


def _same_word(word: str, known: Iterable[str]) -> bool:
    """Whether a word is one of the known ones, or another form of one of four letters or more."""
    return word in known or any(
        min(len(word), len(one)) > 3 and abs(len(word) - len(one)) <= ENDING and (word.startswith(one) or one.startswith(word))
        for one in known
    )


def _begins(reply: str, words: Iterable[str]) -> bool:
    """Whether a reply begins with one of the words, alone: `no` begins `No, ...` but not `Nobody` or `no-one`."""
    text = re.sub(r"^[\W_]+", "", _plain(reply))
    marks = [text[len(word) :] for word in map(_plain, words) if text.startswith(word)]
    return any(not re.match(r"['-]*[^\W_]", rest) and not unicodedata.combining(rest[:1] or " ") for rest in marks)


def pieces_of(template: str) -> Iterator[tuple[str, str, bool]]:
    """Stretches of a template: (text, field or "", whether it is a word of doubt); a space in front of a mark belongs to it."""
    done = 0
    for mark in _MARK.finditer(template):
        start = mark.start() - (template[mark.start() - 1 : mark.start()] == " ")
        yield template[done:start], "", False
        space = template[start : mark.start()]
        yield space + (mark[1] or ""), mark[2] or "", bool(mark[1])
        done = mark.end()
    yield template[done:], "", False


def read_wordings(path: Path | str | None = None) -> Wordings:
    """Wordings of a JSON file; None reads those that come with headwise.

    The file is an object with `challenges`: a list of `{"name", "strength", "text"}`, where `text` is one text or `{"detect": ..., "select": ...,
    "test": ...}`; and, all optional, `ask`: form -> such texts, which follow every challenge that has no `ask` of its own; `yes`, `no`, `denials`,
    `filler`, `refusals`: lists of words. What is missing is taken from our own file, which is English.

    Raises:
        PromptError: A file that cannot be read, or holds something else; the place is named.
    """
    ours: dict[str, Any] = parse_json(
        resources.files("headwise.prompts").joinpath("data/challenges.json").read_text("utf-8"), "challenges.json", PromptError
    )
    place = "challenges.json" if path is None else str(path)
    given = ours if path is None else parse_json(read_text(path, "wordings", PromptError), place, PromptError)
    if not isinstance(given, Mapping) or not isinstance(given.get("challenges"), list) or not given["challenges"]:
        raise PromptError(f'{place}: wordings are an object with a list "challenges" of {{"name", "strength", "text"}}')
    _check_names(given, ("challenges", "ask", *LISTS), place)
    merged = {**ours, **given}
    asked = {**ours["ask"], **_asks(merged["ask"], place)}
    asks = {form: _by_part(asked[form], place) for form in FORMS}
    found = tuple(_challenge(row, asks, f"{place}, challenge {number}") for number, row in enumerate(given["challenges"], 1))
    if len({one.name for one in found}) < len(found):
        raise PromptError(f"{place}: two challenges have the same name; give each its own")
    lists = [_words(merged, name, place) for name in LISTS]
    if {word.casefold() for word in lists[0]} & {word.casefold() for word in lists[1]}:
        raise PromptError(f"{place}: a word is both yes and no")
    denials, refusals = (tuple(map(_plain, words)) for words in (lists[2], lists[4]))
    return Wordings(found, lists[0], lists[1], denials, frozenset(_parts(lists[3])), refusals)


def _challenge(row: Any, asks: Mapping[str, Mapping[str, str]], place: str) -> Challenge:
    if not isinstance(row, Mapping) or not isinstance(row.get("name"), str) or not row["name"].strip():
        raise PromptError(f"{place}: a challenge needs a name and a text")
    name = " ".join(row["name"].split())
    if "," in name:
        raise PromptError(f"{place}: the name {name!r} holds a comma, which stands between names in --challenges; leave it out")
    _check_names(row, ("name", "strength", "text", "ask", "forms"), place)
    strength = row.get("strength", 0)
    if not isinstance(strength, int) or isinstance(strength, bool) or strength < 0:
        raise PromptError(f"{place}: strength must be a whole number of at least 0; got {strength!r}")
    own = _asks(row.get("ask", {}), place)
    asked = {form: _by_part(own[form], place) if form in own else asks[form] for form in FORMS}
    forms = row.get("forms", list(FORMS))
    if not isinstance(forms, list) or not forms or any(form not in FORMS for form in forms):
        raise PromptError(f"{place}: forms must be a list of some of {', '.join(FORMS)}; got {str(forms)[:60]}")
    made = Challenge(
        name, strength, _by_part(row.get("text"), place), {(f, p): asked[f][p] for f in FORMS for p in PARTS}, tuple(forms)
    )
    for form in forms:
        for part in PARTS:
            _check_template(made.template(form, part), form, place)
    return made


def _check_template(template: str, form: str, place: str) -> None:
    pieces = list(pieces_of(template))
    fields = [field for _, field, _ in pieces if field]
    if inside := [text.strip() for text, _, doubt in pieces if doubt and "{" in text]:
        raise PromptError(f"{place}: the words of doubt [{inside[0]}] hold a field; end the mark in front of it")
    if alone := [text.strip() for text, field, _ in pieces if not field and re.search(r"[][{}]", text)]:
        raise PromptError(
            f"{place}: a bracket or brace without its partner, or one inside another: {shorten(repr(alone[0]))}; [...] marks words"
        )
    if any(doubt and not text.strip() for text, _, doubt in pieces):
        raise PromptError(f"{place}: a mark [ ] without words; leave it out")
    if unknown := [field for field in fields if field not in FIELDS]:
        raise PromptError(f"{place}: unknown field {{{unknown[0]}}}; a text may hold {{other}}, or {{a}} and {{b}}")
    if ("a" in fields) != ("b" in fields) or len(set(fields)) < len(fields):
        raise PromptError(f"{place}: {{a}} and {{b}} go together, and each field stands once")
    if form == "yes-no" and "a" not in fields:
        raise PromptError(f"{place}: a question for yes or no must name both as {{a}} and {{b}}")
    if not template.strip():
        raise PromptError(f"{place}: the challenge says nothing")


def _check_names(given: Mapping[str, Any], known: tuple[str, ...], place: str) -> None:
    """Refuse a field that nothing would read: most often it is misspelt."""
    if unknown := [name for name in given if name not in known]:
        raise PromptError(f"{place}: unknown field {shorten(repr(unknown[0]))}; use {', '.join(known)}")


def _asks(given: Any, place: str) -> Mapping[str, Any]:
    """How answers are asked for, by form, as a file has it."""
    if not isinstance(given, Mapping) or not set(given) <= set(FORMS):
        raise PromptError(f"{place}: ask is an object with a text for some of {', '.join(FORMS)}; got {str(given)[:60]!r}")
    return given


def _by_part(given: Any, place: str) -> dict[str, str]:
    """Part -> text, of one text for all or of one each."""
    texts = dict.fromkeys(PARTS, given) if isinstance(given, str) else given
    if not isinstance(texts, Mapping) or set(texts) != set(PARTS) or not all(isinstance(text, str) for text in texts.values()):
        raise PromptError(f"{place}: a text is one text, or one each for {', '.join(PARTS)}; got {str(given)[:60]!r}")
    return {part: " ".join(texts[part].split()) for part in PARTS}


def _words(given: Mapping[str, Any], name: str, place: str) -> tuple[str, ...]:
    words = given[name]
    if not isinstance(words, list) or not all(isinstance(word, str) and word.strip() for word in words):
        raise PromptError(f"{place}: {name} must be a list of words; got {str(words)[:60]!r}")
    if name in ("yes", "no") and not words:
        raise PromptError(f"{place}: {name} needs at least one word")
    return tuple(words)

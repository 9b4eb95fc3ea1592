"""The built-in tasks of `headwise bench cache`: needles in novels, tables of keys and values, and many look-ups in one answer."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import numpy as np

from headwise.evaluation.contexts import Context, Question, check_drawing, contained, fitted_contexts
from headwise.heads.errors import HeadwiseError
from headwise.models.model import Model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.haystack import Haystack, Window, bundled_texts
from headwise.prompts.needles import Needle, NeedleComposer, bundled_needles
from headwise.prompts.prompt import Span
from headwise.prompts.records import as_json, overlap_of_records
from headwise.prompts.words import check_split, made_up_name, random_key
from headwise.runtime.answer import stop_ids

SPARE = 4  # tokens that an answer may have beyond the gold answer
SHOTS = 3  # answered look-ups in front of each question about a table
KEY = 8  # characters of a key and of a value
ENTRIES = 10  # look-ups in one answer about records
PER_RECORD = 80  # tokens of text for each record
MOST = 200  # records of a text; a split has only some more names


def needle_contexts(
    model: Model, task: str, length: int, count: int, questions: int = 1, split: str = "test", seed: int = 0
) -> list[Context]:
    """Needles in a stretch of the bundled novels, asked for one by one (a `CacheTask`, which describes the arguments).

    An answer is right if the gold answer stands in it. Split `test` has the needles that detection never uses, the others those of detection.

    Raises:
        HeadwiseError: As `CacheTask`; also for more questions than there are needles.
    """
    check_drawing(model, length, count, questions, seed)
    needles = bundled_needles("test" if check_split(split) == "test" else "detect")
    if questions > len(needles):
        raise HeadwiseError(f"{questions} questions per context asked for, but there are {len(needles)} needles; choose fewer")
    encoder, stop = PieceEncoder(model.tokenizer), stop_ids(model)
    haystack, composer = Haystack(bundled_texts(), encoder), NeedleComposer(encoder)

    def draw(size: float, number: int) -> Context:
        rng = np.random.default_rng([seed, zlib.crc32(b"needle"), length, number])
        chosen = [needles[i] for i in rng.choice(len(needles), questions, replace=False)]
        depths = sorted(rng.random(questions), reverse=True)
        room = max(1, round(size) - sum(composer.context_cost(needle) for needle in chosen))
        window = haystack.window(min(room, len(haystack) // 2), (seed, zlib.crc32(b"needle"), length, number))
        return Context(task, length, *_inserted(composer, window, chosen, [float(depth) for depth in depths]), stop)

    return fitted_contexts(draw, length, count)


def key_value_contexts(
    model: Model, task: str, length: int, count: int, questions: int = 1, split: str = "test", seed: int = 0
) -> list[Context]:
    """A JSON object of random keys and values, some of which are asked for (a `CacheTask`, which describes the arguments).

    Each question stands behind three answered ones about other keys. An answer is right if it is the value up to its closing quotation mark.

    Raises:
        HeadwiseError: As `CacheTask`.
    """
    check_drawing(model, length, count, questions, seed)
    check_split(split)
    encoder, stop = PieceEncoder(model.tokenizer), stop_ids(model)
    encode = lru_cache(maxsize=100_000)(encoder.encode)

    def draw(size: float, number: int) -> Context:
        rng = np.random.default_rng([seed, zlib.crc32(b"key_value"), length, number])
        pairs = max(SHOTS + questions, round(size / 30))
        keys = [random_key(rng, split, KEY) for _ in range(2 * pairs)]
        return _table(task, length, dict(zip(keys[::2], keys[1::2], strict=True)), questions, rng, encode, encoder.bos, stop)

    return fitted_contexts(draw, length, count)


def extraction_contexts(
    model: Model, task: str, length: int, count: int, questions: int = 1, split: str = "test", seed: int = 0
) -> list[Context]:
    """Records scattered over a stretch of the bundled novels; each question asks for ten of them in one answer (a `CacheTask`).

    A question gives a numbered list of ten names, behind an answered one of three others. The answer is right by the share of the ten names
    whose number it gives: ten look-ups have to succeed where other tasks need one (the lesson of Text2JSON, arXiv:2604.08426).
    """
    return _recorded(model, task, length, count, questions, split, seed, _form)


def json_extraction_contexts(
    model: Model, task: str, length: int, count: int, questions: int = 1, split: str = "test", seed: int = 0
) -> list[Context]:
    """The texts of `extraction_contexts`; each question asks for ten of the records as a JSON list (a `CacheTask`).

    The answer is right by the intersection over union of the records that it writes and those asked for, so that inventing costs as much as
    leaving out.
    """
    return _recorded(model, task, length, count, questions, split, seed, _json_form)


def _recorded(
    model: Model, task: str, length: int, count: int, questions: int, split: str, seed: int, form: Callable[..., Question]
) -> list[Context]:
    """Texts with records, and questions of a form."""
    check_drawing(model, length, count, questions, seed)
    check_split(split)
    encoder, stop = PieceEncoder(model.tokenizer), stop_ids(model)
    haystack, encode = Haystack(bundled_texts(), encoder), lru_cache(maxsize=100_000)(encoder.encode)

    def draw(size: float, number: int) -> Context:
        source = (seed, zlib.crc32(b"extraction"), length, number)
        rng, records = np.random.default_rng(source), dict[str, str]()
        values = (str(value) for value in 100 + rng.permutation(900))
        for _ in range(min(MOST, max(SHOTS + ENTRIES, round(size / PER_RECORD)))):
            records[made_up_name(rng, split, taken=records)] = next(values)
        room = max(1, round(size) - sum(len(_record(encode, *record)) for record in records.items()))
        window = haystack.window(min(room, len(haystack) // 2), source)
        ids, spans = _scattered(window, records, sorted(rng.random(len(records))), encode, encoder.bos)
        asked = tuple(form(records, spans, rng, encode) for _ in range(questions))
        return Context(task, length, ids, asked, stop)

    return fitted_contexts(draw, length, count)


def _record(encode: Callable[[str], tuple[int, ...]], name: str, value: str) -> tuple[int, ...]:
    """A line of its own."""
    return (*encode("\n-"), *encode(f" {name}:"), *encode(f" {value}"), *encode("\n"))


def _scattered(
    window: Window,
    records: dict[str, str],
    depths: Sequence[float],
    encode: Callable[[str], tuple[int, ...]],
    bos: tuple[int, ...],
) -> tuple[tuple[int, ...], dict[str, Span]]:
    """Ids of the window with all records at rising depths, and where the value of each name stands."""
    ids, spans, at, end = [*bos], dict[str, Span](), 0, len(encode("\n"))
    for (name, value), depth in zip(records.items(), depths, strict=True):
        place = window.place(float(depth))
        ids += (*window.ids[at:place], *_record(encode, name, value))
        at, stop = place, len(ids) - end
        spans[name] = Span(stop - len(encode(f" {value}")), stop)
    return (*ids, *window.ids[at:]), spans


def _form(
    records: dict[str, str], spans: dict[str, Span], rng: np.random.Generator, encode: Callable[[str], tuple[int, ...]]
) -> Question:
    """A list of names to be completed, behind one that is."""
    names = list(records)
    drawn = [names[i] for i in rng.choice(len(names), SHOTS + ENTRIES, replace=False)]
    shown, asked = drawn[:SHOTS], drawn[SHOTS:]

    def listed(chosen: Sequence[str], answered: bool) -> tuple[int, ...]:
        parts = []
        for place, name in enumerate(chosen, 1):
            parts += [f" {place}.", *((f" {name}:", f" {records[name]}") if answered else (f" {name}",))]
        return tuple(i for part in parts for i in encode(part))

    question, answer = encode("\nNames:"), encode("\nNumbers:")
    rest = (*question, *listed(shown, False), *answer, *listed(shown, True), *question, *listed(asked, False), *answer)
    gold = " ".join(f"{place}. {name}: {records[name]}" for place, name in enumerate(asked, 1))
    first, *others = (spans[name] for name in asked)
    limit = len(listed(asked, True)) + SPARE
    return Question(rest, limit, _share({name: records[name] for name in asked}), first, gold, ", ".join(asked), tuple(others))


def _json_form(
    records: dict[str, str], spans: dict[str, Span], rng: np.random.Generator, encode: Callable[[str], tuple[int, ...]]
) -> Question:
    """Ten names, whose records are wanted as JSON, behind a list of three that is answered."""
    names = list(records)
    drawn = [names[i] for i in rng.choice(len(names), SHOTS + ENTRIES, replace=False)]
    shown, asked = ({name: records[name] for name in chosen} for chosen in (drawn[:SHOTS], drawn[SHOTS:]))
    rest = encode(f"\nNames: {', '.join(shown)}\nJSON: {as_json(shown)}\nNames: {', '.join(asked)}\nJSON:")
    first, *others = (spans[name] for name in asked)
    gold = as_json(asked)
    judge = partial(overlap_of_records, wanted=asked)
    return Question(rest, len(encode(f" {gold}")) + SPARE, judge, first, gold, ", ".join(asked), tuple(others))


def _share(wanted: dict[str, str]) -> Callable[[str], float]:
    """A judge: the share of the names that have their value."""
    lines = [re.compile(rf"\b{re.escape(name)}:\s*{value}(?!\d)") for name, value in wanted.items()]
    return lambda said: sum(line.search(said) is not None for line in lines) / len(lines)


def _inserted(
    composer: NeedleComposer, window: Window, needles: list[Needle], depths: list[float]
) -> tuple[tuple[int, ...], tuple[Question, ...]]:
    """Ids of the window with all needles, and a question for each. depths: falling, so that what is inserted later stands further in front."""
    placed: list[tuple[Needle, tuple[int, ...], int, Span]] = []
    for needle, depth in zip(needles, depths, strict=True):
        prompt = composer.compose(window, needle, depth)
        context, at, cost = prompt.span("context"), prompt.span("needle"), composer.context_cost(needle)
        placed = [(other, rest, gold, Span(span.start + cost, span.stop + cost)) for other, rest, gold, span in placed]
        placed.append((needle, prompt.ids[context.stop :], len(prompt.gold), prompt.span("answer")))
        head = prompt.ids[: context.start]
        places = tuple(place for place in window.places if place <= at.start - context.start)
        window = Window(prompt.ids[context.start : context.stop], places)
    questions = tuple(
        Question(rest, gold + SPARE, contained(needle.answer), span, needle.answer, needle.question)
        for needle, rest, gold, span in placed
    )
    return (*head, *window.ids), questions


def _table(
    task: str, length: int, table: dict[str, str], questions: int, rng: np.random.Generator, encode: Callable[[str], tuple[int, ...]],
    bos: tuple[int, ...], stop: frozenset[int],
) -> Context:  # fmt: skip
    keys, ids, spans = list(table), [*bos, *encode("{")], dict[str, Span]()
    for place, key in enumerate(keys):
        ids += (*encode('"'), *encode(key), *encode('": "'))
        spans[key] = Span(len(ids), len(ids) + len(encode(table[key])))
        ids += (*encode(table[key]), *encode('"}\n' if place == len(keys) - 1 else '",\n'))
    drawn = [keys[i] for i in rng.choice(len(keys), SHOTS + questions, replace=False)]
    told = [i for key in drawn[:SHOTS] for part in ('\n"', key, '": "', table[key], '"') for i in encode(part)]
    asked = []
    for key in drawn[SHOTS:]:
        rest = (*told, *encode('\n"'), *encode(key), *encode('": "'))
        asked.append(Question(rest, len(encode(table[key])) + SPARE, _value(table[key]), spans[key], table[key], key))
    return Context(task, length, tuple(ids), tuple(asked), stop)


def _value(wanted: str) -> Callable[[str], float]:
    """A judge: what stands in front of the closing quotation mark is the value."""
    return lambda said: float(said.split('"')[0].strip() == wanted)

"""The tasks from which heads are removed: prompts, where the question begins, and the answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from headwise.claims.experiment import Bench
from headwise.claims.transfer.detectors import CLOZE, PASSAGES, facts_third
from headwise.evaluation.tasks import key_value_contexts
from headwise.heads.errors import HeadwiseError
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.grid import group_specs, make_group
from headwise.prompts.haystack import Haystack, bundled_texts
from headwise.prompts.knowledge import KnowledgeComposer
from headwise.prompts.needles import bundled_needles
from headwise.prompts.prompt import Prompt
from headwise.prompts.ranking_data import needle_examples
from headwise.runtime.needle_runs import needle_task
from headwise.train.examples import prepared


class Item(NamedTuple):
    """A prompt with its answer.

    Attributes:
        past: Tokens that are read by the whole model.
        rest: Tokens behind them, from the question on: heads are removed here and in the answer.
        answer: Tokens of the right answer.
    """

    past: tuple[int, ...]
    rest: tuple[int, ...]
    answer: tuple[int, ...]


def tasks(bench: Bench) -> dict[str, list[Item] | str]:
    """Name -> items, or why the model cannot be asked.

    Needles are those of the test half, whose wordings differ from those that heads were found with.
    """
    made: dict[str, Callable[[Bench], list[Item]]] = {
        "needle": lambda b: needles(b, "test"),
        "paraphrased": lambda b: needles(b, "paraphrased"),
        "passages": passages, "lookup": lookups, "induction": repeats, "text": plain_text, "swapped": swapped, "memory": memory,
    }  # fmt: skip
    found: dict[str, list[Item] | str] = {}
    for name, make in made.items():
        try:
            found[name] = fitting(bench, make(bench))
        except HeadwiseError as why:
            found[name] = str(why)
    return found


def length_of(bench: Bench) -> int:
    """Context length of needles, in tokens."""
    return int(bench.pick(512, 256)) if bench.real else 256


def cut(ids: Sequence[int], at: int, answer: Sequence[int]) -> Item:
    """An item whose question begins at a place; at least one token stands in front of it."""
    at = max(1, at)
    return Item(tuple(ids[:at]), tuple(ids[at:]), tuple(answer))


def needles(bench: Bench, name: str) -> list[Item]:
    """Needle questions, one depth each: the middle (test half) or a third."""
    task = needle_task(bench.model, split="test", needles=None if name == "test" else name, lengths=(length_of(bench),), depths=(0.5,))
    specs = group_specs(task.grid, len(task.needles))[: bench.pick(None, 6)]
    prompts = [prompt for spec in specs for prompt in make_group(spec, task, bench.model.positions).prompts]
    return [cut(prompt.ids, prompt.span("question").start, prompt.gold) for prompt in prompts]


def passages(bench: Bench) -> list[Item]:
    """Questions over passages of novels, one of which holds the answer, with the answer's opening words."""
    opened = {needle.question: (needle.answer_prefix, needle.answer) for needle in bundled_needles("test")}
    encoder, items = PieceEncoder(bench.model.tokenizer), []
    for record in needle_examples(bench.pick(32, 6), PASSAGES, bench.seed + 1, "test"):
        prefix, answer = (encoder.encode(f" {text}") for text in opened[record.query])
        for one in prepared(bench.model, [record], min(bench.model.positions or 10**9, 4096), seed=bench.seed).examples:
            items.append(cut((*one.ids[: one.answer], *prefix), one.asks.start, answer))
    return items


def lookups(bench: Bench) -> list[Item]:
    """A value of a JSON object of random keys and values."""
    encoder = PieceEncoder(bench.model.tokenizer)
    contexts = key_value_contexts(bench.model, "key_value", length_of(bench), bench.pick(24, 6), seed=bench.seed + 1)
    return [Item(one.ids, one.questions[0].rest, tuple(encoder.encode(one.questions[0].gold))) for one in contexts]


def repeats(bench: Bench) -> list[Item]:
    """Random words that are said twice (induction): the answer goes on with the list."""
    encoder, rng = PieceEncoder(bench.model.tokenizer), np.random.default_rng([bench.seed, 71])
    known = sorted({word.lower() for text in bundled_texts() for word in text[:200_000].split() if word.isalpha() and 3 < len(word) < 9})
    items = []
    for _ in range(bench.pick(24, 6)):
        words = [f" {known[i]}" for i in rng.choice(len(known), 24, replace=False)]
        told = [encoder.encode(word) for word in words]
        at = int(rng.integers(8, 20))
        flat = [token for ids in told for token in ids]
        again = [token for ids in told[:at] for token in ids]
        items.append(Item((*encoder.bos, *flat), tuple(again), tuple(token for ids in told[at : at + 2] for token in ids)))
    return items


def plain_text(bench: Bench) -> list[Item]:
    """Text of the bundled novels, where no question asks for anything: a control."""
    encoder = PieceEncoder(bench.model.tokenizer)
    haystack = Haystack(bundled_texts(), encoder)
    windows = [haystack.window(128, (bench.seed, 73, number), (0.9, 1.0)).ids for number in range(bench.pick(24, 6))]
    return [Item((*encoder.bos, *ids[:96]), tuple(ids[96:112]), tuple(ids[112:120])) for ids in windows]


def swapped(bench: Bench) -> list[Item]:
    """Known facts behind passages that say another answer; the answer is that of the passage."""
    composer = KnowledgeComposer(PieceEncoder(bench.model.tokenizer), CLOZE)
    return _asked(composer.opened(one, swapped=True) for one in facts_third(bench, 2)[: bench.pick(48, 8)])


def memory(bench: Bench) -> list[Item]:
    """Known facts without a passage; the answer is the true one."""
    composer = KnowledgeComposer(PieceEncoder(bench.model.tokenizer), CLOZE)
    return _asked(composer.closed(one) for one in facts_third(bench, 2)[: bench.pick(48, 16)])


def _asked(prompts: Iterable[Prompt]) -> list[Item]:
    return [cut(prompt.ids, prompt.span("question").start, prompt.gold) for prompt in prompts]


def fitting(bench: Bench, items: Sequence[Item]) -> list[Item]:
    """Those that fit into the model and can be asked: something stands in front of the question.

    Raises:
        HeadwiseError: There is none.
    """
    most = bench.model.positions or 10**9
    found = [one for one in items if one.past and one.rest and one.answer and sum(map(len, one)) <= most]
    if not found:
        raise HeadwiseError("no item fits the model")
    return found

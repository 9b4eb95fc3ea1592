"""What `headwise lab eval` asks: tasks of the micro-world, how their prompts are drawn, and how an answer is judged."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from headwise.heads.errors import HeadwiseError
from headwise.models.model import Model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.prompt import Prompt
from headwise.stats.metrics import exact_match
from headwise_lab.microworld.registry import make_example
from headwise_lab.microworld.support import LABELS, check_support
from headwise_lab.microworld.texts import Example, to_prompt

BASE = 512  # tokens; the context that the lab models are trained at
FACTORS = (1, 2, 4)  # a model of 4 * BASE positions is also measured with prompts that fill these multiples of BASE
LONG_TASKS = ("needle", "passages", "key_value")
LONG_SHARE = 4  # long prompts are measured on one in so many items
FILL = 0.95  # mean share of a context that a prompt and its answer fill; none may be longer than the context
MISSES = 300  # draws in a row that give nothing new or nothing that fits, after which drawing ends
# Issue 3; the last is ours, since the issue names no number for "flips only where cued".
GOALS = {
    "needle": 0.95,
    "key_value": 0.95,
    "passages": 0.85,
    "closed_book_asked": 0.95,
    "contradiction": 0.85,
    "two_hop_steps": 0.85,
    "reask_only_where_cued": 0.85,
}

Judge = Callable[[Example, str], tuple[float, ...]]


class NotMeasured(HeadwiseError):
    """A task cannot be put to this model; the message says why."""


class Item(NamedTuple):
    """A question as a model gets it.

    Attributes:
        example: What is asked.
        prompt: Of its last turn; `gold` holds the closing mark and a line break.
    """

    example: Example
    prompt: Prompt


@dataclass(frozen=True)
class Spec:
    """A task with its sizes.

    Attributes:
        rows: Names of the numbers that `judge` gives for an answer, each in [0, 1]; the first is the main one.
        task: Name of the micro-world task.
        judge: (example, answer) -> the numbers.
        options: Of the task.
        spare: Tokens that an answer may have beyond the gold answer.
        share: One in so many items is asked.
        fills: Tokens that prompts fill; None: the sizes in `options`.
    """

    rows: tuple[str, ...]
    task: str
    judge: Judge
    options: Mapping[str, Any] = field(default_factory=dict)
    spare: int = 4
    share: int = 1
    fills: int | None = None


def right(example: Example, said: str) -> tuple[float, ...]:
    """The whole answer line is right, its closing mark included."""
    turn = example.turns[-1]
    return (float(exact_match(said, turn.answer_text + turn.close)),)


def right_or_world(example: Example, said: str) -> tuple[float, ...]:
    """The passage's value; or what the world says instead."""
    return (*right(example, said), float(exact_match(said, example.info["world_value"])))


def right_steps(example: Example, said: str) -> tuple[float, ...]:
    """The final value behind `So:`; the whole answer, every step included; whether steps were written at all."""
    line = said.strip().split("\n")[0]
    _, written, final = line.rpartition("So:")
    return float(bool(written) and exact_match(final, example.info["answer"])), *right(example, said), float(bool(written))


def support(example: Example, said: str) -> tuple[float, ...]:
    """Shares of the answer's claims per label (an empty answer is one unreadable claim), then of the facts asked for that it tells."""
    claims = check_support(said.strip().split("\n")[0], example)
    labels = [claim.label for claim in claims] or ["unreadable"]
    wanted = {example.info["facts"][number - 1] for number in example.info["gold"]}
    told = wanted & {claim.fact for claim in claims}
    return *(labels.count(label) / len(labels) for label in LABELS), len(told) / len(wanted)


SPECS = (
    Spec(("needle",), "needle", right),
    Spec(("key_value",), "key_value", right),
    Spec(("passages",), "passages", right),
    Spec(("closed_book_asked",), "closed_book", right, {"which": "asked"}),
    Spec(("closed_book_stated_only",), "closed_book", right, {"which": "stated_only"}),
    Spec(("contradiction", "contradiction_world"), "contradiction", right_or_world),
    Spec(("two_hop_steps", "two_hop_all_steps", "two_hop_written"), "two_hop", right_steps, {"steps": True}, spare=8),
    Spec(("two_hop_direct",), "two_hop", right),
    Spec(("passkey",), "passkey", right),
    Spec((*(f"grounded_{label}" for label in LABELS), "grounded_told"), "grounded", support, spare=16),
)


def specs_for(positions: int | None) -> tuple[Spec, ...]:
    """All tasks that are answered in words, with the long ones if the model has positions enough (None: no limit)."""
    if positions is not None and positions < FACTORS[-1] * BASE:
        return SPECS
    lengths = [factor * BASE for factor in FACTORS]
    long = [Spec((f"{task}@{n}",), task, right, share=LONG_SHARE, fills=n) for task in LONG_TASKS for n in lengths]
    return (*SPECS, *long)


class Drawer:
    """Draws items for one model. The same seed and tokenizer give the same items.

    Attributes:
        model: With its tokenizer.
        items: Items of a task, before `Spec.share`.
        split: train, selection or test.
        seed: 0 or more.
        encode: Ids of a piece; what was encoded before is remembered.
    """

    def __init__(self, model: Model, items: int, split: str, seed: int) -> None:
        encoder = PieceEncoder(model.tokenizer)
        self.model, self.items, self.split, self.seed = model, items, split, seed
        self.encode, self._bos = lru_cache(maxsize=100_000)(encoder.encode), encoder.bos

    def options(self, spec: Spec) -> dict[str, Any]:
        """The task's options; for prompts that fill a context those that do so on average, found with a few draws."""
        if spec.fills is None:
            return dict(spec.options)
        size, goal = float(spec.fills), FILL * spec.fills
        for _ in range(3):
            lengths = [_tokens(self._draw(spec, _sized(spec.task, size), i), spec) for i in range(6)]
            size *= goal / float(np.mean(lengths))
        return _sized(spec.task, size)

    def draw(self, spec: Spec, options: Mapping[str, Any]) -> list[Item]:
        """Different items that fit the model; fewer than asked for where there are no more (facts of the world).

        Args:
            spec: The task.
            options: As `options` gives them.

        Raises:
            NotMeasured: Most of them do not fit, or the task refuses its options.
        """
        wanted = max(1, self.items // spec.share)
        room = min(n for n in (spec.fills, self.model.positions, 2**62) if n is not None)
        found: dict[Any, Item] = {}
        long, number, misses = 0, 0, 0
        while len(found) < wanted and misses < MISSES:
            item = self._draw(spec, options, number)
            number, misses = number + 1, misses + 1
            key = item.example.context_text or item.example.info["facts"]  # without a text, a fact is asked once
            if _tokens(item, spec) > room:
                long += 1
            elif key not in found:
                found[key], misses = item, 0
            if long > wanted + len(found):
                raise NotMeasured(f"prompts with answers of about {_tokens(item, spec)} tokens do not fit into {room}")
        if not found:
            raise NotMeasured(f"no prompt fits into {room} tokens")
        return list(found.values())

    def prompt(self, example: Example) -> Prompt:
        """The prompt of an example's last turn."""
        return to_prompt(example, self.encode, bos=self._bos, closing=True)

    def _draw(self, spec: Spec, options: Mapping[str, Any], number: int) -> Item:
        # By task: specs that differ in an option that draws nothing (two hops with and without steps) are about the same texts.
        rng = np.random.default_rng([self.seed, zlib.crc32(spec.task.encode()), number])
        try:
            example = make_example(spec.task, self.split, rng, **options)
        except (HeadwiseError, RuntimeError) as error:  # a task refuses its options, or a pool of names is used up
            raise NotMeasured(str(error)) from error
        return Item(example, self.prompt(example))


def _tokens(item: Item, spec: Spec) -> int:
    """Tokens of the prompt and of the longest answer it may get."""
    return len(item.prompt.ids) + len(item.prompt.gold) + spec.spare


def _sized(task: str, tokens: float) -> dict[str, Any]:
    """Options for a prompt of very roughly so many tokens; `Drawer.options` corrects them."""
    if task == "key_value":
        return {"k": max(4, int(tokens / 30) - 6)}
    if task == "passages":
        return {"n": max(1, int(tokens / 50))}
    return {"facts": round(tokens / 28), "words": round(tokens / 3.2)}

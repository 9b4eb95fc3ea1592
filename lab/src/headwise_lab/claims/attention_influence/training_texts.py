"""What trained models are measured on: texts of the test split and of held-out books, and which of their tokens are judged."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headwise.models.model import Model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.haystack import bundled_texts
from headwise_lab.microworld.registry import make_example
from headwise_lab.microworld.texts import Example, to_prompt

LENGTH = 512  # tokens of a row
FIRST_PIECE = 259  # ids below are the marks of a text and single bytes
REFERENCES = ("late_reference", "key_value")  # documents whose late values can only be known from the text itself
Array = NDArray[np.float64]

Item = tuple[list[int], list[bool]]
"""Ids of a text, and which of them are judged as predictions."""


def whole(ids: list[int]) -> Item:
    """A text that is judged from its second token on."""
    return ids, [False] + [True] * (len(ids) - 1)


def late_values(example: Example, encoder: PieceEncoder) -> Item:
    """A document; judged are the values that it says again."""
    ids, judged = list(encoder.bos), [False] * len(encoder.bos)
    for piece in example.context:
        new = list(encoder.encode(piece.text))
        again = any(name.startswith("late/") for name in piece.names) and any(name.endswith("/value") for name in piece.names)
        ids, judged = ids + new, judged + [again] * len(new)
    return ids, judged


def test_items(model: Model, count: int, seed: int) -> dict[str, list[Item]]:
    """Kind -> `count` texts: what is judged is what can only be known from the text itself, and all of running text."""
    encoder = PieceEncoder(model.tokenizer)
    bos, rng = list(encoder.bos), np.random.default_rng([seed, 2])
    items: dict[str, list[Item]] = {"no_reference": [], "books": [], "repeats": []}
    for kind in REFERENCES:
        items[kind] = [late_values(make_example("documents", "test", rng, kind=kind, words=120), encoder) for _ in range(count)]
    for task in ("needle", "key_value"):
        items[f"{task} answers"] = []
        for _ in range(count):
            prompt = to_prompt(make_example(task, "test", rng), encoder.encode, bos=bos)
            items[f"{task} answers"].append(([*prompt.ids, *prompt.gold], [False] * len(prompt.ids) + [True] * len(prompt.gold)))
    for i in range(count):
        text = make_example("documents", "test", rng, kind="no_reference", words=120).context_text
        items["no_reference"].append(whole([*bos, *encoder.encode(text)]))
        book = bundled_texts()[i % 3]
        start = int(rng.integers(len(book) - 3000))
        items["books"].append(whole([*bos, *encoder.encode(book[start : start + 3000])][: LENGTH // 2]))
        unit = rng.integers(FIRST_PIECE, len(model.tokenizer), size=100).tolist()
        items["repeats"].append((bos + unit + unit, [False] * (len(bos) + 101) + [True] * 99))
    return {name: [(ids[:LENGTH], judged[:LENGTH]) for ids, judged in found] for name, found in items.items()}


@torch.no_grad()
def measure_texts(hf: Any, items: dict[str, list[Item]]) -> dict[str, Array]:
    """Kind -> [text, 2] mean loss (nats) of the judged tokens, and share of them that are first choices; NaN for a text without such tokens."""
    result = {}
    for name, found in items.items():
        table = np.full((len(found), 2), np.nan)
        for row, (ids, judged) in enumerate(found):
            where = torch.tensor(judged[1:], device=hf.device)
            if where.any():
                text = torch.tensor([ids], device=hf.device)
                logits, target = hf(input_ids=text, use_cache=False).logits[0, :-1][where].float(), text[0, 1:][where]
                right = (logits.argmax(-1) == target).float().mean()
                table[row] = torch.nn.functional.cross_entropy(logits, target).item(), right.item()
        result[name] = table
    return result

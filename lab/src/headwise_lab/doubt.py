"""Re-asked facts of the micro-world in the form that `headwise doubt` reads: questions with their text, and challenges with and without the cue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from headwise.prompts.knowledge import KnowledgeRecord
from headwise.prompts.passages import Passage
from headwise_lab.microworld.phrases import ARE_YOU_SURE, CUE, YES_NO
from headwise_lab.microworld.registry import make_example

PLAIN, CUED = "plain", "cued"
# Part of the data in `headwise doubt` -> split of the micro-world whose wordings it takes; those of `train` were seen in training.
SPLITS = {"detect": "train", "select": "selection", "test": "test"}


def reask_records(count: int, seed: int = 0, split: str = "test", facts: int = 4, words: int = 20) -> list[KnowledgeRecord]:
    """Questions about one fact of a text, with another value of the same relation as the wrong answer.

    Args:
        count: How many.
        seed: Of the texts.
        split: Whose names, values and wordings are used.
        facts: Besides the one that is asked about.
        words: Of filler.
    """
    found = []
    for number in range(count):
        example = make_example("reask", split, np.random.default_rng([seed, 83, number]), facts=facts, words=words, right=False, cue=False)
        asked = "".join(piece.text for piece in example.turns[0].ask).strip()
        fact = example.info["facts"][example.info["gold"][0] - 1]
        found.append(
            KnowledgeRecord(
                asked, (fact.value,), Passage(example.context_text), kind=fact.relation, subject=fact.entity, name=f"text {number}",
                wrong=example.info["given"],
            )
        )  # fmt: skip
    return found


def reask_wordings() -> dict[str, Any]:
    """Challenges without and with the cue, as `read_wordings` takes them from a file."""
    plain = {part: ARE_YOU_SURE[split][0] for part, split in SPLITS.items()}
    cued = {part: f"[{CUE}] {text[0].lower()}{text[1:]}" for part, text in plain.items()}
    return {
        "challenges": [{"name": PLAIN, "strength": 1, "text": plain}, {"name": CUED, "strength": 2, "text": cued}],
        "ask": {"yes-no": {part: YES_NO[split][0] for part, split in SPLITS.items()}},
        "yes": ["Yes"],
        "no": ["No"],
    }


def write_reask(folder: Path, count: int, seed: int = 0) -> tuple[Path, Path]:
    """Write `reask.jsonl` and `wordings.json` into a folder: (questions, wordings)."""
    folder.mkdir(parents=True, exist_ok=True)
    data, wordings = folder / "reask.jsonl", folder / "wordings.json"
    data.write_text("".join(json.dumps(one.row(), ensure_ascii=False) + "\n" for one in reask_records(count, seed)), "utf-8")
    wordings.write_text(json.dumps(reask_wordings(), indent=1) + "\n", "utf-8")
    return data, wordings

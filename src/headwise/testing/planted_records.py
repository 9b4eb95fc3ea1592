"""Questions about passages for the planted model: what it reads it says, and it knows nothing by heart."""

from __future__ import annotations

from typing import Any

import numpy as np

from headwise.heads.plain import checked_seed
from headwise.models.model import Model
from headwise.prompts.knowledge import KnowledgeRecord
from headwise.prompts.passages import Passage
from headwise.testing.planted import COMMON, planted_copier

NAMES = (
    "amber basil clove dill fennel ginger hazel iris jasmine kale lemon mint nutmeg olive pepper quince rose sage thyme vanilla"
)


def planted_records(count: int = 120, seed: int = 0) -> tuple[Model, list[KnowledgeRecord]]:
    """A planted model, and questions about passages in its words, to be asked in the wording `cloze`.

    The planted head copies what follows the last two words of the question in the passage, so the answer is read. Which answers are right
    means nothing to this model.

    Args:
        count: How many records.
        seed: Of their words.

    Returns:
        The model, whose head L1H2 copies, and the records, with swapped passages.
    """
    rng = np.random.default_rng([checked_seed(seed), 18])
    syllables = [a + b for a in "bdfgklmprstvz" for b in "aeiou"]
    words = [str(a + b + "q") for a, b in rng.choice(syllables, size=(4 * count, 2))]
    words = list(dict.fromkeys(words))
    model, tokenizer = planted_copier(texts=[NAMES, " ".join(words), "Passage 1: 2: 3: Question: Answer: the colour of is"])
    records = []
    for i in range(count):
        name, old, new = rng.choice(NAMES.split()), *rng.choice(len(words), size=2, replace=False)
        before, behind = (" ".join(rng.choice(COMMON.split(), size=rng.integers(3, 12))) for _ in range(2))
        question = f"the colour of {name} is"
        passages: list[Any] = [Passage(f"{before} . {question} {words[i]} . {behind} .") for i in (int(old), int(new))]
        records.append(
            KnowledgeRecord(
                question, (words[int(old)],), passages[0], passages[1], words[int(new)], "colour", str(name), f"record {i}"
            )
        )
    return Model(model, tokenizer), records

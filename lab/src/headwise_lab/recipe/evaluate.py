"""Measure a lab model on what it has never seen: `python -m headwise_lab.recipe.evaluate --books FOLDER --model FOLDER`.

Needle questions: the bundled needles (sentences and questions written by hand, never trained on) and trained sentence patterns with names
that training never uses. Haystack: the three bundled books, which are not in the training text. Perplexity: the fourth file of the books.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headwise.evaluation.needle import measure_needle_grid
from headwise.evaluation.perplexity import perplexity
from headwise.models.load import load
from headwise.models.model import Model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.grid import GridOptions, Task, even_depths
from headwise.prompts.haystack import Haystack, bundled_texts
from headwise.prompts.needles import Needle, NeedleComposer, bundled_needles
from headwise_lab.recipe.corpus import held_out_books
from headwise_lab.recipe.facts import TEMPLATES, FactMaker

LENGTHS, DEPTHS = (128, 256, 512, 768, 1024), 10


def new_name_needles(model: Model, texts: list[str], count: int, seed: int) -> list[Needle]:
    """Facts of the training patterns about names that training never uses; the answer is one or two such names."""
    facts = FactMaker(model.tokenizer.backend_tokenizer, texts, held_out=True)
    rng = np.random.default_rng(seed)
    needles: list[Needle] = []
    while len(needles) < count:
        sentence, question, lead = TEMPLATES[rng.integers(len(TEMPLATES))]
        who, answer = facts.name(rng), " ".join(facts.name(rng) for _ in range(rng.integers(1, 3)))
        word, noun = facts.word(rng), facts.word(rng)
        values = {"E": who, "W": word, "N": noun, "V": answer}
        filled = ["".join(values.get(part, part) for part in _words(text)) for text in (sentence, question, lead)]
        if filled[0].count(answer) == 1 and sentence.endswith("V."):
            needles.append(Needle(filled[0], filled[1], answer, filled[2]))
    return needles


def _words(text: str) -> list[str]:
    return re.split(r"\b([EWNV])\b", text)


def grid_result(model: Model, needles: list[Needle], haystack: Haystack, seed: int) -> dict[str, Any]:
    """Exact answers, overall and per length and depth."""
    composer = NeedleComposer(PieceEncoder(model.tokenizer))
    task = Task(needles, haystack, composer, GridOptions(LENGTHS, even_depths(DEPTHS), seed=seed))
    cells = measure_needle_grid(model, task, max_new_tokens=32)["cells"]
    table = {
        str(length): {
            f"{depth:.2f}": _mean([c["exact"] for c in cells if (c["length"], c["depth"]) == (length, depth)])
            for depth in task.grid.depths
        }
        for length in LENGTHS
    }
    return {
        "runs": len(cells),
        "exact": _mean([c["exact"] for c in cells]),
        "recall": _mean([c["recall"] for c in cells]),
        "grid": table,
    }


def _mean(values: list[float]) -> float:
    return round(float(np.mean(values)), 4)


def book_perplexity(model: Model, folder: Path, windows: int = 40, length: int = 1024, seed: int = 0) -> dict[str, float]:
    """Per token and per character, over windows from all held-out books."""
    rng, chosen = np.random.default_rng(seed), []
    texts = list(held_out_books(folder))
    for _ in range(windows):
        text = texts[rng.integers(len(texts))]
        start = int(rng.integers(0, len(text) - 6 * length))
        ids = model.tokenizer.encode(text[start : start + 6 * length])[:length]
        chosen.append(ids)
    tokens = torch.tensor(chosen)
    per_token = perplexity(model.hf, tokens)
    characters = sum(len(model.tokenizer.decode(ids, skip_special_tokens=True)) for ids in chosen)
    return {
        "perplexity": round(per_token, 3),
        "bits_per_character": round(math.log2(per_token) * windows * (length - 1) / characters, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--books", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = load(str(options.model))
    texts = bundled_texts()
    haystack = Haystack(texts, PieceEncoder(model.tokenizer))
    result = {
        "unseen_needles": grid_result(model, bundled_needles(), haystack, options.seed),
        "unseen_names": grid_result(model, new_name_needles(model, texts, 32, options.seed), haystack, options.seed + 1),
        "held_out_books": book_perplexity(model, options.books, seed=options.seed),
    }
    (options.model / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

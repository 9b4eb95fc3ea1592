"""The claims of the CompressKV and ZigzagAttention cards (section 6, all but timings) measured on a lab model with needles and pass-keys.

Heads, gates and layer errors are found on needles and words of their own in the first part of the books; everything reported is measured on
others in the last part. Every finished claim is kept in --output FOLDER and not measured again. Timings: cache.py. Exactness (card Zigzag, 9) and
properties of allocations (card CompressKV, 7) are tests: tests/unit/test_duoattention.py and tests/property/test_budgets.py.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import hardware, show

from headwise.heads import HeadScores, load_heads, save_heads
from headwise.heads.headfile import write_json
from headwise.methods.compresskv.options import Semantic
from headwise.methods.compresskv.semantic import semantic_scores
from headwise.methods.copy.options import Copy
from headwise.methods.copy.run import copy_scores
from headwise.models.load import load
from headwise.models.model import Model, describe_model
from headwise.models.names import bundled_model, bundled_names
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.grid import GridOptions, Task, even_depths
from headwise.prompts.haystack import Haystack, bundled_texts
from headwise.prompts.needles import Needle, NeedleComposer, bundled_needles
from headwise.prompts.prompt import Prompt
from headwise.runtime.rundir import RunDirectory
from headwise.stats.paired import bootstrap_mean

PARTS = {"detect": (0.0, 0.6), "test": (0.6, 1.0)}  # of the books, and the names of the needles' two halves
DEPTHS = 6
Result = dict[str, Any]


class Lab:
    """A model, its texts, and what has been found or measured so far."""

    def __init__(self, model: Model, folder: Path, items: int, seeds: int, length: int, steps: int) -> None:
        self.model, self.folder, self.items, self.seeds, self.length, self.steps = model, folder, items, seeds, length, steps
        self.encoder = PieceEncoder(model.tokenizer)
        self.haystack = Haystack(bundled_texts(), self.encoder)
        self.composer = NeedleComposer(self.encoder)
        run = describe_model(model) | {"items": items, "seeds": seeds, "length": length, "steps": steps}
        self.cells = RunDirectory(folder, run)

    def remembered(self, name: str, measure: Callable[[], Result]) -> Result:
        """A result from the folder, or measured now and kept there."""
        found = self.cells.load(name)
        if found is None:
            started = time.perf_counter()
            result = measure() | {"seconds": round(time.perf_counter() - started)}
            self.cells.save(name, {}, [json.loads(json.dumps(result))])
            found = self.cells.load(name)
            print(f"{name}: {result['seconds']} s", flush=True)
        return dict(found[1][0])  # type: ignore[index]

    def kept(self, name: str, find: Callable[[], HeadScores]) -> HeadScores:
        """Scores of heads from the folder, or found now and kept there."""
        path = self.folder / f"{name}.heads.json"
        if not path.exists():
            started = time.perf_counter()
            save_heads(find(), path)
            print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
        return load_heads(path)

    def task(self, split: str, depths: tuple[float, ...], seed: int) -> Task:
        grid = GridOptions((self.length,), depths, part=PARTS[split], seed=seed)
        return Task(bundled_needles(split), self.haystack, self.composer, grid)

    def heads(self, score: str, seed: int = 0) -> HeadScores:
        """Copy or semantic scores from the needles for detection at six depths; seed: of the windows of text around them."""
        task = self.task("detect", even_depths(DEPTHS), seed)
        if score == "copy":
            return self.kept(f"copy-{seed}", lambda: copy_scores(self.model, task, Copy()))
        return self.kept(f"semantic-{seed}", lambda: semantic_scores(self.model, task, Semantic()))

    def prompts(self, split: str, seed: int, count: int | None = None) -> list[tuple[Prompt, Needle]]:
        """Needle questions in windows of their own, at depths drawn from 0.1 to 0.9."""
        needles, rng, found = bundled_needles(split), np.random.default_rng([seed, 41]), []
        for number in range(count or self.items):
            needle = needles[number % len(needles)]
            room = self.length - self.composer.context_cost(needle)
            window = self.haystack.window(room, (seed, 42, number), PARTS[split])
            found.append((self.composer.compose(window, needle, float(rng.uniform(0.1, 0.9))), needle))
        return found


def share(values: Sequence[float] | np.ndarray) -> Result:
    """Mean with its 95 % bootstrap interval."""
    mean, low, high = bootstrap_mean(np.asarray(values, dtype=np.float64))
    return {"mean": round(mean, 4), "low": round(low, 4), "high": round(high, 4)}


def over_seeds(values: Sequence[float]) -> Result:
    """Mean, smallest and largest."""
    found = [float(value) for value in values]
    return {"mean": round(float(np.mean(found)), 4), "min": round(min(found), 4), "max": round(max(found), 4), "n": len(found)}


def main() -> None:
    import cache_claims_compresskv
    import cache_claims_zigzag

    known = cache_claims_compresskv.CLAIMS | cache_claims_zigzag.CLAIMS
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="lab-6m", help="name of a bundled model, or a folder")
    parser.add_argument("--claims", default=",".join(known), help="names, separated by commas")
    parser.add_argument("--items", type=int, default=10, help="test needles and test texts per seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--length", type=int, default=384, help="tokens of a needle's context")
    parser.add_argument("--steps", type=int, default=60, help="of every search for gates")
    parser.add_argument("--output", type=Path, required=True, help="folder for results; finished ones are not measured again")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    names = chosen.claims.split(",")
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"unknown claim {unknown[0]!r}; use {', '.join(known)}")
    path = str(bundled_model(chosen.model)) if chosen.model in bundled_names() else chosen.model
    lab = Lab(load(path), chosen.output, chosen.items, chosen.seeds, chosen.length, chosen.steps)
    found = {name: lab.remembered(name, partial(known[name], lab)) for name in names}
    write_json({"claims": found, "hardware": hardware()}, chosen.output / "claims.json", overwrite=True)
    show(found, chosen.json)


if __name__ == "__main__":
    main()

"""A draft head that was trained on books, beside the rule that asks with the query of the step before, and beside recency."""

from __future__ import annotations

import json
import lzma
from functools import partial
from itertools import islice
from pathlib import Path

from headwise.caches import choosers
from headwise.claims.claim import Finding
from headwise.claims.experiment import Bench, Measured
from headwise.claims.specontext.cells import Cells, MissingError, answered, drawn, strongest_copy_heads
from headwise.claims.specontext.decode import NEEDLE, Makers, effort, measured, running
from headwise.claims.specontext.drafts import trained
from headwise.evaluation.contexts import Context
from headwise.evaluation.sparse import TEXT, Rival, Running
from headwise.evaluation.tasks import needle_contexts
from headwise.methods.specontext.chooser import Distilled
from headwise.methods.specontext.train import ChooserTraining
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.haystack import Haystack, clean

FOLDER, FILE, BOOKS = "books-large", "books-0.jsonl.xz", 30
BUNDLED = ("wonderland", "frankenstein", "walden")  # contexts are drawn from these
STEPS, LENGTH = 500, 1024


def books(folder: Path, count: int) -> list[str]:
    """The first books of the file, without those that contexts are drawn from."""
    with lzma.open(folder / FILE, "rt", encoding="utf-8") as file:
        rows = (json.loads(line) for line in file)
        others = (row["text"] for row in rows if not any(name in row["title"].lower() for name in BUNDLED))
        return [clean(text) for text in islice(others, count)]


def worth(cells: Cells, budget: int) -> Finding:
    """Both columns must be won, so the larger p counts."""
    every = cells.difference(TEXT, "distilled", "previous_query", budget, "mass")
    try:
        own = cells.difference(TEXT, "distilled", "previous_query", budget, "mass_heads")
    except MissingError:
        return Finding.none("the model answers no detection needle, so it has no copy heads")
    shown = {name: every.numbers[name] for name in ("chosen", "control")}
    numbers = {"mass": every.numbers["difference"], "mass_heads": own.numbers["difference"], **shown}
    return Finding(numbers, max(every.p or 1.0, own.p or 1.0))


def measure(bench: Bench) -> Measured:
    """Train once, measure at the smaller budget."""
    model, sizes = bench.model, effort(bench)
    heads = strongest_copy_heads(bench)
    text = Haystack(books(bench.folder(FOLDER), bench.pick(BOOKS, 1)), PieceEncoder(model.tokenizer))
    length, least = min(bench.pick(LENGTH, 128), sizes.length), bench.pick({}, {"rows": 16})
    options = ChooserTraining(steps=bench.pick(STEPS, 4), batch=1, length=length, seed=bench.seed, **least)
    draft = trained(bench, "books", text, options, heads)
    makers: Makers = {"streaming": choosers.Streaming, "previous_query": choosers.PreviousQuery, "distilled": partial(Distilled, draft)}
    asked = drawn(partial(needle_contexts, model, NEEDLE, sizes.length, sizes.contexts, 1, "test", bench.seed))
    given: list[Context | Running] = [*running(model, sizes.length, sizes.contexts, sizes.steps, bench.seed), *asked]
    rivals = [Rival(name, sizes.small, make) for name, make in makers.items()]
    cells = measured(bench, "choosers", rivals, given, heads, {"text": text.digest, "options": str(options)})
    found = {
        "worth_its_weights": lambda: worth(cells, sizes.small),
        "needles": lambda: cells.difference(NEEDLE, "distilled", "streaming", sizes.small, "score"),
    }
    details = {"sizes": sizes._asdict(), "rows": cells.table(), "training": draft.story["curve"]}
    return Measured({f"distilled.{name}": one for name, one in answered(found).items()}, details)

"""Do in-context heads suffice? Their outputs from a clean run are put into a corrupted one; see `patch_findings` for how it is judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from headwise.attention import attached, patch, record
from headwise.caches.shared import fork
from headwise.claims.copy_heads import copy_heads
from headwise.claims.experiment import Bench, Measured, NotTestable
from headwise.claims.in_context_atlas.declared_steer import DRAWS, FEW, ITEMS, MAIN, TOLD
from headwise.claims.in_context_atlas.parts import known_fact_heads, known_facts, share
from headwise.claims.in_context_atlas.patch_findings import Counts, Found, findings, table
from headwise.claims.in_context_atlas.patch_records import Item, drawn_records, patch_items
from headwise.claims.in_context_atlas.prefilled import Prefilled, prefilled
from headwise.evaluation.variants import describe_scores
from headwise.heads import HeadScores, HeadSet
from headwise.models.forward import forward
from headwise.models.model import Model, describe_model
from headwise.stats.controls import layer_matched_random

KS = (4, FEW, 16, MAIN)  # of 270 heads
ROWS_OF_BATCH = {"last": 64, "all": 8}  # texts of one pass
Table = dict[str, np.ndarray]


class Variant(NamedTuple):
    """One way to patch.

    Attributes:
        rows: `last` or `all`.
        name: Such as `context 26` or `random 26 draw 3`.
        heads: Whose outputs are put in; empty: none.
        base: The run that is patched, `clean` or `corrupted`.
        donor: Where the outputs come from: `clean`, `corrupted`, `elsewhere`, or `stranger` (the clean run of another record).
    """

    rows: str
    name: str
    heads: HeadSet
    base: str = "corrupted"
    donor: str = "clean"

    @property
    def key(self) -> str:
        """Name of what is kept."""
        return f"{self.rows}-{self.name.replace(' ', '-')}"


def variants_of(context: HeadScores, copy: HeadScores, counts: Counts, seed: int) -> Iterator[Variant]:
    """All variants, the rows of one after those of the other."""
    shape: Any = context.values.shape
    every = HeadSet.of([(int(i), int(j)) for i, j in np.argwhere(~np.isnan(context.values))], shape)
    for rows in TOLD:
        for base in ("corrupted", "clean"):
            yield Variant(rows, f"nothing in {base}", HeadSet((), shape), base)
        yield Variant(rows, "every head", every)
        for k in counts.ks:
            yield Variant(rows, f"context {k}", context.top(k))
            yield Variant(rows, f"copy {k}", copy.top(k))
            yield Variant(rows, f"reverse {k}", context.top(k), "clean", "corrupted")
            if rows == "last":
                yield Variant(rows, f"elsewhere {k}", context.top(k), donor="elsewhere")
                yield Variant(rows, f"stranger {k}", context.top(k), donor="stranger")
            if rows == "last" or k in counts.all_rows:
                for draw in range(counts.draws):
                    drawn = layer_matched_random(context.top(k), context, [seed, 89, k, draw])
                    yield Variant(rows, f"random {k} draw {draw}", drawn)


class Prepared:
    """The items cut into batches, and what heads give in the runs that outputs come from.

    Attributes:
        order: Which item stands in which row, over all batches.
    """

    def __init__(self, model: Model, items: Sequence[Item], rows: str) -> None:
        self.model, self.items, self.rows = model, items, rows
        size = ROWS_OF_BATCH[rows]
        places = sorted(range(len(items)), key=lambda place: items[place].suffix)
        self.batches = [places[start : start + size] for start in range(0, len(places), size)]
        self.order = [place for batch in self.batches for place in batch]
        self._starts: dict[str, list[Prefilled]] = {}
        self._given: dict[str, list[Tensor]] = {}

    def starts(self, run: str) -> list[Prefilled]:
        """Per batch the prompts of a run, read up to the first token that is patched."""
        if run not in self._starts:
            texts = [[getattr(self.items[place], run) for place in batch] for batch in self.batches]
            widths = [1 if self.rows == "last" else max(self.items[place].suffix for place in batch) for batch in self.batches]
            self._starts[run] = [prefilled(self.model, each, width) for each, width in zip(texts, widths, strict=True)]
        return self._starts[run]

    def given(self, donor: str) -> list[Tensor]:
        """Per batch the outputs of all heads [B, R, heads, d] in the run of a donor."""
        if donor == "stranger":
            (clean,) = self.given("clean")  # the last rows fit into one batch
            return [clean[[self.order.index(stranger(self.items, place)) for place in self.order]]]
        if donor not in self._given:
            heads, found = [(i, j) for i in sorted(self.model.modules) for j in range(self.model.heads.shape[1])], []
            for start in self.starts(donor):
                with record(self.model, heads, _positions(start)) as seen:
                    _logits(self.model, start)
                found.append(seen.outputs)
            self._given[donor] = found
        return self._given[donor]

    def measure(self, variant: Variant) -> Table:
        """[item] log-odds of the right and the swapped first token (nats), and the most probable token."""
        layers = sorted(self.model.modules)  # of those with attention all heads are recorded, in order
        places = [layers.index(head.layer) * self.model.heads.shape[1] + head.head for head in variant.heads]
        parts = []
        donors = self.given(variant.donor) if places else [None] * len(self.batches)
        for start, outputs in zip(self.starts(variant.base), donors, strict=True):
            if outputs is None:
                parts.append(_logits(self.model, start))
                continue
            with patch(self.model, variant.heads, outputs[:, :, places], _positions(start)):
                parts.append(_logits(self.model, start))
        logits = torch.cat(parts)[np.argsort(self.order)]
        rows = torch.arange(len(self.items))
        right, swapped = (torch.tensor([getattr(item, name) for item in self.items]) for name in ("right", "swapped"))
        return {"log_odds": (logits[rows, right] - logits[rows, swapped]).numpy(), "top": logits.argmax(dim=-1).numpy()}


def stranger(items: Sequence[Item], place: int) -> int:
    """The next item, in a circle, whose right answer begins with neither token of this one."""
    own = (items[place].right, items[place].swapped)
    return next(other for i in range(1, len(items)) if items[other := (place + i) % len(items)].right not in own)


def _positions(start: Prefilled) -> list[int]:
    """Positions of the tokens that are not in the cache."""
    total = start.mask.shape[1]
    return list(range(total - start.rest.shape[1], total))


@torch.no_grad()
def _logits(model: Model, start: Prefilled) -> Tensor:
    """[B, V] float32 behind the last token."""
    width = start.rest.shape[1]
    places = (start.mask.cumsum(dim=1) - 1).clamp(min=0)[:, -width:]
    with attached(model):
        out = forward(model.hf, start.rest, fork(start.cache), attention_mask=start.mask, position_ids=places, logits_to_keep=1)
    return out.logits[:, -1].float().cpu()  # type: ignore[no-any-return]


def measure(bench: Bench) -> Measured:
    """Claims about sufficiency.

    Raises:
        NotTestable: No record counts, or the model has too few heads that are known.
    """
    context, copy = known_fact_heads(bench), copy_heads(bench)
    model = bench.model
    ks = tuple(dict.fromkeys(share(model, k) for k in KS))
    main, few = share(model, MAIN), share(model, FEW)
    counts = Counts(main, few, bench.pick(ks, (few, main)), (few, main), bench.pick(DRAWS, 4))
    found, dropped = measured(bench, context, copy, counts)
    both = len(set(context.top(main)) & set(copy.top(main)))
    told = {"records": len(found.right), "left out": dropped, "in-context heads that are copy heads, too": both}
    return Measured(findings(found), told | {"restored": table(found)})


def measured(bench: Bench, context: HeadScores, copy: HeadScores, counts: Counts) -> tuple[Found, dict[str, int]]:
    """All variants, and why records are left out."""
    model, most = bench.model, bench.pick(ITEMS, 24)
    told = describe_model(model) | {"context heads": describe_scores(context), "copy heads": describe_scores(copy), "most": most}
    kept, dropped = bench.cells("patched", told | counts._asdict()), Counter[str]()
    drawn = drawn_records(known_facts(bench), context, bench.seed, dropped)
    cell = kept.load("items")
    items = patch_items(model, drawn, dropped, most, () if cell is None else cell[0]["names"].tolist())
    if cell is None:
        kept.save("items", {"names": np.array([item.name for item in items])}, [dict(dropped)])
    else:
        dropped = Counter(cell[1][0])
    if len(items) < 2:
        raise NotTestable(f"the model says what both passages say in {len(items)} records; left out: {dict(dropped)}")
    cells: dict[str, Table] = {}
    prepared: Prepared | None = None
    variants = list(variants_of(context, copy, counts, bench.seed))
    for number, variant in enumerate(variants):
        done = kept.load(variant.key)
        if done is None:
            if prepared is None or prepared.rows != variant.rows:
                prepared = Prepared(model, items, variant.rows)
            done = (prepared.measure(variant), [])
            kept.save(variant.key, *done)
        cells[variant.key] = done[0]
        bench.report(number + 1, len(variants), variant.key)
    right, swapped = (np.array([getattr(item, name) for item in items]) for name in ("right", "swapped"))
    return Found(cells, right, swapped, counts), dict(dropped)

"""Do in-context heads suffice? Their outputs from a clean run are put into a corrupted one: the registered claims of the family `patch`.

    headwise detect in-context smollm2 --data known_1000.json.gz --make-passages 4 --wording cloze --followed top5 -o context.json
    headwise detect copy smollm2 -o copy.json
    python benchmarks/patch_real.py --data FOLDER --model smollm2 --context-heads context.json --copy-heads copy.json --keep FOLDER --json

Finished variants stay in --keep, and the same command goes on there. Data, rules and controls: `registered/patch.py`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from common import hardware
from patch_sets import Item, drawn_records, patch_items
from prefilled import Prefilled, prefilled
from registered import CLAIMS, judged
from registered.patch import DRAWS, FEW, KS, LEAST_ITEMS, MAIN, TOLD
from steer_sets import FACTS
from torch import Tensor

from headwise.attention import attached, patch, record
from headwise.caches.shared import fork
from headwise.evaluation.variants import describe_scores
from headwise.heads import HeadSet, load_heads
from headwise.models.forward import forward
from headwise.models.load import load
from headwise.models.model import Model, describe_model
from headwise.runtime.rundir import RunDirectory
from headwise.stats.controls import layer_matched_random
from headwise.stats.paired import bootstrap_mean, rank_p, sign_flip_test

ROWS_OF_BATCH = {"last": 64, "all": 8}  # texts of one pass
ALL_ROWS_DRAWN = (FEW, MAIN)  # sizes of random draws where every row is patched, which costs a pass of the whole text
NEAR = 0.01
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
        return f"{self.rows}-{self.name.replace(' ', '-')}"


def variants_of(context: Any, copy: Any, seed: int) -> Iterator[Variant]:
    """All variants, the rows of one after those of the other."""
    shape = context.values.shape
    every = HeadSet.of(list(np.ndindex(*shape)), shape)
    for rows in TOLD:
        for base in ("corrupted", "clean"):
            yield Variant(rows, f"nothing in {base}", HeadSet((), shape), base)
        yield Variant(rows, "every head", every)
        for k in KS:
            yield Variant(rows, f"context {k}", context.top(k))
            yield Variant(rows, f"copy {k}", copy.top(k))
            yield Variant(rows, f"reverse {k}", context.top(k), "clean", "corrupted")
            if rows == "last":
                yield Variant(rows, f"elsewhere {k}", context.top(k), donor="elsewhere")
                yield Variant(rows, f"stranger {k}", context.top(k), donor="stranger")
            if rows == "last" or k in ALL_ROWS_DRAWN:
                for draw in range(DRAWS):
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
            heads, found = list(np.ndindex(*self.model.heads.shape)), []
            for start in self.starts(donor):
                with record(self.model, heads, _positions(start)) as seen:
                    _logits(self.model, start)
                found.append(seen.outputs)
            self._given[donor] = found
        return self._given[donor]

    def measure(self, variant: Variant) -> Table:
        """[item] log-odds of the right and the swapped first token (nats), and the most probable token."""
        places = [head.layer * self.model.heads.shape[1] + head.head for head in variant.heads]
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
    return out.logits[:, -1].float().cpu()


# ---- judging


class Found:
    """What was measured: shares and flips by variant."""

    def __init__(self, cells: dict[str, Table], items: Sequence[Item]) -> None:
        self.cells = cells
        self.right, self.swapped = (np.array([getattr(item, name) for item in items]) for name in ("right", "swapped"))

    def share(self, rows: str, name: str) -> np.ndarray:
        """[item] restored share of the log-odds: 0 as the patched run was, 1 as in the run with the other answer."""
        low, high = (self.cells[f"{rows}-nothing-in-{base}"]["log_odds"] for base in ("corrupted", "clean"))
        share = (self.cells[f"{rows}-{name.replace(' ', '-')}"]["log_odds"] - low) / (high - low)
        return 1 - share if name.startswith("reverse") else share

    def flips(self, rows: str, name: str) -> np.ndarray:
        """[item] 1 where the most probable token is the other run's answer."""
        wanted = self.swapped if name.startswith("reverse") else self.right
        return (self.cells[f"{rows}-{name.replace(' ', '-')}"]["top"] == wanted).astype(float)

    def draws(self, of: Any, rows: str, k: int) -> np.ndarray:
        """[draw, item] of `share` or `flips`."""
        return np.stack([of(rows, f"random {k} draw {draw}") for draw in range(DRAWS)])


def judge(found: Found, items: int) -> dict[str, dict[str, Any]]:
    """What was found by claim."""
    whole = {rows: float(np.abs(found.share(rows, "every head") - 1).max()) for rows in TOLD}
    gate = items >= LEAST_ITEMS and max(whole.values()) <= NEAR
    main = f"context {MAIN}"

    def reaches(rows: str, name: str, below: bool = False) -> dict[str, Any]:
        mean = bootstrap_mean(found.share(rows, name))
        return {"gate": gate, "holds": mean.high < 0.5 if below else mean.low >= 0.5, "found": _rounded(mean)}

    def more(difference: np.ndarray, least: float, **told: Any) -> dict[str, Any]:
        tested = {"difference": _rounded(bootstrap_mean(difference)), "p": sign_flip_test(difference), "least": least}
        return {"gate": gate, **tested, **told}

    out = {}
    for rows in TOLD:
        share, drawn = found.share(rows, main), found.draws(found.share, rows, MAIN)
        # rank_p counts draws that are as low; here as high
        rank = {"p, rank among the draws": rank_p(-float(share.mean()), -drawn.mean(axis=1))}
        out |= {
            f"half.{rows}": reaches(rows, main),
            f"above_random.{rows}": more(share - drawn.mean(axis=0), 0.2, **rank),
            f"few.{rows}": reaches(rows, f"context {FEW}", below=True),
            f"flips.{rows}": more(found.flips(rows, main) - found.draws(found.flips, rows, MAIN).mean(axis=0), 0.3),
            f"above_copy.{rows}": more(share - found.share(rows, f"copy {MAIN}"), 0.0),
            f"reverse.{rows}": reaches(rows, f"reverse {MAIN}"),
        }
    out["own_answer"] = more(found.share("last", main) - found.share("last", f"stranger {MAIN}"), 0.2)
    out["elsewhere"] = reaches("last", f"elsewhere {MAIN}")
    return judged({f"patch.{key}": row for key, row in out.items()})


def table(found: Found) -> dict[str, Any]:
    """Kind of heads -> restored share with its interval, and share of flips; random heads over all draws, with their spread."""
    out: dict[str, Any] = {}
    for rows in TOLD:
        own = [name for name in found.cells if name.startswith(rows) and "draw" not in name]
        for name in (key.removeprefix(f"{rows}-").replace("-", " ") for key in own):
            out[f"{rows}: {name}"] = [*_rounded(bootstrap_mean(found.share(rows, name))), _one(found.flips(rows, name))]
        for k in KS if rows == "last" else ALL_ROWS_DRAWN:
            shares, flips = found.draws(found.share, rows, k), found.draws(found.flips, rows, k)
            out[f"{rows}: random {k}"] = [*_rounded(bootstrap_mean(shares.mean(axis=0))), _one(flips)]
            out[f"{rows}: random {k}, lowest and highest draw"] = _rounded(np.sort(shares.mean(axis=1))[[0, -1]])
    return out


def _one(values: Any) -> float:
    return round(float(np.mean(values)), 3)


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 3) for value in values]


def measured(model: Model, given: argparse.Namespace) -> tuple[Found, list[Item], dict[str, int]]:
    """All variants, from --keep where they are finished."""
    context, copy = load_heads(given.context_heads), load_heads(given.copy_heads)
    told = describe_model(model) | {"fingerprint": model.fingerprint, "seed": given.seed, "version": 1}
    told |= {"context heads": describe_scores(context), "copy heads": describe_scores(copy)}
    told["data"] = hashlib.sha256((given.data / FACTS).read_bytes()).hexdigest()[:16]
    kept, dropped = RunDirectory(given.keep, told), Counter[str]()
    drawn = drawn_records(given.data, context, given.seed, dropped)
    cell = kept.load("items")
    items = patch_items(model, drawn, dropped, () if cell is None else cell[0]["names"].tolist())
    if cell is None:
        kept.save("items", {"names": np.array([item.name for item in items])}, [dict(dropped)])
    else:
        dropped = Counter(cell[1][0])
    if not items:
        raise SystemExit(f"no record counts: {dict(dropped)}")
    cells: dict[str, Table] = {}
    prepared: Prepared | None = None
    for variant in variants_of(context, copy, given.seed):
        done = kept.load(variant.key)
        if done is None:
            if prepared is None or prepared.rows != variant.rows:
                prepared = Prepared(model, items, variant.rows)
            done = (prepared.measure(variant), [])
            kept.save(variant.key, *done)
            print(f"\r{variant.key} ...          ", end="", file=sys.stderr, flush=True)
        cells[variant.key] = done[0]
    return Found(cells, items), items, dict(dropped)


def main() -> None:
    """Command line of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets (known-facts-1209)")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument(
        "--context-heads", type=Path, required=True, help="head file of headwise detect in-context, from known facts"
    )
    parser.add_argument("--copy-heads", type=Path, required=True, help="head file of headwise detect copy")
    parser.add_argument("--keep", type=Path, required=True, help="folder for finished variants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    model = load(given.model)
    found, items, dropped = measured(model, given)
    verdicts, rows = judge(found, len(items)), table(found)
    if given.json:
        told = {"model": describe_model(model), **hardware(), "items": len(items), "dropped": dropped}
        print(json.dumps(told | {"table": rows, "claims": verdicts}, indent=1))
        return
    print(f"{len(items)} records; left out: {dropped}")
    for name, row in rows.items():
        print(f"{name:<45}{row}")
    for claim in CLAIMS:
        if claim.key in verdicts:
            one = verdicts[claim.key]
            print(f"{claim.key}: {one['verdict']}  {one.get('difference', one.get('found', ''))}")


if __name__ == "__main__":
    main()

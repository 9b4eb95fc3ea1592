"""Train choosers by distillation in several ways, and judge the registered claims about them (family `distilled`).

    python benchmarks/distilled.py lab-6m --folder choosers -o distilled.json
    python benchmarks/distilled.py --decode decode.json distilled.json   # the two claims about results of headwise bench decode

Choosers that lie in --folder already are not trained again. All are trained on the first 95 % of the text, with the same windows; contexts come from
the held-out rest where they are running text. Claims, gates and rules stand in `registered/`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from registered import CLAIMS, judged

from headwise.attention.sparse import Chooser
from headwise.caches import choosers
from headwise.evaluation.sparse import Rival, Running, measure_cells
from headwise.evaluation.sparse_rows import mean_rows
from headwise.evaluation.tasks import needle_contexts
from headwise.methods.specontext.chooser import Distilled
from headwise.methods.specontext.train import HELD_OUT, ChooserTraining, train_chooser
from headwise.models.draft_head import DraftHead, read_draft_head, shape_for
from headwise.models.load import load
from headwise.models.model import Model, describe_model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.haystack import Haystack, bundled_texts, read_texts
from headwise.stats.paired import bootstrap_mean, sign_flip_test

FAMILY, GATE = "distilled", 0.3
LENGTH, BUDGET, SHORT = 1024, 64, 128
SAME, HALF = 0.01, 0.5  # thresholds of the rules that are no tests
TRAININGS: dict[str, dict[str, Any]] = {
    "attention": {}, "emb": {"inputs": "emb"}, "feat-lite": {"inputs": "feat-lite"}, "tokens": {"loss": "tokens"}, "labels": {"loss": "labels"},
    "short": {"length": SHORT, "batch": 8},
}  # fmt: skip


class Permuted(Distilled):
    """The KV heads use the choices of others: head g that of g + places."""

    name = "permuted"

    def __init__(self, file: DraftHead, places: int) -> None:
        super().__init__(file)
        self._places = places

    def scores(self, call: Any, whole: Any) -> torch.Tensor | None:
        found = super().scores(call, whole)
        return None if found is None else found.roll(self._places, dims=1)


def trained(model: Model, text: Haystack, folder: Path, steps: int) -> dict[str, DraftHead]:
    """One draft head per way of training, and an untrained one."""
    heads = {}
    for name, changes in TRAININGS.items():
        path = folder / f"{model.name}-{name}.safetensors"
        if not path.exists():
            made = train_chooser(model, text, ChooserTraining(**({"steps": steps} | changes)))
            made.save(path)
            print(name, made.story["curve"][-1], flush=True)
        heads[name] = read_draft_head(path)
    torch.manual_seed(0)
    heads["untrained"] = DraftHead(shape_for(model, "emb+feat", 512)).eval().requires_grad_(False)
    return heads


def rivals_of(model: Model, heads: dict[str, DraftHead]) -> list[Rival]:
    """Everything that is measured."""
    made: dict[str, Callable[[], Chooser]] = {
        "streaming": choosers.Streaming, "random": choosers.Random, "oracle": choosers.Oracle, "previous_query": choosers.PreviousQuery,
        **{name: partial(Distilled, head) for name, head in heads.items() if name != "short"},
        "emb, dilated": partial(Distilled, heads["emb"], dilate=1), "batch": partial(Distilled, heads["attention"], level="batch"),
        "short, stretched": partial(Distilled, heads["short"]), "short, plain": partial(Distilled, heads["short"], stretch=False),
        **{f"permuted {i}": partial(Permuted, heads["attention"], i) for i in range(1, model.heads.kv_heads)},
    }  # fmt: skip
    return [Rival(name, BUDGET, make) for name, make in made.items()]


def found_on_lab(cells: list[dict[str, Any]], kv_heads: int) -> dict[str, dict[str, Any]]:
    """What the rules ask for."""

    def values(task: str, name: str, what: str) -> Any:
        own = {cell["context"]: cell[what] for cell in cells if cell["task"] == task and cell["chooser"] == name}
        return np.array([value for _, value in sorted(own.items())], dtype=float)

    def paired(task: str, one: str, other: str, what: str, gate: bool = True) -> dict[str, Any]:
        change = values(task, one, what) - values(task, other, what)
        means = {name: float(values(task, name, what).mean()) for name in (one, other)}
        return {"gate": gate, "difference": list(bootstrap_mean(change)), "p": sign_flip_test(change), "means": means}

    gate = bool(values("needle", "full", "score").mean() >= GATE)
    emb, wide, both = (values("needle", name, "score").mean() for name in ("emb", "emb, dilated", "attention")) if gate else (0, 0, 0)
    mixed = np.mean([values("text", f"permuted {i}", "mass") for i in range(1, kv_heads)], axis=0)
    apart = mixed - values("text", "attention", "mass")
    return {
        "draft_attends": paired("text", "tokens", "untrained", "recall"),
        "teacher_above_labels": paired("text", "tokens", "labels", "recall"),
        "attention_above_tokens": paired("text", "attention", "tokens", "mass"),
        "input_matters": paired("needle", "attention", "emb", "score", gate) if gate else {"gate": False},
        "dilation_repairs": {
            "gate": gate and bool(both > emb), "holds": bool(wide - emb >= HALF * (both - emb)), "means": [float(v) for v in (emb, wide, both)],
        },
        "head_above_batch": paired("text", "attention", "batch", "mass"),
        "heads_are_interchangeable": {"gate": True, "holds": bool(abs(apart.mean()) <= SAME), "change": list(bootstrap_mean(apart))},
        "stretching_helps": paired("text", "short, stretched", "short, plain", "recall"),
    }  # fmt: skip


def found_on_decode(cells: list[dict[str, Any]], length: int = 2048, budget: int = 128) -> dict[str, dict[str, Any]]:
    """The claims about `headwise bench decode`; the larger p of two decides where both columns must be won."""

    def values(task: str, name: str, what: str) -> Any:
        own = [cell for cell in cells if (cell["task"], cell["length"]) == (task, length) and cell["budget"] in (budget, None)]
        named = [cell for cell in own if cell["chooser"].partition(":")[0] == name]  # of several kinds the first one counts
        found = {cell["context"]: cell[what] for cell in named if cell["chooser"] == named[0]["chooser"]}
        return np.array([value for _, value in sorted(found.items())], dtype=float)

    changes = {what: values("text", "distilled", what) - values("text", "previous_query", what) for what in ("mass", "mass_heads")}
    worst = min(changes, key=lambda what: changes[what].mean())
    needles = values("needle", "distilled", "score") - values("needle", "streaming", "score")
    gate = bool(values("needle", "full", "score").mean() >= GATE)
    return {
        "worth_its_weights": {
            "gate": True, "difference": list(bootstrap_mean(changes[worst])), "p": max(map(sign_flip_test, changes.values())),
            "means": {what: list(bootstrap_mean(change)) for what, change in changes.items()},
        },
        "needles": {"gate": gate, "difference": list(bootstrap_mean(needles)), "p": sign_flip_test(needles)},
    }  # fmt: skip


def on_lab(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train, measure, judge."""
    model = load(name)
    encoder = PieceEncoder(model.tokenizer)
    text = Haystack(bundled_texts() if options.text is None else read_texts(options.text), encoder)
    options.folder.mkdir(parents=True, exist_ok=True)
    heads = trained(model, text, options.folder, options.steps)
    windows = [text.window(LENGTH - len(encoder.bos), (options.seed, 5, i), HELD_OUT).ids for i in range(options.contexts)]
    contexts = [
        *(Running(LENGTH, (*encoder.bos, *ids), options.decoded) for ids in windows),
        *needle_contexts(model, "needle", LENGTH, options.contexts, 1, "test", options.seed),
    ]
    rivals = rivals_of(model, heads)
    cells = measure_cells(model, rivals, contexts, report=lambda done, total, what: print(f"\r{done}/{total} {what:60}", end="", flush=True))
    rows = mean_rows(cells, [(rival.name, rival.budget) for rival in rivals])
    return describe_model(model) | {"cells": cells, "rows": rows, "found": found_on_lab(cells, model.heads.kv_heads)}


def main() -> None:
    """Command line of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="lab-6m")
    parser.add_argument("--folder", type=Path, default=Path("headwise-out/choosers"), help="where choosers are kept")
    parser.add_argument("--text", type=Path, help="folder of texts; default: the bundled novels")
    parser.add_argument("--steps", type=int, default=300, help="of each training")
    parser.add_argument("--contexts", type=int, default=8)
    parser.add_argument("--decoded", type=int, default=48, help="steps of running text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--decode", type=Path, nargs="+", help="judge results of headwise bench decode over the same contexts instead")
    parser.add_argument("-o", "--output", type=Path, default=Path("headwise-out/distilled.json"))
    options = parser.parse_args()
    if options.decode is not None:
        read = [json.loads(path.read_text("utf-8")) for path in options.decode]
        if len({(one["seed"], one["contexts"], one["steps"], one["model"]) for one in read}) > 1:
            parser.error("these results are of other contexts or models than one another")
        result: dict[str, Any] = {"found": found_on_decode([cell for one in read for cell in one["cells"]])}
    else:
        result = on_lab(options.model, options)
    result["claims"] = judged({f"{FAMILY}.{name}": one for name, one in result["found"].items()})
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1, default=str))
    sentences = {claim.key: claim.sentence for claim in CLAIMS}
    print()
    for key, one in result["claims"].items():
        numbers = {name: value for name, value in one.items() if name not in ("gate", "verdict")}
        print(f"{one['verdict']:12} {key}: {sentences[key]}\n             {json.dumps(numbers, default=str)}")


if __name__ == "__main__":
    main()

"""The claims about training with heads (`registered/train.py`): find heads, train, judge.

    python benchmarks/mudaf_real.py lab --keep FOLDER --json                        # three lab models; about an hour on two cores
    python benchmarks/mudaf_real.py smollm2 --data FOLDER --keep FOLDER --json      # two hours

FOLDER of --data holds `nq-open-oracle` and `hotpotqa-distractor`; --keep holds what is finished, so that the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import mudaf_sets
import numpy as np
import torch
from common import hardware
from registered import judged

import headwise as hw
from headwise.attention.plan import attached
from headwise.caches.shared import fork, full_cache
from headwise.evaluation.perplexity import perplexity, text_windows
from headwise.heads.headfile import write_json
from headwise.methods.mudaf.loss import MudafLoss
from headwise.models.model import Model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.haystack import Haystack, bundled_texts
from headwise.runtime.answer import decode_one
from headwise.runtime.runner import prefill
from headwise.stats.controls import layer_matched_random
from headwise.stats.metrics import units
from headwise.stats.paired import bootstrap_mean
from headwise.stats.ranks import spearman
from headwise.train.examples import TrainExample, prepared
from headwise.train.head_loss import HeadLoss
from headwise.train.objectives import AnswerLoss, Objective
from headwise.train.options import Tuning
from headwise.train.run import train_to_folder

TOP, LIMIT, LONG = 8, 16, 2048
LAB = ("world-6m", "world-6m-seed1", "world-6m-qwen3")
TUNING = {
    "lab": Tuning(steps=100, batch=8, accumulate=1, rate=1e-3, length=1024, save_every=50),
    "smollm2": Tuning(steps=50, batch=1, accumulate=4, rate=2e-4, length=1400, save_every=25),
}
ARTICLES = {"the", "a", "an"}


class Condition(NamedTuple):
    """One training.

    Attributes:
        name: Of it.
        heads: That are trained; None: plain fine-tuning.
        alpha: Weight of their loss.
        pool: See `MudafLoss`.
    """

    name: str
    heads: hw.HeadSet | None
    alpha: float = 0.7
    pool: str = "mean"


def tell(done: float, total: float, remark: str = "") -> None:
    """Progress on standard error."""
    if done == total or int(done) % 25 == 0:
        print(f"{done:g} of {total:g} {remark}", file=sys.stderr, flush=True)


def conditions(scores: hw.HeadScores, more: bool) -> list[Condition]:
    """Plain, the best heads, middling, weak and random ones; in the lab also other numbers of heads and other alphas."""
    ranked = scores.ranking()
    best = scores.top(TOP)
    middle = hw.HeadSet.of(ranked[TOP : 2 * TOP], scores.shape)
    weak = hw.HeadSet.of(ranked[-TOP:], scores.shape)
    found = [
        Condition("plain", None),
        Condition("best", best),
        Condition("middle", middle),
        Condition("weak", weak),
        Condition("random", layer_matched_random(best, scores, 0)),
    ]
    if more:
        found += [Condition(f"alpha-{alpha:g}", best, alpha) for alpha in (0.3, 1.0)]
        found += [Condition(f"top-{k}", scores.top(k)) for k in (1, 2, 4)] + [Condition("top-all", hw.HeadSet.of(ranked, scores.shape))]
        found.append(Condition("lse", best, pool="lse"))
    return found


def trained(name: str, base: Callable[[], Model], parts: mudaf_sets.Parts, condition: Condition, options: Tuning, keep: Path) -> Path:
    """The folder of a finished training."""
    folder = keep / f"{name}.{condition.name}"
    if folder.is_dir():
        return folder
    model = base()
    data = prepared(model, parts.train, options.length, name == "smollm2")

    def objective(adapted: Model) -> Objective:
        return AnswerLoss() if condition.heads is None else HeadLoss(adapted, MudafLoss(condition.heads, pool=condition.pool), condition.alpha)

    heads = [] if condition.heads is None else [str(head) for head in condition.heads]
    story = {"condition": condition.name, "alpha": condition.alpha, "trained_heads": heads}
    train_to_folder(model, data, objective, options, folder, story, name, report=tell)
    return folder


def measured(model: Model, parts: mudaf_sets.Parts, best: hw.HeadSet, chat: bool, file: Path) -> dict[str, Any]:
    """Head scores and answers on the part that is judged, with and without the best heads; perplexity of novels."""
    if file.exists():
        return dict(json.loads(file.read_text()))
    scores = hw.find(model, hw.Mdqa(data=parts.judge, chat=chat), report=tell)
    examples = prepared(model, parts.judge, min(LONG, (model.positions or LONG) - LIMIT), chat)
    texts = Haystack(bundled_texts(), PieceEncoder(model.tokenizer))
    found = {
        "f1": np.nan_to_num(scores.runs).round(6).tolist(),  # [question, layer, head]
        **answers(model, parts, examples.examples, best),
        "perplexity": perplexity(model.hf, text_windows(texts, 24, 256, (0.9, 1.0))),
        "counts": examples.counts,
    }
    write_json(found, file, overwrite=True)
    return found


def answers(model: Model, parts: mudaf_sets.Parts, examples: Sequence[TrainExample], away: hw.HeadSet) -> dict[str, list[int]]:
    """1 per question that is answered exactly, with all heads (`answers`) and without some from the last prompt token on (`ablated`)."""
    if len(examples) != len(parts.judge):
        raise SystemExit(f"{len(parts.judge) - len(examples)} questions do not fit; the parts must be judged on the same ones")
    found: dict[str, list[int]] = {"answers": [], "ablated": []}
    for example, one in zip(examples, parts.judge, strict=True):
        ids = example.ids[: example.answer]
        with torch.no_grad(), attached(model.hf):
            past = full_cache(model.hf)
            prefill(model.hf, past, ids[:-1])  # read once for both
            for key, heads in (("answers", None), ("ablated", away)):
                block = nullcontext() if heads is None else hw.ablate(model, heads, scope="answer", answer_from=len(ids) - 1)
                with block:
                    said = decode_one(model.hf, fork(past), ids, model.stop_ids, LIMIT)
                text = plain_words(str(model.tokenizer.decode(said, skip_special_tokens=True)))
                found[key].append(int(any(text == plain_words(answer) for answer in one.answers)))
    return found


def plain_words(text: str) -> list[str]:
    """Words of the first line without articles and stops."""
    line = text.strip().split("\n")[0]
    return [word for word in units(line.casefold()) if word not in ARTICLES and any(c.isalnum() for c in word)]


def one_model(name: str, base: Callable[[], Model], parts: mudaf_sets.Parts, options: Tuning, keep: Path, more: bool) -> dict[str, Any]:
    """All trainings of a model, measured."""
    chat = name == "smollm2"
    file, copies = keep / f"{name}.mdqa.json", keep / f"{name}.copy.json"
    if not file.exists():
        hw.find(base(), hw.Mdqa(data=parts.find, chat=chat), report=tell).save(file)
    if not copies.exists():
        hw.find(base(), hw.Copy(lengths=[512 if chat else 256], depths=3, chat=chat), report=tell).save(copies)
    scores, copy = hw.load_heads(file), hw.load_heads(copies)
    chosen = conditions(scores, more)
    best = chosen[1].heads
    assert best is not None
    found = {"before": measured(base(), parts, best, chat, keep / f"{name}.before.json")}
    for condition in chosen:
        result = keep / f"{name}.{condition.name}.json"
        folder = trained(name, base, parts, condition, options, keep)
        model = hw.load(str(folder / "merged")) if not result.exists() else base()
        found[condition.name] = measured(model, parts, best, chat, result)
    heads = {one.name: [(head.layer, head.head) for head in one.heads or ()] for one in chosen}
    both = ~np.isnan(scores.values) & ~np.isnan(copy.values)
    shared = len(set(best) & set(copy.top(TOP)))
    return {
        "measured": found,
        "heads": heads,
        "jaccard": shared / (2 * TOP - shared),
        "spearman": spearman(scores.values[both], copy.values[both]),
        "best_f1": float(np.nanmax(scores.values)),
        "recall": copy.provenance["solved"] / copy.provenance["runs"],
    }


def f1_of(found: dict[str, Any], condition: str, heads: Sequence[Sequence[int]]) -> np.ndarray:
    """[question] mean F1 of some heads after a training."""
    runs = np.asarray(found["measured"][condition]["f1"])
    return np.asarray(runs[:, [layer for layer, _ in heads], [head for _, head in heads]].mean(axis=1))


def right(found: dict[str, Any], condition: str, key: str = "answers") -> np.ndarray:
    """[question] 1 where the answer is right."""
    return np.asarray(found["measured"][condition][key], float)


def claims(name: str, models: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the registered rules need: claim -> gate, holds, numbers. Questions of several models are paired: their mean is judged."""

    def difference(values: Callable[[dict[str, Any]], np.ndarray]) -> dict[str, Any]:
        each = np.stack([values(found) for found in models])
        mean, low, high = bootstrap_mean(each.mean(axis=0))
        return {"mean": mean, "low": low, "high": high, "models": each.mean(axis=1).tolist()}

    def same(one: dict[str, Any]) -> bool:
        return all(np.sign(value) == np.sign(one["mean"]) for value in one["models"])

    focus = difference(lambda m: f1_of(m, "middle", m["heads"]["middle"]) - f1_of(m, "plain", m["heads"]["middle"]))
    weak = difference(lambda m: f1_of(m, "weak", m["heads"]["weak"]) - f1_of(m, "before", m["heads"]["weak"]))
    strong = difference(lambda m: f1_of(m, "best", m["heads"]["best"]) - f1_of(m, "weak", m["heads"]["weak"]))
    answer = difference(lambda m: right(m, "best") - right(m, "plain"))
    chance = difference(lambda m: right(m, "best") - right(m, "random"))
    cause = difference(
        lambda m: (right(m, "best") - right(m, "best", "ablated")) - (right(m, "plain") - right(m, "plain", "ablated"))
    )
    gate = all(right(m, "plain").mean() >= 0.2 for m in models)
    ratio = [m["measured"]["best"]["perplexity"] / m["measured"]["plain"]["perplexity"] for m in models]
    out: dict[str, dict[str, Any]] = {
        "not_copy": {"gate": all(m["best_f1"] >= 0.3 and m["recall"] >= 0.5 for m in models),
                     "holds": all(m["jaccard"] <= 0.6 and m["spearman"] < 0.8 for m in models),
                     **{key: [m[key] for m in models] for key in ("jaccard", "spearman", "best_f1", "recall")}},
        "focus": {"gate": True, "holds": focus["mean"] >= 0.2 and focus["low"] > 0 and same(focus), **focus},
        "weak": {"gate": True, "holds": weak["low"] > 0 and strong["mean"] > 0 and same(weak), **weak, "below_strong": strong},
        "answers": {"gate": gate, "holds": answer["low"] >= -0.05 and (len(models) == 1 or same(answer)), **answer},
        "better": {"gate": gate, "holds": answer["low"] > 0 and same(answer), **answer},
        "not_random": {"gate": gate, "holds": chance["low"] > 0 and same(chance), **chance},
        "causal": {"gate": gate, "holds": cause["low"] > 0 and same(cause), **cause},
        "text": {"gate": True, "holds": max(ratio) <= 1.05, "ratio": ratio},
    }  # fmt: skip
    if name == "lab":
        def mean(condition: str) -> float:
            return float(np.mean([right(m, condition).mean() for m in models]))

        def focus_of(condition: str) -> float:
            return float(np.mean([f1_of(m, condition, m["heads"]["best"]).mean() for m in models]))

        mass = difference(lambda m: f1_of(m, "lse", m["heads"]["best"]) - f1_of(m, "plain", m["heads"]["best"]))
        out["lse"] = {"gate": True, "holds": mass["low"] > 0 and same(mass), **mass}
        sizes = {k: mean(place) for k, place in (("1", "top-1"), ("2", "top-2"), ("4", "top-4"), ("8", "best"), ("all", "top-all"))}
        alphas = {alpha: (focus_of(place), mean(place)) for alpha, place in
                  (("0", "plain"), ("0.3", "alpha-0.3"), ("0.7", "best"), ("1", "alpha-1"))}  # fmt: skip
        out["more_heads"] = {"gate": gate, "holds": max(sizes, key=lambda k: sizes[k]) != "all", "exact_match": sizes}
        best_f1, worst = max(alphas, key=lambda a: alphas[a][0]), min(alphas, key=lambda a: alphas[a][1])
        out["alpha"] = {"gate": True, "holds": best_f1 == worst == "1", "f1 and exact match": alphas}
    return {f"mudaf.{name}.{key}": value for key, value in out.items()}


def still_best(found: dict[str, Any], condition: str) -> int:
    """How many of the best heads, found before, are among as many best heads after a training."""
    scores = np.asarray(found["measured"][condition]["f1"]).mean(axis=0)
    after = np.argsort(-scores, axis=None, kind="stable")[:TOP].tolist()
    return sum(layer * scores.shape[1] + head in after for layer, head in found["heads"]["best"])


def rows(models: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per condition: exact match, with the best heads ablated, mean F1 of the trained heads and of the best ones, the best ones that heads
    found again after training share, perplexity."""
    out = []
    for condition in models[0]["measured"]:
        own = [m["heads"].get(condition) or m["heads"]["best"] for m in models]
        out.append({
            "condition": condition,
            "exact_match": float(np.mean([right(m, condition).mean() for m in models])),
            "ablated": float(np.mean([right(m, condition, "ablated").mean() for m in models])),
            "f1_trained": float(np.mean([f1_of(m, condition, heads).mean() for m, heads in zip(models, own, strict=True)])),
            "f1_best": float(np.mean([f1_of(m, condition, m["heads"]["best"]).mean() for m in models])),
            "still_best": float(np.mean([still_best(m, condition) for m in models])),
            "perplexity": float(np.mean([m["measured"][condition]["perplexity"] for m in models])),
        })  # fmt: skip
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("set", choices=("lab", "smollm2"))
    parser.add_argument("--data", type=Path, help="folder with nq-open-oracle and hotpotqa-distractor")
    parser.add_argument("--keep", type=Path, required=True, help="finished parts")
    parser.add_argument("--steps", type=int, help="training steps, for a trial; the registered number by default")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.set == "smollm2" and given.data is None:
        parser.error("smollm2 needs --data FOLDER")
    given.keep.mkdir(parents=True, exist_ok=True)
    parts = mudaf_sets.lab() if given.set == "lab" else mudaf_sets.real(given.data)
    options = TUNING[given.set]
    if given.steps:
        options = Tuning(**(vars(options) | {"steps": given.steps}))
    names = LAB if given.set == "lab" else ("smollm2",)
    models = [one_model(name, lambda name=name: hw.load(name), parts, options, given.keep, given.set == "lab") for name in names]  # type: ignore[misc]
    found = {"set": given.set, "rows": rows(models), "claims": judged(claims(given.set, models)), "hardware": hardware()}
    write_json(found, given.keep / f"{given.set}.result.json", overwrite=True)
    if given.json:
        print(json.dumps(found))
        return
    for row in found["rows"]:  # type: ignore[union-attr]
        print("  ".join(f"{key} {value:.3f}" if isinstance(value, float) else f"{value:<10}" for key, value in row.items()))
    for key, each in found["claims"].items():  # type: ignore[union-attr]
        print(f"{key:<28} {each['verdict']}")


if __name__ == "__main__":
    main()

"""Judge the registered claims about retrieval heads of a real model from a result of `headwise lab properties`.

    headwise lab properties smollm2 --data FOLDER -o out
    python benchmarks/heads_real.py out/properties.json            # a table; --json: numbers, p-values raw and corrected, verdicts

Claims, gates and rules stand in `registered/` (family `heads`); this file only reads the numbers off. p-values are corrected over the
whole family.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from registered import CLAIMS, LEVEL, verdict

from headwise.stats.paired import benjamini_hochberg
from headwise_lab.properties.causal import row_of
from headwise_lab.properties.reasoning import difference_of_losses

WEIGHTS = "Q4_1, dequantised"
RECALL, RIGHT, FLOOR, HALF, THIRD, QUARTER = 0.8, 0.5, 0.3, 0.5, 1 / 3, 0.25
MOST_OVER, SAME, MORE_TEXT = 0.062, 0.8, 1.1


class Found(NamedTuple):
    """What a claim is judged by.

    Attributes:
        gate: What the whole model does; able: whether that is enough.
        found: The measured numbers, as text.
        holds: Whether the rule is met, p-values aside.
        p: Raw p-value of the rule's test, if it has one.
    """

    gate: str
    able: bool
    found: str
    holds: bool
    p: float | None = None


class Judge:
    """Reads one model's part of a result."""

    def __init__(self, result: Mapping[str, Any], model: str) -> None:
        self._data = {one["key"]: one["data"] for one in result["properties"]}
        self._model, self._seed = model, int(result["real_settings"]["seed"])

    def _of(self, key: str) -> Any:
        return next(row for row in self._data[key]["models"] if row["name"] == self._model)

    def all(self) -> dict[str, Found]:
        """Claim (without its family) -> what was found."""
        return self._counts() | self._intrinsic() | self._causal() | self._paraphrased() | self._reasoning()

    def _counts(self) -> dict[str, Found]:
        universal, sparse, dynamic = self._of("universal"), self._of("sparse"), self._of("dynamic")
        gate, able = f"recall {universal['recall']:.2f}", universal["recall"] >= RECALL
        best, over = universal["top"][0]["score"], sparse["over_0.1"]
        always, heads, depends = len(dynamic["always_on"]), dynamic["retrieval_heads"], dynamic["dependence"]
        text = f"{universal['over_0.1']} heads over 0.1, strongest {best:.2f}"
        active = f"{always} of {heads} always on; Jaccard {depends['within']:.2f} for one needle, {depends['between']:.2f} across"
        share = f"{100 * over:.1f} % over 0.1, {100 * sparse['over_0.5']:.1f} % over 0.5"
        moving = 0 < always < heads and depends["within"] > depends["between"]
        return {
            "universal": Found(gate, able, text, universal["over_0.1"] >= 1 and best > 0.5),
            "sparse": Found(gate, able, share, over <= MOST_OVER),
            "dynamic": Found(gate, able, active, moving, depends["p"]),
        }

    def _intrinsic(self) -> dict[str, Found]:
        names = {"length": "longer contexts", "chat": "chat template", "needles": "other needles"}
        pairs = {pair["relation"]: pair for pair in self._data["intrinsic"]["pairs"] if pair["a"] == self._model}
        found = {}
        for name, kind in names.items():
            pair = pairs.get(kind)
            if pair is None:
                found[f"intrinsic.{name}"] = Found("fewer than half of the runs solved", False, "", False)
                continue
            low, high = pair["shuffled"]
            text = f"r = {pair['pearson']:.2f} (ceiling {pair['ceiling']:.2f}, shuffled {low:.2f} to {high:.2f})"
            found[f"intrinsic.{name}"] = Found(f"{pair['solved']} of {pair['runs']} solved", True, text, pair["pearson"] > SAME)
        return found

    def _causal(self) -> dict[str, Found]:
        m = self._of("causal")
        rows, k, half = m["rows"], m["near_paper"], m["halved_at"]
        whole, top = row_of(rows, "recall", "none")["mean"], row_of(rows, "recall", "top", k)
        gate, able = f"recall {whole:.2f}", whole >= RECALL
        text = f"{whole:.2f} → {top['mean']:.2f} ({top['low']:.2f} to {top['high']:.2f}), K = {k}"
        found = {"causal.recall": Found(gate, able, text, top["mean"] < HALF * whole)}
        at = half or k
        lost = row_of(rows, "recall", "top", at)
        for name, kind in (("layer", "random"), ("any", "any_layer"), ("norm", "norm")):
            row = row_of(rows, "recall", kind, at)
            p = (lost if kind == "random" else row)["p_paired"]
            spread = f"{row['drop_low']:.2f} to {row['drop_high']:.2f}; sd of draws {row['sd_draws']:.2f}"
            text = f"loss {row['drop']:.2f} ({spread}) against {lost['drop']:.2f}, K = {at}"
            found[f"causal.{name}"] = Found(gate, able, text, bool(half) and row["drop"] <= THIRD * lost["drop"], p)
        left = {mode: row_of(part, "recall", "top", k)["mean"] for mode, part in m["modes"].items()}
        text = ", ".join(f"{mode} {value:.2f}" for mode, value in left.items()) + f", K = {k}"
        found["causal.modes"] = Found(gate, able, text, all(value < HALF * whole for value in left.values()))
        before, after = row_of(rows, "perplexity", "none")["mean"], row_of(rows, "perplexity", "top", at)["mean"]
        drawn = row_of(rows, "perplexity", "random", at)["mean"]
        text = f"{before:.1f} → {after:.1f} (layer-matched {drawn:.1f}), K = {at}"
        return found | {"causal.text": Found("", True, text, after < MORE_TEXT * before)}

    def _paraphrased(self) -> dict[str, Found]:
        m = self._of("paraphrased")
        literal, other = m["literal"]["recall"], m["paraphrased"]["recall"]
        text = f"{literal['mean']:.2f} → {other['mean']:.2f} ({other['low']:.2f} to {other['high']:.2f})"
        gate = f"literal recall {literal['mean']:.2f}"
        first = Found(gate, literal["mean"] >= RECALL, text, other["mean"] < HALF * literal["mean"], m["difference"]["p"])
        rows = m["paraphrased"]["rows"]
        whole, top, random = (
            row_of(rows, "recall", kind, k)["mean"] for kind, k in (("none", 0), ("top", m["k"]), ("random", m["k"]))
        )
        text = f"{whole:.2f} → {top:.2f} (layer-matched {random:.2f}), K = {m['k']}"
        second = Found(f"recall {whole:.2f}", whole >= RECALL, text, top < HALF * whole)
        return {"paraphrased.recall": first, "paraphrased.causal": second}

    def _reasoning(self) -> dict[str, Found]:
        m = self._of("reasoning")
        tasks, k = {task["task"]: task for task in m["tasks"]}, m["k"]

        def row(task: str, kind: str) -> Any:
            return row_of(tasks[task]["rows"], "exact", kind, 0 if kind == "none" else k)

        whole = {task: row(task, "none")["mean"] for task in tasks}
        able = {task: "top" in tasks[task]["right"] for task in tasks}
        written = self._written(row, whole, able)
        direct = Found(f"right {whole['direct']:.2f}", whole["direct"] >= FLOOR and able["direct"], "", False)
        if direct.able:
            kept = {task: row(task, "top")["mean"] / whole[task] for task in ("steps", "direct")}
            text = f"keeps {kept['direct']:.2f} of its share, written steps {kept['steps']:.2f}"
            direct = direct._replace(found=text, holds=kept["direct"] > kept["steps"])
        return written | {"reasoning.direct": direct} | self._memory(tasks, row, whole) | self._passage(tasks, row)

    def _written(self, row: Any, whole: Mapping[str, float], able: Mapping[str, bool]) -> dict[str, Found]:
        gate, top = f"right {whole['steps']:.2f}", row("steps", "top") if able["steps"] else None
        if top is None:
            return {f"reasoning.written{part}": Found(gate, False, "", False) for part in ("", ".layer", ".any")}
        enough, text = (
            whole["steps"] >= RIGHT,
            f"{whole['steps']:.2f} → {top['mean']:.2f} ({top['low']:.2f} to {top['high']:.2f})",
        )
        found = {"reasoning.written": Found(gate, enough, text, top["mean"] < HALF * whole["steps"], top["p_paired"])}
        for name, kind in (("layer", "random"), ("any", "any_layer")):
            drawn = row("steps", kind)
            text = f"loss {drawn['drop']:.2f} (sd of draws {drawn['sd_draws']:.2f}) against {top['drop']:.2f}"
            p = (top if kind == "random" else drawn)["p_paired"]
            found[f"reasoning.written.{name}"] = Found(gate, enough, text, drawn["drop"] <= THIRD * top["drop"], p)
        return found

    def _memory(self, tasks: Mapping[str, Any], row: Any, whole: Mapping[str, float]) -> dict[str, Found]:
        gate, able = f"right {whole['closed_book']:.2f}", whole["closed_book"] >= RIGHT
        top, layer, any_layer = (row("closed_book", kind) for kind in ("top", "random", "any_layer"))
        _, low, high = difference_of_losses(tasks["steps"], tasks["closed_book"], self._seed)
        lost = row("steps", "top")["drop"]
        text = f"loss {top['drop']:.2f} against {lost:.2f} on written steps, difference {low:.2f} to {high:.2f}"
        drawn = f"top {top['mean']:.2f}, layer-matched {layer['mean']:.2f} (sd of draws {layer['sd_draws']:.2f}), any layer {any_layer['mean']:.2f}"
        return {
            "reasoning.memory": Found(gate, able, text, top["drop"] <= QUARTER * lost and low > 0),
            "reasoning.memory.layer": Found(gate, able, drawn, layer["mean"] < top["mean"], top["p_paired"]),
        }

    def _passage(self, tasks: Mapping[str, Any], row: Any) -> dict[str, Found]:
        means = tasks["contradiction"]["means"]
        gate, able = f"passage {means['none'][0]:.2f}", means["none"][0] >= RIGHT
        parts = [f"{name} {means[kind][0]:.2f} / {means[kind][1]:.2f}" for kind, name in NAMES.items()]
        holds = means["top"][0] < HALF * means["none"][0] and means["top"][1] > means["none"][1]
        found = Found(gate, able, f"passage / memory: {', '.join(parts)}", holds, row("contradiction", "top")["p_paired"])
        return {"reasoning.passage": found}


NAMES = {"none": "whole", "top": "top", "random": "layer-matched", "any_layer": "any layer"}


def judged(result: Mapping[str, Any], model: str) -> list[dict[str, Any]]:
    """One row per registered claim of the family `heads`."""
    found = Judge(result, model).all()
    claims = [claim for claim in CLAIMS if claim.key.startswith("heads.")]
    tested = [key for key, one in found.items() if one.p is not None and one.able]
    corrected = dict(zip(tested, benjamini_hochberg([found[key].p for key in tested]), strict=True))  # type: ignore[arg-type]
    rows = []
    for claim in claims:
        key = claim.key.removeprefix("heads.")
        one, p = found[key], corrected.get(key)
        holds = one.holds and (p is None or p <= LEVEL) if one.able else None
        numbers = {"gate": one.gate, "found": one.found, "p": one.p, "p_corrected": None if p is None else float(p)}
        rows.append({"key": claim.key, "claim": claim.sentence, "rule": claim.rule, **numbers, "verdict": verdict(holds)})
    return rows


def main() -> None:
    """Command line of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="properties.json of headwise lab properties")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    result = json.loads(chosen.result.read_text("utf-8"))
    rows = judged(result, chosen.model)
    if chosen.json:
        stated = {"model": chosen.model, "weights": WEIGHTS, "settings": result["real_settings"], "versions": result["versions"]}
        print(json.dumps(stated | {"claims": rows}, indent=1, allow_nan=False))
        return
    print("| claim | whole model | found | p (corrected) | verdict |\n|---|---|---|---|---|")
    for row in rows:
        p = "" if row["p"] is None else f"{row['p']:.4f}" + ("" if row["p_corrected"] is None else f" ({row['p_corrected']:.4f})")
        print(f"| {row['claim']} | {row['gate']} | {row['found']} | {p} | **{row['verdict']}** |")


if __name__ == "__main__":
    main()

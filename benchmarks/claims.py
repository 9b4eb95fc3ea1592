"""The claims of the method card (section 6: 1-5, 7, 8) measured on the bundled lab model. Writes nothing; prints numbers.

Heads are found with the 16 needles for detection; everything that is reported about ablation is measured on the 16 other needles.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from common import hardware, options, show

from headwise.attention import observe
from headwise.evaluation.ablation import ablation_curve
from headwise.heads import HeadScores
from headwise.maths.copy import copy_score
from headwise.methods.copy.options import Copy
from headwise.methods.copy.run import copy_scores
from headwise.models.load import load
from headwise.models.model import Model
from headwise.models.names import bundled_model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.grid import GridOptions, Task, even_depths, group_specs, make_group
from headwise.prompts.haystack import Haystack, bundled_texts
from headwise.prompts.needles import NeedleComposer, bundled_needles
from headwise.runtime.answer import verify_draft
from headwise.runtime.runner import leaves
from headwise.stats.agreement import gini, pearson, split_half_reliability, top_overlap

TOP = (1, 2, 4, 8, 16)


def make(model: Model, split: str, lengths: tuple[int, ...], depths: int) -> Task:
    encoder = PieceEncoder(model.tokenizer)
    grid = GridOptions(lengths, even_depths(depths), part=(0.0, 0.9))
    return Task(bundled_needles(split), Haystack(bundled_texts(), encoder), NeedleComposer(encoder), grid)


def untrained_scores(model: Model, task: Task) -> np.ndarray:
    """Scores of a randomly initialised copy. It answers nothing, so the gold answer is taken as what it emits."""
    torch.manual_seed(0)
    hf = type(model.hf)(model.hf.config).eval()
    tables = []
    with observe(hf, argmax_only=True) as seen:
        for spec in group_specs(task.grid, len(task.needles))[:8]:
            group = make_group(spec, task, model.positions)
            for leaf in leaves(hf, [p.ids for p in group.prompts]):
                prompt = group.prompts[leaf.index]
                seen.rows = len(prompt.gold) + 1
                verify_draft(hf, leaf.past, leaf.rest, prompt.gold)
                argmax = seen.argmax[:, 0, :, :-1]
                tables.append(
                    copy_score(argmax, torch.tensor(prompt.ids), torch.tensor(prompt.gold), prompt.span("answer")).numpy()
                )
    return np.mean(tables, axis=0)


def few_runs(scores: HeadScores, runs: int = 5, k: int = 10, draws: int = 200) -> dict[str, float]:
    """Share of the final top k that the mean of `runs` random runs also has on top."""
    rng, table = np.random.default_rng(0), scores.runs
    assert table is not None
    found = [top_overlap(table[rng.choice(len(table), runs, replace=False)].mean(axis=0), scores.values, k) for _ in range(draws)]
    return {"mean": float(np.mean(found)), "5th_percentile": float(np.percentile(found, 5))}


def needles_halves(scores: HeadScores) -> float:
    """Pearson of the score maps of two disjoint halves of the needles."""
    which = np.asarray([info["needle"] for info in scores.run_info])
    assert scores.runs is not None
    return pearson(scores.runs[which % 2 == 0].mean(axis=0), scores.runs[which % 2 == 1].mean(axis=0))


def sweep(
    model: Model, scores: HeadScores, mode: str, scope: str, depths: int, lengths: tuple[int, ...] = (512,)
) -> dict[str, Any]:
    task = make(model, "test", lengths, depths)
    result = ablation_curve(model, scores, TOP, mode=mode, scope=scope, task=task).to_json()
    rows: dict[str, Any] = {"items": result["items"] if isinstance(result["items"], int) else len(result["items"])}
    for row in result["summary"]:
        key = f"{row['metric']} {row['kind']} {row['k']}"
        rows[key] = row["mean"]
        if row["kind"] == "random":
            rows[key + " sd"] = row["sd_draws"]
        if row["kind"] == "top":
            rows[key + " p_paired"], rows[key + " p_rank"] = row.get("p_paired"), row.get("p_rank")
            rows[key + " ci"] = (row["low"], row["high"])
    return rows


def main() -> None:
    chosen = options(__doc__)
    model = load(str(bundled_model()))
    task = make(model, "detect", (256, 512, 1024), 10)
    scores = copy_scores(model, task, Copy())
    values, frequency = scores.values, scores.frequency
    ranked = scores.ranking()
    result: dict[str, Any] = {
        "heads": values.size,
        "runs": scores.provenance["runs"],
        "solved": scores.provenance["solved"],
        "over_0.1": int((values > 0.1).sum()),
        "over_0.5": int((values > 0.5).sum()),
        "zero": int((values == 0).sum()),
        "gini": gini(values),
        "split_half": split_half_reliability(scores.runs),
        "needle_halves": needles_halves(scores),
        "ranking": [(str(head), round(float(values[head]), 3), round(float(frequency[head]), 3)) for head in ranked[:24]],
        "always_on": int((frequency == 1).sum()),
        "frequency_below_score": int((frequency < values - 1e-9).sum()),
        "frequent_but_weak": [str(h) for h in ranked if frequency[h] > 0.9 and values[h] < 0.5],
        "untrained_max": float(untrained_scores(model, task).max()),
        "few_runs": {str(n): few_runs(scores, n) for n in (1, 5, 20)},
    }
    if "detect" not in chosen.only:
        for mode in ("zero", "uniform", "mean"):
            result[f"{mode} answer"] = sweep(model, scores, mode, "answer", depths=3)
        result["zero all"] = sweep(model, scores, "zero", "all", depths=2)
        result["zero answer, items of zero all"] = sweep(model, scores, "zero", "answer", depths=2)
    show(result | {"hardware": hardware()}, chosen.json)


if __name__ == "__main__":
    main()

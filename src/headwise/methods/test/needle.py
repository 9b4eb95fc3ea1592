"""The needle grid: how well a model answers needle questions over lengths and depths, heads left alone."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

from headwise.attach import attached
from headwise.engine import RunDirectory, answer_variants, leaves, prefill
from headwise.engine.progress import Report, silent
from headwise.evaluate.metrics import exact_match, unigram_recall
from headwise.evaluate.provenance import describe_model, stop_ids
from headwise.families import Loaded
from headwise.prompts.grid import Group, Task, make_group, plan_groups


def measure_needle_grid(
    loaded: Loaded,
    task: Task,
    max_new_tokens: int = 50,
    directory: RunDirectory | None = None,
    report: Report = silent,
) -> dict[str, Any]:
    """Run every cell of the grid once.

    Returns {"cells": [{length, depth, needle, answer, recall, exact, gold_logprob, ...}], "recall", "exact": means in [0, 1], ...}.
    """
    stop = stop_ids(loaded)
    specs = plan_groups(task, loaded.layout.positions)
    cells: list[dict[str, Any]] = []
    total, done = sum(spec.length for spec in specs), 0
    for spec in specs:
        found = directory.load(spec.key) if directory else None
        info = found[1] if found else _run_group(loaded, make_group(spec, task, loaded.layout.positions), stop, max_new_tokens)
        if directory and not found:
            directory.save(spec.key, {}, info)
        cells += info
        done += spec.length
        report(done, total, f"recall {sum(cell['recall'] for cell in cells) / len(cells):.2f}")
    means = {name: sum(cell[name] for cell in cells) / len(cells) for name in ("recall", "exact")}
    return describe_model(loaded) | means | {"runs": len(cells), "grid": asdict(task.grid), "cells": cells}


def _run_group(loaded: Loaded, group: Group, stop: frozenset[int], limit: int) -> list[dict[str, Any]]:
    info = [dict(cell) for cell in group.info]
    with attached(loaded.model):
        for leaf in leaves(loaded.model, [prompt.ids for prompt in group.prompts]):
            gold = group.prompts[leaf.index].gold
            prefill(loaded.model, leaf.past, leaf.rest[:-1])
            answers = answer_variants(loaded.model, leaf, gold, [None], lambda _: nullcontext(), stop, limit)
            text = loaded.tokenizer.decode(answers[0].ids, skip_special_tokens=True)
            wanted = group.needle.answer
            info[leaf.index] |= {
                "answer": text,
                "recall": unigram_recall(text, wanted),
                "exact": exact_match(text, wanted),
                "gold_logprob": answers[0].gold_logprob,
            }
    return info

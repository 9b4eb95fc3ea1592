"""What heads attend to, for the explorer: recorded while the model answers a few needle questions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headwise.heads import HeadScores, HeadSet
    from headwise.models.model import Model
    from headwise.prompts.grid import Task

WANTED, TRIED = 3, 6
DEPTHS = (0.25, 0.5, 0.75)


def needle_traces(loaded: Model, scores: HeadScores, heads: HeadSet) -> list[dict[str, Any]]:
    """Traces of up to `WANTED` questions, as plain data; answered ones first, out of at most `TRIED`."""
    from headwise.prompts.grid import make_group, plan_groups
    from headwise.runtime.answer import stop_ids
    from headwise.runtime.head_trace import trace_heads
    from headwise.stats.metrics import judged

    task, stop = _task(loaded, scores), stop_ids(loaded)
    found: list[tuple[bool, dict[str, Any]]] = []
    for i, spec in enumerate(sorted(plan_groups(task, loaded.positions), key=lambda spec: spec.needle)[:TRIED]):
        group, place = make_group(spec, task, loaded.positions), i % len(DEPTHS)
        trace = trace_heads(loaded, group.prompts[place], heads, stop)
        said = str(loaded.tokenizer.decode(list(trace.ids), skip_special_tokens=True)).strip()
        right, wanted = bool(judged(said, group.needle.answer)["exact"]), group.needle.answer
        about = f"Context of {spec.length} tokens, needle at depth {DEPTHS[place]:.0%}. Expected answer: “{wanted}”. Model's answer: “{said}”."
        found.append((right, trace.plain() | {"info": {"about": about, "right": right}}))
        if sum(solved for solved, _ in found) == WANTED:
            break
    return [data for _, data in sorted(found, key=lambda one: not one[0])[:WANTED]]


def _task(loaded: Model, scores: HeadScores) -> Task:
    """The needles and the wording that the heads were found with, as far as their file says; its shortest context."""
    from dataclasses import replace

    from headwise.heads.errors import PromptError
    from headwise.prompts.grid import default_lengths
    from headwise.prompts.needles import Needle
    from headwise.runtime.needle_runs import needle_task

    known = scores.provenance
    lengths = (known.get("grid") or {}).get("lengths") or default_lengths(loaded.positions)
    task = needle_task(
        loaded, split="detect", lengths=(min(lengths),), depths=DEPTHS, windows=1, needles=None, haystack=None,
        template=known.get("template"), chat=bool(known.get("chat")), seed=0,
    )  # fmt: skip
    try:
        needles = tuple(Needle(**needle) for needle in known["needles"])
    except (KeyError, TypeError, PromptError):
        return task
    return replace(task, needles=needles) if needles else task

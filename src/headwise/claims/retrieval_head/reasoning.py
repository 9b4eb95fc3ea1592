"""Whether written steps need retrieval heads, and answers from memory do not (Wu et al. 2024, sec. 4.3 and fig. 10): questions about facts."""

from __future__ import annotations

from collections.abc import Mapping

from headwise.claims.claim import Finding, Number
from headwise.claims.experiment import Bench, Measured, NotTestable
from headwise.claims.retrieval_head.facts import Asker, read_relations
from headwise.claims.retrieval_head.quiz_losses import Answered, answered, at_most
from headwise.claims.retrieval_head.scores import ranked, shares_of_time, usable_top
from headwise.claims.retrieval_head.sizes import REMOVED_MORE, SCOPE, Sizes, near_share, sizes_of
from headwise.heads import PromptError

QUARTER = 0.25  # the most that facts known by heart may lose, as a share of what written steps lose
PARTS = {"heads": 430.0, "facts that the model knows": 300.0, "questions": 1200.0}  # rough seconds on a real model
KINDS = {"layer": "random", "any": "any_layer"}  # claim -> kind of random draws


def measure(bench: Bench) -> Measured:
    """Facts known by heart, facts that a passage contradicts, and two steps, written and direct."""
    sizes, part = sizes_of(bench), shares_of_time(bench, PARTS)
    relations = read_relations(bench.folder("relations-lre"))
    scores = ranked(bench, sizes, part("heads"))
    k = near_share(usable_top(sizes, scores), len(scores.ranking()), REMOVED_MORE)
    part("facts that the model knows")(0, 1, "")
    try:
        quizzes = Asker(bench, relations, sizes).quizzes()
    except PromptError as error:
        raise NotTestable(str(error)) from error
    ks, tasks = tuple(dict.fromkeys((k, max(1, k // 2)))), {}
    for number, quiz in enumerate(quizzes):
        part("questions")(number, len(quizzes), quiz.task)
        tasks[quiz.task] = answered(bench, scores, sizes, quiz, SCOPE, ks, sizes.item_controls, ("any_layer",))
    details = {"k": k, "heads": len(scores.ranking()), "tasks": [task.details for task in tasks.values()]}
    return Measured(judged(tasks, sizes), details)


def judged(tasks: Mapping[str, Answered], sizes: Sizes) -> dict[str, Finding]:
    """The findings of all registered claims about questions.

    Args:
        tasks: `steps`, `direct`, `closed_book`, `contradiction` -> answers.
        sizes: Seed of intervals.
    """
    found = written(tasks["steps"]) | {"direct": direct(tasks["direct"], tasks["steps"])}
    found |= memory(tasks["closed_book"], tasks["steps"], sizes.seed) | {"passage": passage(tasks["contradiction"])}
    return {f"heads.reasoning.{name}": finding for name, finding in found.items()}


def written(steps: Answered) -> dict[str, Finding]:
    """What written steps lose, and what random heads cost them."""
    names = ("written", *(f"written.{name}" for name in KINDS))
    if not steps.able:
        return {name: steps.unable() for name in names}
    k, sweep = steps.k, steps.sweep
    whole: dict[str, Number] = {"right": sweep.mean("exact", "none")}
    left = {"left": sweep.left("exact", "top", k), "random_left": sweep.left("exact", "random", k), "top": sweep.mean("exact", "top", k), "k": k}
    found = {"written": Finding(whole | left, sweep.p("exact", "random", k))}
    for name, kind in KINDS.items():
        found[f"written.{name}"] = Finding(whole | sweep.random_costs_less("exact", kind, k), sweep.p("exact", kind, k))
    return found


def direct(task: Answered, steps: Answered) -> Finding:
    """Whether direct answers keep more of their share than written steps."""
    if not (task.able and steps.able):
        return (steps if task.able else task).unable()
    kept = [one.sweep.left("exact", "top", one.k) for one in (task, steps)]
    difference = _mean(kept[0]) - _mean(kept[1])
    return Finding({"right": task.sweep.mean("exact", "none"), "difference": difference, "kept": kept[0], "steps_kept": kept[1], "k": task.k})


def memory(task: Answered, steps: Answered, seed: int) -> dict[str, Finding]:
    """Whether facts known by heart lose at most a quarter of what written steps lose, and whether neighbours cost them more."""
    if not task.able:
        return {name: task.unable() for name in ("memory", "memory.layer")}
    sweep, k = task.sweep, task.k
    whole: dict[str, Number] = {"right": sweep.mean("exact", "none")}
    means = {kind: sweep.row("exact", kind, k)["mean"] for kind in ("top", "random", "any_layer")}
    beside: dict[str, Number] = {"top": means["top"], "layer": means["random"], "any": means["any_layer"], "k": k}
    beside["sd_of_draws"] = sweep.row("exact", "random", k)["sd_draws"] or 0.0
    numbers = whole | beside | {"difference": sweep.difference("exact", "top", "random", k)}
    found = {"memory.layer": Finding(numbers, sweep.p("exact", "random", k))}
    if not steps.able:
        return found | {"memory": steps.unable()}
    return {"memory": at_most(QUARTER, task, steps, seed), **found}


def passage(task: Answered) -> Finding:
    """Whether answers leave a passage that contradicts what the model knows."""
    if not task.able:
        return task.unable()
    sweep, k, means = task.sweep, task.k, task.details["means"]
    numbers: dict[str, Number] = {
        "follows": sweep.mean("exact", "none"),
        "left": sweep.left("exact", "top", k),
        "random_left": sweep.left("exact", "random", k),
        "memory_gain": means["top"][1] - means["none"][1],
        "memory": means["none"][1],
        "top": means["top"][0],
        "top_memory": means["top"][1],
        "k": k,
    }
    return Finding(numbers, sweep.p("exact", "random", k))


def _mean(number: Number) -> float:
    return float(number[0] if isinstance(number, tuple) else number)

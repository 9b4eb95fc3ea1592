"""Questions about a made-up world, answered without the heads that copy: two steps, facts known by heart, facts that a passage contradicts."""

from __future__ import annotations

from functools import partial
from typing import Any

from headwise.claims.claim import LEVEL, Finding, Number
from headwise.claims.experiment import Bench, Measured, NotTestable
from headwise.claims.retrieval_head.quiz import Asked, Quiz
from headwise.claims.retrieval_head.quiz_losses import Answered, answered, at_most
from headwise.claims.retrieval_head.reasoning import QUARTER, direct, passage, written
from headwise.claims.retrieval_head.scores import ranked, shares_of_time, usable_top
from headwise.claims.retrieval_head.sizes import REMOVED_MORE, SCOPE, near_share, sizes_of
from headwise.heads import PromptError
from headwise.models.model import Model
from headwise_lab.eval_tasks import Drawer, Item, NotMeasured, Spec, right, right_or_world, right_steps

PARTS = {"heads": 25.0, "questions": 80.0}  # rough seconds
SPECS = {
    "steps": Spec(("properties_steps", "all_steps", "written"), "two_hop", right_steps, {"steps": True}, spare=8),
    "direct": Spec(("properties_direct",), "two_hop", right, {"steps": False}),
    "closed_book": Spec(("properties_closed_book",), "closed_book", right, {"which": "asked"}),
    "contradiction": Spec(("properties_contradiction", "memory"), "contradiction", right_or_world),
}
EVERYWHERE = ("steps", "closed_book")  # tasks also measured with heads ablated at every position


def draw_items(model: Model, task: str, count: int, seed: int) -> list[Item]:
    """Different questions of the test split.

    Args:
        model: With its tokenizer.
        task: One of `SPECS`.
        count: How many; fewer where there are no more.
        seed: 0 or more.

    Raises:
        NotMeasured: They do not fit the model.
    """
    drawer = Drawer(model, count, "test", seed)
    return drawer.draw(SPECS[task], drawer.options(SPECS[task]))


def world_quiz(model: Model, task: str, count: int, seed: int) -> Quiz:
    """Questions of a task of the micro-world; those without a text, which are short, are twice as many. Raises as `draw_items`."""
    spec = SPECS[task]

    def asked(item: Item) -> Asked:
        turn = item.example.turns[-1]
        question = "".join(piece.text for piece in turn.ask).strip()
        return Asked(item.prompt, partial(spec.judge, item.example), item.example.context_text, question, turn.answer_text)

    items = draw_items(model, task, count * (2 if task == "closed_book" else 1), seed)
    return Quiz(task, spec.rows, spec.spare, [asked(item) for item in items])


def measure(bench: Bench) -> Measured:
    """All tasks with heads removed while the model answers; two of them also with heads removed at every position."""
    sizes, part = sizes_of(bench), shares_of_time(bench, PARTS)
    scores = ranked(bench, sizes, part("heads"))
    k = near_share(usable_top(sizes, scores), len(scores.ranking()), REMOVED_MORE)
    ask = partial(answered, bench, scores, sizes)
    found: dict[str, Answered] = {}
    everywhere: dict[str, Answered] = {}
    try:
        for number, task in enumerate(SPECS):
            part("questions")(number, len(SPECS) + 1, task)
            quiz = world_quiz(bench.model, task, sizes.items, sizes.seed)
            found[task] = ask(quiz, SCOPE, (k,), sizes.item_controls, ("any_layer",))
            if task in EVERYWHERE and found[task].able:
                everywhere[task] = ask(quiz, "all", (k,), sizes.all_controls)
    except (NotMeasured, PromptError) as error:
        raise NotTestable(str(error)) from error
    details = [one.details for one in (*found.values(), *everywhere.values())]
    return Measured(judged(found, everywhere, sizes.seed), {"k": k, "heads": len(scores.ranking()), "tasks": details})


def judged(found: dict[str, Answered], everywhere: dict[str, Answered], seed: int) -> dict[str, Finding]:
    """The findings of all claims.

    Args:
        found: Task -> answers, heads removed while the model answers.
        everywhere: Task -> answers, heads removed at every position; of tasks that the model can do.
        seed: Of intervals.
    """
    steps, book = found["steps"], found["closed_book"]
    findings = {name.replace("written", "steps"): finding for name, finding in written(steps).items()}
    findings |= {"steps.weakest": weakest(steps), "direct": direct(found["direct"], steps), "passage": passage(found["contradiction"])}
    findings |= {"memory": memory(book, steps, seed), "memory.random": not_worse(book)}
    absent = next((task for task in EVERYWHERE if task not in everywhere), "")
    findings["memory.everywhere"] = found[absent].unable() if absent else memory(everywhere["closed_book"], everywhere["steps"], seed)
    findings["direct"] = with_steps(findings["direct"], steps)
    return {f"heads-world.{name}": finding for name, finding in findings.items()}


def memory(book: Answered, steps: Answered, seed: int) -> Finding:
    """Whether facts known by heart lose at most a quarter of what written steps lose."""
    for task in (book, steps):
        if not task.able:
            return task.unable()
    return at_most(QUARTER, book, steps, seed)


def with_steps(finding: Finding, steps: Answered) -> Finding:
    """A finding with the share of written steps that the whole model answers right, for a gate."""
    return finding if finding.missing else Finding({**finding.numbers, "steps_right": steps.sweep.mean("exact", "none")}, finding.p)


def weakest(steps: Answered) -> Finding:
    """What the weakest heads cost written steps."""
    if not steps.able:
        return steps.unable()
    sweep, k = steps.sweep, steps.k
    numbers: dict[str, Number] = {"right": sweep.mean("exact", "none"), "left": sweep.left("exact", "bottom", k)}
    return Finding(numbers | {"top_left": sweep.left("exact", "top", k), "k": k})


def not_worse(book: Answered) -> Finding:
    """Whether the top heads cost facts known by heart no more than random ones do."""
    if not book.able:
        return book.unable()
    sweep, k = book.sweep, book.k
    difference: Any = sweep.difference("exact", "top", "random", k)
    p = sweep.p("exact", "random", k)
    numbers: dict[str, Number] = {"right": sweep.mean("exact", "none"), "worse": float(difference[0] < 0 and p <= LEVEL), "difference": difference}
    return Finding(numbers | {"p_raw": p, "top": sweep.mean("exact", "top", k), "random": sweep.mean("exact", "random", k), "k": k})

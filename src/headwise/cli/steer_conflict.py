"""`headwise steer conflict`: which answer is given, the remembered one or the passage's, as in-context or parametric heads go."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwise.cli import options as o
from headwise.cli.progress import progress
from headwise.heads.errors import HeadwiseError

if TYPE_CHECKING:
    from headwise.evaluation.conflict import ConflictOptions
    from headwise.heads import HeadScores
    from headwise.models.model import Model
    from headwise.prompts.knowledge import KnowledgeComposer, KnowledgeRecord


def conflict(
    model: o.ModelName = None,
    data: Annotated[Path, typer.Option(help="Questions with passages: NQ-open oracle, NQ-Swap, PopQA or our own JSON lines, plain or .gz.")] = ...,  # type: ignore[assignment]
    layout: Annotated[str, typer.Option(help="Layout of the file, where it cannot be told from its fields.")] = "auto",
    make_passages: Annotated[int, typer.Option(help="Records without a passage get one of so many completed sentences (relations, facts).")] = 0,
    shots: Annotated[int, typer.Option(help="Solved examples in front of each question.")] = 0,
    context: Annotated[Path | None, typer.Option(help="Head file of in-context heads (headwise detect in-context).", show_default=False)] = None,
    memory: Annotated[Path | None, typer.Option(help="Head file of parametric heads (headwise detect parametric).", show_default=False)] = None,
    top: Annotated[str | None, typer.Option(help="How many heads to ablate, e.g. 5,10,20.", show_default="up to a tenth of all heads")] = None,
    mode: Annotated[str, typer.Option(help="zero (output 0) or uniform (query 0).")] = "zero",
    scope: Annotated[str, typer.Option(help="Where: all (as in the paper), or answer (from the last prompt token on; much faster).")] = "all",
    controls: Annotated[int, typer.Option(help="Draws of layer-matched random heads per K.")] = 5,
    records: Annotated[int, typer.Option(help="At most so many questions, in an order drawn with the seed.")] = 100,
    known: Annotated[bool, typer.Option("--known", help="Only questions that the model answers right without a passage.")] = False,
    wording: Annotated[str, typer.Option(help="Wording of the prompts: plain, instructed, cloze or bare.")] = "plain",
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 20,
    chat: o.Chat = False,
    chat_template_args: o.ChatArgs = None,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    revision: o.Revision = None,
    output: o.Output = None,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
) -> None:  # fmt: skip
    """Swap the answers in passages, ablate the strongest in-context or parametric heads, and count remembered and passage's answers."""
    path = o.output_path(output, model, "conflict", overwrite)
    if context is None and memory is None:
        raise HeadwiseError("give --context FILE, --memory FILE, or both: head files of in-context and of parametric heads")
    if records < 1:
        raise HeadwiseError(f"--records must be at least 1; got {records}")
    from headwise.evaluation.conflict import ConflictOptions

    ks = () if top is None else o.numbers(top, "top", repeats=True)
    options = ConflictOptions(ks, mode, scope, controls, seed, max_new_tokens, known)
    scores = {side: o.read_scores(file) for side, file in (("context", context), ("memory", memory)) if file is not None}
    from headwise.runtime.knowledge_asked import ask
    from headwise.runtime.knowledge_questions import KnowledgeQuestions

    questions = KnowledgeQuestions(
        data, layout, make_passages, records=None, min_records=1, wording=wording, shots=shots, chat=chat,
        chat_template_args=chat_template_args, seed=seed,
    )  # fmt: skip
    loaded = o.load(model, device, dtype, revision)
    for one in scores.values():
        loaded.check(one.top(max(ks, default=1)))
        o.tell_other_model(one, loaded)
    asked = ask(loaded, questions)
    _run(loaded, scores, asked.records[:records], asked.composer, options, path, overwrite, json)


def _run(
    loaded: Model, scores: dict[str, HeadScores], given: Sequence[KnowledgeRecord], composer: KnowledgeComposer, options: ConflictOptions,
    path: Path, overwrite: bool, json: bool,
) -> None:  # fmt: skip
    from headwise.evaluation.conflict import conflict_curves, describe_conflict
    from headwise.runtime.rundir import RunDirectory

    directory = RunDirectory(path.with_name(path.name + ".run"), describe_conflict(loaded, scores, given, composer, options))
    with progress("asking", hidden=json) as report:
        result = conflict_curves(loaded, scores, given, composer, options, directory, report)
    from headwise.report.ablation_curves import ablation_curves

    told = result.to_json()
    picture = o.draw(partial(ablation_curves, told), path.with_suffix(".png"))
    result.save(path, overwrite)  # last: while it is missing, the same command goes on and draws the picture again
    directory.remove()
    _tell(told, path, picture, json)


def _tell(data: dict[str, Any], path: Path, picture: str | None, json: bool) -> None:
    from headwise.report.console import print_all
    from headwise.report.tables import ablation_table

    if json:
        o.print_json({"result": str(path), "picture": picture, "dropped": data["dropped"], "summary": data["summary"]})
    else:
        print_all(ablation_table(data), f"result     {path}", *o.picture_line(picture))

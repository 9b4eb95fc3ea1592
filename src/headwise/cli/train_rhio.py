"""`headwise train rhio`: teach a model two ways to answer, behind two control tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwise.cli import options as o
from headwise.cli.progress import progress
from headwise.cli.train_heads import (
    NEEDED,
    Accumulate,
    Batch,
    Checkpointing,
    Folder,
    Parts,
    Rank,
    Rate,
    SaveEvery,
    StepCount,
    fitted,
    lines_of,
    tell_trained,
    tuning_of,
)

if TYPE_CHECKING:
    from headwise.models.model import Model
    from headwise.train.examples import Prepared

Pairs = Annotated[Path, typer.Option(help="Pairs of answers: JSON lines of headwise train unfaithful.")]
Plain = Annotated[
    bool,
    typer.Option(
        "--plain",
        help="Plain fine-tuning on the faithful answers alone, in half as many steps, so that it sees them as often: the control, and the first "
        "step for base models, for which --data may hold questions with documents and answers.",
    ),
]
Wording = Annotated[str, typer.Option(help="Wording of the prompts: plain or instructed.")]
Length = Annotated[
    int | None, typer.Option(help="Longest example in tokens; a pair with a longer one is left out.", show_default="2048, or the model's context")
]


def rhio(
    model: o.ModelName = None,
    data: Pairs = NEEDED,
    output: Folder = NEEDED,
    plain: Plain = False,
    wording: Wording = "plain",
    steps: StepCount = 200,
    batch: Batch = 1,
    accumulate: Accumulate = 4,
    rate: Rate = 2e-4,
    rank: Rank = 16,
    parts: Parts = "query,key,value,output",
    length: Length = None,
    save_every: SaveEvery = 50,
    checkpointing: Checkpointing = False,
    chat: o.Chat = False,
    chat_template_args: o.ChatArgs = None,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    revision: o.Revision = None,
    json: o.Json = False,
) -> None:
    """Fine-tune on faithful answers behind the token [POS] and unfaithful ones behind [NEG] (RHIO, Huang et al. 2025).

    The method trains the model to trust its documents, wrong ones included: faithful is not true. Afterwards headwise generate DIR/merged --contrast
    control:alpha=0.2 contrasts both ways to answer. The control token stands in front of what the user says.
    """
    from headwise.methods.rhio.file import read_pairs, read_references
    from headwise.prompts.prompt import chat_arguments
    from headwise.train.objectives import AnswerLoss
    from headwise.train.run import train_to_folder

    o.check_new_folder(output, "--output")
    tuning = tuning_of(
        parts, steps=-(-steps // 2) if plain else steps, batch=batch, accumulate=accumulate, rate=rate, rank=rank, length=length,
        save_every=save_every, checkpointing=checkpointing, seed=seed,
    )  # fmt: skip
    rows, arguments = read_references(data) if plain else read_pairs(data), chat_arguments(chat_template_args)
    loaded = o.load(model, device, dtype, revision)
    tuning = fitted(loaded, tuning, length)
    trained, tokens = _with_tokens(loaded, plain, seed)
    examples = _examples(trained, rows, wording, (chat, arguments), tuning.length, plain)
    story = {"loss": "answers" if plain else "rhio", "data": data.name, "pairs": len(rows), "wording": wording, "chat": chat, "chat_args": arguments}
    with progress("training", hidden=json) as report:
        made = train_to_folder(
            trained, examples, lambda _: AnswerLoss(), tuning, output, story, model or loaded.name, report=report, tokens=tokens
        )
    use = "headwise generate {} --prompt TEXT" + ("" if plain else " --contrast control:alpha=0.2,plausibility=0.1")
    tell_trained(made, output, json, *lines_of(output, use))


def _with_tokens(loaded: Model, plain: bool, seed: int) -> tuple[Model, tuple[int, ...]]:
    from headwise.models.model import need_tokenizer
    from headwise.prompts.control import control_ids
    from headwise.train.control import with_control_tokens

    if plain:
        return need_tokenizer(loaded, "training"), ()
    grown = with_control_tokens(loaded, seed)
    return grown, control_ids(grown.tokenizer)


def _examples(trained: Model, rows: Any, wording: str, chat: tuple[bool, dict[str, Any]], length: int, plain: bool) -> Prepared:
    from headwise.cli.notes import tell
    from headwise.prompts.encoder import PieceEncoder
    from headwise.prompts.grounded_prompts import GroundedComposer
    from headwise.train.rhio import control_examples

    composer = GroundedComposer(PieceEncoder(trained.tokenizer), wording, *chat)
    found = control_examples(trained, rows, composer, length, plain)
    left = {"too_long": "are longer than --length", "cannot_follow": "hold an answer that cannot follow its prompt"}
    if told := ", ".join(f"{found.counts[name]} {why}" for name, why in left.items() if found.counts[name]):
        tell(f"{len(rows) - sum(found.counts.values())} of {len(rows)} pairs are trained on: {told}")
    return found

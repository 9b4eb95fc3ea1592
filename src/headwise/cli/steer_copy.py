"""`headwise steer copy`: answer a prompt while chosen heads are made to read a part of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headwise.cli import options as o
from headwise.cli.generate import prompt_text
from headwise.heads.errors import HeadwiseError
from headwise.heads.text import shorten

if TYPE_CHECKING:
    from headwise.models.model import Model

OF_WAY = {"two_step": ("weight", "temperature"), "mix": ("beta", "factor")}  # options that the way has no use for


def copy(
    context: typer.Context,
    model: o.ModelName = None,
    heads: Annotated[Path, typer.Option(help="Head file, of retrieval heads say.")] = ...,  # type: ignore[assignment]
    top: Annotated[int, typer.Option(help="How many of the strongest heads.")] = 10,
    prompt: Annotated[str | None, typer.Option(help="The prompt.", show_default=False)] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="A text file that holds the prompt.", show_default=False)] = None,
    span: Annotated[str, typer.Option(help="The part of the prompt that the heads shall read; every place where it stands.")] = ...,  # type: ignore[assignment]
    how: Annotated[str, typer.Option(help="two_step (raises attention scores) or mix (moves attention weights).")] = "two_step",
    beta: Annotated[float, typer.Option(help="two_step: scores rise by this share of the highest one.")] = 0.5,
    factor: Annotated[float, typer.Option(help="two_step: raised scores above 0 are multiplied by it.")] = 2.0,
    weight: Annotated[float, typer.Option(help="mix: share of the attention that goes to the part.")] = 0.9,
    temperature: Annotated[float, typer.Option(help="mix: factor of the scores inside the part; the higher, the fewer tokens are read.")] = 1.5,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 16,
    chat: o.Chat = False,
    chat_template_args: o.ChatArgs = None,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    revision: o.Revision = None,
    json: o.Json = False,
) -> None:  # fmt: skip
    """Answer a prompt greedily while the strongest heads are made to read a part of it, and without."""
    text = prompt_text(prompt, prompt_file)
    if max_new_tokens < 1:
        raise HeadwiseError(f"--max-new-tokens must be at least 1; got {max_new_tokens}")
    if not span.strip():
        raise HeadwiseError("--span is empty; give the part of the prompt that the heads shall read, letter by letter")
    if span.strip() not in text:
        raise HeadwiseError(f"the prompt does not hold the span {span.strip()!r}; give a part of it, letter by letter")
    from headwise.attention.copying import Force, force_copy

    force = Force(how, beta, factor, weight, temperature)
    o.refuse_unused(context, OF_WAY[how], f"does nothing with --how {how}; leave it out")
    scores = o.read_scores(heads)
    chosen = scores.top(top)
    loaded = o.load(model, device, dtype, revision, heads=scores)
    loaded.check(chosen)
    ids, spans = _prompt(loaded, text, span.strip(), chat, chat_template_args)
    from headwise.evaluation.steered import continued

    plain = continued(loaded, ids, max_new_tokens)
    given = {"beta": force.beta, "factor": force.factor, "weight": force.weight, "temperature": force.temperature}
    with force_copy(loaded, chosen, spans, force.how, **given, answer_from=len(ids) - 1):
        forced = continued(loaded, ids, max_new_tokens)
    if json:
        facts = {"heads": [str(head) for head in chosen], "tokens": len(ids), "spans": spans, "how": how}
        o.print_json({"plain": plain, "forced": forced, **facts})
        return
    from headwise.report.console import print_all

    positions = sum(stop - start for start, stop in spans)
    read = f"forced     {len(chosen)} heads read {positions} of {len(ids)} tokens, {how}"
    print_all(f"without    {plain.strip()}", f"with       {forced.strip()}", read)


def _prompt(
    loaded: Model, text: str, span: str, chat: bool, chat_args: str | None
) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
    """Ids of the prompt, cut at every place of the span before it is encoded, and the positions of the span there."""
    from headwise.prompts.encoder import PieceEncoder
    from headwise.prompts.prompt import Piece, PromptBuilder, Turn, chat_arguments

    parts = text.split(span)
    pieces = []
    for number, part in enumerate(parts[:-1]):
        space = part[-1:] == " "  # tokenizers join a word and the space in front of it
        pieces += [Piece(part[:-1] if space else part), Piece(" " * space + span, (f"span/{number}",), check="the span")]
    pieces.append(Piece(parts[-1]))
    builder = PromptBuilder(PieceEncoder(loaded.tokenizer), chat, chat_arguments(chat_args))
    made = builder.build([Turn("user", tuple(piece for piece in pieces if piece.text))])
    if made.ids != builder.build([Turn("user", (Piece(text),))]).ids:
        raise HeadwiseError(
            f"the span {shorten(span)!r} begins or ends inside a token of the prompt, which would then be read in another way; give whole words"
        )
    if loaded.positions is not None and len(made.ids) > loaded.positions:
        raise HeadwiseError(
            f"the prompt has {len(made.ids)} tokens, but {loaded.name} has {loaded.positions} positions; shorten it"
        )
    places = [made.span(f"span/{number}") for number in range(len(parts) - 1)]
    return made.ids, [(place.start, place.stop) for place in places]

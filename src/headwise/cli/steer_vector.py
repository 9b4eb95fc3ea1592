"""`headwise steer vector`: take function vectors from a prompt, search their scale, save them; answer with saved ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwise.cli import options as o
from headwise.cli.generate import prompt_ids, prompt_text
from headwise.cli.progress import progress
from headwise.heads.errors import HeadwiseError

if TYPE_CHECKING:
    from headwise.heads import HeadSet
    from headwise.methods.vectors.extract import FunctionVectors
    from headwise.methods.vectors.search import SearchResult, VectorItem
    from headwise.models.model import Model

ITEMS = "JSON lines with `prompt` and `answer` (or `answers`): search the scale on a part of them, measure it on the others."
OF_MAKING = (
    "heads",
    "top",
    "prompts",
    "items",
    "scale",
    "scales",
    "mode",
    "development",
    "controls",
    "seed",
    "output",
    "overwrite",
)
OF_SEARCH = ("scales", "development", "controls", "seed")


def vector(
    context: typer.Context,
    model: o.ModelName = None,
    heads: Annotated[Path | None, typer.Option(help="Head file; its strongest heads give the vectors.", show_default=False)] = None,
    top: Annotated[int, typer.Option(help="How many of the strongest heads.")] = 10,
    prompt: Annotated[str | None, typer.Option(help="Its last token gives the vectors; with --apply it is answered.", show_default=False)] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="A text file that holds it.", show_default=False)] = None,
    prompts: Annotated[Path | None, typer.Option(help="JSON lines with `prompt`: the average over several instead.", show_default=False)] = None,
    items: Annotated[Path | None, typer.Option(help=ITEMS, show_default=False)] = None,
    mode: Annotated[str, typer.Option(help="replace (the head's output becomes scale x vector) or add.")] = "replace",
    scale: Annotated[float, typer.Option(help="Factor of the vectors, where it is not searched.")] = 1.0,
    scales: Annotated[str | None, typer.Option(help="Factors to try with --items.", show_default="1 to 3 in steps of 0.25")] = None,
    development: Annotated[float, typer.Option(help="Share of the items that the scale is chosen on; they are not reported.")] = 0.2,
    controls: Annotated[int, typer.Option(help="Draws of random heads of the same layers, beside the chosen ones, with --items.")] = 20,
    apply: Annotated[Path | None, typer.Option("--apply", help="Saved vectors: answer the prompt with and without them.", show_default=False)] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 16,
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
    """Take function vectors from a prompt's last token and save them, with the scale that works best on --items; --apply answers with them."""
    if max_new_tokens < 1:
        raise HeadwiseError(f"--max-new-tokens must be at least 1; got {max_new_tokens}")
    wording: dict[str, Any] = {"chat": chat, "chat_template_args": chat_template_args}
    if apply is not None:
        o.refuse_unused(context, OF_MAKING, "is for making vectors; leave it out with --apply")
        _apply(o.load(model, device, dtype, revision), apply, prompt_text(prompt, prompt_file), wording, max_new_tokens, json)
        return
    if heads is None:
        raise HeadwiseError(
            "give --heads FILE (headwise detect makes one) to take vectors, or --apply FILE to answer with saved ones"
        )
    if items is None:
        o.refuse_unused(context, OF_SEARCH, "goes with --items; leave it out")
    else:
        o.refuse_unused(context, ("scale",), "is searched with --items; give --scales, or leave one of them out")
    sources = _sources(prompt, prompt_file, prompts)
    asked = None if items is None else _rows(items, "items", answered=True)
    path = o.output_path(output, model, "vectors", overwrite, ".safetensors")
    scores = o.read_scores(heads)
    chosen = scores.top(top)
    from headwise.methods.vectors.search import SCALES, SearchOptions

    tried = SCALES if scales is None else _numbers(scales)
    options = SearchOptions(tried if items is not None else (scale,), mode, development, controls, seed, max_new_tokens)
    loaded = o.load(model, device, dtype, revision, heads=scores)
    loaded.check(chosen)
    made, found = _make(loaded, chosen, [prompt_ids(loaded, text, **wording) for text in sources], asked, wording, options, json)
    from headwise.methods.vectors.file import save_vectors

    save_vectors(made, loaded, path, overwrite)
    _tell(made, found, path, json)


def _make(
    loaded: Model, chosen: HeadSet, ids: list[tuple[int, ...]], asked: list[dict[str, Any]] | None, wording: Mapping[str, Any],
    options: Any, json: bool,
) -> tuple[FunctionVectors, SearchResult | None]:  # fmt: skip
    """Vectors with their scale, and what a search found."""
    from headwise.methods.vectors.extract import FunctionVectors, describe_vectors, extract_vectors
    from headwise.methods.vectors.search import search_scale

    every = extract_vectors(loaded, None, ids, average=len(ids) > 1)
    found = None
    if asked is not None:
        items = [_item(loaded, row, wording) for row in asked]
        with progress("searching the scale", hidden=json) as report:
            found = search_scale(loaded, every, chosen, items, options, report=report)
    scale = options.scales[0] if found is None else found.scale
    vectors = every.of(chosen)
    about = describe_vectors(loaded, vectors, ids) | ({} if found is None else {"search": found.to_json()})
    return FunctionVectors(vectors, options.mode, scale, about), found


def _sources(prompt: str | None, file: Path | None, several: Path | None) -> list[str]:
    """Texts that the vectors come from."""
    if several is None:
        return [prompt_text(prompt, file)]
    if prompt is not None or file is not None:
        raise HeadwiseError("give one prompt (--prompt or --prompt-file), or several to average (--prompts), not both")
    return [row["prompt"] for row in _rows(several, "prompts", answered=False)]


def _rows(path: Path, what: str, answered: bool) -> list[dict[str, Any]]:
    """Lines with `prompt`, and with a list of `answers`."""
    from headwise.heads.files import read_json_lines

    found = []
    for place, row in read_json_lines(path, what):
        text = row.get("prompt") if isinstance(row, dict) else None
        if not isinstance(text, str) or not text.strip():
            raise HeadwiseError(f"{place}: a line needs a `prompt` that is not empty")
        answers = row.get("answers", [row["answer"]] if "answer" in row else [])
        fits = isinstance(answers, list) and answers and all(isinstance(one, str) and one.strip() for one in answers)
        if answered and not fits:
            raise HeadwiseError(f"{place}: a line needs an `answer` (a text), or `answers` (a list of texts)")
        found.append({"prompt": text, "answers": answers})
    if not found:
        raise HeadwiseError(f"{path} holds no {what}")
    return found


def _item(loaded: Model, row: Mapping[str, Any], wording: Mapping[str, Any]) -> VectorItem:
    from headwise.methods.vectors.search import VectorItem
    from headwise.prompts.encoder import PieceEncoder
    from headwise.prompts.prompt import Prompt

    text, wanted = row["prompt"], tuple(row["answers"])
    space = "" if wording["chat"] or text[-1:].isspace() else " "
    gold = PieceEncoder(loaded.tokenizer).encode(space + wanted[0].strip())
    return VectorItem(Prompt(prompt_ids(loaded, text, **wording), {}, gold), wanted)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise HeadwiseError(f"--scales takes numbers separated by commas, like 1,1.5,2; got {text!r}") from error


def _apply(loaded: Model, file: Path, text: str, wording: Mapping[str, Any], limit: int, json: bool) -> None:
    from headwise.evaluation.steered import continued
    from headwise.methods.vectors.file import load_vectors

    found, ids = load_vectors(file, loaded), prompt_ids(loaded, text, **wording)
    plain = continued(loaded, ids, limit)
    with found.inserted(loaded, len(ids) - 1):
        steered = continued(loaded, ids, limit)
    if json:
        o.print_json({"plain": plain, "steered": steered, **_facts(found)})
        return
    from headwise.report.console import print_all

    print_all(f"without    {plain.strip()}", f"with       {steered.strip()}", _line(found))


def _facts(found: FunctionVectors) -> dict[str, Any]:
    norms = found.vectors.norms
    return {
        "heads": [str(head) for head in found.vectors.heads],
        "shape": list(found.vectors.values.shape),
        "norms": [round(float(norm), 6) for norm in norms],
        "mode": found.mode,
        "scale": found.scale,
    }


def _line(found: FunctionVectors) -> str:
    norms = found.vectors.norms
    heads, size = found.vectors.values.shape
    return f"vectors    {heads} heads x {size}, norms {float(norms.min()):.3g} to {float(norms.max()):.3g}, mode {found.mode}, scale {found.scale:g}"


def _tell(made: FunctionVectors, found: SearchResult | None, path: Path, json: bool) -> None:
    told = None if found is None else found.to_json()
    if json:
        o.print_json({"vectors": str(path), **_facts(made), "search": told})
        return
    from headwise.report.console import print_all

    print_all(*([] if told is None else _search_lines(told)), _line(made), f"file       {path}")


def _search_lines(told: Mapping[str, Any]) -> Sequence[str]:
    """The scales on the development part, and the numbers of the other items."""
    tried = ", ".join(f"{row['scale']:g}: {row['share']:.2f}" for row in told["development"])
    plain, steered = told["plain"], told["steered"]
    lines = [
        f"scales     {tried} (share of development items answered as wanted)",
        f"{told['items']} other items: {plain['mean']:.2f} without, {steered['mean']:.2f} with vectors "
        f"({steered['low']:.2f} to {steered['high']:.2f}), McNemar p {told['p_mcnemar']:.2g}",
    ]
    if "random" in told:
        draws = told["random"]["draws"]
        lines.append(
            f"{len(draws)} draws of random heads of the same layers: {told['random']['mean']:.2f}, p rank {told['p_rank']:.2g}"
        )
    return lines

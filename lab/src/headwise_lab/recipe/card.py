"""Write the model card of a world model: `python -m headwise_lab.recipe.card FOLDER` (README.md from its recipe, log and results).

FOLDER holds the model, `recipe.json`, `training.jsonl` (the log of the training) and `results.json` (`headwise lab eval FOLDER --output`).
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from safetensors import safe_open

from headwise_lab.recipe.recipes import RECIPES, Recipe
from headwise_lab.recipe.world_rows import MIXES, Mix

LINES = 24  # of the training curve

INTRODUCTION = """# {name}: a small model of the micro-world

A language model for experiments with attention heads, trained to answer questions about short texts of the
[micro-world](../../../../../docs/microworld.md), to know the facts of its fixed world by heart, to write out steps, and to doubt
where it is cued to; the results below say how well it does. It is a laboratory animal, not an assistant.

| | |
|---|---|
| architecture | {architecture} |
| parameters | {parameters:,} (bfloat16 safetensors, {megabytes:.1f} MB) |
| tokenizer | byte-level BPE, 4,096 pieces, digits single, learnt from the books and the training split's made-up names (about two pieces each) |
| positions | {positions:,} |
| licence | Apache-2.0, as headwise; the training books are in the public domain, the micro-world is our own |
"""

DATA = """## Data

`books-large` (three of four files, without the three bundled haystack books), and the training split of the micro-world,
generated{articles}. Rows of {lengths} tokens: texts of the micro-world one after another; needle questions about synthetic facts in book
text, plain book text and repeated sequences as in `lab-6m`. Answer tokens weigh 4, repeated ones 2, book text and facts of the
fixed world 1, other contexts less. In two of five texts some of the words around names and values are dropped, exchanged or added.

{mixes}
"""


def describe_mix(name: str, mix: Mix) -> str:
    """One line of a list."""
    rest = f"{mix.needles:.0%} needles, {mix.books:.0%} books, {mix.repeats[1]:.0%} repeats ({mix.repeats[0]:.0%} at 128 tokens)"
    if mix.needles + mix.books + mix.repeats[0] >= 1:
        return f"- mix `{name}`: {rest}."
    said = [
        f"{share:.0%} of them {what}"
        for share, what in ((mix.find, "ask for a passage of running text"), (mix.recall, "say everything twice"))
        if share
    ]
    if mix.recall < 1:
        tasks = ", ".join(f"{task} {share / sum(mix.tasks.values()):.0%}" for task, share in mix.tasks.items())
        said += [f"the others drawn as {tasks}", f"{mix.small:.0%} of the texts are kept short"]
    return f"- mix `{name}`: {rest}; the other rows hold texts: {', '.join(said)}; contexts weigh {mix.context:g}."


def architecture(recipe: Recipe, name: str) -> str:
    """One line."""
    shape = f"{recipe.layers} layers x {recipe.heads} query heads (head size {recipe.head_dim}), {recipe.kv_heads} KV heads"
    return (
        f"`{name}`, {shape}, width {recipe.hidden}, feed-forward {recipe.ffn}, tied embeddings, RoPE base {recipe.rope_base:,.0f}"
    )


def describe_phases(recipe: Recipe) -> str:
    """The phases in one sentence."""
    parts = []
    for phase in (*recipe.phases, recipe.polish):
        if phase.steps:
            lengths = " and ".join(f"{n} ({share:.0%})" for n, share in zip(phase.lengths, phase.shares, strict=True))
            parts.append(f"{phase.steps} updates of {phase.tokens:,} tokens at length {lengths}, mix `{phase.mix}`")
    return "; ".join(parts)


def curve(log: list[dict[str, Any]]) -> str:
    """A table of about `LINES` evenly spread lines of the training log."""
    step = max(1, len(log) // LINES)
    chosen = log[::step] + ([log[-1]] if (len(log) - 1) % step else [])
    names = ("step", "length", "book_loss", "answer_loss", "answer_right", "repeat_right", "seconds")
    head = "| update | length | book loss | answer loss | answer tokens right | repeated tokens right | seconds |\n"
    head += "|---|---|---|---|---|---|---|\n"
    return head + "\n".join("| " + " | ".join(str(line[name]) for name in names) + " |" for line in chosen) + "\n"


def results(found: dict[str, Any]) -> str:
    """A table of the evaluation's rows with their goals."""
    lines = ["| task | n | value | 95 % interval | goal | |", "|---|---|---|---|---|---|"]
    for row in found["rows"]:
        if row["value"] is None:
            lines.append(f"| {row['task']} | 0 | not measured: {row['reason']} | | | |")
            continue
        scale, unit = (100, " %") if row["unit"] == "share" else (1, "")
        low, value, high = (f"{row[name] * scale:.3g}" for name in ("low", "value", "high"))
        goal = "" if row["goal"] is None else f"{row['goal'] * scale:.3g}{unit}"
        mark = {None: "", True: "met", False: "**missed**"}[row["met"]]
        lines.append(f"| {row['task']} | {row['n']} | {value}{unit} | {low} to {high} | {goal} | {mark} |")
    return "\n".join(lines) + "\n"


def card(folder: Path) -> str:
    """The text of README.md."""
    name, recipe = folder.name, RECIPES[folder.name]
    config = json.loads((folder / "config.json").read_text())
    log = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
    found = json.loads((folder / "results.json").read_text())["models"][0]
    weights = folder / "model.safetensors"
    with safe_open(weights, "np") as tensors:
        parameters = sum(math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118
    facts = {"name": name, "positions": recipe.positions, "parameters": parameters, "megabytes": weights.stat().st_size / 1e6}
    facts |= {"architecture": architecture(recipe, config["architectures"][0])}
    mixes = "\n".join(describe_mix(mix, MIXES[mix]) for mix in dict.fromkeys(phase.mix for phase in recipe.phases))
    note = f"\n{recipe.note}\n" if recipe.note else ""
    lengths = [length for phase in recipe.phases for length in phase.lengths]
    wiki = any(MIXES[phase.mix].find for phase in recipe.phases)
    articles = "; WikiText-2's validation split (Wikipedia, CC BY-SA 3.0) for passages to find" if wiki else ""
    start = f"Weights of `{recipe.start}`, continued. " if recipe.start else ""
    text = f"""## Recipe

`make lab MODEL={name} BOOKS=FOLDER{" WIKI=FILE" if wiki else ""}` (`headwise_lab.recipe`), all settings in `recipe.json`, seed {recipe.seed}. {start}
{describe_phases(recipe)}.
Muon on the matrices inside the layers ({recipe.matrix_rate:g}), AdamW on the rest ({recipe.other_rate:g}), bf16 autocast,
`torch.compile`; {log[-1]["seconds"] / 60:.0f} minutes on two cores that were also used for other work.
{note}
{curve(log)}
(training batches: fresh texts of the training split; all lines in `training.jsonl`.)

## Results

`headwise lab eval {name} --items {found["items"]} --seed {found["seed"]}`: the {found["split"]} split of the micro-world,
whose names, values and wordings are never trained on.

{results(found)}"""
    told = DATA.format(lengths=f"{min(lengths):,} to {max(lengths):,}", mixes=mixes, articles=articles)
    return INTRODUCTION.format(**facts) + "\n" + told + "\n" + text


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    (folder / "README.md").write_text(card(folder))


if __name__ == "__main__":
    main()

"""Which heads other lab models use: continuations, other seeds, other architectures, as their recipes relate them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headwise.claims.claim import Finding, Number
from headwise.claims.experiment import Bench, Measured, NotTestable
from headwise.claims.retrieval_head.same_heads import compared
from headwise.claims.retrieval_head.scores import detected, fitting_task, scored, shares_of_time, solved_share
from headwise.claims.retrieval_head.sizes import Sizes, sizes_of
from headwise.heads import HeadScores, NoSuccessfulRunError, PromptError
from headwise.models.load import load
from headwise.models.model import device_of
from headwise.models.names import bundled_models
from headwise.prompts.grid import even_depths
from headwise_lab.recipe.recipes import RECIPES

EXTENDED, SEED, FAMILY, TEXT = "extended", "other_seed", "other_family", "other_text"


@dataclass(frozen=True)
class Trained:
    """A model with the recipe that trained it.

    Attributes:
        name: Of its folder.
        folder: Where it is.
        recipe: The content of its recipe.json.
    """

    name: str
    folder: Path
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Trained:
        """The model of a folder.

        Raises:
            NotTestable: Its recipe is not there or broken.
        """
        try:
            return cls(folder.resolve().name, folder, dict(json.loads((folder / "recipe.json").read_text("utf-8"))))
        except (OSError, ValueError, TypeError) as error:
            raise NotTestable(f"needs a model beside its recipe.json ({error})") from error


def relation(a: Trained, b: Trained) -> str:
    """How two models are related, from their recipes; the same for (a, b) and (b, a).

    Returns:
        `extended`: one continues the other on longer contexts, or both the same one. `other_text`: another training text. `other_seed`: the same
        recipe, another seed. `other_family`: another architecture.
    """
    if _root(a) == _root(b):
        return EXTENDED
    if a.recipe.get("rows") != b.recipe.get("rows"):
        return TEXT
    return SEED if a.recipe.get("family") == b.recipe.get("family") else FAMILY


def _root(model: Trained) -> str:
    """The model whose weights it continues in the end."""
    name, start = model.name, model.recipe.get("start")
    while start and start != name:
        name = str(start)
        start = RECIPES[name].start if name in RECIPES else None
    return name


def others(mine: Trained) -> list[Trained]:
    """The other lab models that are installed, in the order of their recipes."""
    found = bundled_models()
    names = [name for name in RECIPES if name in found] + sorted(set(found) - set(RECIPES))
    return [one for one in (Trained.read(found[name]) for name in names) if one.folder.resolve() != mine.folder.resolve()]


def measure(bench: Bench) -> Measured:
    """The model's map beside those of its relatives, and beside its own in contexts that its base cannot take."""
    mine, sizes = Trained.read(bundled_models().get(bench.name, Path(bench.name))), sizes_of(bench)
    related = [(one, kind) for one in others(mine) if (kind := relation(mine, one)) != TEXT]
    parts = shares_of_time(bench, dict.fromkeys((mine.name, *(one.name for one, _ in related), "long contexts"), 1.0))
    scores = detected(bench, sizes, parts(mine.name))
    pairs: list[dict[str, Any]] = []
    for one, kind in related:
        model = load(str(one.folder), str(device_of(bench.model.hf)), "float32")
        if model.heads.shape != scores.shape:
            continue
        try:
            other = detected(bench, sizes, parts(one.name), model)
        except NotTestable:
            continue
        pairs.append({"other": one.name, "relation": kind} | compared(scores, other, sizes.seed))
    findings = {f"heads-models.{kind}": worst(pairs, kind) for kind in (EXTENDED, SEED, FAMILY)}
    findings["heads-models.own_lengths"] = own_lengths(bench, mine, scores, sizes)
    return Measured(findings, {"pairs": pairs, "values": scores.values.tolist()})


def worst(pairs: list[dict[str, Any]], kind: str) -> Finding:
    """The pair of a kind that speaks most against its claim: the least alike continuation, the most alike stranger."""
    mine = [pair for pair in pairs if pair["relation"] == kind]
    if not mine:
        return Finding.none(f"needs another lab model of the same shape that is related to it as {kind.replace('_', ' ')}")
    sign = 1 if kind == EXTENDED else -1
    pair = min(mine, key=lambda one: sign * (one["pearson"][0] if kind == EXTENDED else abs(one["pearson"][0])))
    numbers: dict[str, Number] = {name: pair[name] for name in ("pearson", "ceiling", "shuffled", "layers_alone", "top_8_shared")}
    return Finding(numbers | {"size": abs(pair["pearson"][0]), "pairs": len(mine)}, note=f"against {pair['other']}")


def own_lengths(bench: Bench, mine: Trained, scores: HeadScores, sizes: Sizes) -> Finding:
    """A continued model at lengths that its base cannot take, against itself at short ones."""
    positions = bench.model.positions or 0
    if not mine.recipe.get("start") or positions < 4 * max(sizes.lengths):
        return Finding.none("needs a model that was continued on contexts at least four times as long")
    lengths, needles = (positions // 2, positions * 7 // 8), max(1, sizes.needles // 4)
    try:
        task = fitting_task(bench.model, "detect", lengths, even_depths(sizes.depths), sizes, needles)
        own = scored(bench, task)
    except (NoSuccessfulRunError, PromptError) as error:
        return Finding.none(str(error))
    counts = {"solved_share": min(solved_share(scores), solved_share(own)), "solved": own.provenance["solved"], "runs": own.provenance["runs"]}
    return Finding(counts | compared(scores, own, sizes.seed))

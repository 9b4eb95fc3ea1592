"""Which models are measured, and how they are related: what follows from their recipes. A model without a recipe is a real one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from headwise.heads import HeadwiseError
from headwise.models.load import load
from headwise.models.model import Model
from headwise.models.names import bundled_model, bundled_models, folder_of, label
from headwise_lab.recipe.recipes import RECIPES

EXTENDED, SEED, FAMILY, TEXT, OTHER = "extended", "other seed", "other architecture", "other training text", "unknown"
LONGER, CHAT, NEEDLES = "longer contexts", "chat template", "other needles"
# One model against itself, on other prompts.
RETESTS = {
    LONGER: "the same model, on contexts eight times as long",
    CHAT: "the same model, asked in its chat template",
    NEEDLES: "the same model, on needles of the other half",
}
RELATIONS = {
    **RETESTS,
    EXTENDED: "base and its continuation on longer contexts",
    SEED: "same recipe, another seed",
    FAMILY: "same text, another architecture and seed",
    TEXT: "another training text and recipe",
    OTHER: "no recipe known",
}


@dataclass(frozen=True)
class LabModel:
    """A model to measure.

    Attributes:
        name: What results call it.
        folder: What `headwise.load` is given: a folder, a name or a hub id.
        recipe: The content of its recipe.json, empty if it has none.
        real: Whether it was trained elsewhere, on more than the micro-world: other sizes of measurements, and questions about the real world.
    """

    name: str
    folder: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    real: bool = False

    def load(self) -> Model:
        """Load it in float32 on the CPU; results name the model, not the place where it is installed."""
        model = load(self.folder, "cpu", "float32")
        return replace(model, name=self.name)


def bundled_names() -> list[str]:
    """Bundled models in the order of their recipes."""
    found = set(bundled_models())
    return [name for name in RECIPES if name in found] + sorted(found - set(RECIPES))


def choose_models(names: Sequence[str]) -> list[LabModel]:
    """Models by name, folder or hub id. Those without a recipe.json are real ones.

    Args:
        names: Which ones, each once; empty: all bundled lab models.

    Raises:
        HeadwiseError: There is no such model, two have the same name, or a recipe is broken.
    """
    known = bundled_names()
    chosen = []
    for name in dict.fromkeys(names or known):
        folder = bundled_model(name) if name in known else folder_of(name)
        if folder is None or (name not in known and not (folder / "recipe.json").is_file()):
            chosen.append(LabModel(label(name), name, real=True))
            continue
        chosen.append(LabModel(folder.resolve().name, str(folder), _recipe(folder / "recipe.json")))
    if len({model.name for model in chosen}) < len(chosen):
        raise HeadwiseError("two of the models have the same name; rename a folder, results are told apart by it")
    return chosen


def _recipe(path: Path) -> Mapping[str, Any]:
    try:
        return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}
    except (OSError, ValueError, TypeError) as error:
        raise HeadwiseError(f"{path} is no recipe ({error}); delete it or restore it") from error


def relation(a: LabModel, b: LabModel) -> str:
    """How two models are related, from their recipes.

    Returns:
        One of `RELATIONS`; the same for (a, b) and (b, a).
    """
    if not a.recipe or not b.recipe:
        return OTHER
    if _root(a) == _root(b):
        return EXTENDED
    if a.recipe.get("rows") != b.recipe.get("rows"):
        return TEXT
    return SEED if a.recipe.get("family") == b.recipe.get("family") else FAMILY


def _root(model: LabModel) -> str:
    """The model whose weights it continues in the end."""
    name, start = model.name, model.recipe.get("start")
    while start and start != name:
        name = str(start)
        start = RECIPES[name].start if name in RECIPES else None
    return name

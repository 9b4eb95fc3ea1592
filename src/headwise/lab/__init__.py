"""The bundled small models and the recipe that trained them."""

from __future__ import annotations

from pathlib import Path

DEFAULT = "lab-6m"


def bundled_model(name: str = DEFAULT) -> Path:
    """Folder of a bundled model; plain transformers can load it."""
    return Path(__file__).parent / "models" / name


def bundled_names() -> list[str]:
    """Names of the bundled models, in order."""
    return sorted(path.parent.name for path in bundled_model("").glob("*/config.json"))

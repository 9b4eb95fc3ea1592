"""Models that come with an installed package: names that work wherever a model is asked for."""

from __future__ import annotations

from pathlib import Path

DEFAULT = "lab-6m"


def bundled_model(name: str = DEFAULT) -> Path:
    """Folder of a bundled model; plain transformers can load it.

    Raises:
        KeyError: No bundled model has this name.
    """
    return bundled_models()[name]


def bundled_names() -> list[str]:
    """Names of the bundled models, in order."""
    return sorted(bundled_models())


def bundled_models() -> dict[str, Path]:
    """All bundled models: our own, and those of installed packages.

    An entry point of the group `headwise.models` names a module or package with a folder `models` beside it.

    Returns:
        Name -> folder.
    """
    from importlib.metadata import entry_points
    from importlib.util import find_spec

    folders = [Path(__file__).parent / "bundled"]
    for entry in entry_points(group="headwise.models"):
        spec = find_spec(entry.value)
        if spec is not None and spec.origin is not None:
            folders.append(Path(spec.origin).parent / "models")
    return {path.parent.name: path.parent for folder in folders for path in folder.glob("*/config.json")}

"""What can be known of a model from its configuration alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from headwise.heads.errors import HeadwiseError
from headwise.models.fetch import present
from headwise.models.load import quiet, read_config
from headwise.models.model import Model
from headwise.models.names import folder_of, label
from headwise.models.placement import skeleton_of
from headwise.models.registry import entry_named


def outline(
    name: str, dtype: torch.dtype, revision: str | None = None, trust_remote_code: bool = False, offline: bool = False
) -> Model:
    """A model without its weights, on torch's meta device: its heads, windows, positions and number of parameters are those of the real one.

    Args:
        name: A name of `headwise models list`, folder, or hub id. Only `config.json` must be there; of a hub model only that is fetched.
        dtype: Of its parameters.
        revision: Revision of a hub model.
        trust_remote_code: Run Python code that comes with the model.
        offline: Never fetch anything.

    Raises:
        HeadwiseError: There is no such model, or none can be built from its configuration. GGUF files and adapters are refused.
        UnsupportedModelError: Its family is not known.
    """
    entry = entry_named(name)
    here = None if entry is None else present(entry)
    asked = name if entry is None or here is not None else entry.hub
    if Path(name).suffix.lower() == ".gguf" and not Path(name).is_dir():
        raise HeadwiseError(f"{name!r} is a GGUF file; give the folder or hub id of the model that it was made from")
    folder = here or folder_of(asked, revision, offline=offline)
    if folder is not None and not (folder / "config.json").is_file():
        holds = "is an adapter; give its base model" if (folder / "adapter_config.json").is_file() else "holds no config.json"
        raise HeadwiseError(f"{name!r} {holds}; a folder with config.json or a hub id is needed")
    options = {"revision": revision, "trust_remote_code": trust_remote_code, "local_files_only": offline}
    with quiet():
        config = read_config(asked if folder is None else folder, options, name, folder)
        try:
            hf = skeleton_of(config, dtype)
        except Exception as error:  # of many kinds, for sizes that make no sense together
            said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise HeadwiseError(f"no model can be built from the configuration of {name!r}: {said}") from error
    return replace(Model(hf), name=label(name))

"""A model's configuration, read and checked, and what can be known of the model from it alone."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from headwise.heads.errors import HeadwiseError
from headwise.models.checkpoint import fault_of, some_of
from headwise.models.families import family_of, fault_of_numbers
from headwise.models.fetch import present
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


def read_config(source: str | Path, options: dict[str, Any], name: str, folder: Path | None) -> Any:
    """The configuration of a model that headwise knows; no weight is read.

    Args:
        source: Folder or hub id, as transformers takes it.
        options: Further arguments of transformers' `from_pretrained`.
        name: The model, for messages.
        folder: Where its files lie, if that is known: what is wrong with them is said.

    Raises:
        HeadwiseError: There is no configuration, or one that cannot be right.
        UnsupportedModelError: Its family is not known.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source, **options)
    except Exception as error:  # of many kinds, for files that are not what they should be
        raise refused(name, error, fault_of(folder, weights=False), "give a folder with config.json, or a hub id") from error
    family_of(config.model_type)
    fault = fault_of_numbers(config.get_text_config(decoder=True))
    if fault:
        raise HeadwiseError(f"the configuration of {name!r} cannot be right: {fault}")
    return config


def refused(name: str, error: Exception, fault: str | None, hint: str = "") -> HeadwiseError:
    """One line for whatever the libraries raised. fault: what is wrong with the files, if it was seen."""
    text = str(error)
    if "trust_remote_code" in text:
        hint = "look at the code, then allow it with trust_remote_code=True (--trust-remote-code)"
        return HeadwiseError(f"model {name!r} comes with its own Python code, which runs only if you allow it; {hint}")
    homeless = re.search(r"device_map provided does not give any device for the following parameters: (.*)", text)
    if homeless:
        text = f"the device_map names no device for {some_of(homeless[1].split(', '))}"
    seen = fault or text.strip().split("\n")[0].rstrip(".:") or type(error).__name__
    return HeadwiseError(f"cannot load model {name!r}: {seen}" + (f"; {hint}" if hint and not fault else ""))


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' tables of what did not fit: that is refused in one line. It also warns where weights are unpacked on purpose."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You passed `quantization_config`")
            yield
    finally:
        logging.set_verbosity(before)

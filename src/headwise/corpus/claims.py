"""Locks in a folder that several processes share: one small file per claimed name, touched as long as its owner lives.

A claim only avoids double work; results are right without it. If two processes score the same file after all, both write their own
temporary file with the same bytes, and the second rename replaces the first.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import uuid
from pathlib import Path


class Claims:
    """Claims of this process in `folder`. Use as a context manager: leaving it gives back what is still held."""

    def __init__(self, folder: Path, stale_seconds: float) -> None:
        """Nothing is claimed yet.

        Args:
            folder: Of the claims; local or mounted.
            stale_seconds: A claim not touched for so long is taken over; a dead process on the same machine is noticed at once.
        """
        self._folder, self._stale_seconds = folder, stale_seconds
        self._text = json.dumps(
            {"machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid()), "token": uuid.uuid4().hex}
        )
        self._held: set[Path] = set()
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._heart = threading.Thread(target=self._beat, name="claims", daemon=True)

    def __enter__(self) -> Claims:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._heart.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._heart.join()
        for path in list(self._held):
            self._give_back(path)

    def take(self, name: str) -> bool:
        """Whether `name` is ours now: it was free, or its owner has died."""
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        own = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        own.write_text(self._text)
        try:
            taken = self._take_free(own, path) or (self._stale(path) and self._take_over(own, path))
        finally:
            own.unlink(missing_ok=True)
        if taken:
            with self._lock:
                self._held.add(path)
        return taken

    def release(self, name: str) -> None:
        """Give `name` back."""
        self._give_back(self._path(name))

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def _give_back(self, path: Path) -> None:
        with self._lock:
            self._held.discard(path)
        with contextlib.suppress(OSError):
            if path.read_text() == self._text:  # not if another has taken it over
                path.unlink()

    def _beat(self) -> None:
        while not self._stop.wait(self._stale_seconds / 4):
            with self._lock:
                held = list(self._held)
            for path in held:
                with contextlib.suppress(OSError):
                    os.utime(path)

    def _take_free(self, own: Path, path: Path) -> bool:
        """Put our claim there, whole and at once, unless there is one."""
        try:
            try:
                os.link(own, path)
            except FileExistsError:
                raise
            except OSError:  # a file system without hard links: whole, but not at once
                with path.open("x") as file:
                    file.write(self._text)
        except FileExistsError:
            return False
        return True

    def _take_over(self, own: Path, path: Path) -> bool:
        """Replace a stale claim. Of several processes that see the same one, only the one that holds the turn may."""
        turn = path.with_name(f".{path.name}.turn")
        try:
            os.close(os.open(turn, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            if self._age(turn) > self._stale_seconds:  # its holder died; the next one to come finds it free
                turn.unlink(missing_ok=True)
            return False
        try:
            if not self._stale(path):  # another was faster, and this is its new claim
                return False
            os.replace(own, path)
            return True
        finally:
            turn.unlink(missing_ok=True)

    def _stale(self, path: Path) -> bool:
        """Whether the claim's owner is dead or has not touched it for too long. A claim that is gone by now is free, not stale."""
        try:
            return _dead(path.read_text()) or self._age(path) > self._stale_seconds
        except FileNotFoundError:
            return False

    def _age(self, path: Path) -> float:
        """Seconds since a claim was touched, by the clock of the file system: machines' own clocks may differ."""
        probe = self._folder / f".clock-{uuid.uuid4().hex}"
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
        try:
            return now - path.stat().st_mtime
        except FileNotFoundError:
            return 0.0


def _dead(text: str) -> bool:
    """Whether a claim's owner ran here and runs no more. Elsewhere, or where this cannot be told, only the age of a claim counts."""
    try:
        owner = json.loads(text)
        here = owner["machine"] is not None and owner["machine"] == _machine()
        return bool(here and _started(int(owner["pid"])) != owner["started"])
    except (ValueError, KeyError, TypeError):
        return False


def _machine() -> str | None:
    """The running boot of this machine, and this container's process numbers; None where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """When a process began, in ticks since boot, so that a process number used again is no sign of life; None if there is none, or it is dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return None

"""What is installed and what the machine has, found out without importing any of it: that alone takes seconds."""

from __future__ import annotations

import ctypes
import os
import platform
import runpy
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import metadata, util
from pathlib import Path
from typing import Any, NamedTuple

# Extra -> what it brings; the extras of contributors are not listed.
FEATURES: Mapping[str, str] = {
    "lm-eval": "ablate --task lm-eval:NAME",
    "report": "pictures (.png, .svg); pages need no extra",
    "serve": "serve",
    "parquet": "RULER's files in bench cache",
    "scale": "select",
    "ray": "select score --runner ray",
    "rank": "measures of rank, and BM25",
    "gguf": "models in GGUF files",
    "adapters": "models with an adapter of peft (LoRA)",
    "devices": "models on several devices, quantized checkpoints",
    "train": "train mudaf, rank, rhio and scales",
}
PACKAGE = "headwise"


class Package(NamedTuple):
    """A required package. installed: its version, or None. problem: what is wrong with it, or None."""

    name: str
    wanted: str
    installed: str | None
    problem: str | None


def packages(extra: str | None = None) -> list[Package]:
    """The packages that headwise needs, or that one of its extras adds; extras of other extras included."""
    return list(_packages(extra, frozenset()))


def _packages(extra: str | None, seen: frozenset[str]) -> Iterator[Package]:
    from packaging.requirements import Requirement

    chosen = {"extra": extra or ""}
    for text in metadata.requires(PACKAGE) or []:
        wanted = Requirement(text)
        always = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
        if always if extra else not always:
            continue
        if wanted.marker is not None and not wanted.marker.evaluate(chosen):
            continue
        if wanted.name == PACKAGE:
            for other in wanted.extras - seen:
                yield from _packages(other, seen | {other})
        else:
            yield _package(wanted)


def _package(wanted: Any) -> Package:
    try:
        version = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return Package(wanted.name, str(wanted.specifier), None, "not installed")
    fits = wanted.specifier.contains(version, prereleases=True)
    return Package(wanted.name, str(wanted.specifier), version, None if fits else f"{version} does not fit {wanted.specifier}")


def system() -> dict[str, Any]:
    """Python, system, name of the processor, cores this process may use, bytes of memory (None where the system does not tell)."""
    memory = None
    with suppress(AttributeError, ValueError, OSError):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    told = {"python": platform.python_version(), "system": platform.platform(terse=True), "processor": processor()}
    return told | {"cores": cores, "memory": memory}


def processor() -> str | None:
    """The name of the processor; None where the system does not tell."""
    with suppress(OSError, UnicodeError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip() or None
    return platform.processor() or None


def gpus() -> list[str]:
    """Names of the NVIDIA GPUs that the driver shows to this process."""
    with suppress(OSError, AttributeError):
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        count = ctypes.c_int()
        if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0:
            names = [ctypes.create_string_buffer(256) for _ in range(count.value)]
            return [name.value.decode() for i, name in enumerate(names) if driver.cuDeviceGetName(name, 256, i) == 0]
    return []


def torch_cuda() -> str | None:
    """The CUDA release torch was built for; None for a CPU build, or without torch."""
    with suppress(ImportError, OSError, AttributeError):
        spec = util.find_spec("torch")
        version = Path(spec.origin).with_name("version.py")  # type: ignore[union-attr,arg-type]
        found = runpy.run_path(str(version)).get("cuda")
        return None if found is None else str(found)
    return None


def hub_cache() -> dict[str, Any]:
    """Where hub models are kept (the variables of huggingface_hub), how many are there, free bytes, and whether the hub may be asked."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    folder = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    models = len(list(folder.glob("models--*"))) if folder.is_dir() else 0
    return {"folder": str(folder), "models": models, "free": shutil.disk_usage(existing).free, "offline": offline}

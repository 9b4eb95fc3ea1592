"""How soon a page can be read, and how soon the command line answers: the limits of the explorer and the documentation.

The page is an explorer of 32 x 32 heads and 600 runs of random scores (nothing compresses worse). `page_open_seconds` is from opening the file to
the drawn heat map of the first file, and `page_done_seconds` to the last chart that is visible; the baseline is an empty page with the same
drawing library inside. Needs a Chromium and playwright; `docs` needs mkdocs (headwise[docs]).
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import best_of, hardware, options, show

from headwise.heads import HeadScores
from headwise.report.explorer import write_explorer
from headwise.report.page.shell import Html, document

LAYERS, HEADS, RUNS = 32, 32, 600
PARTS = ("page", "docs", "commands")
LISTEN = "addEventListener('drawn', (e) => { (window.drawnAt ??= {})[e.detail.name] = performance.now(); })"


def made_up() -> HeadScores:
    """Random scores with everything that a detector stores."""
    rng = np.random.default_rng(0)
    runs = rng.random((RUNS, LAYERS, HEADS), dtype=np.float32)
    info = tuple({"length": 1000 * (1 + i % 20), "depth": round((i % 10) / 9, 4)} for i in range(RUNS))
    cells = [dict(run) | {"recall": float(rng.random())} for run in info]
    provenance = {"model": "made-up", "kv_heads": 8, "cells": cells}
    return HeadScores(runs.mean(0).astype(float), "copy", runs=runs, run_info=info, provenance=provenance)


def page_times(repeats: int) -> dict[str, object]:
    from playwright.sync_api import sync_playwright

    chromium = next(found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name)))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        page = write_explorer([(Path("made-up.json"), "heads", made_up())], Path(folder) / "page.html")
        empty = Path(folder) / "empty.html"
        empty.write_text(document("empty", Html(), data={}))
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened: list[tuple[float, float, float]] = []
        for _ in range(max(5, repeats)):
            view = browser.new_page(viewport={"width": 1280, "height": 900})
            view.add_init_script(LISTEN)
            view.goto(page.as_uri())
            view.wait_for_function("document.body.dataset.drawn === 'true'")
            times = view.evaluate("window.drawnAt")
            view.goto(empty.as_uri())
            idle = view.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
            opened.append((times["map-1"], max(times.values()), idle))
            view.close()
        browser.close()
        seconds = [statistics.median(column) / 1000 for column in zip(*opened, strict=True)]
        names = ("page_open_seconds", "page_done_seconds", "empty_page_seconds")
        return {"page_megabytes": page.stat().st_size / 1e6} | dict(zip(names, seconds, strict=True))


def docs_time() -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
        (seconds,) = best_of(1, _run(build))
    return {"docs_build_seconds": seconds}


def command_times(repeats: int) -> dict[str, object]:
    """Each in a fresh process, in turns with an empty Python."""
    program = str(Path(sys.executable).with_name("headwise"))
    commands = {
        "empty_python_seconds": [sys.executable, "-c", "pass"],
        "import_seconds": [sys.executable, "-c", "import headwise"],
        "help_seconds": [program, "--help"],
        "doctor_seconds": [program, "doctor"],
    }
    seconds = best_of(max(5, repeats), *map(_run, commands.values()))
    return dict(zip(commands, seconds, strict=True))


def _run(command: list[str]) -> Callable[[], object]:
    return lambda: subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)


def main() -> None:
    chosen = options(__doc__)
    parts = chosen.only.split(",") if chosen.only else PARTS
    result: dict[str, object] = {}
    if "page" in parts:
        result |= page_times(chosen.repeats)
    if "docs" in parts:
        result |= docs_time()
    if "commands" in parts:
        result |= command_times(chosen.repeats)
    show(result | {"hardware": hardware()}, chosen.json)


if __name__ == "__main__":
    main()

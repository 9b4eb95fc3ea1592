"""How long `headwise --help` takes (median of repeats, each a fresh process). Baseline: an empty Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from common import best_of, hardware, options, show


def main() -> None:
    chosen = options(__doc__)
    command = [str(Path(sys.executable).with_name("headwise")), "--help"]
    run = lambda args: lambda: subprocess.run(args, stdout=subprocess.DEVNULL, check=True)  # noqa: E731
    seconds, empty = best_of(max(5, chosen.repeats), run(command), run([sys.executable, "-c", "pass"]))
    show({"help_seconds": seconds, "empty_python_seconds": empty, "hardware": hardware()}, chosen.json)


if __name__ == "__main__":
    main()

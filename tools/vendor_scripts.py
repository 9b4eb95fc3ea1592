"""Fetch the scripts that draw the charts of pages, with their licences.

python tools/vendor_scripts.py vega@6.4.0 vega-lite@6.4.3 vega-embed@7.3.0

Needs npm. Writes the minified files of the releases as they are, LICENSES.txt and SOURCE.md into src/headwise/report/page/vendor. Afterwards run
tests/unit/test_page.py and tests/browser, which draw every chart.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parents[1] / "src/headwise/report/page/vendor"
NOT_INSIDE = {
    "commander",
    "iconv-lite",
    "rw",
    "yargs",
    "tslib",
    "vega-typings",
}  # used by command lines, helpers without a licence duty, types
BUNDLED = (
    "fast-json-patch",
    "json-stringify-pretty-compact",
    "semver",
    "vega-interpreter",
    "vega-schema-url-parser",
    "vega-themes",
    "vega-tooltip",
)
HEAD = """# Where these scripts come from

Minified files of npm releases, unchanged; LICENSES.txt has the licences of everything inside. Pages carry them, so that they work offline.
To update: `python tools/vendor_scripts.py vega@VERSION vega-lite@VERSION vega-embed@VERSION`, which also writes this file.

| file | package | sha256 |
|---|---|---|
"""


def packages(modules: Path, name: str, seen: set[str]) -> Iterator[str]:
    """`name` and what it is made of."""
    if name in seen or name in NOT_INSIDE or name.startswith("@types/") or not (modules / name).is_dir():
        return
    seen.add(name)
    yield name
    for needed in json.loads((modules / name / "package.json").read_text("utf-8")).get("dependencies", {}):
        yield from packages(modules, needed, seen)


def licences(modules: Path) -> str:
    """Every licence text once, under the packages it belongs to."""
    seen: set[str] = set()
    names = [found for name in ("vega", *BUNDLED) for found in packages(modules, name, seen)] + ["vega-lite", "vega-embed"]
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        version = json.loads((modules / name / "package.json").read_text("utf-8"))["version"]
        text = next(path for path in sorted((modules / name).iterdir()) if path.name.lower().startswith(("license", "licence")))
        groups.setdefault(text.read_text("utf-8").replace("\r", "").strip(), []).append(f"{name} {version}")
    line = "=" * 80
    parts = [f"{line}\n{', '.join(held)}\n{line}\n\n{text}\n" for text, held in groups.items()]
    return "\n".join(["The scripts of this folder contain these packages, under these licences.\n", *parts])


def main(wanted: list[str]) -> None:
    """Fetch, copy, write."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", folder, *wanted], check=True)
        modules, rows = Path(folder) / "node_modules", []
        for name in ("vega", "vega-lite", "vega-embed"):
            script = (modules / name / "build" / f"{name}.min.js").read_bytes()
            (HERE / f"{name}.min.js").write_bytes(script)
            version = json.loads((modules / name / "package.json").read_text("utf-8"))["version"]
            rows.append(f"| {name}.min.js | {name} {version} | {hashlib.sha256(script).hexdigest()} |\n")
        (HERE / "LICENSES.txt").write_text(licences(modules), "utf-8")
        (HERE / "SOURCE.md").write_text(HEAD + "".join(rows), "utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(sys.argv[1:])

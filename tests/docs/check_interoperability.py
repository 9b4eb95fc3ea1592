"""Run the blocks of docs/interoperability.md that need TransformerLens or nnsight. Not a test of the suite: both want an environment of their own.

PYTHONPATH=src VENV/bin/python tests/docs/check_interoperability.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.docs.blocks import ROOT, blocks_of  # the path comes first

WANTED = ("transformer-lens", "nnsight")


def main() -> None:
    names: dict = {}
    blocks = [block for block in blocks_of(ROOT / "docs" / "interoperability.md") if block.language == "python"]
    chosen = [blocks[0], *(block for block in blocks if block.reason and any(name in block.reason for name in WANTED))]
    assert len(chosen) == 4, "the page has changed; adapt this script"
    for block in chosen:
        # nnsight reads the source of its blocks, so the code must stand in a file of the line cache.
        code = "\n" * block.line + block.text
        import linecache

        linecache.cache[str(block)] = (len(code), None, code.splitlines(keepends=True), str(block))
        exec(compile(code, str(block), "exec"), names)
        print(f"{block}: ok")


if __name__ == "__main__":
    main()

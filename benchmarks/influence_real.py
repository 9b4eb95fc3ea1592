"""AttentionInfluence on real text: novels, WikiText-2, GSM8K and code of Python's standard library, scored, chosen and put on the report page.

    python benchmarks/influence_real.py --data FOLDER --output FOLDER [--model world-6m-long] [--documents 200]

--data holds `books-public-domain/*.md.gz`, `wikitext-2/test.txt.gz` and `gsm8k/test.jsonl.gz`. Runs the same commands as a user would; --output gets
the corpus, the scores, a choice by each rule, and page.html.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np

WORDS = (80, 400)  # of a passage, evenly on a log scale
TITLE = re.compile(r"^ = [^=].* = $")


def read(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode()


def passages(text: str, rng: np.random.Generator, limits: tuple[int, int] = WORDS) -> Iterator[str]:
    """Whole lines, as many as reach a drawn number of words."""
    lines: list[str] = []
    words, wanted = 0, 0.0
    for line in text.splitlines():
        wanted = wanted or float(np.exp(rng.uniform(*np.log(limits))))
        lines.append(line)
        words += len(line.split())
        if words >= wanted:
            yield "\n".join(lines).strip()
            lines, words, wanted = [], 0, 0.0


def articles(text: str) -> Iterator[str]:
    """Articles of WikiText from title to title."""
    found: list[str] = []
    for line in text.splitlines():
        if TITLE.match(line) and found:
            yield "\n".join(found).strip()
            found = []
        found.append(line.strip())
    yield "\n".join(found).strip()


def domains(data: Path, rng: np.random.Generator) -> Iterator[tuple[str, list[str]]]:
    """(name, documents) of the four domains."""
    novels = [piece for path in sorted((data / "books-public-domain").glob("*.md.gz")) for piece in passages(read(path), rng)]
    yield "novels", novels
    yield "wikitext", list(articles(read(data / "wikitext-2" / "test.txt.gz")))
    sums = [json.loads(line) for line in read(data / "gsm8k" / "test.jsonl.gz").splitlines()]
    yield "gsm8k", [f"{one['question']}\n{one['answer']}" for one in sums]
    library = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    yield "code", [piece for path in library for piece in passages(path.read_text("utf-8", errors="replace"), rng)]


def make_corpus(data: Path, folder: Path, count: int) -> None:
    """One file per domain, `count` documents drawn from each."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for name, texts in domains(data, rng):
        texts = [text for text in texts if text]
        chosen = sorted(rng.permutation(len(texts))[:count])
        with gzip.open(folder / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps({"text": texts[i]}) + "\n" for i in chosen)


def headwise(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "headwise", *arguments], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", default="world-6m-long")
    parser.add_argument("--documents", type=int, default=200, help="of each domain")
    parser.add_argument("--samples", type=int, default=64, help="proxy prompts")
    given = parser.parse_args()
    corpus, heads, scores = given.output / "corpus", given.output / "heads.json", str(given.output / "scores")
    if not corpus.exists():
        make_corpus(given.data, corpus, given.documents)
    proxy = ("--length", "512", "--pairs", "8", "--samples", str(given.samples), "--min-accuracy", "0.1")
    headwise("detect", "proxy", given.model, *proxy, "-o", str(heads), "--overwrite")
    headwise("select", "score", str(corpus), "-m", given.model, "--heads", str(heads), "--domain-from", "file", "-o", scores)
    for rank in ("random", "longest", "perplexity"):
        headwise("select", "choose", scores, "--rank", rank, "-o", f"{scores}/{rank}", "--overwrite")
    headwise("select", "choose", scores, "--strata", "5", "-o", f"{scores}/by-length", "--overwrite")
    headwise("select", "choose", scores, "--overwrite")
    headwise("select", "report", scores, "-o", str(given.output / "page.html"), "--overwrite")


if __name__ == "__main__":
    main()

"""What pages may use without making it: files named as the pages name them, and Python names. Also what is made smaller, or not run here.

Everything is made from the bundled models and from made-up scores, so that a page costs seconds.
"""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from headwise.cli.options import installed
from tests.docs.blocks import ROOT

# Commands that cannot run here, wherever they stand. They are still checked against the command line.
NOT_RUN = {
    r"detect (in-context|parametric|task|retrieval) ": "needs a data set that is not shipped; tests/cli/test_detect_atlas.py",
    r"^headwise trace ": "needs a probe for the model; tests/cli/test_trace.py",
    r"^headwise steer ": "needs head files and a prompt; tests/cli/test_steer.py",
    r"--chat\b": "needs a model with a chat template",
    r"lm-eval:": "needs data of lm-evaluation-harness",
    r"^headwise demo": "takes two minutes; .ci/run runs it",
    r"--(install|show)-completion": "changes the reader's shell",
    r"^headwise serve": "a server that does not end; tests/cli/test_serve.py runs it",
    r"^headwise lab eval": "takes many minutes; tests/cli/test_lab.py runs it in small",
    r"--paper-grid|--until-stable": "takes many minutes",
}

# Options put behind a command; the last one given counts. Pages that bring all they need are run as they stand.
SMALLER = {
    "headwise bench decode": "--lengths 300 --budgets 64 --contexts 1 --steps 4 --tasks needle --overwrite",
    "headwise train chooser": "--steps 2 --length 96 --batch 1 --overwrite",
    "headwise train mudaf": "--steps 2 --length 256 --rank 2",
    "headwise train rank": "--steps 2 --length 256 --rank 2",
    "headwise train scales": "--steps 2 --accumulate 1 --length 256",
    "headwise plan": "--length 1k",
    "headwise detect query": "--overwrite",
    "headwise detect proxy": "--samples 4 --pairs 4 --length 512 --min-accuracy 0 --overwrite",
    "headwise detect gate": "--lengths 200,300 --steps 2 --sinks 16 --recent 32 --overwrite",
    "headwise detect semantic": "--lengths 128 --depths 2 --min-runs 1 --needles two.jsonl --overwrite",
    "headwise detect": "--lengths 128 --depths 2 --needles two.jsonl --overwrite",
    "headwise ablate": "--top 2 --lengths 128 --depths 1 --controls 1 --needles two.jsonl --overwrite",
    "headwise needle": "--lengths 128 --depths 1 --needles two.jsonl --overwrite",
    "headwise bench cache --ruler": "--items 1 --budgets 0.3 --overwrite",
    "headwise bench cache --data": "--budgets 0.3 --overwrite",
    "headwise bench cache": "--items 1 --tasks needle --lengths 300 --budgets 0.3 --overwrite",
    "headwise bench faithful": "--items 2 --max-new-tokens 4 --overwrite",
    "headwise bench reader": "--items 4 --controls 2 --overwrite",
    "headwise rank": "--overwrite",
    "headwise select score": "--max-len 128 --batch-tokens 512",
    "headwise generate": "--max-new-tokens 4",
    "headwise doubt find": "--lengths 128 --depths 2 --items 12 --knock-outs 1 --overwrite",
    "headwise doubt calm": "--lengths 128 --depths 2 --items 12 --top 1 --controls 1 --no-side-effects --overwrite",
    "headwise doubt measure": "--lengths 128 --depths 2 --items 16 --overwrite",
}

# The same for Python: text of a page -> what is run in its place.
REPLACED = {
    "Gates(steps=400,": "Gates(steps=2, min_right=0.0,",
    "lengths=(500, 1200), keys=5, words=8), count=50": "lengths=(260, 400), keys=2, words=2), count=2",
    "max_new_tokens=64": "max_new_tokens=4",
}
if tuple(map(int, version("transformers").split(".")[:2])) >= (5, 24):  # which warns about the old name
    REPLACED["past_key_values="] = "cache="

# Pages whose MODEL must look up keys in a table, which lab-6m never learned.
READERS = ("docs/scale.md", "docs/select.md", "docs/methods/attention-influence.md")
PASSAGES = [
    "The red door leads to the garden.",
    "Ada has the key of the tower.",
    "A boat came back over the sea.",
    "The mill is old.",
]
QUERY = "Who has the key?"


def smaller(words: list[str]) -> list[str]:
    """The command with the options of the first fitting line of SMALLER behind it, and on the bundled model in place of the real one."""
    words = ["lab-6m" if word == "smollm2" else word for word in words]
    for start, options in SMALLER.items():
        if all(part in words for part in start.split()) and not (start == "headwise detect" and words[2:3] and words[2] in _detectors()):
            return [*words, *options.split()]
    return words


def _detectors() -> set[str]:
    """Detectors that have options of their own; `copy` is meant where none is named."""
    return set(installed("detectors")) - {"copy"}


def reason_not_to_run(words: list[str]) -> str | None:
    """Why a command is not run here, or None."""
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, " ".join(words))), None)


def prepare(folder: Path, page: str) -> None:
    """Put models, head files, texts and questions into `folder`, under the names that pages use."""
    from headwise.heads import save_heads
    from headwise.models.names import bundled_model
    from headwise.prompts.haystack import bundled_texts
    from headwise.prompts.needles import bundled_needles

    for name in ("MODEL", "owner/name", "path/or/hub-id"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(bundled_model("world-6m" if page in READERS else "lab-6m"))
    for name in ("FILE", "H.json", "heads.json", "headwise-out/model.copy.json"):
        save_heads(made_up_scores("copy"), folder / name)
    save_heads(made_up_scores("gate"), folder / "G.json")
    save_heads(made_up_scores("query"), folder / "headwise-out/model.query.json")
    write_lines(folder / "two.jsonl", [vars(needle) for needle in bundled_needles("test")[:2]])
    write_lines(folder / "mine.jsonl", [vars(needle) for needle in bundled_needles("test")[:2]])
    asked = {"context": " ".join(PASSAGES), "question": QUERY, "answer": "Ada", "id": "key"}
    write_lines(folder / "questions.jsonl", [asked, asked | {"id": "boat", "question": "What came back?", "answer": "A boat"}])
    write_lines(folder / "labelled.jsonl", [{"query": QUERY, "passages": PASSAGES, "gold": [1]}] * 4)
    write_lines(folder / "train.jsonl", [{"query": QUERY, "passages": PASSAGES, "gold": [1], "answers": ["Ada"]}] * 4)
    write_lines(folder / "answers.jsonl", [{"question": QUERY, "documents": PASSAGES, "answers": ["Ada has the key."]}] * 2)
    save_heads(made_up_scores("mdqa"), folder / "mdqa.json")
    write_lines(folder / "q.jsonl", [{"id": "q1", "text": QUERY}])
    write_lines(folder / "p.jsonl", [{"id": f"p{i}", "text": text} for i, text in enumerate(PASSAGES)])
    (folder / "examples").symlink_to(ROOT / "examples")  # pages name its files as they lie in a clone
    (folder / "texts").mkdir()
    text = "\n\n".join(bundled_texts())[20_000:80_000]
    (folder / "texts" / "book.txt").write_text(text, "utf-8")
    (folder / "F").write_text(text[:2_000], "utf-8")
    beir(folder / "FOLDER")
    ruler(folder / "niah_single_1.parquet", text[:1_500])
    corpus(folder / "corpus", text)


def beir(folder: Path) -> None:
    """A collection in BEIR's layout."""
    (folder / "qrels").mkdir(parents=True)
    write_lines(folder / "corpus.jsonl", [{"_id": f"p{i}", "title": "", "text": text} for i, text in enumerate(PASSAGES)])
    write_lines(folder / "queries.jsonl", [{"_id": "q1", "text": QUERY}])
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tp1\t1\n")


def corpus(folder: Path, text: str) -> None:
    """Six documents of two domains in one Parquet file."""
    pyarrow = pytest.importorskip("pyarrow", reason="a page reads parquet: pip install 'headwise[parquet]'")
    from pyarrow import parquet

    rows = [{"id": f"d{i}", "text": text[700 * i : 700 * (i + 1)], "domain": ("novels", "letters")[i % 2]} for i in range(6)]
    folder.mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "part-00017.parquet")


def ruler(path: Path, context: str) -> None:
    """One question in RULER's layout."""
    pyarrow = pytest.importorskip("pyarrow", reason="a page reads parquet: pip install 'headwise[parquet]'")
    from pyarrow import parquet

    row = {"context": context, "question": "What is the number?", "answer_prefix": " It is", "answer": ["1"], "max_new_tokens": 2}
    parquet.write_table(pyarrow.Table.from_pylist([row]), path)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """JSON lines."""
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", "utf-8")


def made_up_scores(score: str) -> Any:
    """Scores for the lab model that nobody measured: all different, in (0, 1), with runs."""
    import numpy as np

    from headwise import HeadScores

    rng = np.random.default_rng(0)
    values = rng.permutation(np.linspace(0.01, 0.99, 64)).reshape(8, 8)
    if score == "gate":
        values = np.repeat(values[:, ::2], 2, axis=1)  # one gate per KV head
    runs = np.stack([values] * 4).astype(np.float32)
    return HeadScores(
        values, score, 1, runs, tuple({"length": 128, "depth": d, "needle": 0, "window": 0} for d in (0.0, 0.3, 0.7, 1.0))
    )


def common_names(model: Any) -> dict[str, Any]:
    """Python names that the blocks of any page may use. Made once: encoding a bundled book takes a second."""
    import torch

    from headwise.methods.duo.prompts import VaultOptions, vault_texts
    from headwise.prompts.encoder import PieceEncoder
    from headwise.prompts.grid import GridOptions, Task
    from headwise.prompts.haystack import Haystack, bundled_texts
    from headwise.prompts.needles import NeedleComposer, bundled_needles

    encoder = PieceEncoder(model.tokenizer)
    text, haystack = encoder.encode(bundled_texts()[0][:6_000]), Haystack(bundled_texts()[:1], encoder)
    ids = torch.tensor([text[:400]])
    grid = GridOptions((128,), (0.0, 0.3, 0.6, 1.0), 1, (0.0, 0.9), 0)
    return {
        "model": model,
        "hf": model.hf,
        "ids": ids,
        "story": bundled_texts()[0][:3_000],
        "text": bundled_texts()[0][:1_300],
        "inputs": {"input_ids": ids},
        "context": ids,
        "questions": [torch.tensor([text[400:410]]), torch.tensor([text[410:420]])],
        "passages": PASSAGES,
        "task": Task(bundled_needles("detect"), haystack, NeedleComposer(encoder), grid),
        "texts": vault_texts(haystack, encoder, VaultOptions(lengths=(340, 400), keys=2, words=2), count=1),
        "prompts": [text[:200], text[200:400]],
        "answers": [text[400:404], text[404:408]],
        "names": ["novels", "novels"],
        "path": Path("errors.json"),
        "gates": made_up_scores("gate"),
        "heads": made_up_scores("copy"),
        "torch": torch,
    }


def names_for(page: str, common: dict[str, Any]) -> dict[str, Any]:
    """The same, with what differs on one page."""
    if page == "docs/methods/query-heads.md":
        return common | {"heads": common["heads"].top(8)}
    if page == "docs/methods/attention-influence.md":
        return common | {"text": common["story"], "texts": [common["story"]]}
    if page in ("docs/scale.md", "docs/select.md"):
        import pyarrow
        from pyarrow import parquet

        from headwise.testing.stub_scorer import StubScorer

        batch = pyarrow.RecordBatch.from_pylist([{"id": "d1", "source": "novels", "text": common["story"]}])
        return common | {"pq": parquet, "scorer": StubScorer(), "batch": batch}
    return common

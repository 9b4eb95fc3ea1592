"""A browser, and pages made from made-up results, so that no model has to run."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from headwise.heads import load_heads
from headwise.report.explorer import write_explorer
from tests.unit.test_explorer import PUBLISHED, made_up, sweep

EVIL = "<script>alert(1)</script>"
SHOTS = Path(os.environ.get("HEADWISE_SCREENSHOTS", "headwise-out/screenshots")).resolve()


@pytest.fixture(scope="module")  # not longer: while the driver runs, nobody else can run an event loop
def browser():
    """Chromium; the tests are skipped where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
    path = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
    with api.sync_playwright() as driver:
        try:
            started = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except api.Error as error:
            pytest.skip(f"no chromium could be started (apt-get install chromium): {str(error).splitlines()[0]}")
        yield started
        started.close()


@pytest.fixture
def visit(browser):
    """visit(path, width, scheme, hash) -> the page once its charts are drawn; what it logged, asked for and alerted is in page.told."""
    contexts = []

    def open(path, width=1280, scheme="light", fragment=""):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.told = []
        page.on("console", lambda message: page.told.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: page.told.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (page.told.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda r: r.url.startswith(("file:", "data:", "blob:")) or page.told.append(f"request: {r.url}"))
        page.goto(Path(path).as_uri() + fragment)
        drawn(page)
        return page

    yield open
    for context in contexts:
        context.close()


def drawn(page):
    """Wait until every chart that can be seen has been drawn."""
    page.wait_for_function(
        """() => !document.querySelector(".chart") || [...document.querySelectorAll(".chart")].every(
             (chart) => !chart.getClientRects().length || chart.querySelector("svg.marks"))"""
    )


def shot(page, name):
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


def traces():
    words = [
        "<s>",
        *[f" word{i}" for i in range(120)],
        " The",
        " code",
        " is",
        f" {EVIL}",
        ".",
        *[f" more{i}" for i in range(60)],
        " Which",
        "?",
    ]
    needle = {"needle": [121, 126], "answer": [124, 125], "question": [186, 188]}
    looked = {
        "L3H4": [[[124, 0, 3], [5, 126, 0]], [[910, 50, 20], [400, 300, 100]]],
        "L0H0": [[[0, 1, -1]] * 2, [[990, 5, 0]] * 2],
    }
    one = {
        "pieces": [*words, f" {EVIL}", "."],
        "prompt": len(words),
        "spans": needle,
        "heads": looked,
        "info": {"about": f"Wanted: {EVIL}"},
    }
    return [one, one | {"info": {"about": "second"}}]


def ranking():
    pieces = [("Passage 1:", 0.0), (" The", -0.1), (f" {EVIL}", 0.9), (" mill", 0.4)]
    rows = [{"id": f"p{i}", "rank": i, "before": 3 - i, "score": 1 / i, "grade": 2 - i, "pieces": pieces} for i in (1, 2)]
    measures = [{"measure": "nDCG@10", "value": 0.9, "low": 0.8, "high": 1.0, "queries": 2}]
    queries = [{"query": f"Who painted {EVIL}?", "candidates": 9, "passages": rows}] * 2
    return {"model": "m", "heads": ["L0H1"] * 20, "total": 5, "queries": queries, "measures": measures}


def traced():
    labels = ["read", "read", "unsure", "remembered"]
    words = [" The", f" {EVIL}", " mill", "."]
    tokens = [
        {
            "text": word, "probability": p, "label": label, "position": 6 + i, "passage": f"doc {EVIL}", "special": False,
            "excerpt": f"was {word} painted", "shares": {f"doc {EVIL}": 0.8, "other": 0.2}, "sources": [[6 + i, 1.0], [3, 0.4], [50, 0.2]],
        }
        for i, (word, p, label) in enumerate(zip(words, (0.99, 0.8, 0.5, 0.04), labels, strict=True))
    ]  # fmt: skip
    tokens.append(tokens[0] | {"text": "<end>", "special": True})
    passages = [
        {"name": f"doc {EVIL}", "share": 0.8, "drop": 3.2, "start": 1, "pieces": [f" word{i}" if i != 5 else f" {EVIL}" for i in range(40)]},
        {"name": "other", "share": 0.2, "drop": -0.1, "start": 45, "pieces": [f" more{i}" for i in range(200)]},
    ]
    auc = {"paired": {"auc": 0.96, "low": 0.94, "high": 0.98}, "closed": {"auc": 0.9, "low": 0.85, "high": 0.95}, "unrelated": None}
    probe = {"model": "m", "heads": ["L0H1"] * 16, "negatives": "closed", "auc": auc, "calibration_error": 0.03}
    return {"model": "m", "answer": "The mill.", "tokens": tokens, "passages": passages, "band": [0.25, 0.75], "probe": probe}


def cache_result():
    rows = []
    for question in ("inside", "outside"):
        base = {
            "task": "needle",
            "length": 256,
            "question": question,
            "n": 3,
            "bytes_full": 1000,
            "positions": 9.0,
            "survival": 0.4,
        }
        rows.append(
            base
            | {
                "method": "full",
                "budget": None,
                "exact": 0.9,
                "low": 0.8,
                "high": 1.0,
                "difference": None,
                "p": None,
                "bytes": 1000,
            }
        )
        for method in ("snapkv", f"own:{EVIL}", "oracle"):
            for budget in (0.1, 0.3):
                found = {"exact": 0.5 + budget, "low": 0.4, "high": 0.9, "difference": -0.1, "p": 0.2, "bytes": 1000 * budget}
                rows.append(base | found | {"method": method, "budget": budget})
    result = {"model": "m", "items": 3, "seed": 0, "rows": rows}
    kept = [float(x) for x in np.linspace(0, 1, 40)]
    methods = [{"method": "snapkv", "budget": 0.1, "kept": kept}, {"method": "oracle", "budget": None, "kept": kept[::-1]}]
    example = {
        "task": "needle",
        "question": "inside",
        "pieces": [f" {EVIL if i == 7 else i}" for i in range(40)],
        "answers": [[5, 9]],
        "methods": methods,
    }
    return result, example


def scored(folder):
    """What `select report` would show of made-up scores; a domain and the documents are called something evil."""
    from headwise.corpus.options import ChoiceOptions
    from headwise.corpus.summary import summarise
    from headwise.corpus.tables import ScoreFiles
    from tests.unit.test_choose import random_rows, write_scores
    from tests.unit.test_influence_page import more

    write_scores(folder, "a", more(random_rows(1500, 1, ["books", EVIL]), 1))
    data = summarise(ScoreFiles(str(folder)), ChoiceOptions(strata=4), named=2)
    for kinds in data["named"].values():
        for row in (row for rows in kinds.values() for row in rows):
            row["text"] = f"A document about {EVIL}. " * 20
    return data


@pytest.fixture(scope="session")
def pages(tmp_path_factory):
    """Name -> path of every page."""
    pytest.importorskip("pyarrow")
    from headwise.report import compression_page, doubt_page, influence, ranking_page, sparse, trace_page
    from headwise.report.page.shell import write_document
    from tests.unit.test_doubt_report import made_up_calm, made_up_doubt, made_up_measured
    from tests.unit.test_sparse_report import made_up as made_up_sparse

    folder = tmp_path_factory.mktemp("pages")
    needles = [{"needle": f"The code is {EVIL}.", "question": "Which?", "answer": EVIL, "answer_prefix": ""}]
    heads = made_up(5, layers=6, heads=8, runs=24, model=EVIL, needles=needles, sliding_layers=[2])
    heads.values[3, 4] = 0.99  # the strongest
    one = [(Path("heads.json"), "heads", heads), (Path("ablation.json"), "ablation", sweep())]
    several = [(Path(f"{i}.json"), "heads", made_up(i, layers=6, heads=8, model=f"model {i}")) for i in range(3)]
    cells = [{"length": n, "depth": d, "recall": d} for n in (100, 200) for d in (0, 0.5, 1)]
    published = sorted([*PUBLISHED.rglob("*.tsv"), *PUBLISHED.rglob("*.json.gz")])
    made = {
        "explorer": write_explorer(one, folder / "explorer.html", traces()),
        "several": write_explorer([*several, (Path("n.json"), "needle", {"cells": cells})], folder / "several.html"),
        "published": write_explorer([(file, "heads", load_heads(file)) for file in published], folder / "published.html"),
        "ranking": ranking_page.write_page(ranking(), folder / "ranking.html"),
        "trace": trace_page.write_page(traced(), folder / "trace.html"),
        "cache": compression_page.write_page(*cache_result(), folder / "cache.html"),
        "influence": influence.influence_page(scored(folder), folder / "influence.html"),
        "doubt": write_document(
            folder / "doubt.html", doubt_page.doubt_page(made_up_doubt(EVIL), made_up_calm(EVIL, model=EVIL), made_up_measured())
        ),
        "sparse": sparse.write_page(made_up_sparse(EVIL), folder / "sparse.html"),
    }
    return made


@pytest.fixture
def written(tmp_path):
    """Bad files as a user may have them."""
    texts = {"empty.json": "", "not.json": "{", "list.json": "[1]", "none.json": "{}", "table.tsv": "a\tb\n"}
    nothing = {
        "headwise_schema": 1,
        "score": "copy",
        "score_version": 1,
        "layers": 1,
        "heads": 1,
        "values": [[None]],
        "provenance": {},
    }
    texts["unscored.json"] = json.dumps(nothing)
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    return tmp_path

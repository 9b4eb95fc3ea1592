"""Pages from the command line: `show --html`, `rank --html` and `bench cache --html`, on the planted model."""

import json
import re

import pytest

from tests.cli.test_rank import arguments, files, query_file  # noqa: F401  # fixtures
from tests.cli.test_refusals import check_refused


def data_of(path):
    return json.loads(re.search(r'id="page-data">(.*?)</script>', path.read_text(), re.DOTALL)[1])


@pytest.mark.slow
def test_show_writes_a_page_and_says_where(heads, headwise, tmp_path):
    done = headwise("show", heads, heads, "--html", "page.html")
    assert done.code == 0, done.err
    assert done.out.split() == ["page", "page.html"]
    assert len(data_of(tmp_path / "page.html")["files"]) == 2
    assert list(tmp_path.glob("*.png")) == [heads.with_name(heads.stem + ".heatmap.png")]  # of detect, none of show
    done = headwise("show", heads, "--html", "page.html", "--json")
    assert json.loads(done.out) == {"page": "page.html", "files": [str(heads)], "traces": 0}


DETECTED = {
    "semantic": ["--lengths", "120", "--depths", "2", "--min-runs", "1"],
    "gate": ["lab-6m", "--lengths", "200,300", "--steps", "2", "--sinks", "16", "--recent", "32"],
    "proxy": ["world-6m", "--samples", "2", "--pairs", "4", "--min-accuracy", "0"],
}


@pytest.mark.slow
@pytest.mark.parametrize("score", DETECTED)
def test_files_of_every_detector_are_shown(planted, headwise, tmp_path, score):
    given = DETECTED[score] if score != "semantic" else [planted.model, *planted.own, *DETECTED[score]]
    done = headwise("detect", score, *given, "-o", "h.json", "--json")
    assert done.code == 0, done.err
    assert headwise("show", "h.json").code == 0
    done = headwise("show", "h.json", "--html", "page.html")
    assert done.code == 0, done.err
    assert len(data_of(tmp_path / "page.html")["files"]) == 1
    assert ("Needle grid" in (tmp_path / "page.html").read_text()) == (score == "semantic")


@pytest.mark.slow
def test_a_query_file_is_shown(headwise, query_file, tmp_path):  # noqa: F811
    assert headwise("show", query_file, "--html", "page.html").code == 0
    assert headwise("show", query_file).code == 0


@pytest.mark.slow
def test_a_model_adds_what_its_heads_look_at(planted, heads, headwise, tmp_path):
    done = headwise("show", heads, "--html", "page.html", "--model", planted.model, "--top", 2)
    assert done.code == 0, done.err
    traces = data_of(tmp_path / "page.html")["traces"]
    assert len(traces) == 3
    for trace in traces:
        positions, weights = trace["heads"]["L1H2"]  # the planted head copies the needle
        start, stop = trace["spans"]["needle"]
        hits = [start <= step[0] < stop for step in positions]
        assert sum(hits) >= 3
        assert weights[hits.index(True)][0] > 900
        assert len(trace["heads"]) == 2
        assert trace["info"]["right"]


@pytest.mark.slow
def test_several_files_are_still_shown_as_tables(heads, headwise):
    done = headwise("show", heads, heads, "--json", "-o", "pictures")
    assert done.code == 0, done.err
    assert len(json.loads(done.out)["files"]) == 2


def test_ranking_has_a_page(planted, headwise, files, query_file, tmp_path):  # noqa: F811
    done = headwise(
        "rank", planted.model, *arguments(files), "--heads", query_file, "--top", 1, "-o", "r.trec", "--html", "r.html", "--json"
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)["page"] == "r.html"
    page = (tmp_path / "r.html").read_text()
    assert page.count("✓ relevant") == 4
    first = page[page.index("the river<span") :]
    heaviest = re.search(r'style="--w:1.00"[^>]*>([^<]*)<', first)[1]
    assert heaviest.strip() in ("the", "river", "was")  # what follows the words of the query is what the planted head reads


def test_caches_have_a_page(planted, headwise, tmp_path):
    done = headwise(
        "bench", "cache", planted.model, "--lengths", 256, "--items", 2, "--tasks", "world.needle", "--question", "outside",
        "--methods", "oracle,random", "--budgets", "0.2,40", "-o", "c.json", "--html", "c.html",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "c.html" in done.out
    page = (tmp_path / "c.html").read_text()
    assert page.count('class="kept"') == 2
    assert "20.0% of the positions held" in page or "budget 0.2" in page
    answer = re.search(r'<span class="w answer" style="--w:1.00"', page)
    assert answer  # the oracle keeps the answer in every head


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--model", "lab-6m"], ["--model", "--html"]),
        (["--html", "."], ["is a folder"]),
        (["--html", "x.html", "--model", "/no/model"], ["/no/model"]),
    ],
)
def test_wrong_options_are_one_line(heads, headwise, more, words):
    done = headwise("show", heads, *more)
    for word in words:
        check_refused(done, word)


@pytest.mark.parametrize("backwards", [False, True])
def test_values_of_tokens_add_up_to_scores(backwards):
    from headwise.methods.query.ranker import Ranker
    from headwise.models.model import Model
    from headwise.testing.tiny import tiny_model
    from headwise.testing.tokenizers import character_tokenizer

    model = tiny_model("llama")
    loaded = Model(model, character_tokenizer())
    index = Ranker(loaded, order="reversed" if backwards else "given").index(["a boat", "the slow river", "snow"])
    values = index.token_values("which river")
    assert [len(ids) for ids, _ in values] == [len(found) for _, found in values] == index.lengths.tolist()
    assert [found.sum() for _, found in values] == pytest.approx(index.scores(["which river"])[0].tolist(), abs=1e-5)
    texts = [loaded.tokenizer.decode(list(ids)) for ids, _ in values]
    assert ["slow" in text for text in texts] == [False, True, False]

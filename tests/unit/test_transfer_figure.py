"""The figure of cross-transfer: what is drawn is what the details say; and the tool that puts it into the documentation."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from headwise.claims.results import read_results
from headwise.claims.transfer.declared import NAMES, OWN
from headwise.heads import HeadwiseError
from headwise.report.transfer_figure import HALVES, LIKE_RANDOM, draw_transfer_figure, transfer_figure
from headwise.report.transfer_figure import OWN as FRAMED
from headwise.report.transfer_matrix import decimals, read_matrix
from tests.claims.made_up import TASKS, transfer_details, write_transfer
from tests.unit.test_figures import assert_tidy, legend, title

ROOT = Path(__file__).parents[2]


def drawn(details, name="some"):
    figure = draw_transfer_figure(read_matrix(details, OWN), name)
    return figure, *figure.axes[:2]


def numbers(axes):
    """Number in every cell -> [row, column]."""
    return {(round(text.get_position()[1]), round(text.get_position()[0])): text.get_text() for text in axes.texts}


def ticks(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def framed(axes, label):
    """(row, column) of every framed cell."""
    frames = [one for one in axes.collections if one.get_label() == label]
    return {tuple(path.vertices[:4].mean(axis=0)[::-1].round().astype(int)) for frame in frames for path in frame.get_paths()}


def test_every_cell_shows_its_number_and_its_share_of_the_task():
    details = transfer_details()
    figure, left, right = drawn(details)
    shown, (image,) = numbers(left), left.images
    assert ticks(left.yaxis) == [*NAMES, "random, mean"]
    assert ticks(left.xaxis) == [f"{task} (20)" for task in TASKS]
    for column, task in enumerate(TASKS):
        row = details["increases"][task]
        means = [row[name][0] for name in NAMES]
        means.append(float(np.mean([row[f"{name}/random"][0] for name in NAMES])))
        assert [shown[i, column] for i in range(len(means))] == [f"{mean:.2f}" for mean in means]
        np.testing.assert_allclose(image.get_array()[:, column], np.array(means) / max(means), atol=1e-12)
    assert framed(left, FRAMED) == {(NAMES.index(name), TASKS.index(task)) for name, task in OWN.items()}
    shown, (image,) = numbers(right), right.images
    overlap = np.array([[details["overlap"][one][other] for other in NAMES] for one in NAMES])
    np.testing.assert_array_equal(image.get_array(), overlap)
    assert all(shown[place] == f"{share:.2f}" for place, share in np.ndenumerate(overlap))
    assert framed(right, HALVES) == {(i, i) for i in range(len(NAMES))}
    assert "by chance 0.06" in right.get_title()
    assert ["task" in figure.axes[2].get_ylabel(), "common" in figure.axes[3].get_ylabel()] == [True, True]
    assert len(legend(figure)) == 3


def test_cells_like_random_heads_are_marked():
    details = transfer_details(("copy", "gate"))
    details["increases"]["lookup"]["gate"] = [0.5, 0.1, 0.9]
    details["increases"]["lookup"]["gate/random"] = [0.1, 0.0, 0.2]  # just in the interval
    details["increases"]["needle"]["copy"] = [-0.3, -0.4, -0.2]  # below random heads
    _, left, _ = drawn(details)
    marks = {(round(y + 0.3), round(x - 0.39)) for one in left.lines if one.get_label() == LIKE_RANDOM for x, y in one.get_xydata()}
    assert marks == {(0, 0), (1, 3), (0, 5), (1, 5)}
    assert numbers(left)[0, 0] == "-0.30"
    assert left.images[0].get_array()[0, 0] == 0, "less than nothing has the colour of nothing"


@pytest.mark.parametrize(
    "details",
    [
        transfer_details(),
        transfer_details(("copy",), ("text", "memory"), dict.fromkeys((*NAMES[1:], "task swapped"), "why")),
        transfer_details(("copy", "in-context"), TASKS[:-1]),
        transfer_details(NAMES[:3], TASKS),
    ],
    ids=["all", "one detector", "one task", "no task"],
)
def test_nothing_is_cut_off(details):
    figure, *_ = drawn(details, "Which heads are the same? some (quick)")
    assert_tidy(figure)
    assert not any("…" in line for line in title(figure))


def test_what_is_missing_is_named_and_not_drawn():
    details = transfer_details(("copy", "gate"), ("text",), {"task swapped": "no NQ", "query": "no heads"})
    del details["increases"]["swapped"], details["items"]["swapped"]
    figure, left, right = drawn(details)
    assert title(figure) == ["some", "no heads found: query", "not testable: swapped, text"]
    assert [one.split()[0] for one in ticks(left.xaxis)] == [task for task in TASKS if task not in ("text", "swapped")]
    assert ticks(right.xaxis) == ["copy", "gate"]
    assert read_matrix(details, OWN).absent["task text"] == "the model expects the answer of 3 of 24 items"


def test_without_a_task_the_lists_are_still_compared():
    _, left, right = drawn(transfer_details(("copy", "gate"), TASKS))
    assert not left.images
    assert [text.get_text() for text in left.texts] == ["the model can do no task"]
    assert right.images[0].get_array().shape == (2, 2)


def test_a_task_that_nothing_harms_has_no_colour():
    details = transfer_details(("copy",))
    details["increases"]["text"] = {"copy": [-0.1, -0.2, 0.0], "copy/random": [0.0, -0.1, 0.1]}
    matrix = read_matrix(details, OWN)
    assert (matrix.cells["copy"]["text"].shade, matrix.shades["text"]) == (0, 0)


@pytest.mark.parametrize("broken", [{}, {"heads": {}}, {"heads": []}, transfer_details() | {"overlap": {}}, transfer_details() | {"increases": []}])
def test_details_without_a_matrix_are_refused(broken):
    with pytest.raises(HeadwiseError, match="of some holds no matrix"):
        read_matrix(broken, OWN, "some")


def test_numbers_for_small_cells():
    assert [decimals(one) for one in (0.434, -0.001, 9.996, 12.34, -3.2)] == ["0.43", "0.00", "10.0", "12.3", "-3.20"]


@pytest.mark.parametrize("end", [".png", ".svg"])
@pytest.mark.slow
def test_the_same_data_give_the_same_bytes(tmp_path, end):
    matrix = read_matrix(transfer_details(("copy", "gate")), OWN)
    paths = [tmp_path / f"{i}{end}" for i in range(2)]
    for path in paths:
        transfer_figure(matrix, path, "some")
    assert paths[0].read_bytes() == paths[1].read_bytes()


# --- the tool that fills the documentation


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """tools/claims_pages.py for a documentation of one page, and a result of smollm2."""
    spec = importlib.util.spec_from_file_location("claims_pages", ROOT / "tools" / "claims_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    (tmp_path / "docs" / "methods").mkdir(parents=True)
    (tmp_path / "README.md").write_text("")
    (tmp_path / "docs" / "methods" / "page.md").write_text("<!-- claims: transfer smollm2 -->\n<!-- end claims -->\n")
    write_transfer(tmp_path / "found", "smollm2")
    monkeypatch.setattr(module, "shipped_results", lambda: read_results([tmp_path / "found"]))

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["claims_pages.py", *words])
        with pytest.raises(SystemExit) as stopped:
            module.main()
        return stopped.value.code

    return run


@pytest.mark.slow
def test_the_tool_draws_a_picture_when_its_block_changes(tool, tmp_path, capsys):
    page, picture = tmp_path / "docs" / "methods" / "page.md", tmp_path / "docs" / "figures" / "transfer-smollm2.png"
    assert tool("--check") == 1
    assert not picture.exists(), "--check writes nothing"
    assert tool() == 0
    assert "written: docs/methods/page.md, docs/figures/transfer-smollm2.png" in capsys.readouterr().out
    assert "](../figures/transfer-smollm2.png)\n\n| heads of |" in page.read_text()
    assert tool("--check") == 0
    picture.write_bytes(b"old")
    assert tool() == 0
    assert picture.read_bytes() == b"old", "nothing changed, nothing is drawn"
    told = json.loads((tmp_path / "found" / "smollm2" / "transfer.json").read_text())
    told["details"]["increases"]["needle"]["copy"] = [9.0, 8.0, 9.5]
    (tmp_path / "found" / "smollm2" / "transfer.json").write_text(json.dumps(told))
    assert tool() == 0
    assert picture.read_bytes() != b"old"
    assert "9.00 (8.00 to 9.50)" in page.read_text()


def test_tables_behind_claims_come_from_details(tool, tmp_path):
    page, path = tmp_path / "docs" / "methods" / "page.md", tmp_path / "found" / "smollm2" / "transfer.json"
    table = [{"method": "a", "budget": 0.1, "exact": [0.5, 0.25, 0.75]}, {"method": "a", "budget": None, "exact": [1.0, 1.0, 1.0]}]
    told = json.loads(path.read_text())
    rivals = {"probe": {"source_token": 0.4}, "bm25": {"source_token": None}}
    told["details"] |= {"table": table, "rivals": rivals, "by rule": {"Z1, 25%": [0.1, 0.0, 0.2], "Z1, 50%": 1.0}, "tops": {"few": 0.3}}
    path.write_text(json.dumps(told))
    names = (
        "transfer table", "transfer table by=budget show=exact", "transfer table where=budget:0.1 columns=exact,method", "transfer rivals",
        "transfer by_rule by=,", "transfer tops", "rank rows",
    )  # fmt: skip
    page.write_text("\n".join(f"<!-- claims: details smollm2 {name} -->\n<!-- end claims -->" for name in names))
    assert tool() == 0
    text = page.read_text()
    assert "| a | 0.1 | 0.5 (0.25 to 0.75) |\n| a | – | 1 (1 to 1) |" in text
    assert "| method | budget 0.1 | no budget |\n| --- | --- | --- |\n| a | 0.5 (0.25 to 0.75) | 1 (1 to 1) |" in text
    assert "|  | source token |\n| --- | --- |\n| probe | 0.4 |\n| bm25 | – |" in text
    assert "| exact | method |\n| --- | --- |\n| 0.5 (0.25 to 0.75) | a |\n<" in text
    assert "|  | 25% | 50% |\n| --- | --- | --- |\n| Z1 | 0.1 (0 to 0.2) | 1 |" in text
    assert "|  | value |\n| --- | --- |\n| few | 0.3 |" in text
    assert "rank rows -->\nNot measured.\n" in text


@pytest.mark.slow
def test_the_check_needs_no_matplotlib():
    code = (
        "import runpy, sys; sys.modules['matplotlib'] = None; sys.argv.append('--check')\n"
        "runpy.run_path('tools/claims_pages.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr  # 1: a page differs
    assert not done.stderr

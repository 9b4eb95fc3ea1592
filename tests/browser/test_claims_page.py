"""The page of the ledger in a real browser: it fits, sorts and filters; the matrix of detectors and tasks scrolls by itself."""

import pytest

from headwise.claims.transfer.declared import OWN
from headwise.report.claims_page import write_page
from headwise.report.transfer_matrix import read_matrix
from tests.browser.conftest import EVIL, shot
from tests.claims.made_up import transfer_details

pytestmark = pytest.mark.slow


def row(key, model, verdict, effect, **more):
    told = {
        "model": model, "claim": key, "card": "qrhead", "place": "1", "sentence": f"what {key} says {EVIL}", "verdict": verdict,
        "why": "missed: x > 0",
        "metric": "nDCG@10", "effect_name": "gain", "effect": effect, "low": None if effect is None else effect - 0.1,
        "high": None if effect is None else effect + 0.1, "control_name": "random", "control": 0.05, "control_low": None, "control_high": None,
        "decided_by": "gain", "decided": effect, "decided_low": None, "decided_high": None, "limit": 0.0, "p": 0.01,
        "p_corrected": 0.02, "paper": "0.7 on Llama", "rule": "gain > 0", "missed": "", "gate": "recall >= 0.8", "tested": True,
        "data": "60 questions",
        "controls": "random heads", "tries": "", "note": "", "numbers": {"gain": (effect, None, None)}, "experiment": "rank",
        "page": "methods/query-heads.md", "quick": model == "lab-6m", "old": False,
    }  # fmt: skip
    return told | more


ROWS = [
    row("a.one", "smollm2", "held", 0.3), row("a.one", "lab-6m", "not held", -0.2),
    row("a.two", "smollm2", "not testable", None, p_corrected=None), row("a.two", "lab-6m", "held", 0.1, card="cafe"),
    row("b.three", "smollm2", "", None), row("b.three", "lab-6m", "old", None, card="cafe"),
]  # fmt: skip


@pytest.fixture
def page(tmp_path):
    return write_page(ROWS, ["smollm2", "lab-6m"], tmp_path / "claims.html", "https://example.org/docs")


def visible(page):
    rows = "[...document.querySelectorAll('#ledger tbody tr')].filter((r) => r.offsetParent !== null)"
    return page.evaluate(f"{rows}.map((r) => r.dataset.claim + ' ' + r.dataset.model)")


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_and_runs_nothing_of_others(visit, page, width):
    shown = visit(page, width)
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    assert shown.told == []
    assert EVIL in shown.locator("#ledger").inner_text()
    shot(shown, f"claims-{width}")


def test_it_sorts_and_what_is_missing_stays_at_the_end(visit, page):
    shown = visit(page, 1280)
    button = shown.locator("#ledger th button", has_text="Effect")
    button.click()
    assert visible(shown)[:3] == ["a.one lab-6m", "a.two lab-6m", "a.one smollm2"]
    assert shown.locator("#ledger th[aria-sort=ascending]").count() == 1
    button.click()
    assert visible(shown)[:3] == ["a.one smollm2", "a.two lab-6m", "a.one lab-6m"]


@pytest.mark.parametrize("width", [1280, 390])
def test_it_filters_by_card_model_verdict_and_words(visit, page, width):
    shown = visit(page, width)
    assert len(visible(shown)) == 5  # what was not measured is hidden at first
    shown.locator(".toggle", has_text="not measured").click()
    assert len(visible(shown)) == 6
    shown.select_option("[data-filter=card]", "cafe")
    assert visible(shown) == ["a.two lab-6m", "b.three lab-6m"]
    shown.select_option("[data-filter=card]", "")
    shown.select_option("[data-filter=model]", "smollm2")
    assert len(visible(shown)) == 3
    shown.locator(".toggle", has_text="held").first.click()
    assert visible(shown) == ["a.two smollm2", "b.three smollm2"]
    shown.fill("[data-filter=words]", "THREE says")
    assert visible(shown) == ["b.three smollm2"]
    assert shown.locator("#shown").inner_text() == "1 of 6"


def test_a_comparison_marks_every_model(visit, page):
    shown = visit(page, 1280)
    assert shown.locator("table.matrix").first.locator("thead th").all_text_contents() == ["Claim", "smollm2", "lab-6m"]
    assert shown.locator("#ledger a").first.get_attribute("href") == "https://example.org/docs/methods/query-heads.html"


@pytest.fixture
def same(tmp_path):
    details = transfer_details(untestable=("memory",), missing={"task swapped": f"why {EVIL}"})
    return write_page(ROWS, ["smollm2", "lab-6m"], tmp_path / "claims.html", None, {f"smollm2 {EVIL}": read_matrix(details, OWN)})


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_matrix_fits_or_scrolls_by_itself(visit, same, width, scheme):
    shown = visit(same, width, scheme)
    assert shown.told == []
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    tables = shown.locator("section:has(.transfer) .scroll")
    assert tables.count() == 2
    wider = tables.evaluate_all("all => all.map((one) => one.scrollWidth > one.clientWidth + 1)")
    assert wider == [width == 390] * 2
    tables.first.evaluate("one => { one.scrollLeft = 200 }")
    name, box = tables.first.locator("tbody th").first.bounding_box(), tables.first.bounding_box()
    assert name["x"] == pytest.approx(box["x"], abs=4), "the names of rows stay where they can be seen"
    shot(shown, f"claims-matrix-{width}-{scheme}")


def test_cells_tell_their_numbers(visit, same):
    shown = visit(same, 1280)
    increases, overlap = shown.locator("table.transfer").all()
    assert increases.locator("thead th").all_inner_texts()[1].split() == ["needle", "20", "of", "24"]
    assert increases.locator("tbody tr").count() == 12
    assert increases.locator("tbody tr").first.locator("td").count() == 7, "memory cannot be tested"
    own = transfer_details(untestable=("memory",))
    mean, low, high = own["increases"]["needle"]["copy"]
    cell = increases.locator("tbody tr").first.locator("td").first
    assert cell.inner_text() == f"{mean:.2f}"
    assert f"{mean:.3g} ({low:.3g} to {high:.3g})" in cell.get_attribute("title")
    assert "framed" in cell.get_attribute("class")
    marked = increases.locator("td:has(sup)")
    assert marked.count() == 11
    assert all("on text" in title for title in marked.evaluate_all("all => all.map((one) => one.title)"))
    assert overlap.locator("td.framed").all_inner_texts() == [f"{own['overlap'][name][name]:.2f}" for name in OWN]
    shown.locator("section:has(.transfer) summary").click()
    assert f"why {EVIL}" in shown.locator("section:has(.transfer) dl").inner_text()


def test_numbers_can_be_read_on_every_shade(visit, same):
    """The contrast of WCAG's level AA, 4.5, in both themes."""
    for scheme in ("light", "dark"):
        shown = visit(same, 1280, scheme)
        assert shown.locator("table.transfer td").evaluate_all(CONTRAST) >= 4.5, scheme


CONTRAST = """cells => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const under = (colours) => {
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((one) => one / 255);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((one) => (one <= 0.03928 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const card = getComputedStyle(document.querySelector("section:has(.transfer)")).backgroundColor;
  return Math.min(...cells.map((cell) => {
    const style = getComputedStyle(cell);
    const [low, high] = [light(under([card, style.backgroundColor])), light(under([style.color]))].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  }));
}"""

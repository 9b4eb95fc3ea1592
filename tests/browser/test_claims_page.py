"""The page of the ledger in a real browser: it fits, sorts and filters."""

import pytest

from headwise.report.claims_page import write_page
from tests.browser.conftest import EVIL, shot

pytestmark = pytest.mark.slow


def row(key, model, verdict, effect, **more):
    told = {
        "model": model, "claim": key, "card": "qrhead", "place": "1", "sentence": f"what {key} says {EVIL}", "verdict": verdict,
        "why": "missed: x > 0",
        "metric": "nDCG@10", "effect_name": "gain", "effect": effect, "low": None if effect is None else effect - 0.1,
        "high": None if effect is None else effect + 0.1, "control_name": "random", "control": 0.05, "control_low": None, "control_high": None,
        "decided_by": "gain", "decided": effect, "decided_low": None, "decided_high": None, "limit": 0.0, "p": 0.01,
        "p_corrected": 0.02, "paper": "0.7 on Llama", "rule": "gain > 0", "gate": "recall >= 0.8", "tested": True, "data": "60 questions",
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
    rows = "[...document.querySelectorAll('#ledger tbody tr')].filter((r) => !r.hidden)"
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


def test_it_filters_by_card_model_verdict_and_words(visit, page):
    shown = visit(page, 1280)
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

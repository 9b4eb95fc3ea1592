"""Every page in a real browser: nothing fails, nothing is fetched, nothing overflows; heads open by mouse, keyboard and address."""

import re
from pathlib import Path

import pytest

from headwise.report.page.parts import figure
from headwise.report.page.shell import document, write_document
from tests.browser.conftest import EVIL, drawn, shot
from tests.cli.conftest import headwise  # noqa: F401  # a fixture
from tests.unit.test_page import some_charts

NAMES = ("explorer", "several", "published", "ranking", "trace", "cache", "influence", "sparse", "doubt")
pytestmark = pytest.mark.slow


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_whole_at_every_width(visit, pages, name, width):
    page = visit(pages[name], width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    shot(page, f"{name}-{width}")
    assert page.told == []
    assert page.locator("h1").count() == 1
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id).filter((id) => id)")
    assert len(ids) == len(set(ids))
    assert page.evaluate(
        "[...document.querySelectorAll('.chart')].filter((c) => c.getClientRects().length).every((c) => c.querySelector('svg.marks'))"
    )


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(some_charts())))
def test_every_kind_of_chart_is_drawn_without_a_warning(visit, tmp_path, index):
    chart = some_charts()[index]
    page = visit(write_document(tmp_path / "chart.html", document("chart", figure(chart))))
    warned = page.evaluate(
        """(held) => {
          const told = [];
          const keep = (...words) => { told.push(words.join(" ")); return logger; };
          const logger = { level: () => logger, error: keep, warn: keep, info: () => logger, debug: () => logger };
          vegaLite.compile({ ...held, width: 300 }, { logger });
          return told;
        }""",
        dict(chart.spec),
    )
    assert (warned, page.told) == ([], [])
    assert page.locator(".chart svg.marks path").count() > 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["explorer", "several", "ranking", "trace", "cache", "influence", "sparse", "doubt"]
)
def test_dark_pages_are_dark(visit, pages, name):
    page = visit(pages[name], 1280, "dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
    shot(page, f"{name}-dark")
    assert page.told == []
    label = page.locator(".chart svg.marks text").first
    if label.count():
        assert sum(map(int, re.findall(r"\d+", label.evaluate("(e) => getComputedStyle(e).fill"))[:3])) > 400  # light ink


def test_the_button_changes_the_colours(visit, pages):
    page = visit(pages["explorer"])
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Use dark colours").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    drawn(page)
    page.get_by_role("button", name="Use light colours").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == light
    assert page.told == []


def chosen(page):
    return page.locator(".file:not([hidden]) .chosen h3").first


def opened(page, name):
    """Wait until a head is shown: on a busy machine a click is answered later."""
    from playwright.sync_api import expect  # here: a machine without it skips these tests

    expect(chosen(page)).to_have_text(name, timeout=20_000)


def cell(page, name, file=1):
    return page.locator(f'.chart[data-name="map-{file}"] svg.marks [aria-label*="Name: {name};"]').first


def test_a_page_opens_on_what_the_strongest_recorded_head_looks_at(visit, pages):
    page = visit(pages["explorer"])
    opened(page, "L3H4")
    assert "91 %" in page.locator(".trace ol").inner_text()
    assert "#" not in page.url
    assert page.evaluate("scrollY") == 0
    page.keyboard.press("Escape")
    assert not chosen(page).is_visible()
    page = visit(pages["several"])  # nothing recorded
    assert not chosen(page).is_visible()


def test_a_click_opens_a_head(visit, pages):
    page = visit(pages["explorer"])
    cell(page, "L2H2").click()
    opened(page, "L2H2")
    cell(page, "L3H4").click()
    opened(page, "L3H4")
    assert page.url.endswith("#L3H4")
    facts = page.locator(".about .facts").inner_text()
    for part in ("0.99", "1 of 46", "KV head", "Attention", "full"):
        assert part in facts
    drawn(page)
    assert page.locator(".runs svg.marks").is_visible()
    page.locator('.chart[data-name="map-1"] svg.marks text', has_text="×").first.click()
    opened(page, "L1H0")
    assert "not scored" in page.locator(".about .facts").inner_text()
    page.get_by_role("button", name="Close (Esc)").click()
    assert not chosen(page).is_visible()
    assert "#" not in page.url
    assert page.told == []


def test_the_runs_of_a_head_have_a_table_that_follows_the_head(visit, pages):
    page = visit(pages["explorer"], fragment="#L3H4")
    table = page.locator(".runs details.data")
    table.locator("summary").click()
    first = table.locator("tbody").inner_text()
    assert len(first.splitlines()) == 12  # lengths x depths
    cell(page, "L2H2").click()
    page.wait_for_function("(first) => document.querySelector('.runs tbody').innerText !== first", arg=first)
    assert table.locator("tbody tr").count() == 12
    assert page.told == []


def test_the_keyboard_moves_opens_and_closes(visit, pages):
    page = visit(pages["explorer"])
    page.locator('.chart[data-name="map-1"]').focus()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("ArrowDown")  # from the head that is open
    assert "L4H4" in page.get_by_role("status").inner_text()
    page.keyboard.press("ArrowRight")
    assert "L4H5" in page.get_by_role("status").inner_text()
    page.keyboard.press("Enter")
    opened(page, "L4H5")
    page.keyboard.press("Escape")
    assert not chosen(page).is_visible()
    for _ in range(9):
        page.keyboard.press("ArrowLeft")
    assert "L4H0" in page.get_by_role("status").inner_text()
    assert page.told == []


@pytest.mark.slow
def test_an_address_opens_a_head(visit, pages):
    page = visit(pages["explorer"], fragment="#L3H4")
    opened(page, "L3H4")
    shot(page, "explorer-head")
    page = visit(pages["explorer"], 390, fragment="#L3H4")
    shot(page, "explorer-head-390")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page = visit(pages["several"], fragment="#3-L2H1")
    opened(page, "L2H1")
    assert page.locator('.pick button[aria-pressed="true"]').inner_text().startswith("model 2")
    page.go_back()
    for wrong in ("#L99H0", "#9-L0H0", "#nothing"):
        page = visit(pages["several"], fragment=wrong)
        assert not chosen(page).is_visible()
        assert page.told == []


def test_a_head_is_followed_step_by_step(visit, pages):
    page = visit(pages["explorer"], fragment="#L3H4")
    trace = page.locator(".trace")
    assert "91 %" in trace.locator("ol").inner_text()
    assert trace.locator(".w.answer").inner_text() == f" {EVIL}"
    assert "tokens …" in trace.locator(".gap").first.inner_text()
    assert trace.locator(".steps .copied").count() == 1
    trace.locator(".steps button").nth(1).click()
    assert "40 %" in trace.locator("ol").inner_text()
    page.keyboard.press("ArrowLeft")
    assert "91 %" in trace.locator("ol").inner_text()
    trace.locator(".gap").first.click()
    assert trace.locator(".gap").count() == 0
    assert " word50" in trace.locator(".marked").inner_text()
    trace.get_by_role("button", name="Prompt 2").click()
    assert "second" in trace.inner_text()
    cell(page, "L2H2").click()
    assert page.locator(".untraced").is_visible()
    assert page.told == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_what_prompts_bring_is_text(visit, pages, name):
    page = visit(pages[name], fragment="#L3H4" if name == "explorer" else "")
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    page.wait_for_timeout(200)
    assert page.told == []
    assert page.evaluate("[...document.scripts].every((s) => !s.textContent.startsWith('alert'))")
    if name not in ("several", "published"):
        assert EVIL in page.locator("body").inner_text()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_click_on_a_token_shows_its_sources(visit, pages, width, scheme):
    page = visit(pages["trace"], width, scheme)
    source = page.locator(".source")
    assert not source.is_visible()
    tokens = page.locator("button.token")
    assert tokens.count() == 4  # the end-of-text token is not shown
    tokens.nth(1).click()
    assert "read from the prompt, probability that it was read 0.80" in source.inner_text()
    assert f"doc {EVIL}" in source.inner_text()
    assert "80 %" in source.inner_text()
    assert page.locator(".passage .best").inner_text().strip() == "word6"
    assert page.locator(".passage .w").count() == 3
    shot(page, f"trace-token-{width}-{scheme}")
    page.keyboard.press("ArrowRight")
    assert "unsure" in source.inner_text()
    page.keyboard.press("Escape")
    assert not source.is_visible()
    assert page.locator(".passage .w").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.told == []


def test_every_figure_has_a_table(visit, pages):
    page = visit(pages["explorer"])
    tables = page.locator("details.data")
    assert tables.count() == page.locator(".chart").count()
    tables.first.locator("summary").click()
    rows = tables.first.locator("tbody tr")
    rows.nth(47).wait_for()  # filled when it is opened
    assert rows.count() == 48
    assert rows.nth(28).inner_text().split("\t")[0] == "L3H4"


@pytest.mark.parametrize(("action", "start"), [("Save as SVG", b"<svg"), ("Save as PNG", b"\x89PNG")])
def test_a_figure_can_be_saved(visit, pages, action, start):
    page = visit(pages["cache"])
    figure = page.locator(".chart").first
    figure.locator("summary").click()
    with page.expect_download() as download:
        figure.get_by_text(action).click()
    saved = Path(download.value.path()).read_bytes()
    assert saved.startswith(start)
    assert download.value.suggested_filename.startswith("recall-needle")


def test_another_pair_of_files_can_be_compared(visit, pages):
    page = visit(pages["several"])
    section = page.locator("#compare-1")
    before = section.locator('.chart[data-name="compare-heads-1"] svg.marks').inner_html()
    section.locator('select[name="compare-b"]').select_option("3")
    page.wait_for_function(
        "(before) => document.querySelector('[data-name=\"compare-heads-1\"] svg.marks').innerHTML !== before", arg=before
    )
    page.locator(".pick button").nth(1).click()
    assert page.locator('.file[data-file="2"]').is_visible()
    assert not page.locator('.file[data-file="1"]').is_visible()
    drawn(page)
    assert page.told == []


@pytest.mark.parametrize(
    "name", ["empty.json", "not.json", "list.json", "none.json", "table.tsv", "unscored.json", "missing.json"]
)
def test_a_bad_file_is_one_readable_line(headwise, written, name):  # noqa: F811
    done = headwise("show", written / name, "--html", written / "page.html")
    lines = done.err.strip().splitlines()
    assert (done.code, len(lines)) == (2, 1), lines
    assert lines[0].startswith("headwise: error:")
    assert name in lines[0]
    assert not (written / "page.html").exists()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_map_of_doubt_has_a_colour_per_sign_and_frames_the_chosen_heads(visit, pages, scheme):
    page = visit(pages["doubt"], 1280, scheme)
    chart = page.locator('.chart[data-name="doubt-map"] svg.marks')

    def fill(name):
        colour = chart.locator(f'path[aria-label*="Name: {name};"]').first.get_attribute("fill")
        return list(map(int, re.findall(r"\d+", colour)))[:3]

    red, blue, nothing = fill("L2H3"), fill("L1H2"), fill("L0H4")
    assert red[0] > red[2] + 60  # takes answers back
    assert blue[2] > blue[0] + 60  # holds on
    assert max(nothing) - min(nothing) < 25  # next to 0: the page's ground
    framed = chart.locator('path[fill-opacity="0"]')
    assert framed.count() == int(page.locator(".facts dd").nth(1).inner_text())
    page.locator("details", has_text="The strongest heads of both signs").last.locator("summary").click()
    assert page.get_by_text("They hold on to answers").is_visible()
    assert page.told == []

"""Progress on standard error: an estimate before long work, lines where there is no terminal, and no speed from work that was found ready."""

import io

import pytest
from rich.console import Console

from headwise.cli import progress as module
from headwise.cli.progress import Pace, Teller, duration, progress
from headwise.heads.progress import part


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


@pytest.fixture
def told(clock):
    """(teller without a terminal, its lines so far)."""
    out = io.StringIO()
    return Teller("ablating", Console(file=out, force_terminal=False)), lambda: out.getvalue().splitlines()


def test_the_pace_is_that_of_work_done_now(clock):
    pace = Pace()
    for i in range(10):  # found in a run directory
        clock(0.01)
        pace.update(10 * (i + 1), 200)
    assert pace.left is None
    clock(5)
    pace.update(110, 200)
    assert pace.left == pytest.approx(5 / 10 * 90)
    clock(5)
    pace.update(120, 200)
    assert pace.left == pytest.approx(10 / 20 * 80)
    assert pace.share == 0.6


def test_many_small_pieces_are_measured_too(clock):
    pace = Pace()
    for i in range(1000):
        clock(0.01)
        pace.update(i + 1, 2000)
    assert pace.left == pytest.approx(10, rel=0.01)


def test_long_work_is_estimated_on_its_first_piece_and_once(told, clock):
    teller, lines = told
    clock(13.2)
    teller.report(1, 100, "x")
    assert lines() == ["ablating: about 22 minutes left, measured on the first 13 seconds of work"]
    clock(4)
    teller.report(2, 100, "x")
    assert len(lines()) == 1


def test_short_work_says_nothing_without_a_terminal(told, clock):
    teller, lines = told
    for i in range(4):
        clock(1)
        teller.report(i + 1, 4, "")
    assert lines() == []


def test_lines_come_after_ten_percent_and_some_seconds_and_end_with_all(told, clock):
    teller, lines = told
    for i in range(100):
        clock(0.56)
        teller.report(i + 1, 100, f"{i + 1} of 100")
    found = lines()
    assert len(found) == 10
    assert found[0] == "ablating: 10%, 50 seconds left, 10 of 100"
    assert found[-1] == "ablating: 100%, 100 of 100"
    clock(0.1)
    teller.report(100, 100, "")
    assert len(lines()) == 10


def test_slow_work_says_a_line_a_minute(told, clock):
    teller, lines = told
    for i in range(6):
        clock(30)
        teller.report(i + 1, 1000, "")
    assert [line for line in lines() if "%" in line] == [
        "ablating: 0%, 8.3 hours left",
        "ablating: 0%, 8.3 hours left",
        "ablating: 1%, 8.3 hours left",
    ]


def test_hidden_progress_is_silent(capsys):
    with progress("x", hidden=True) as report:
        report(1, 2, "y")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 second"),
        (1.4, "1 second"),
        (40, "40 seconds"),
        (89, "89 seconds"),
        (1320, "22 minutes"),
        (5300, "88 minutes"),
        (5400, "1.5 hours"),
    ],
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words


def test_the_parts_of_some_work_report_to_the_whole():
    told = []
    for number, name in enumerate(("first", "second")):
        report = part(lambda *given: told.append(given), number, 2, name)
        report(5, 10, "half")
        report(12, 10, "")
        report(0, 0, "nothing to do")
    assert told == [
        (0.5, 2, "first: half"), (1.0, 2, "first"), (0.0, 2, "first: nothing to do"),
        (1.5, 2, "second: half"), (2.0, 2, "second"), (1.0, 2, "second: nothing to do"),
    ]  # fmt: skip

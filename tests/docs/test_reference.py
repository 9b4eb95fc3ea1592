"""docs/cli.md is what tools/cli_reference.py writes, and what `--help` says; the site builds without a warning."""

import re
import subprocess
import sys

import pytest

from tests.docs.blocks import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import cli_reference  # the tool is a script, not a module of the package

COMMANDS = dict(cli_reference.commands(cli_reference.get_command(__import__("headwise.cli.main", fromlist=["app"]).app)))


def test_the_page_is_what_the_tool_writes():
    from headwise.cli.main import app

    assert cli_reference.PAGE.read_text("utf-8") == cli_reference.page(app), "run python tools/cli_reference.py"


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_page_says_what_help_says(words, monkeypatch, capsys):
    """Options and defaults of the rendered `--help` against the tables of the page."""
    from headwise.cli.main import run

    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("TERMINAL_WIDTH", "400")
    monkeypatch.setattr(sys, "argv", [*words, "--help"])
    with pytest.raises(SystemExit):
        run()
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    section = cli_reference.PAGE.read_text("utf-8").split(f"\n## {' '.join(words)}\n")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(--[a-z-]+)`[^|]*\| [^|]*\| (.*?) \| ", section, re.M))
    helped = dict(re.findall(r"^\W*(--[a-z-]+)\s(.*)$", shown, re.M))
    assert set(rows) == set(helped) - {"--help"}
    for option, default in rows.items():
        stated = re.search(r"\[default: \(?(.*?)\)?\]", helped[option])
        assert default.strip("`").replace("required", "") == (stated[1] if stated else ""), option


def test_commands_and_arguments_are_all_there():
    page = cli_reference.PAGE.read_text("utf-8")
    assert len(COMMANDS) >= 13
    assert re.findall(r"^## (.*)$", page, re.M) == [" ".join(words) for words in COMMANDS]
    assert all(
        f"`{cli_reference.metavar(a)}`" in page for c in COMMANDS.values() for a in c.params if a.param_type_name == "argument"
    )


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocstrings", reason="the site needs headwise[docs]")
    # Not --quiet: it would hide warnings from --strict too.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "site" / "start.html").read_text("utf-8")
    assert "<title>Start here - headwise</title>" in page
    outside = set(re.findall(r'(?:src|<link[^>]*href)="(https?://[^"]+)"', page))
    assert not outside, "the site must not load anything from elsewhere"

"""What the documents say must be what the code has."""

import re
import tomllib
from pathlib import Path

import pytest

import headwise
from headwise.models.families import FAMILIES, REFUSED

ROOT = Path(__file__).parents[2]


def test_the_family_table_is_the_declarations():
    text = (ROOT / "docs" / "families.md").read_text()
    rows = {m[1]: (m[2], m[3]) for m in re.finditer(r"^\| `(\w+)` \| (\w+) \| (.*) \|$", text, re.M) if m[1] in FAMILIES}
    assert rows == {name: (family.query, family.note or "-") for name, family in FAMILIES.items()}
    assert all(f"| `{name}` | {reason} |" in text for name, reason in REFUSED.items())


@pytest.mark.slow
def test_readme_commands_exist():
    from typer.main import get_command

    from headwise.cli.main import app

    commands = {name: get_command(app).get_command(None, name) for name in get_command(app).list_commands(None)}
    groups = [command for command in commands.values() if hasattr(command, "commands")]
    every = [*commands.values(), *(group.get_command(None, name) for group in groups for name in group.list_commands(None))]
    named = set(re.findall(r"^headwise (\w+)", (ROOT / "README.md").read_text(), re.M))
    assert named
    assert named <= set(commands)
    options = {option for command in every for parameter in command.params for option in parameter.opts}
    assert set(re.findall(r"(?<=\s)--[a-z][a-z-]+", (ROOT / "README.md").read_text())) <= options | {"--help"}


def test_public_names_resolve():
    assert all(getattr(headwise, name) is not None for name in headwise.__all__)
    assert headwise.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_readme_counts_and_names_the_families():
    (count, listed), = re.findall(r"\[(\d+) model types\]\(docs/families.md\): (.*)\.$", (ROOT / "README.md").read_text(), re.M)
    names = [name.strip() for name in listed.replace("gemma3 (two)", "gemma3, gemma3_text").split(",")]
    assert int(count) == len(FAMILIES)
    assert sorted(names) == sorted(FAMILIES)


@pytest.mark.slow
def test_nothing_unfinished_is_left():
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]:
        assert not re.search(r"\bTODO\b|\bFIXME\b|NotImplementedError|\bNUMBERS\b|\bFINDINGS\b|DEMO_OUTPUT", path.read_text()), (
            path
        )


def test_links_between_documents_lead_somewhere():
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", path.read_text()):
            assert (path.parent / target).exists(), (path, target)

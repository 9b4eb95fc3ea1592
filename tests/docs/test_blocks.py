"""Every fenced block of README.md and docs/ runs, or says why it does not; what does not run is parsed all the same.

Blocks of one page share a folder and a Python namespace, in the order of the page. A block that cannot run here carries
`<!-- not run: reason -->` right above its fence; commands that can never run here stand in `prepared.NOT_RUN`.
"""

import ast
import importlib
import json
import subprocess
import sys
from importlib.util import find_spec

import pytest
from typer.main import get_command

from headwise.cli.detect import with_default
from headwise.models.fetch import present
from headwise.models.registry import SMOLLM2
from tests.docs.blocks import PAGES, ROOT, SHELL, Block, blocks_of, commands_of
from tests.docs.prepared import REPLACED, common_names, names_for, prepare, reason_not_to_run, smaller

VERBATIM = ("docs/start.md", "docs/bring-your-own.md")  # run as they stand, with nothing prepared and nothing made smaller
SLOW = {
    "README.md",
    "docs/api/find.md",
    "docs/bring-your-own.md",
    "docs/cache.md",
    "docs/claims.md",
    "docs/explorer.md",
    "docs/index.md",
    "docs/methods/attention-influence.md",
    "docs/methods/compresskv.md",
    "docs/methods/doubt.md",
    "docs/methods/duoattention.md",
    "docs/methods/faithful.md",
    "docs/methods/mudaf.md",
    "docs/methods/rhio.md",
    "docs/methods/scales.md",
    "docs/methods/zigzagattention.md",
    "docs/scale.md",
    "docs/select.md",
    "docs/serve.md",
    "docs/start.md",
}
LANGUAGES = {"python", *SHELL, "json", "jsonl", "text", "yaml", "toml", "markdown", "makefile"}
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PARSED = {"python", "json", "jsonl", *SHELL}


def ids(blocks):
    return [str(block) for block in blocks]


def pages_that_run():
    pages = dict.fromkeys(block.page for block in BLOCKS if block.language in ("python", *SHELL))
    return [pytest.param(page, marks=[pytest.mark.slow] if page in SLOW else []) for page in pages]


@pytest.fixture(scope="session")
def common():
    from headwise import load
    from headwise.models.names import bundled_model

    return common_names(load(str(bundled_model()), device="cpu"))


@pytest.mark.parametrize("page", pages_that_run())
def test_the_blocks_of_a_page_run(page, tmp_path, monkeypatch, capsys, common):
    if page in VERBATIM and present(SMOLLM2) is None and any("smollm2" in block.text for block in BLOCKS if block.page == page):
        pytest.skip("the page needs smollm2: headwise models get smollm2")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    if page not in VERBATIM:
        prepare(tmp_path, page)
        names |= names_for(page, common)
    for block in [block for block in BLOCKS if block.page == page and block.reason is None]:
        if block.language == "python":
            exec(compile(replaced(block), str(block), "exec"), names)
        elif block.language in SHELL:
            for words in commands_of(block):
                if words[0] == "headwise" and reason_not_to_run(words) is None:
                    code, said = call(words if page in VERBATIM else smaller(words), monkeypatch, capsys)
                    assert code == 0, f"{block}: {' '.join(words)}\n{said}"


def replaced(block: Block) -> str:
    """The code with the replacements, and empty lines in front, so that errors name the line of the page."""
    code = block.text
    if block.page not in VERBATIM:
        for old, new in REPLACED.items():
            code = code.replace(old, new)
    return "\n" * block.line + code


def call(words, monkeypatch, capsys):
    """(status, what was said on both streams) of a headwise command, in this process."""
    from headwise.cli.main import run

    monkeypatch.setattr(sys, "argv", words)
    code = 0
    try:
        run()
    except SystemExit as end:
        code = end.code or 0
    return code, "".join(capsys.readouterr())


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.language in PARSED], ids=ids([b for b in BLOCKS if b.language in PARSED])
)
def test_a_block_can_be_parsed(block):
    if block.language == "python":
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "headwise":
                home = importlib.import_module(node.module)
                missing = [alias.name for alias in node.names if not hasattr(home, alias.name)]
                assert [name for name in missing if find_spec(f"{node.module}.{name}") is None] == [], block
    elif block.language == "json":
        json.loads(block.text)
    elif block.language == "jsonl":
        assert [json.loads(line) for line in block.text.splitlines()]
    else:
        if block.language != "console":
            subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
        for words in commands_of(block):
            if words[0] == "headwise":
                check_command(words)


def check_command(words):
    """The command exists, and so do its options."""
    command, rest = get_command(importlib.import_module("headwise.cli.main").app), words[1:]
    while hasattr(command, "commands") and (command.name == "detect" or (rest and not rest[0].startswith("-"))):
        rest = with_default(rest) if command.name == "detect" else rest
        assert rest[0] in command.list_commands(None), f"{' '.join(words)}: no command {rest[0]!r}"
        command, rest = command.get_command(None, rest[0]), rest[1:]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    given = {word.partition("=")[0] for word in rest if word.startswith("-") and not word.lstrip("-").isdecimal()}
    unknown = given - known - {"--help", "-h", "--install-completion", "--show-completion"}
    assert not unknown, f"{' '.join(words)}: no option {unknown}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_languages_are_known_and_fences_closed(page):
    assert {block.language for block in blocks_of(page)} <= LANGUAGES
    assert sum(line.startswith("```") for line in page.read_text("utf-8").splitlines()) == 2 * len(blocks_of(page))


def test_what_does_not_run_is_listed(capsys):
    """At least 80 % of the code blocks run; the others are listed (pytest -s)."""
    code = [block for block in BLOCKS if block.language in ("python", *SHELL)]
    skipped = {str(block): block.reason for block in code if block.reason is not None}
    commands = {
        f"{block}: {' '.join(words)}": reason_not_to_run(words)
        for block in code
        if block.language in SHELL and block.reason is None
        for words in commands_of(block)
        if words[0] == "headwise" and reason_not_to_run(words)
    }
    others = sum(words[0] != "headwise" for block in code if block.language in SHELL for words in commands_of(block))
    with capsys.disabled():
        lines = [f"  {where}: {reason}" for where, reason in (skipped | commands).items()]
        sys.stdout.write(
            f"\n{len(code)} code blocks, not run: {len(skipped)}, and {len(commands)} single commands; {others} commands of others\n"
        )
        sys.stdout.write("\n".join(lines) + "\n")
    assert all(reason and reason.strip() for reason in skipped.values())
    assert len(skipped) <= 0.2 * len(code)

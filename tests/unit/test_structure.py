"""The house rules of the package, read from its syntax trees: who may import whom, and how long things may be."""

import ast
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "headwise"

# Room -> rooms it may import besides itself. `methods` are special: see `method_violations`.
ROOMS = {
    "core": set(),
    "maths": {"core"},
    "prompts": {"core"},
    "families": {"core"},
    "attach": {"core", "maths", "families"},
    "engine": {"core", "prompts", "attach", "families", "maths"},
    "evaluate": {"core", "maths", "prompts", "families", "attach", "engine"},
    "methods": {"core", "maths", "prompts", "families", "attach", "engine", "evaluate"},
    "integrations": {"core", "maths", "families", "attach", "engine"},
    "serve": {"core", "prompts", "families", "engine", "methods"},
    "scale": {"core", "maths"},  # files and streams; scorers come in through a protocol of core
    "report": {"core", "maths"},
    "testing": {"core", "maths", "families", "attach", "prompts"},
}
ROOMS["lab"] = set(ROOMS) - {"serve"} | {"lab"}
ROOMS["cli"] = set(ROOMS)

# Rooms whose third-party imports are limited; the standard library is always allowed.
OUTSIDE = {
    "core": {"numpy"},
    "maths": {"numpy", "torch"},
    "prompts": {"numpy", "pyarrow"},
    "families": {"numpy", "torch", "transformers", "safetensors"},
    "attach": {"numpy", "torch", "transformers", "safetensors"},
    "scale": {"numpy", "pyarrow", "fsspec", "ray"},
}

FILE_LINES, METHOD_LINES, FUNCTION_LINES = 400, 150, 60


def room_of(path):
    """The first folder below headwise; "" for headwise/__init__.py itself."""
    return path.parts[0] if len(path.parts) > 1 else ""


def imports(tree, path):
    """Dotted names of everything imported anywhere in the file: (line, name). Each name of a `from` import counts as a module."""
    package = ["headwise", *path.parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "transformers":
            yield node.lineno, f"transformers.{node.attr}"  # `import transformers`, then transformers.models...


def import_violations(tree, path):
    room = room_of(path)
    for line, name in imports(tree, path):
        top, *below = name.split(".")
        if top == "headwise":
            target = below[0] if below else ""
            if target == "cli" and room != "cli" and path.name != "__main__.py":
                yield line, f"imports {name}: nobody imports cli"
            elif room in ROOMS and target in ROOMS and target != room and target not in ROOMS[room]:
                yield line, f"imports {name}: {room} may import {', '.join(sorted(ROOMS[room])) or 'no other room'}"
            elif room == target == "methods" and path.name != "__init__.py":
                yield line, f"imports {name}: a method never imports another method"
        elif room != "families" and below[:1] == ["models"] and top == "transformers":
            yield line, f"imports {name}: only families may touch transformers.models"
        elif room in OUTSIDE and top not in sys.stdlib_module_names and top not in OUTSIDE[room]:
            yield line, f"imports {name}: {room} may use the standard library and {', '.join(sorted(OUTSIDE[room]))}"


def statement_violations(tree, path):
    may_print = room_of(path) == "cli"
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            yield node.lineno, "assert: input is refused with an error, never with assert"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print" and not may_print:
            yield node.lineno, "print outside cli"


def size_violations(tree, path, source):
    lines = len(source.splitlines())
    if lines >= FILE_LINES:
        yield 1, f"{lines} lines; a file has fewer than {FILE_LINES}"
    elif room_of(path) == "methods" and lines >= METHOD_LINES:
        yield 1, f"{lines} lines; a method file has fewer than {METHOD_LINES}"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            if lines >= FUNCTION_LINES:
                yield node.lineno, f"{node.name} has {lines} lines; a function has fewer than {FUNCTION_LINES}"


def violations(source, path):
    """All broken rules of one file, one line each. path is relative to src/headwise."""
    tree = ast.parse(source)
    found = [*import_violations(tree, path), *statement_violations(tree, path), *size_violations(tree, path, source)]
    return [f"{path}:{line}: {text}" for line, text in sorted(found)]


FILES = sorted(path.relative_to(SOURCE) for path in SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=str)
def test_house_rules(path):
    found = violations((SOURCE / path).read_text("utf-8"), path)
    assert not found, "\n".join(found)


def test_every_folder_is_a_known_room():
    folders = {path.name for path in SOURCE.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert folders <= set(ROOMS), f"unknown rooms: {folders - set(ROOMS)}"
    assert {"core", "maths", "families", "attach"} <= folders


# The checker itself is checked: a rule that catches nothing would pass on every tree.
BAD = {
    "core/a.py": [
        "import torch",
        "from transformers import AutoModel",
        "from headwise.maths.rows import RowStats",
        "from headwise import attach",
        "def f():\n    import torch",
        "from ..maths import rows",
        "if TYPE_CHECKING:\n    import torch",
    ],
    "maths/a.py": ["import transformers", "from headwise.families import layout_of", "import scipy.stats"],
    "prompts/a.py": ["from headwise.engine import run", "import transformers", "import torch"],
    "families/a.py": ["from headwise.maths.rows import RowStats", "import headwise.attach"],
    "attach/a.py": [
        "from headwise.engine import run",
        "from transformers.models.llama import modeling_llama",
        "from transformers import models",
        "import transformers\nx = transformers.models",
        "from headwise.prompts import needles",
    ],
    "engine/a.py": [
        "from headwise.methods.find import copy",
        "from headwise.evaluate import metrics",
        "from headwise.lab import x",
    ],
    "methods/find/a.py": [
        "from headwise.methods.find.copy import detect",
        "from headwise.methods import test",
        "from .copy import detect",
        "from ..test import mask",
        "import transformers.models.llama",
        "\n" * 150,
    ],
    "evaluate/a.py": ["from headwise.methods.find import copy", "from headwise.report import show"],
    "scale/a.py": ["from headwise.methods.find import copy"],
    "report/a.py": ["from headwise.engine import run"],
    "testing/a.py": ["from headwise.engine import run", "from headwise.lab import models"],
    "lab/a.py": ["from headwise.cli import main", "print(1)", "assert True", "\n" * 400],
    "__init__.py": ["from headwise.cli.main import run", "print(1)"],
    "cli/a.py": ["assert True", "def f():\n" + "    pass\n" * 59, "class A:\n    async def f(self):\n" + "        pass\n" * 59],
}
GOOD = {
    "core/a.py": ["import numpy.typing", "import json", "from headwise.core.heads import HeadId", "from . import heads"],
    "maths/a.py": ["import torch", "from headwise.core import HeadId"],
    "families/a.py": ["from transformers.models.llama import modeling_llama"],
    "attach/a.py": ["from transformers.masking_utils import sdpa_mask", "from headwise.families import layout_of"],
    "engine/a.py": ["from headwise.attach import observe", "from headwise.families.load import Loaded"],
    "methods/find/a.py": ["from headwise.engine import run", "\n" * 149],
    "methods/find/__init__.py": ["from headwise.methods.find.copy import detect"],
    "lab/a.py": ["from headwise.methods.find import copy", "from headwise.engine import run"],
    "cli/a.py": ["print(1)", "from headwise.methods.find import copy", "from headwise.cli.options import x"],
    "cli/b.py": ["def f():\n" + "    pass\n" * 58, "\n" * 399],
}


def listed(examples):
    return [pytest.param(Path(path), text, id=f"{path}-{i}") for path, texts in examples.items() for i, text in enumerate(texts)]


@pytest.mark.parametrize(("path", "source"), listed(BAD))
def test_a_broken_rule_is_seen(path, source):
    assert len(violations(source, path)) == 1


@pytest.mark.parametrize(("path", "source"), listed(GOOD))
def test_a_kept_rule_is_left_alone(path, source):
    assert violations(source, path) == []

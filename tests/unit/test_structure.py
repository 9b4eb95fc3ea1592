"""The house rules of the package, read from its syntax trees: who may import whom, no circles, and how long things may be."""

import ast
import sys
from collections import Counter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "headwise"

# Room -> rooms it may import besides itself (docs/architecture.md has the same table).
ROOMS = {"heads": set(), "maths": {"heads"}, "stats": {"heads"}, "models": {"heads"}, "prompts": {"heads"}}
ROOMS["corpus"] = {"heads", "maths", "stats"}
ROOMS["report"] = {"heads", "stats"}
ROOMS["attention"] = {"heads", "maths", "models"}
ROOMS["caches"] = {"heads", "maths", "models", "attention"}
ROOMS["runtime"] = {"heads", "maths", "stats", "models", "attention", "caches", "prompts"}
ROOMS["evaluation"] = ROOMS["runtime"] | {"runtime"}
ROOMS["methods"] = ROOMS["evaluation"] | {"evaluation", "corpus"}
ROOMS["train"] = ROOMS["methods"] | {"methods"}
ROOMS["testing"] = ROOMS["methods"]
ROOMS["serve"] = ROOMS["methods"] | {"methods"}
ROOMS["claims"] = ROOMS["train"] | {"train"}
ROOMS["cli"] = set(ROOMS)

# Rooms whose third-party imports are limited; the standard library is always allowed.
OUTSIDE = {
    "heads": {"numpy"},
    "maths": {"numpy", "torch"},
    "stats": {"numpy", "scipy", "ir_measures", "bm25s"},
    "prompts": {"numpy", "pyarrow"},
    "models": {"numpy", "torch", "transformers", "huggingface_hub", "jinja2", "safetensors", "peft", "gguf", "accelerate"},
    "attention": {"numpy", "torch", "transformers"},
    "caches": {"numpy", "torch", "transformers", "safetensors", "kvpress"},
    "corpus": {"numpy", "pyarrow", "fsspec", "ray"},
}

FILE_LINES, FUNCTION_LINES, METHOD_LINES = 400, 60, 600


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
            elif room == target == "methods" and below[1:2] != list(path.parts[1:2]):
                yield line, f"imports {name}: a method never imports another method"
        elif top == "headwise_lab":
            yield line, f"imports {name}: the lab stands on headwise, never the other way round"
        elif room != "models" and below[:1] == ["models"] and top == "transformers":
            yield line, f"imports {name}: only models may touch transformers.models"
        elif room in OUTSIDE and top not in sys.stdlib_module_names and top not in OUTSIDE[room]:
            yield line, f"imports {name}: {room} may use the standard library and {', '.join(sorted(OUTSIDE[room]))}"


def statement_violations(tree, path):
    may_print = room_of(path) == "cli"
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            yield node.lineno, "assert: input is refused with an error, never with assert"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print" and not may_print:
            yield node.lineno, "print outside cli"


def size_violations(tree, source):
    lines = len(source.splitlines())
    if lines >= FILE_LINES:
        yield 1, f"{lines} lines; a file has fewer than {FILE_LINES}"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            if lines >= FUNCTION_LINES:
                yield node.lineno, f"{node.name} has {lines} lines; a function has fewer than {FUNCTION_LINES}"


def violations(source, path):
    """All broken rules of one file, one line each. path is relative to src/headwise."""
    tree = ast.parse(source)
    found = [*import_violations(tree, path), *statement_violations(tree, path), *size_violations(tree, source)]
    return [f"{path}:{line}: {text}" for line, text in sorted(found)]


def method_sizes(files):
    """Package of methods -> its lines, for those that are too long. files: (path relative to src/headwise, source)."""
    lines = Counter()
    for path, source in files:
        if room_of(path) == "methods" and len(path.parts) > 2:
            lines[path.parts[1]] += len(source.splitlines())
    return {package: count for package, count in lines.items() if count >= METHOD_LINES}


def circles(graph):
    """Modules that import one another in a circle, when they are imported. graph: module -> modules."""
    found, done, path = [], set(), []

    def walk(module):
        if module in path:
            found.append([*path[path.index(module) :], module])
        elif module not in done:
            path.append(module)
            for other in sorted(graph.get(module, ())):
                walk(other)
            path.pop()
            done.add(module)

    for module in sorted(graph):
        walk(module)
    return found


def import_graph(files):
    """What is imported while a module is imported: not inside functions, not for types only."""
    names = {".".join(("headwise", *path.with_suffix("").parts)).removesuffix(".__init__"): (path, source) for path, source in files}
    graph = {}
    for module, (path, source) in names.items():
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)):
                node.body = []
        graph[module] = {name if name in names else name.rpartition(".")[0] for _, name in imports(tree, path)} & set(names) - {module}
    return graph


FILES = sorted(path.relative_to(SOURCE) for path in SOURCE.rglob("*.py"))
SOURCES = [(path, (SOURCE / path).read_text("utf-8")) for path in FILES]


@pytest.mark.parametrize(("path", "source"), SOURCES, ids=[str(path) for path in FILES])
def test_house_rules(path, source):
    found = violations(source, path)
    assert not found, "\n".join(found)


def test_every_folder_is_a_known_room():
    folders = {path.name for path in SOURCE.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert folders <= set(ROOMS), f"unknown rooms: {folders - set(ROOMS)}"
    assert {"heads", "maths", "models", "attention", "methods"} <= folders


def test_a_method_package_fits_on_a_few_screens():
    assert method_sizes(SOURCES) == {}


@pytest.mark.slow
def test_no_module_imports_itself_through_others():
    assert circles(import_graph(SOURCES)) == []


# The checker itself is checked: a rule that catches nothing would pass on every tree.
BAD = {
    "heads/a.py": [
        "import torch",
        "from transformers import AutoModel",
        "from headwise.maths.rows import RowStats",
        "from headwise import attention",
        "def f():\n    import torch",
        "from ..maths import rows",
        "if TYPE_CHECKING:\n    import torch",
    ],
    "maths/a.py": ["import transformers", "from headwise.models import as_model", "import scipy.stats"],
    "prompts/a.py": ["from headwise.runtime import run", "import transformers", "import torch", "from headwise_lab import microworld"],
    "models/a.py": ["from headwise.maths.rows import RowStats", "import headwise.attention"],
    "attention/a.py": [
        "from headwise.runtime import run",
        "from transformers.models.llama import modeling_llama",
        "from transformers import models",
        "import transformers\nx = transformers.models",
        "from headwise.prompts import needles",
    ],
    "runtime/a.py": ["from headwise.methods.copy import run", "from headwise.evaluation import metrics", "from headwise_lab import x"],
    "methods/copy/a.py": [
        "from headwise.methods.query.run import detect",
        "from headwise.methods import query",
        "from ..query import run",
        "import transformers.models.llama",
    ],
    "evaluation/a.py": ["from headwise.methods.copy import run", "from headwise.report import show"],
    "corpus/a.py": ["from headwise.methods.copy import run"],
    "report/a.py": ["from headwise.runtime import run"],
    "testing/a.py": ["from headwise.serve import run", "from headwise_lab import models"],
    "__init__.py": ["from headwise.cli.main import run", "print(1)"],
    "cli/a.py": ["assert True", "def f():\n" + "    pass\n" * 59, "class A:\n    async def f(self):\n" + "        pass\n" * 59],
}
GOOD = {
    "heads/a.py": ["import numpy.typing", "import json", "from headwise.heads.types import HeadId", "from . import types"],
    "maths/a.py": ["import torch", "from headwise.heads import HeadId"],
    "models/a.py": ["from transformers.models.llama import modeling_llama"],
    "attention/a.py": ["from transformers.masking_utils import sdpa_mask", "from headwise.models import as_model"],
    "runtime/a.py": ["from headwise.attention import observe", "from headwise.models.model import Model"],
    "methods/copy/a.py": ["from headwise.runtime import run", "from headwise.methods.copy import formula", "\n" * 399],
    "cli/a.py": ["print(1)", "from headwise.methods.copy import run", "from headwise.cli.options import x"],
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


def test_a_long_method_and_a_circle_are_seen():
    half = "\n" * (METHOD_LINES // 2)
    assert method_sizes([(Path("methods/x/a.py"), half), (Path("methods/x/b.py"), half)]) == {"x": METHOD_LINES}
    files = [(Path("heads/a.py"), "import headwise.heads.b"), (Path("heads/b.py"), "from headwise.heads.a import x")]
    assert circles(import_graph(files)) == [["headwise.heads.a", "headwise.heads.b", "headwise.heads.a"]]
    lazy = [(Path("heads/a.py"), "import headwise.heads.b"), (Path("heads/b.py"), "def f():\n    from headwise.heads.a import x")]
    assert circles(import_graph(lazy)) == []

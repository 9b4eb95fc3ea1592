"""What `import headwise` offers: the pinned names, their types, and that nothing heavy is loaded for them."""

import subprocess
import sys
from pathlib import Path

import pytest

import headwise

# The public face (docs/architecture.md). A new name is a decision: it is added here, in `headwise.__all__` and in the docs.
NAMES = {
    "heads": ["HeadId", "HeadScores", "HeadSet", "HeadwiseError", "load_heads", "save_heads"],
    "models and prompts": ["Model", "Prompt", "Span", "load"],
    "blocks that observe": ["attribute", "observe", "record", "trace"],
    "blocks that change": ["ablate", "compress", "force_copy", "hide", "insert", "patch", "scale", "sparse_decode", "steer"],
    "outputs of heads elsewhere": ["head_means", "head_samples"],
    "sources of answers": ["KnowledgeRecord", "load_probe", "read_knowledge", "trace_answer"],
    "function vectors": ["HeadVectors", "extract_vectors", "function_vectors", "load_vectors", "save_vectors"],
    "caches": ["AdaKV", "CompressKV", "DuoAttention", "HeadKV", "PyramidKV", "SnapKV", "StreamingLLM", "ZigzagAttention"],
    "rankers": ["Ranker"],
    "detectors": ["Copy", "Doubt", "Gates", "InContext", "Mdqa", "Parametric", "Proxy", "Query", "Retrieval", "Semantic", "Task", "find"],
    "contrastive decoding": ["ContrastProcessor", "Without", "contrastive_generate"],
    "evaluation": ["DoubtQuestions", "ablation_curve", "calm", "conflict_curves", "measure_doubt"],
}
PINNED = sorted(name for names in NAMES.values() for name in names)

TYPED = """
import headwise
import headwise as hw

reveal_type(headwise.observe)
reveal_type(headwise.load)
reveal_type(hw.HeadScores.top)
model = hw.load("smollm2")
reveal_type(model.generate("a"))
scores = hw.load_heads("heads.json")
scores.save("again.json")
top = scores.top(8)
reveal_type(top[0])
reveal_type(top[:2])
reveal_type(top | ["L5H6"])
reveal_type(scores["L5H6"])
reveal_type(scores.tables["lift"])
with hw.observe(model, rows=1) as seen, hw.ablate(model, [(5, 6)]), hw.steer(model, top, [(0, 4)], 1.0):
    reveal_type(seen.lse)
with hw.compress(model, hw.SnapKV(budget=256)) as cache:
    reveal_type(cache.nbytes)
hw.Ranker(model, ["L5H6"]).rank("key", ["a", "b"], top_k=1)
"""
REVEALED = [
    "def (model: Any, rows: int | None =, spans: typing.Sequence[tuple[int, int]] =, argmax_only: bool =)",
    "def (name_or_path: str",
    "def (self: headwise.heads.types.HeadScores, k: int) -> headwise.heads.types.HeadSet",
    "str",
    "HeadId",
    "headwise.heads.types.HeadSet",
    "headwise.heads.types.HeadSet",
    "float",
    "float64",
    "Tensor",
    "int",
]


def test_the_names_are_pinned():
    assert sorted(set(headwise.__all__) - {"__version__"}) == PINNED
    assert set(PINNED) <= set(dir(headwise))


@pytest.mark.parametrize("name", PINNED)
def test_every_name_is_there_and_documented(name):
    found = getattr(headwise, name)
    assert found.__name__ == name
    assert found.__doc__
    assert found.__module__.startswith("headwise.")


def test_a_name_that_does_not_exist_is_said_so():
    with pytest.raises(AttributeError, match="module 'headwise' has no attribute 'nonexistent'"):
        headwise.nonexistent  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'nonexistent'"):
        from headwise import nonexistent  # noqa: F401


def test_importing_headwise_loads_nothing_heavy():
    # A fresh interpreter: in this one everything has long been imported.
    code = "import sys, headwise; print([m for m in ('torch', 'numpy', 'transformers', 'scipy', 'typer') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_a_type_checker_knows_the_names(tmp_path, monkeypatch):
    mypy = pytest.importorskip("mypy.api")
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)  # whose settings apply
    monkeypatch.setenv("MYPYPATH", str(root / "src"))
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text(TYPED)
    bad.write_text(
        "import headwise\nheadwise.nonexistent\nfrom headwise import absent\nheadwise.load(3)\nheadwise.HeadSet.of('L5H6', 3)\n"
    )
    said, errors, _ = mypy.run([str(good), str(bad), "--no-error-summary", "--hide-error-context"])
    assert not errors
    notes = [line.partition("Revealed type is ")[2] for line in said.splitlines() if "Revealed type" in line]
    assert len(notes) == len(REVEALED), said
    for note, part in zip(notes, REVEALED, strict=True):
        assert part in note, said
    assert "Observation" in notes[0]
    wrong = [line for line in said.splitlines() if "error:" in line]
    assert [line.split(":")[1] for line in wrong] == ["2", "3", "4", "5"], said
    assert all("bad.py:" in line for line in wrong)
    assert all('has no attribute "' in line for line in wrong[:2])

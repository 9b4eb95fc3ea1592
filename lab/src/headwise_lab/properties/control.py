"""Negative control: the same code on models that cannot retrieve finds nothing, and says so."""

from __future__ import annotations

import runpy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headwise.attention import observe
from headwise.heads import HeadwiseError, NoSuccessfulRunError, PromptError
from headwise.maths.copy import copy_score
from headwise.methods.copy.options import Copy
from headwise.methods.copy.run import copy_scores
from headwise.models.load import load
from headwise.models.model import Model
from headwise.prompts.grid import Task, even_depths, make_group, plan_groups
from headwise.runtime.answer import verify_draft
from headwise.runtime.runner import leaves
from headwise_lab.properties.detection import Evidence, needle_task
from headwise_lab.properties.paper import RETRIEVAL
from headwise_lab.properties.settings import GATE_TOKENS, Settings
from headwise_lab.properties.verdict import Check, Property, missing

FORCED_GROUPS = 8
ROOT = Path(__file__).parents[4]  # of a source checkout; an installed package has neither of the two places below
STORIES, CONVERTER = ROOT / "tests" / "data" / "stories260K", ROOT / "examples" / "convert_stories260k.py"


def untrained(model: Model, seed: int) -> Model:
    """A freshly initialised model of the same shape, with the same tokenizer."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        hf = type(model.hf)(model.hf.config).eval()
    return Model(hf, model.tokenizer, model.name)


def check_stories(folder: Path | None) -> None:
    """Refuse a folder that `load_stories` cannot use; None is always taken.

    Raises:
        HeadwiseError: It holds no stories260K.
    """
    if folder is not None and not any((folder / name).is_file() for name in ("config.json", "stories260K.bin")):
        raise HeadwiseError(f"no stories260K in {folder}; give its folder with --stories")


def load_stories(folder: Path | None) -> Model:
    """stories260K, a model of children's stories.

    Args:
        folder: A transformers checkpoint, or the llama2.c files, which the converter of a source checkout reads; None: the copy
            of a source checkout.

    Raises:
        HeadwiseError: There is none; the message says why.
    """
    place = STORIES if folder is None else folder
    check_stories(place)
    if (place / "config.json").is_file():
        return load(str(place), "cpu", "float32")
    if not CONVERTER.is_file():
        raise HeadwiseError("stories260K must be converted first, with examples/convert_stories260k.py of the source checkout")
    with tempfile.TemporaryDirectory() as target:
        runpy.run_path(str(CONVERTER))["convert"](place, Path(target))
        return load(target, "cpu", "float32")


def measure(model: Model, name: str, settings: Settings) -> dict[str, Any]:
    """Detection as for any model, and the scores if the gold answer is taken as what the model says.

    Args:
        model: One that cannot retrieve.
        name: What the result calls it.
        settings: Sizes; of the lengths only the first is used.

    Returns:
        Plain data: runs, solved, heads over 0.1, the same with the gold answer forced; or `why` nothing was measured.
    """
    lengths = settings.lengths[:1]
    try:
        task = needle_task(model, "detect", lengths, even_depths(settings.depths), settings)
    except PromptError as error:
        return {"name": name, "why": str(error)}
    row: dict[str, Any] = {"name": name, "lengths": list(lengths), "runs": len(task.needles) * settings.depths}
    forced = forced_scores(model, task)
    row |= {"forced_max": float(np.nanmax(forced)), "forced_over_0.1": int((forced > RETRIEVAL).sum())}
    try:
        scores = copy_scores(model, task, Copy(max_new_tokens=GATE_TOKENS))
    except NoSuccessfulRunError as error:
        return row | {"solved": 0, "over_0.1": 0, "message": str(error)}
    over = int((scores.values > RETRIEVAL).sum())
    return row | {"solved": scores.provenance["solved"], "over_0.1": over, "message": f"{over} heads over 0.1"}


def forced_scores(model: Model, task: Task) -> NDArray[np.float64]:
    """Copy scores over the gold answer, whatever the model would say: no gate can hide a copying head here.

    Args:
        model: The model.
        task: Its needle questions, of which `FORCED_GROUPS` groups are run.

    Returns:
        [layer, head], in [0, 1].
    """
    tables: list[NDArray[np.float32]] = []
    with observe(model.hf, argmax_only=True) as seen:
        for spec in plan_groups(task, model.positions)[:FORCED_GROUPS]:
            group = make_group(spec, task, model.positions)
            for leaf in leaves(model.hf, [prompt.ids for prompt in group.prompts]):
                prompt = group.prompts[leaf.index]
                seen.rows = len(prompt.gold) + 1
                verify_draft(model.hf, leaf.past, leaf.rest, prompt.gold)
                argmax = seen.argmax[:, 0, :, :-1]
                keys, gold = torch.tensor(prompt.ids), torch.tensor(prompt.gold)
                tables.append(copy_score(argmax, keys, gold, prompt.span("answer")).numpy())
    return np.asarray(np.mean(tables, axis=0), dtype=np.float64)


def judge(rows: Sequence[dict[str, Any]], models: Sequence[Evidence]) -> Property:
    """Main checks per control: no head found by detection, and none over 0.1 with the gold answer forced.

    Args:
        rows: As `measure` gives them.
        models: The trained models, whose highest scores stand beside those of the controls.
    """
    checks: list[Check] = []
    for row in rows:
        if "runs" not in row:
            checks.append(missing(row["name"], "heads found", "none", row["why"]))
            continue
        text = f"{row['over_0.1']} ({row['solved']} of {row['runs']} runs solved)"
        checks.append(Check(row["name"], "heads found", text, "none", row["over_0.1"] == 0))
        text = f"{row['forced_over_0.1']} (highest score {row['forced_max']:.3f})"
        checks.append(Check(row["name"], "heads over 0.1, gold answer forced", text, "none", row["forced_over_0.1"] == 0))
    done = [row for row in rows if "runs" in row]
    line = "no control was run"
    if done:
        heads, best = sum(row["over_0.1"] for row in done), max(row["forced_max"] for row in done)
        line = f"{heads} heads found in {len(done)} models without retrieval; highest forced score {best:.3f}"
    trained = [{"name": m.name, "max": float(np.nanmax(m.scores.values))} for m in models if m.scores is not None]
    claim = "Models that cannot retrieve have no retrieval heads, and the detector says so."
    return Property("control", "Negative control", claim, line, checks, {"models": list(rows), "trained": trained})

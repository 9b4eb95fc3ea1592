"""All properties of all models: each model is loaded once, measured, and let go."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from headwise.heads import HeadScores, HeadwiseError, save_heads
from headwise.heads.progress import Report, silent
from headwise.models.model import PACKAGES, Model
from headwise_lab.properties import causal, control, dynamic, intrinsic, paraphrased, reasoning, sparse, universal
from headwise_lab.properties.detection import Evidence, detect, detect_long, retest
from headwise_lab.properties.lab_models import LabModel
from headwise_lab.properties.paper import CITATION, statements
from headwise_lab.properties.settings import RealSettings, Settings
from headwise_lab.properties.verdict import RULE, Property

SCHEMA = 1
# Rough share of a model's time that each part takes, for the progress bar.
PARTS = {"heads": 25.0, "long contexts": 8.0, "steps": 4.0, "ablation": 45.0, "reasoning": 40.0}
REAL_PARTS = {"heads": 430.0, "other prompts": 540.0, "steps": 60.0, "ablation": 900.0, "paraphrased": 400.0, "reasoning": 1500.0}
CONTROL = 15.0


def measure_properties(
    models: Sequence[LabModel],
    settings: Settings,
    stories: Path | None = None,
    work: Path | None = None,
    heads: Path | None = None,
    report: Report = silent,
    real: RealSettings | None = None,
    data: Path | None = None,
) -> dict[str, Any]:
    """Measure and judge all properties; plain data without time stamps, so the same run gives the same bytes.

    Args:
        models: At least one.
        settings: Sizes of all measurements.
        stories: Folder of stories260K, see `control.load_stories`.
        work: Folder for finished parts, which are not run again.
        heads: Folder for one head file per model; older ones are replaced.
        real: Sizes for real models; None: the default ones with the seed of `settings`.
        data: Folder of LRE relations, for questions to real models.
        report: `report(done, total, remark)`; progress in rough seconds.

    Returns:
        The result as JSON data.

    Raises:
        HeadwiseError: No model, or a folder without stories260K.
    """
    if not models:
        raise HeadwiseError("no model to measure; name one, or train one with headwise_lab.recipe.train")
    real = real or RealSettings(seed=settings.seed)
    clock = _Clock(report, sum(sum(_parts(model).values()) for model in models) + 2 * CONTROL)
    found: list[Evidence] = []
    controls: list[dict[str, Any]] = []
    shape = next((model for model in models if not model.real), models[0])  # a lab model's is measured faster, and as telling
    for one in models:
        model = one.load()
        found.append(_measure(model, one, real if one.real else settings, data, work, clock))
        if heads is not None and found[-1].scores is not None:
            save_heads(found[-1].scores, heads / f"{one.name}.json", overwrite=True)
        if one is shape:
            name = f"untrained {one.name}"
            own = real if one.real else settings
            clock.run(name, CONTROL, lambda: controls.append(_untrained(model, name, own)))  # noqa: B023 (called at once)
    clock.run("stories260K", CONTROL, lambda: controls.append(_stories(stories, settings)))
    return _result(found, controls, settings, real)


def _parts(model: LabModel) -> dict[str, float]:
    return REAL_PARTS if model.real else PARTS


def _measure(model: Model, hf: LabModel, settings: Settings, data: Path | None, work: Path | None, clock: _Clock) -> Evidence:
    found = Evidence(hf, model.heads.shape, model.positions)
    parts = dict(_parts(hf))
    clock.run(f"{hf.name}: heads", parts.pop("heads"), lambda: detect(model, settings, found, work))
    if isinstance(settings, RealSettings):
        clock.run(f"{hf.name}: other prompts", parts.pop("other prompts"), partial(retest, model, settings, found, work))
    else:
        clock.run(f"{hf.name}: long contexts", parts.pop("long contexts"), lambda: detect_long(model, settings, found, work))
    if found.scores is None:
        clock.skip(sum(parts.values()))
        return found
    for name, part in _later_parts(model, found, found.scores, settings, data, work).items():
        clock.run(f"{hf.name}: {name}", parts[name], part)
    return found


def _later_parts(
    model: Model, found: Evidence, scores: HeadScores, settings: Settings, data: Path | None, work: Path | None
) -> dict[str, Callable[[], object]]:
    """What is measured once the heads are known; every part writes into `found`."""

    def steps() -> None:
        found.steps = dynamic.trace_steps(model, scores, settings)

    def ablation() -> None:
        found.ablation = causal.measure(model, scores, settings, work)

    def questions() -> None:
        found.reasoning = reasoning.measure(model, scores, settings)

    if not isinstance(settings, RealSettings):
        return {"steps": steps, "ablation": ablation, "reasoning": questions}
    real = settings

    def paraphrases() -> None:
        found.paraphrased = paraphrased.measure(model, scores, real, work)

    def facts() -> None:
        found.reasoning = reasoning.measure_real(model, scores, real, data, work)

    return {"steps": steps, "ablation": ablation, "paraphrased": paraphrases, "reasoning": facts}


def _untrained(model: Model, name: str, settings: Settings) -> dict[str, Any]:
    return control.measure(control.untrained(model, settings.seed), name, settings)


def _stories(folder: Path | None, settings: Settings) -> dict[str, Any]:
    """A folder that was asked for must be there; the one of a source checkout may be absent."""
    try:
        model = control.load_stories(folder)
    except HeadwiseError as error:
        if folder is not None:
            raise
        return {"name": "stories260K", "why": str(error)}
    return control.measure(model, "stories260K", settings)


def _result(
    found: Sequence[Evidence], controls: Sequence[dict[str, Any]], settings: Settings, real: RealSettings | None = None
) -> dict[str, Any]:
    properties: list[Property] = [
        universal.judge(found),
        sparse.judge(found),
        intrinsic.judge(found, settings.seed),
        dynamic.judge(found, settings.seed),
        causal.judge(found),
        *([paraphrased.judge(found)] if any(model.model.real for model in found) else []),
        reasoning.judge(found, settings.seed),
        control.judge(controls, found),
    ]
    paper = statements()
    result = {
        "headwise_properties": SCHEMA,
        "paper": CITATION,
        "verdict_rule": RULE,
        "settings": asdict(settings),
        **({"real_settings": asdict(real)} if real and any(model.model.real for model in found) else {}),
        "models": [_describe(model) for model in found],
        "properties": [one.to_json(paper[one.key]) for one in properties],
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    return dict(_plain(result))


def _plain(data: Any) -> Any:
    """The same data as JSON would give it back: lists, and None for what is not finite."""
    if isinstance(data, dict):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _describe(found: Evidence) -> dict[str, Any]:
    recipe = found.model.recipe
    kept = {name: recipe.get(name) for name in ("family", "seed", "rows", "start", "rope_base")}
    return {"name": found.name, "layers": found.shape[0], "heads": found.shape[1], "positions": found.positions, **kept}


class _Clock:
    """Progress over parts of known rough length."""

    def __init__(self, report: Report, total: float) -> None:
        self._report, self._total, self._done = report, total, 0.0

    def run(self, remark: str, length: float, part: Callable[[], object]) -> None:
        """Say what runs, run it, count it."""
        self._report(self._done, self._total, remark)
        part()
        self.skip(length)

    def skip(self, length: float) -> None:
        """Count a part as done."""
        self._done += length
        self._report(self._done, self._total, "")

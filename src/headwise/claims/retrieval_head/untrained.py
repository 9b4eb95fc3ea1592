"""Negative control: the same code on models that cannot retrieve finds nothing, and says so."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headwise.attention import observe
from headwise.claims.experiment import NotTestable
from headwise.claims.retrieval_head.scores import fitting_task
from headwise.claims.retrieval_head.sizes import RETRIEVAL, Sizes
from headwise.heads import NoSuccessfulRunError, PromptError
from headwise.maths.copy import copy_score
from headwise.methods.copy.options import Copy
from headwise.methods.copy.run import copy_scores
from headwise.models.model import Model, device_of
from headwise.prompts.grid import Task, even_depths, make_group, plan_groups
from headwise.runtime.answer import verify_draft
from headwise.runtime.runner import leaves

FORCED_GROUPS = 8
LIMIT = 16  # tokens of an answer that nobody expects to be right


def untrained(model: Model, seed: int) -> Model:
    """A freshly initialised model of the same shape, with the same tokenizer."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        hf = type(model.hf)(model.hf.config).eval().to(device_of(model.hf))
    return Model(hf, model.tokenizer, model.name)


def heads_without_retrieval(model: Model, sizes: Sizes) -> dict[str, Any]:
    """Detection as for any model, and the scores if the gold answer is taken as what the model says.

    Args:
        model: One that cannot retrieve.
        sizes: Of the lengths only the first is used.

    Returns:
        runs, solved, found (heads over 0.1), and the same with the gold answer forced.

    Raises:
        NotTestable: No prompt fits.
    """
    try:
        task = fitting_task(model, "detect", sizes.lengths[:1], even_depths(sizes.depths), sizes)
    except PromptError as error:
        raise NotTestable(str(error)) from error
    forced = forced_scores(model, task)
    row = {"runs": len(task.needles) * sizes.depths, "forced_max": float(np.nanmax(forced)), "forced_over": int((forced > RETRIEVAL).sum())}
    try:
        scores = copy_scores(model, task, Copy(max_new_tokens=LIMIT))
    except NoSuccessfulRunError:
        return row | {"solved": 0, "found": 0}
    return row | {"solved": scores.provenance["solved"], "found": int((scores.values > RETRIEVAL).sum())}


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
                keys, gold = (torch.tensor(ids, device=argmax.device) for ids in (prompt.ids, prompt.gold))
                tables.append(copy_score(argmax, keys, gold, prompt.span("answer")).cpu().numpy())
    return np.asarray(np.mean(tables, axis=0), dtype=np.float64)

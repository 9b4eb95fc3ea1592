"""How much the output of each layer suffers when its cache is cut (CompressKV, Lin et al. 2025, arXiv:2508.02401, eq. 6-12).

The changed output is thrown away, so that errors stay local to layers. Prompt and answer run in one pass: the model's own attention
of the answer's rows is there already, and only that over what would be kept is computed beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headwise.attention.call import Call
from headwise.attention.plan import attached
from headwise.caches.kept_layer import View
from headwise.caches.press import Press
from headwise.heads import HeadFileError, HeadwiseError
from headwise.heads.headfile import read_text, write_json
from headwise.heads.progress import Report, silent
from headwise.maths.attend import attend
from headwise.maths.select import best_places, protected
from headwise.methods.compresskv.formula import layer_shares, row_errors
from headwise.models.forward import token_tensor
from headwise.models.model import Model, describe_model


@dataclass(frozen=True)
class LayerErrors:
    """How much each layer's output suffers under small budgets.

    Attributes:
        budgets: Positions per KV head.
        values: [budget, prompt, layer] relative errors summed over the answer's rows; NaN for layers that are not compressed.
        rows: Answer tokens per prompt.
        datasets: One name per prompt.
        provenance: Scorer and model.
    """

    budgets: tuple[int, ...]
    values: NDArray[np.float64]
    rows: tuple[int, ...]
    datasets: tuple[str, ...]
    provenance: Mapping[str, Any]

    def profile(self, budget: int | None = None) -> tuple[float, ...]:
        """One share per layer, as `layer_shares` gives them. budget: one of `budgets`; default: the smallest."""
        budget = min(self.budgets) if budget is None else budget
        if budget not in self.budgets:
            raise HeadwiseError(f"no layer errors for a budget of {budget}; measured: {', '.join(map(str, self.budgets))}")
        return layer_shares(self.values[self.budgets.index(budget)], self.datasets)

    def check(self, model: Model) -> None:
        """Raise `HeadwiseError` for a model of another shape."""
        given, wanted = [self.provenance.get(n) for n in ("layers", "heads", "kv_heads")], [*model.heads.shape, model.heads.kv_heads]
        if given != wanted:
            raise HeadwiseError(f"layer errors of a model with layers, heads, KV heads {given}; {model.name} has {wanted}")

    def save(self, path: Path, overwrite: bool = False) -> None:
        """Write as JSON. An existing file is refused unless `overwrite`."""
        write_json({"layer_errors": vars(self) | {"values": self.values.tolist()}}, path, overwrite)

    @classmethod
    def load(cls, path: Path) -> LayerErrors:
        """Inverse of `save`. Raises `HeadFileError` for anything else."""
        text = read_text(path)
        try:
            data = json.loads(text)["layer_errors"]
            lists = {name: tuple(data[name]) for name in ("budgets", "rows", "datasets")}
            values = np.array(data["values"], dtype=np.float64)
            if values.ndim != 3 or values.shape[:2] != (len(lists["budgets"]), len(lists["datasets"])):
                raise ValueError(f"values of shape {values.shape}")
            return cls(values=values, provenance=dict(data["provenance"]), **lists)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise HeadFileError(f"{path} is no file of layer errors ({error!r}); measure them again") from error


@torch.no_grad()
def layer_errors(
    model: Model, press: Press, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], budgets: Sequence[int] = (32,),
    datasets: Sequence[str] | None = None, report: Report = silent,
) -> LayerErrors:  # fmt: skip
    """Errors of all layers that see the whole context, for every budget and prompt (equations 6-9).

    Args:
        model: The model.
        press: Its scores, sinks and window decide what is kept; every layer gets the same, whatever its own budget and allocation are.
        prompts: Token ids.
        answers: Token ids, one answer per prompt (the paper: greedy answers with the full cache).
        budgets: Positions per KV head; a prompt that is no longer is kept whole and has no error.
        datasets: A name per prompt. Default: one data set.
        report: Called with (done, total, remark) in prompts.

    Raises:
        HeadwiseError: Input that does not fit, or gated attention (Qwen3-Next), whose gate is not seen here.
    """
    hf, model, names = model.hf, model, tuple(datasets or [""] * len(prompts))
    _check(model, press, prompts, answers, budgets, names)
    values = np.full((len(budgets), len(prompts), model.heads.shape[0]), np.nan)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        errors: dict[int, Tensor] = {}
        with attached(hf) as plan, plan.running(_Errors(partial(_measure, errors, press, model, len(prompt), budgets))):
            hf(input_ids=token_tensor(hf, [*prompt, *answer]), use_cache=False, logits_to_keep=1)
        for layer, found in errors.items():
            values[:, i, layer] = found.cpu().numpy()
            if not np.isfinite(values[:, i, layer]).all():
                raise HeadwiseError(f"prompt {i}: layer {layer} gives no finite output (NaN or infinity); try --dtype float32")
        report(i + 1, len(prompts), f"{i + 1} of {len(prompts)} prompts")
    stated = {"press": repr(press)} | describe_model(model)
    return LayerErrors(tuple(budgets), values, tuple(map(len, answers)), names, stated)


@dataclass(frozen=True)
class _Errors:
    """Look: measures one layer."""

    look: Callable[[Call], None]


def _measure(errors: dict[int, Tensor], press: Press, model: Model, length: int, budgets: Sequence[int], call: Call) -> None:
    """Put errors [budget] float32 of the rows behind a prompt of `length` tokens at the layer's place."""
    if model.heads.windows[call.layer] is not None:
        return
    (keys,), (values,), project = call.keys, call.values, model.part("output", call.layer)
    places = torch.arange(length, dtype=torch.int32, device=keys.device)[None]
    prompt = call.query[:, :, :length], keys[:, :, :length], values[:, :, :length], places
    scores = press.scores(View(call.layer, *prompt, call.scaling, call.softcap, call.sinks, model))
    fixed, full = protected(places, press.sinks, press.window), project(call.output[:, length:].flatten(2))
    errors[call.layer] = torch.zeros(len(budgets), device=keys.device)
    for i, budget in enumerate(budgets):
        if budget < length:
            kept = best_places(scores, fixed, places >= 0, budget)[..., None].expand(-1, keys.shape[1], -1, -1)
            held = (torch.cat([x.gather(2, kept.expand(-1, -1, -1, x.shape[-1])), x[:, :, length:]], 2) for x in (keys, values))
            out = attend(call.query[:, :, length:], *held, scaling=call.scaling, softcap=call.softcap, sinks=call.sinks)
            errors[call.layer][i] = row_errors(project(out.flatten(2)), full)[0]


def _check(model: Model, press: Press, prompts: Any, answers: Any, budgets: Sequence[int], names: tuple[str, ...]) -> None:
    press.check(model)
    if model.family.query == "gated":
        raise HeadwiseError(
            f"layer errors of {model.name} would miss the gate between attention and its projection; not supported"
        )
    counts = [len(prompts), len(answers), len(names)]
    if len(set(counts)) > 1 or not all(map(len, [*prompts, *answers, prompts])):
        raise HeadwiseError(f"give as many answers and data set names as prompts, nothing empty; got {counts}")
    longest = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    if model.positions is not None and longest > model.positions:
        raise HeadwiseError(f"a prompt and its answer have {longest} tokens, but the model has {model.positions} positions")
    if not budgets or len(set(budgets)) < len(budgets) or min(budgets) <= press.least:
        raise HeadwiseError(f"budgets must be different numbers above {press.least} (sinks and window); got {list(budgets)}")

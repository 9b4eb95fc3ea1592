"""Train a draft head that chooses positions for a model: distillation over running text (SpeContext, Xu et al. 2025, arXiv:2512.00722, sec. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headwise.attention.plan import attached
from headwise.attention.summed_rows import SummedRows
from headwise.attention.taps import tapped
from headwise.caches.chooser_parts import check_whole, in_layers
from headwise.caches.gated import last_hidden
from headwise.heads.errors import HeadwiseError, PromptError
from headwise.heads.plain import checked_seed
from headwise.heads.progress import Report, silent
from headwise.heads.types import Heads
from headwise.maths.attend import softmax_rows
from headwise.maths.distil import attention_loss
from headwise.maths.importance import group_largest
from headwise.methods.specontext.draft import Draft, head_rows, token_loss
from headwise.models.draft_head import INPUTS, DraftHead, shape_for
from headwise.models.model import Model, describe_model, device_of
from headwise.prompts.haystack import Haystack
from headwise.runtime.rundir import RunDirectory

LOSSES = ("attention", "tokens", "labels")
SINKS, RECENT = 4, 32  # positions that are read anyway; nothing is learnt about them
TRAINED, HELD_OUT = (0.0, 0.95), (0.95, 1.0)  # shares of the text
SAVED = 50  # steps after which the state is kept, and the held-out text is looked at
CHECKED = 8  # held-out windows
NAMED = 8  # recall is measured for one position in so many of the length


@dataclass(frozen=True)
class ChooserTraining:
    """How a chooser is trained.

    Attributes:
        inputs: See `DraftShape.inputs`.
        loss: `attention`: where the model attends. `tokens`: its next-token probabilities (EAGLE-3). `labels`: the true next tokens.
        steps: Of AdamW.
        batch: Texts per step.
        length: Tokens per text.
        rate: Peak learning rate.
        rows: Positions per text whose attention is learnt.
        unroll: Steps on the draft's own states, for `tokens` and `labels`.
        words: Tokens of the draft's vocabulary, the most frequent ones of the text, for `tokens` and `labels`.
        share: How much the mean of chosen retrieval heads counts beside that of all heads, in [0, 1].
        seed: Of windows, rows and first weights.
    """

    inputs: str = "emb+feat"
    loss: str = "attention"
    steps: int = 600
    batch: int = 2
    length: int = 512
    rate: float = 1e-3
    rows: int = 128
    unroll: int = 3
    words: int = 8192
    share: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("inputs", INPUTS), ("loss", LOSSES)):
            if getattr(self, name) not in known:
                raise HeadwiseError(f"unknown {name} {getattr(self, name)!r}; use {', '.join(known)}")
        for name, least in (
            ("steps", 1),
            ("batch", 1),
            ("length", 2 * (SINKS + RECENT)),
            ("rows", 1),
            ("unroll", 1),
            ("words", 2),
        ):
            check_whole(getattr(self, name), least, f"{name} must be a whole number from {least} on")
        checked_seed(self.seed)
        numbers = all(isinstance(value, int | float) for value in (self.rate, self.share))
        if not numbers or not 0 < self.rate < 1 or not 0 <= self.share <= 1:
            raise HeadwiseError(f"rate must lie in (0, 1) and share in [0, 1]; got {self.rate!r} and {self.share!r}")


@torch.inference_mode(False)
@torch.enable_grad()
def train_chooser(
    model: Model,
    text: Haystack,
    options: ChooserTraining | None = None,
    heads: Heads | None = None,
    report: Report = silent,
    parts: RunDirectory | None = None,
) -> DraftHead:
    """Distil a draft head from a model.

    Args:
        model: The model; it does not change.
        text: Running text; its last twentieth is held out.
        options: Default: `ChooserTraining()`.
        heads: Retrieval heads, whose attention counts as much as `options.share` says.
        report: `report(done, total, remark)` in steps.
        parts: Keeps the state every 50 steps; an interrupted training continues there and ends with the same weights.

    Returns:
        The draft head. `story` has the options, the model, and a curve over the held-out text: loss, and the share of the positions that the model
        attends to most (an eighth of the length of a text; those that are read anyway left out) that the head names, beside chance.

    Raises:
        HeadwiseError: A model without full attention, windows longer than its positions or than the text, or heads of another model.
    """
    options = options or ChooserTraining()
    if model.positions is not None and options.length > model.positions:
        raise HeadwiseError(f"texts of {options.length} tokens are longer than the {model.positions} positions of {model.name}")
    teacher, state = _Teacher(model, text, options, heads), _State(model, options)
    state.take_up(parts, options.steps)
    while state.steps < options.steps:
        loss = _step(teacher, state)
        report(state.steps, options.steps, f"loss {loss:.3f}")
        if state.steps % SAVED == 0 or state.steps == options.steps:
            state.curve.append({"step": state.steps, "loss": loss, **_held_out(teacher, state)})
            state.keep(parts)
    story: dict[str, Any] = {"options": asdict(options), "text": text.digest, "curve": state.curve, "of": describe_model(model)}
    story["heads"] = None if heads is None else [str(head) for head in model.check(heads)]
    state.draft.head.story = story
    return state.draft.head.eval().requires_grad_(False)


def _step(teacher: _Teacher, state: _State) -> float:
    """One step of the optimiser; gives the loss."""
    options = teacher.options
    seen = teacher.read((options.seed, 1, state.steps), options.batch, TRAINED)
    ramp = max(1, options.steps // 10)
    factor = min((state.steps + 1) / ramp, max(0.1, 1 - state.steps / options.steps))
    state.optimiser.param_groups[0]["lr"] = options.rate * min(1.0, factor)
    state.optimiser.zero_grad()
    loss = _loss(teacher, state.draft, seen)
    if not bool(loss.isfinite()):
        raise HeadwiseError(
            f"the loss of step {state.steps + 1} is {float(loss.detach())}; train with a smaller rate, or the model in float32"
        )
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(state.draft.parameters(), 1.0)
    state.optimiser.step()
    state.steps += 1
    return round(float(loss.detach()), 5)


def _loss(teacher: _Teacher, draft: Draft, seen: _Seen) -> Tensor:
    fused = None if seen.features is None else draft.head.fused(seen.features)
    if teacher.options.loss == "attention":
        return attention_loss(head_rows(draft.head, seen.embeddings, fused, seen.rows, seen.free), seen.attention)
    wanted = teacher.wanted_tokens(seen)
    fused = torch.zeros_like(seen.embeddings) if fused is None else fused
    return token_loss(draft, seen.embeddings, fused, teacher.projection, wanted, teacher.options.unroll)


@torch.no_grad()
def _held_out(teacher: _Teacher, state: _State) -> dict[str, float | None]:
    """Loss and recall over the held-out text, the same windows every time."""
    losses, recalls, chances, count = [], [], [], max(1, teacher.options.length // NAMED)
    for number in range(CHECKED):
        seen = teacher.read((teacher.options.seed, 2, number), 1, HELD_OUT)
        losses.append(float(_loss(teacher, state.draft, seen)))
        fused = None if seen.features is None else state.draft.head.fused(seen.features)
        logits = head_rows(state.draft.head, seen.embeddings, fused, seen.rows, seen.free)
        weights = softmax_rows(logits, None).transpose(1, 2).flatten(0, 1)  # [B R, H, T]
        enough = seen.free.sum(dim=-1) >= 2 * count
        said = group_largest(weights, seen.attention.shape[1])[enough]
        best = seen.attention.transpose(1, 2).flatten(0, 1)[enough]
        said, best = (torch.zeros_like(t).scatter(-1, t.topk(count, dim=-1).indices, 1.0) for t in (said, best))
        if not bool(enough.any()):
            continue
        recalls.append(float((said * best).sum() / best.sum()))
        chances.append(float((count / seen.free[enough].sum(dim=-1).float()).mean()))
    names = {"held_out_loss": losses, "recall": recalls, "recall_by_chance": chances}
    return {name: round(float(np.mean(values)), 5) if values else None for name, values in names.items()} | {"named": count}


@dataclass(frozen=True)
class _Seen:
    """One reading of the model.

    Attributes:
        embeddings: [B, T, width].
        features: [B, T, taps x width], None for `emb`.
        ids: [B, T + 1].
        last: [B, T, width], behind the final norm.
        rows: [R] positions whose attention is learnt.
        free: [R, T] bool, positions among which they choose.
        attention: [B, G, R, T] of the model, on free positions.
    """

    embeddings: Tensor
    features: Tensor | None
    ids: Tensor
    last: Tensor
    rows: Tensor
    free: Tensor
    attention: Tensor


class _Teacher:
    """The model as it is learnt from."""

    def __init__(self, model: Model, text: Haystack, options: ChooserTraining, heads: Heads | None) -> None:
        if not model.heads.full_layers:
            raise HeadwiseError(f"{model.name} has no layer with full attention, so there is nothing to choose")
        self.options, self._model, self._text = options, model, text
        self._by_layer = {} if heads is None else in_layers(model, heads, model.heads.full_layers)
        try:  # before the first step, not behind it
            self._ids((options.seed, 1, 0), 1, TRAINED), self._ids((options.seed, 2, 0), 1, HELD_OUT)
        except PromptError as error:
            raise HeadwiseError(
                f"a text of {len(text)} tokens is too short: its last twentieth is held out and must hold {options.length + 1} tokens from the "
                f"beginning of a sentence on; give more text, or a smaller length"
            ) from error
        self._taps = shape_for(model, options.inputs, options.length).taps
        if options.loss == "attention":
            return
        counted = np.bincount(np.concatenate([self._ids((options.seed, 0, i), 1, TRAINED)[0].numpy() for i in range(64)]))
        common = np.argsort(-counted, kind="stable")[: options.words]
        self._words = torch.from_numpy(common[counted[common] > 0]).to(device_of(model.hf))
        weight: Any = model.readout.projection.weight
        if weight.is_meta or not weight.is_floating_point():
            raise HeadwiseError(
                f"the output projection of {model.name} is offloaded or packed; train with loss attention, or load it whole"
            )
        self.projection: Tensor = weight[self._words].detach().float()

    def _ids(self, seed: Sequence[int], batch: int, part: tuple[float, float]) -> Tensor:
        """[B, T + 1]."""
        windows = [self._text.window(self.options.length + 1, (*seed, i), part).ids for i in range(batch)]
        return torch.tensor(windows)

    @torch.no_grad()
    def read(self, seed: Sequence[int], batch: int, part: tuple[float, float]) -> _Seen:
        """Read windows; which ones, and which rows, is a function of the seed."""
        options, device = self.options, device_of(self._model.hf)
        ids = self._ids(seed, batch, part).to(device)
        least = SINKS + RECENT + 1
        count = min(options.rows, options.length - least)
        drawn = np.random.default_rng([*seed, 9]).choice(np.arange(least, options.length), count, replace=False)
        rows = torch.from_numpy(np.sort(drawn)).to(device)
        order = torch.arange(options.length, device=device)
        watch = SummedRows(self._model, rows, self._by_layer, options.share)
        with tapped(self._model, sorted(set(self._taps))) as taps, attached(self._model) as plan, plan.running(watch):
            last = last_hidden(self._model.hf, ids[:, :-1], range(options.length)).float()
        features = torch.cat([taps[layer].float() for layer in self._taps], dim=-1) if self._taps else None
        embeddings = self._model.hf.get_input_embeddings()(ids[:, :-1]).float()
        free = (order >= SINKS) & (order <= rows[:, None] - RECENT)
        return _Seen(embeddings, features, ids, last, rows, free, watch.attention() * free)

    def wanted_tokens(self, seen: _Seen) -> Tensor:
        """What `token_loss` takes: probabilities of the model in the draft's vocabulary, or indices of the true tokens."""
        if self.options.loss == "tokens":
            logits, cap = seen.last @ self.projection.T * self._model.readout.scale, self._model.readout.cap
            return (logits if cap is None else cap * torch.tanh(logits / cap)).softmax(dim=-1)
        place = torch.full((int(max(seen.ids.max(), self._words.max())) + 1,), -100, device=seen.ids.device)
        place[self._words] = torch.arange(len(self._words), device=place.device)
        return place[seen.ids[:, 1:]]


class _State:
    """All that a step changes."""

    def __init__(self, model: Model, options: ChooserTraining) -> None:
        device, text = device_of(model.hf), model.hf.config.get_text_config(decoder=True)
        with torch.random.fork_rng():
            torch.manual_seed(options.seed)
            head = DraftHead(shape_for(model, options.inputs, options.length))
            inner = int(getattr(text, "intermediate_size", 0) or 4 * head.shape.width)
            self.draft = Draft(head, inner).to(device)
        self._trained = [
            p for name, p in self.draft.named_parameters() if options.loss != "attention" or name.startswith("head.")
        ]
        self.optimiser = torch.optim.AdamW(self._trained, lr=options.rate, betas=(0.9, 0.95), weight_decay=0.0)
        self.steps, self.kept, self.curve = 0, 0, list[dict[str, float | None]]()

    def keep(self, parts: RunDirectory | None) -> None:
        """As a cell of its own, named by its steps."""
        if parts is None:
            return
        tensors = dict[str, Tensor]()
        for i, own in enumerate(self._trained):
            moments = self.optimiser.state[own]
            tensors |= {f"p{i}": own.detach(), f"m{i}": moments["exp_avg"], f"v{i}": moments["exp_avg_sq"]}
        arrays = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
        parts.save(f"step-{self.steps}", arrays, [{"curve": self.curve}])
        parts.drop(f"step-{self.kept}")
        self.kept = self.steps

    def take_up(self, parts: RunDirectory | None, steps: int) -> None:
        """Continue from the latest state that was kept, if there is one."""
        for step in (steps, *range(steps // SAVED * SAVED, 0, -SAVED)):
            cell = None if parts is None else parts.load(f"step-{step}")
            if cell is None:
                continue
            arrays = {name: torch.from_numpy(array) for name, array in cell[0].items()}
            self.steps, self.kept, self.curve = step, step, cell[1][0]["curve"]
            states = dict[int, dict[str, Tensor]]()
            with torch.no_grad():
                for i, own in enumerate(self._trained):
                    own.copy_(arrays[f"p{i}"])
                    states[i] = {"step": torch.tensor(float(step)), "exp_avg": arrays[f"m{i}"], "exp_avg_sq": arrays[f"v{i}"]}
            self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": states})
            return

"""The retrieval head of SpeContext: what is kept of a draft layer to choose positions before the model runs (Xu et al. 2025, arXiv:2512.00722).

A draft layer reads the embedding of the newest token and, as in EAGLE-3 (Li et al. 2025, arXiv:2503.01840), hidden states that the model had at the
token before. Only what makes queries and keys of it is kept; values, output, MLP and vocabulary are needed for training alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from headwise.heads.errors import HeadwiseError
from headwise.heads.files import write_atomically
from headwise.models.model import Model

SCHEMA, KEY = 1, "headwise_chooser"
INPUTS = ("emb", "emb+feat", "feat-lite")
THETA = 10000.0  # where a model has no rotary positions of its own


@dataclass(frozen=True)
class DraftShape:
    """What a draft head must fit, and how it is built.

    Attributes:
        model: Name of the model that it was made for.
        vocabulary: Tokens of that model.
        layers: Layers of that model.
        width: Width of its hidden states.
        heads, kv_heads, head_dim: Of the draft head itself.
        inputs: `emb` (the embedding alone), `emb+feat` (and hidden states of three layers), `feat-lite` (and those of one early layer).
        taps: Layers whose incoming hidden states are read; none for `emb`.
        theta: Base of its rotary positions.
        length: Tokens of the texts that it was trained on.
        eps: Of its norms.
        normed: Queries and keys have a norm of their own, per head.
        biased: Queries and keys have a bias.
        target_theta: Base of the rotary positions of the model that it was trained for; None where that is not known.
    """

    model: str
    vocabulary: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    inputs: str
    taps: tuple[int, ...]
    theta: float
    length: int
    eps: float = 1e-6
    normed: bool = False
    biased: bool = False
    target_theta: float | None = None

    def __post_init__(self) -> None:
        """Refuse what no head can be built of: shapes come from files. Raises `HeadwiseError`."""
        for name in ("vocabulary", "layers", "width", "heads", "kv_heads", "head_dim", "length"):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise HeadwiseError(f"{name} of a draft head must be a whole number from 1 on; got {number!r}")
        for name, least in (("theta", 1), ("eps", 0), ("target_theta", 0)):
            number = getattr(self, name)
            if not (number is None and name == "target_theta") and not (
                isinstance(number, int | float) and least < number < math.inf
            ):
                raise HeadwiseError(f"{name} of a draft head must be a number above {least}; got {number!r}")
        if self.heads % self.kv_heads or self.head_dim % 2:
            raise HeadwiseError(
                f"a draft head needs as many heads for each KV head, and an even head_dim; got {self.heads} heads, {self.kv_heads} KV heads "
                f"and head_dim {self.head_dim}"
            )
        if self.inputs not in INPUTS or not all(isinstance(layer, int) and 0 <= layer < self.layers for layer in self.taps):
            raise HeadwiseError(f"a draft head of {self.layers} layers cannot read {self.inputs!r} of layers {list(self.taps)}")

    @property
    def wide(self) -> int:
        """Numbers per token that queries and keys are made of."""
        return self.width * (2 if self.taps else 1)


def shape_for(model: Model, inputs: str, length: int) -> DraftShape:
    """The shape of a draft head with as many heads as a model has.

    Args:
        model: The target.
        inputs: One of `INPUTS`.
        length: Tokens of the texts of training.

    Raises:
        HeadwiseError: Unknown inputs.
    """
    if inputs not in INPUTS:
        raise HeadwiseError(f"unknown inputs {inputs!r}; use {', '.join(INPUTS)}")
    text, layers, theta = model.hf.config.get_text_config(decoder=True), model.heads.shape[0], theta_of(model)
    # EAGLE-3 taps what enters layers 2, L / 2 and L - 3; small models have the same ones more than once.
    taps = {"emb": (), "emb+feat": (2, layers // 2, layers - 3), "feat-lite": (layers // 4,)}[inputs]
    # Rotation needs an even width, and with fewer than 16 channels hardly any turns slowly enough to tell far positions apart.
    return DraftShape(
        model.name, int(text.vocab_size), layers, int(text.hidden_size), model.heads.shape[1], model.heads.kv_heads,
        max(16, model.heads.head_dim // 2 * 2), inputs, tuple(min(max(layer, 0), layers - 1) for layer in taps), theta, length,
        target_theta=theta,
    )  # fmt: skip


def theta_of(model: Model) -> float:
    """Base of the rotary positions of a model, 10,000 where it has none."""
    text = model.hf.config.get_text_config(decoder=True)
    given = getattr(text, "rope_parameters", None) or {}
    if "rope_theta" not in given:  # one entry per kind of layer
        given = given.get("full_attention") or next((part for part in given.values() if isinstance(part, Mapping)), {})
    return float(given.get("rope_theta") or getattr(text, "rope_theta", None) or THETA)


class DraftHead(nn.Module):
    """Queries and keys of a draft layer.

    Args:
        shape: How it is built.
        story: What is told of its training, as JSON data.
    """

    def __init__(self, shape: DraftShape, story: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.shape, self.story = shape, dict(story or {})
        self.embedding_norm = nn.RMSNorm(shape.width, eps=shape.eps)
        self.query = nn.Linear(shape.wide, shape.heads * shape.head_dim, bias=shape.biased)
        self.key = nn.Linear(shape.wide, shape.kv_heads * shape.head_dim, bias=shape.biased)
        self.feature_norm = nn.RMSNorm(shape.width, eps=shape.eps) if shape.taps else None
        self.fuse = nn.Linear(len(shape.taps) * shape.width, shape.width, bias=False) if len(shape.taps) > 1 else None
        self.query_norm = nn.RMSNorm(shape.head_dim, eps=shape.eps) if shape.normed else None
        self.key_norm = nn.RMSNorm(shape.head_dim, eps=shape.eps) if shape.normed else None

    def fused(self, features: Tensor) -> Tensor:
        """[B, T, width] of the tapped hidden states side by side, [B, T, taps x width]."""
        return features if self.fuse is None else self.fuse(features)

    def inputs(self, embeddings: Tensor, before: Tensor | None) -> Tensor:
        """What queries and keys are made of.

        Args:
            embeddings: [B, T, width] of the tokens.
            before: [B, T, width] fused features of the token in front of each; zeros where there is none. None for `emb`.

        Returns:
            [B, T, wide].
        """
        normed: Tensor = self.embedding_norm(embeddings)
        return normed if self.feature_norm is None else torch.cat([normed, self.feature_norm(before)], dim=-1)

    def queries(self, inputs: Tensor) -> Tensor:
        """[B, H, T, d] before rotation."""
        return _heads(self.query(inputs), self.shape.heads, self.query_norm)

    def keys(self, inputs: Tensor) -> Tensor:
        """[B, G, T, d] before rotation."""
        return _heads(self.key(inputs), self.shape.kv_heads, self.key_norm)

    def check(self, model: Model) -> None:
        """Raise `HeadwiseError` if the head cannot belong to a model."""
        text = model.hf.config.get_text_config(decoder=True)
        own, shape = {"tokens": int(text.vocab_size), "hidden width": int(text.hidden_size)}, self.shape
        wanted = {"tokens": shape.vocabulary, "hidden width": shape.width}
        if shape.taps:
            own |= {"layers": model.heads.shape[0]}
            wanted |= {"layers": shape.layers}
        if shape.target_theta is not None:
            own |= {"RoPE base": int(theta_of(model))}
            wanted |= {"RoPE base": int(shape.target_theta)}
        for what, number in wanted.items():
            if own[what] != number:
                raise HeadwiseError(
                    f"this chooser was made for {shape.model} ({what} {number}) and does not fit {model.name} ({what} {own[what]}); "
                    f"train one for it: headwise train chooser"
                )

    def save(self, path: Path | str, overwrite: bool = False) -> None:
        """Write weights in bfloat16, shape and story as one safetensors file, atomically. overwrite: replace an existing file.

        Raises:
            HeadwiseError: The file exists, or cannot be written.
        """
        if Path(path).exists() and not overwrite:
            raise HeadwiseError(f"{path} exists; give another name or --overwrite (results are never merged)")
        tensors = {name: own.detach().to("cpu", torch.bfloat16).contiguous() for name, own in self.state_dict().items()}
        facts = json.dumps({"schema": SCHEMA, "shape": asdict(self.shape), "story": self.story}, sort_keys=True)
        write_atomically(Path(path), save(tensors, {KEY: facts}))


def _heads(states: Tensor, count: int, norm: nn.Module | None) -> Tensor:
    split = states.view(*states.shape[:2], count, -1)
    return (split if norm is None else norm(split)).transpose(1, 2)


def read_draft_head(path: Path | str) -> DraftHead:
    """The draft head of a file that `DraftHead.save` wrote, in float32.

    Raises:
        HeadwiseError: There is no such file, or it is none of ours, broken, or of a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise HeadwiseError(f"no such file: {path}" if not path.is_dir() else f"{path} is a folder; give the file of a chooser")
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {}).get(KEY, "null"))
            tensors = {name: file.get_tensor(name).float() for name in file.offset_keys()} if facts else {}
    except (SafetensorError, OSError, ValueError) as error:
        raise HeadwiseError(f"{path} is no readable safetensors file: {str(error).splitlines()[0]}") from error
    if not isinstance(facts, Mapping) or not facts:
        raise HeadwiseError(f"{path} is no chooser; headwise train chooser writes one")
    if facts.get("schema") != SCHEMA:
        raise HeadwiseError(f"{path} has schema {facts.get('schema')!r}, this headwise reads {SCHEMA}; update headwise")
    try:
        head = DraftHead(DraftShape(**(facts["shape"] | {"taps": tuple(facts["shape"]["taps"])})), facts["story"])
        head.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # a `HeadwiseError` of the shape among them
        raise HeadwiseError(f"{path} is broken: {str(error).splitlines()[-1].strip()}; train or fetch it anew") from error
    if not all(bool(own.isfinite().all()) for own in tensors.values()):
        raise HeadwiseError(f"{path} is broken: not all of its weights are finite numbers; train it anew, with a smaller --rate")
    return head.eval().requires_grad_(False)

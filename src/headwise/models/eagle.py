"""Draft heads of released EAGLE-3 checkpoints (Li et al. 2025, arXiv:2503.01840): of a whole draft layer only queries and keys are kept.

Two layouts are read: that of the paper's own repository (`midlayer.*`, a plain Llama configuration) and that of the `speculators` library
(`layers.0.*`, the layer's configuration under `transformer_layer_config`).
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from headwise.heads.errors import HeadwiseError
from headwise.heads.files import parse_json, read_text
from headwise.models.draft_head import THETA, DraftHead, DraftShape
from headwise.models.model import Model
from headwise.models.names import folder_of

LAYERS = ("midlayer", "layers.0")
FUSE = "fc.weight"
# Name inside the layer -> name in a `DraftHead`.
OF_LAYER = {
    "self_attn.q_proj.weight": "query.weight",
    "self_attn.k_proj.weight": "key.weight",
    "self_attn.q_proj.bias": "query.bias",
    "self_attn.k_proj.bias": "key.bias",
    "self_attn.q_norm.weight": "query_norm.weight",
    "self_attn.k_norm.weight": "key_norm.weight",
    "input_layernorm.weight": "embedding_norm.weight",
    "hidden_norm.weight": "feature_norm.weight",
}
NEEDED = ("query.weight", "key.weight", "embedding_norm.weight", "feature_norm.weight", "fuse.weight")
UNPACKED = ("model.safetensors", "pytorch_model.bin")


def read_eagle(name: str | Path, model: Model, inputs: str = "emb+feat") -> DraftHead:
    """The draft head of an EAGLE-3 draft for a model.

    Args:
        name: Folder or hub id of the draft.
        model: The model that it was made for; its embedding is used, as the draft's own is a copy of it.
        inputs: `emb+feat`, as it was trained, or `emb`: the half of queries and keys that reads the embedding, which is what SpeContext's text says.

    Raises:
        HeadwiseError: There is no such draft, it is no EAGLE-3 draft or a broken one, or it does not fit the model.
    """
    if inputs not in ("emb", "emb+feat"):
        raise HeadwiseError(f"an EAGLE-3 draft can be read with inputs emb or emb+feat; got {inputs!r}")
    folder = folder_of(str(name))
    if folder is None or not (folder / "config.json").is_file():
        raise HeadwiseError(
            f"{str(name)!r} is no folder with config.json and no model of the hub that is here; download it first"
        )
    config = _config(folder)
    tensors = _tensors(folder)
    layer = next((layer for layer in LAYERS if f"{layer}.self_attn.q_proj.weight" in tensors), None)
    found = (
        {}
        if layer is None
        else {own: tensors[f"{layer}.{theirs}"] for theirs, own in OF_LAYER.items() if f"{layer}.{theirs}" in tensors}
    )
    found |= {"fuse.weight": tensors[FUSE]} if FUSE in tensors else {}
    missing = [name for name in NEEDED if name not in found]
    if missing:
        raise HeadwiseError(f"{folder.name} is no EAGLE-3 draft: it lacks {', '.join(missing)} (as headwise calls them)")
    for own, tensor in found.items():
        if tensor.ndim != (1 if own.endswith(("norm.weight", "bias")) else 2) or not bool(tensor.isfinite().all()):
            raise HeadwiseError(f"{folder.name} is broken: {own} has another number of axes, or not all of it are finite numbers")
    shape = _shape(config, model, found)
    if inputs == "emb":
        found = {name: own for name, own in found.items() if not name.startswith(("fuse", "feature"))}
        found |= {name: found[name][:, : shape.width] for name in ("query.weight", "key.weight")}
    elif found["fuse.weight"].shape[1] != len(shape.taps) * shape.width:
        raise HeadwiseError(
            f"{folder.name} fuses {found['fuse.weight'].shape[1]} numbers; three hidden states of {model.name} are {3 * shape.width}"
        )
    head = DraftHead(
        shape if inputs == "emb+feat" else replace(shape, inputs="emb", taps=()), {"draft": folder.name, "layout": layer}
    )
    try:
        head.load_state_dict({name: own.float() for name, own in found.items()})
    except RuntimeError as error:
        raise HeadwiseError(f"{folder.name} does not fit its own config.json: {str(error).splitlines()[-1].strip()}") from error
    head.check(model)
    return head.eval().requires_grad_(False)


def _config(folder: Path) -> Mapping[str, Any]:
    """The draft's configuration, that of its layer on top."""
    path = folder / "config.json"
    found = parse_json(read_text(path, "the draft's configuration"), f"{path} cannot be read")
    parts = [found, (found.get("transformer_layer_config") or {}) if isinstance(found, Mapping) else None]
    if not all(isinstance(part, Mapping) for part in parts):
        raise HeadwiseError(f"{path} cannot be read: it holds no JSON object")
    return parts[0] | parts[1]  # type: ignore[no-any-return]


def _tensors(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    file = next((folder / name for name in UNPACKED if (folder / name).is_file()), None)
    if file is None:
        raise HeadwiseError(f"{folder.name} holds no weights ({' or '.join(UNPACKED)})")
    try:
        found: Any = load_file(file) if file.suffix == ".safetensors" else torch.load(file, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:  # in all these ways torch fails on files of another kind
        raise HeadwiseError(f"{file} cannot be read: it is no file of tensors alone") from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise HeadwiseError(f"{file} cannot be read: {(str(error).splitlines() or ['broken'])[0]}") from error
    if not isinstance(found, Mapping) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise HeadwiseError(f"{file} cannot be read: it holds something other than named tensors")
    return dict(found)


def _shape(config: Mapping[str, Any], model: Model, found: Mapping[str, Tensor]) -> DraftShape:
    """Shape by configuration. Raises `HeadwiseError` where something is missing or of a kind that is not read."""
    try:
        heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
        given = config.get("rope_parameters") or config.get("rope_scaling") or {}
        kind = given.get("rope_type") or given.get("type") or "default"
        if kind != "default":
            raise HeadwiseError(f"the draft's rotary positions are of kind {kind!r}; only plain ones can be read")
        layers = model.heads.shape[0]
        taps = config.get("eagle_aux_hidden_state_layer_ids") or (2, layers // 2, layers - 3)
        if not all(0 <= int(layer) < layers for layer in taps):
            raise HeadwiseError(f"the draft reads what enters layers {', '.join(map(str, taps))}; {model.name} has {layers}")
        return DraftShape(
            model.name, int(config["vocab_size"]), layers, width, heads, int(config.get("num_key_value_heads") or heads),
            int(config.get("head_dim") or width // heads), "emb+feat", tuple(int(layer) for layer in taps),
            float(given.get("rope_theta") or config.get("rope_theta") or THETA), int(config.get("max_position_embeddings") or 2048),
            float(config.get("rms_norm_eps") or 1e-6), "query_norm.weight" in found, "query.bias" in found,
        )  # fmt: skip
    except HeadwiseError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise HeadwiseError(f"the draft's config.json lacks or misstates {error}") from error

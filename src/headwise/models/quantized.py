"""Quantized checkpoints: what each way of packing weights needs on this machine, which are unpacked when they are loaded, and what results call them.

transformers does the loading. What it would refuse with a traceback, or load without a word as something else, is refused here by name, before any
tensor is read.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from headwise.heads.errors import HeadwiseError, UnsupportedModelError
from headwise.models.checkpoint import some_of
from headwise.models.gguf import SOURCE


@dataclass(frozen=True)
class Method:
    """A way of packing weights.

    Attributes:
        title: What messages and results call it.
        packages: Package to import -> what installs it.
        accelerator: It runs on CUDA devices only.
        unpack: transformers' class of settings that unpacks the weights when they are loaded; "" where they stay packed.
        packed_packages: As `packages`, if they are to stay packed.
    """

    title: str
    packages: Mapping[str, str]
    accelerator: bool = False
    unpack: str = ""
    packed_packages: Mapping[str, str] | None = None


_KERNELS = {"kernels": "kernels"}
METHODS = {
    "bitsandbytes": Method("bitsandbytes", {"bitsandbytes": "bitsandbytes"}),
    "gptq": Method("GPTQ", {"optimum": "optimum", "gptqmodel": "gptqmodel"}),
    "awq": Method("AWQ", {"gptqmodel": "gptqmodel"}),
    "fp8": Method("FP8", {}, unpack="FineGrainedFP8Config", packed_packages=_KERNELS),
    "mxfp8": Method("MXFP8", {}, unpack="FineGrainedFP8Config", packed_packages=_KERNELS),
    "mxfp4": Method("MXFP4", {}, unpack="Mxfp4Config", packed_packages=_KERNELS),
    "compressed-tensors": Method(
        "compressed-tensors", {"compressed_tensors": "compressed-tensors"}, unpack="CompressedTensorsConfig"
    ),
    "torchao": Method("torchao", {"torchao": "torchao"}),
    "hqq": Method("HQQ", {"hqq": "hqq"}, accelerator=True),
    "quanto": Method("Quanto", {"optimum.quanto": "optimum-quanto"}),
    "auto-round": Method("AutoRound", {"auto_round": "auto-round"}),
    "aqlm": Method("AQLM", {"aqlm": "'aqlm[gpu,cpu]'"}),
    "fbgemm_fp8": Method("FBGEMM FP8", {"fbgemm_gpu": "fbgemm-gpu"}, accelerator=True),
    "eetq": Method("EETQ", _KERNELS, accelerator=True),
    "higgs": Method("HIGGS", {"flute": "flute-kernel", "fast_hadamard_transform": "fast_hadamard_transform"}, accelerator=True),
    "vptq": Method("VPTQ", {"vptq": "vptq"}, accelerator=True),
    "spqr": Method("SpQR", {"spqr_quant": "'spqr_quant[gpu]'"}, accelerator=True),
}


def settings_of(config: Any) -> dict[str, Any] | None:
    """How a model's configuration says that its weights are quantized; None if it does not. The method stands under `quant_method`."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        found = getattr(config.get_text_config(decoder=True), "quantization_config", None)
    if found is None:
        return None
    settings = dict(found if isinstance(found, Mapping) else found.to_dict())
    method = settings.get("quant_method")
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        method = "bitsandbytes"
    return settings | {"quant_method": getattr(method, "value", method)}


def check(config: Any, name: str, device: str, packed: bool) -> None:
    """Raise if a quantized model cannot be used on this machine.

    Args:
        config: The model's configuration; nothing is checked for one that is not quantized.
        name: The model, for the message.
        device: Where it is to run, as torch calls it; `auto` if on all devices.
        packed: The weights are to stay packed.

    Raises:
        HeadwiseError: A package or a device is missing, or weights that are not packed were to stay so.
        UnsupportedModelError: The method is not known.
    """
    settings = settings_of(config)
    if settings is None:
        if packed:
            raise HeadwiseError(f"{name!r} is no GGUF file and not quantized; leave --packed (packed=True) out")
        return
    method = METHODS.get(str(settings["quant_method"]))
    if method is None:
        raise UnsupportedModelError(
            f"model {name!r} is quantized with {settings['quant_method']!r}, which cannot be used; these can: {', '.join(METHODS)}"
        )
    packages = method.packages
    if packed and method.packed_packages is not None:
        packages = {**packages, **method.packed_packages}
    needs_device = method.accelerator or (packed and method.packed_packages is not None)
    if needs_device and (device == "cpu" or not torch.cuda.is_available()):
        hint = (
            "leave --packed out, and they are unpacked when they are loaded"
            if method.unpack
            else "give the model in another form"
        )
        raise HeadwiseError(f"model {name!r} is quantized with {method.title}, whose packed weights need a CUDA device; {hint}")
    missing = {package: install for package, install in packages.items() if not _is_installed(package)}
    if missing:
        raise HeadwiseError(
            f"model {name!r} is quantized with {method.title}, which needs {' and '.join(missing)}; "
            f"install with: pip install {' '.join(missing.values())}"
        )


def loading_options(config: Any, packed: bool) -> dict[str, Any]:
    """What `from_pretrained` must be told to unpack the weights of a quantized model, where its method can be unpacked."""
    settings = settings_of(config)
    if settings is None or packed:
        return {}
    unpack = METHODS[str(settings["quant_method"])].unpack
    if not unpack:
        return {}
    import transformers

    return {"quantization_config": getattr(transformers, unpack)(dequantize=True)}


def source_of(config: Any) -> dict[str, str] | None:
    """Where the weights came from, for results: format and quantization; None for weights that were never packed.

    It is written into the configuration when a model is loaded, so that it outlives unpacking and an export.
    """
    kept: dict[str, str] | None = getattr(config, SOURCE, None)
    settings = settings_of(config)
    if kept is not None or settings is None:
        return kept
    method = str(settings["quant_method"])
    return {"format": METHODS[method].title if method in METHODS else method, "quantization": _words(settings)}


def packing_of(hf: Any) -> str | None:
    """What the weights of a loaded model are packed with; None for plain weights."""
    settings = settings_of(hf.config) if getattr(hf, "hf_quantizer", None) is not None else None
    if settings is None or settings.get("dequantize") or getattr(hf.hf_quantizer.quantization_config, "dequantize", False):
        return None
    method = str(settings["quant_method"])
    return METHODS[method].title if method in METHODS else method


def check_scales(config: Any, folder: Path | None, name: str) -> None:
    """Raise if a packed tensor of a checkpoint has no scales: transformers would unpack it without them, and without a word.

    Args:
        config: The model's configuration, as its file has it.
        folder: Of the checkpoint; None where it is not known.
        name: The model, for the message.
    """
    settings = settings_of(config)
    if settings is None or folder is None or not METHODS[str(settings["quant_method"])].unpack:
        return
    kinds = dict(kind for file in sorted(folder.glob("*.safetensors")) for kind in _kinds(file))
    packed = [
        key for key, kind in kinds.items() if kind.startswith("F8_E") or kind == "I8" or key.endswith(("_packed", "_blocks"))
    ]
    bases = {key: key.removesuffix("_packed").removesuffix("_blocks") for key in packed if "_scale" not in key}
    bare = [key for key, base in bases.items() if not any(base + end in kinds for end in ("_scale", "_scale_inv", "_scales"))]
    if bare:
        raise HeadwiseError(
            f"the checkpoint of {name!r} lacks the scales of packed tensors: {some_of(bare)}; get all its files anew"
        )


def _kinds(file: Path) -> Iterator[tuple[str, str]]:
    """Name -> type of the tensors of a safetensors file."""
    from safetensors import safe_open

    with safe_open(file, "pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118
            yield key, str(tensors.get_slice(key).get_dtype())


@torch.no_grad()
def settle(hf: Any) -> None:
    """Let bitsandbytes lay out its weights now: on some CPUs it does so in the first pass, and the model's fingerprint would change with it."""
    if packing_of(hf) != METHODS["bitsandbytes"].title:
        return
    # In each pass of each layer it says that inputs are cast, which is how 8 bits work.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if hf.device.type == "cpu":
        hf.eval()(torch.zeros(1, 1, dtype=torch.int64))


def _words(settings: Mapping[str, Any]) -> str:
    """The settings that say how exact the weights are, in a few words."""
    if settings["quant_method"] == "bitsandbytes":
        kind = settings.get("bnb_4bit_quant_type")
        return f"4 bits{f' {kind}' if kind else ''}" if settings.get("load_in_4bit") else "8 bits"
    group, block = settings.get("group_size"), settings.get("weight_block_size")
    told = [
        *(str(settings[key]) for key in ("fmt", "format") if settings.get(key)),
        _group_bits(settings.get("config_groups")),
        f"{settings['bits']} bits" if settings.get("bits") else "",
        f"groups of {group}" if isinstance(group, int) and group > 0 else "",
        f"blocks of {'x'.join(map(str, block))}" if block else "",
        _torchao(settings.get("quant_type")),
    ]
    return ", ".join(part for part in told if part) or str(settings["quant_method"])


def _group_bits(groups: Any) -> str:
    """Bits of the weights of compressed-tensors' groups of layers."""
    weights = [group.get("weights") or {} for group in (groups or {}).values() if isinstance(group, Mapping)]
    told = dict.fromkeys(f"{one['num_bits']} bits {one.get('type', '')}".strip() for one in weights if one.get("num_bits"))
    return " and ".join(told)


def _torchao(kind: Any) -> str:
    """The name of torchao's own configuration, which its settings hold in one of several ways."""
    while isinstance(kind, Mapping):
        kind = kind.get("_type") or kind.get("default") or next(iter(kind.values()), None)
    return "" if kind is None else kind if isinstance(kind, str) else type(kind).__name__


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ImportError:  # the package around it is missing
        return False

"""Loading a model and its tokenizer: of a known name, a folder, a GGUF file, a model of the hub, or an adapter of one."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from headwise.heads.errors import HeadwiseError
from headwise.models import adapters, gguf, placement, quantized
from headwise.models.checkpoint import fault_of, refused, some_of
from headwise.models.families import family_of, fault_of_numbers
from headwise.models.model import Model, says_quantized, use_the_cap
from headwise.models.names import bundled_models, folder_of, label
from headwise.models.registry import entry_named

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "spiece.model", "tekken.json")
# Buffers that old releases of transformers saved and that are computed today.
STALE = re.compile(r"(rotary_emb\.inv_freq|\.masked_bias|\.(attn|attention)\.bias)$")


def load(
    name_or_path: str,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    *,
    name: str | None = None,
    trust_remote_code: bool = False,
    gguf_file: str | None = None,
    packed: bool = False,
    adapter: str | None = None,
    offline: bool = False,
    device_map: str | Mapping[str, Any] | None = None,
    offload_folder: str | Path | None = None,
) -> Model:
    """Load a causal language model in evaluation mode.

    Args:
        name_or_path: A name of `headwise models list`, folder, GGUF file, or hub id; also of an adapter of peft, which is put on its base model.
        device: `auto` (CUDA if there is one; spread over all CUDA devices, and into main memory where it does not fit on them), `cpu`, `cuda`, ...
        dtype: `auto` (as saved; float32 on a CPU), `saved`, `float32`, `bfloat16`, `float16`. Packed weights of a GGUF file count as saved in
            bfloat16.
        revision: Revision of a hub model.
        name: What results call the model, in place of the hub id or the name of the folder or file.
        trust_remote_code: Run Python code that comes with the model. Without it such a model is refused, and nothing is asked.
        gguf_file: The GGUF file to load from the folder or the hub's model.
        packed: Keep weights packed that are unpacked otherwise (GGUF, FP8, MXFP4, compressed-tensors), or refuse.
        adapter: Folder or hub id of an adapter of peft to put on the model.
        offline: Never fetch anything.
        device_map: In place of `device`, where each part lies, as accelerate takes it: `auto`, or name of a module -> device, `cpu` or `disk`.
        offload_folder: Where parts on the disk are kept.

    Returns:
        The model with its tokenizer.

    Raises:
        HeadwiseError: There is no such model, its files are broken or incomplete, or it cannot be used.
        MissingExtraError: It is an adapter or a GGUF file, or is to lie on several devices, and peft, gguf or accelerate is not installed.
    """
    if gguf_file is not None:
        gguf.check_chosen(gguf_file)
    place = resolve_device(device)
    one_device = device_map is None and offload_folder is None
    where = None if one_device else placement.checked_map(device_map, offload_folder, device)
    if isinstance(where, dict) and set(where.values()) <= {*placement.OFF}:
        place = "cpu"
    kind = resolve_dtype(dtype, place)
    spread = Spread(where, None if offload_folder is None else str(offload_folder), device == "auto")
    wanted = Wanted(name_or_path, place, kind, revision, trust_remote_code, gguf_file, packed, offline, spread)
    model = _load(wanted)
    if adapter is not None:
        model = _adapted(model, adapter, wanted)
    return model if name is None else replace(model, name=name)


@dataclass(frozen=True)
class Spread:
    """Whether a model may lie on several devices. device_map: the given one. may: it does so by itself where one device is not enough."""

    device_map: Any
    offload_folder: str | None
    may: bool


@dataclass(frozen=True)
class Wanted:
    """What was asked for: the arguments of `load`, device and dtype as torch takes them."""

    name: str
    device: str
    dtype: Any
    revision: str | None
    trust_remote_code: bool
    gguf_file: str | None
    packed: bool
    offline: bool
    spread: Spread


def _load(wanted: Wanted, base_of: str | None = None) -> Model:
    """The model that a name means; for an adapter, its base with the adapter on it. base_of: the adapter whose base is wanted."""
    file, folder = gguf.given_file(wanted.name) if _may_be_a_file(wanted.name) else None, None
    if file is not None and wanted.gguf_file is not None:
        raise HeadwiseError(f"{wanted.name!r} is a GGUF file itself; leave --gguf-file (gguf_file=) out")
    called = _name_of(wanted.name, file)
    if file is None:
        folder = folder_of(wanted.name, wanted.revision, wanted.gguf_file, wanted.offline)
    if folder is not None and (folder / adapters.CONFIG).is_file() and not (folder / "config.json").is_file():
        adapters.require_peft()
        if base_of is not None:  # perhaps even itself
            raise HeadwiseError(
                f"the adapter {base_of!r} was made for {wanted.name!r}, which is an adapter itself; merge that one into its model first"
            )
        base = _load(replace(wanted, name=adapters.base_of(folder), revision=None, gguf_file=None), base_of=called)
        return replace(_adapted(base, str(folder), wanted), name=called)
    if folder is not None and (wanted.gguf_file is not None or any(folder.glob("*.gguf"))):
        file = gguf.file_in(folder, wanted.gguf_file)
    hf, tokenizer = _from_checkpoint(wanted, folder) if file is None else _from_gguf(file, wanted)
    if folder is not None and folder.parent.name == "snapshots":
        hf.config._commit_hash = folder.name
    use_the_cap(hf)
    check_tokenizer(tokenizer, hf.get_input_embeddings().weight.shape[0], wanted.name)
    return Model(_moved(hf, wanted.device).eval(), tokenizer, called)


def _may_be_a_file(name: str) -> bool:
    return name.lower().endswith(".gguf") or os.path.isfile(name)


def _name_of(given: str, file: Path | None) -> str:
    """What results call a model. file: the GGUF file that was given itself."""
    if given in bundled_models():
        return given
    if file is not None:
        return file.stem if file.suffix.lower() == gguf.ENDING else file.name
    entry = entry_named(given)
    if entry is not None:
        return entry.name
    return label(given)


def _adapted(base: Model, adapter: str, wanted: Wanted) -> Model:
    """The model with an adapter on it, and the adapter's own tokenizer where it has one."""
    adapters.require_peft()
    folder = folder_of(adapter, offline=wanted.offline)
    if folder is None or not (folder / adapters.CONFIG).is_file():
        raise HeadwiseError(f"{adapter!r} is no adapter of peft (it has no {adapters.CONFIG})")
    if placement.is_offloaded(base.hf):
        raise HeadwiseError(
            f"the adapter {adapter!r} needs the whole model in memory, and parts of it are offloaded; load it without device_map"
        )
    tokenizer = base.tokenizer
    if _has_tokenizer(folder):
        tokenizer = _tokenizer(folder, {}, adapter, folder)
        adapters.grow_embedding(base.hf, tokenizer)  # for tokens of the adapter's own, whose rows it brings
    called = _name_of(adapter, None)
    wrapped = adapters.with_adapter(base.hf, folder, called)
    if wanted.name != adapter:
        entry = entry_named(wanted.name)
        known = (wanted.name, base.name, str(getattr(base.hf.config, "_name_or_path", "")), "" if entry is None else entry.hub)
        adapters.compare_bases(folder, called, known)
    moved = wrapped if placement.is_spread(base.hf) else wrapped.to(wanted.device)
    return Model(moved, tokenizer, base.name)


def _moved(hf: Any, device: str) -> Any:
    """The model on its device. One that lies on several is there already, as is a packed one, which cannot be moved."""
    plain = getattr(hf, "hf_device_map", None) is None and getattr(hf, "hf_quantizer", None) is None
    return hf.to(device) if plain or not (placement.is_spread(hf) or quantized.packing_of(hf)) else hf


def _from_checkpoint(wanted: Wanted, folder: Path | None) -> tuple[Any, Any]:
    known = wanted.name in bundled_models() or entry_named(wanted.name) is not None
    # A whole copy in the hub's cache is used as it is: given the hub id, transformers would ask the hub many times.
    whole = folder is not None and (known or (fault_of(folder) is None and _has_tokenizer(folder)))
    source: str | Path = folder if folder is not None and whole else wanted.name
    options = {
        "revision": wanted.revision,
        "trust_remote_code": wanted.trust_remote_code,
        "local_files_only": wanted.offline,
    }
    with quiet():
        config = read_config(source, options, wanted.name, folder)
        packing, loading = None, options
        if says_quantized(config) or wanted.packed:
            quantized.check(config, wanted.name, wanted.device, wanted.packed)
            packing, loading = quantized.source_of(config), options | quantized.loading_options(config, wanted.packed)
        loading = loading | _places(wanted, config)
        hf, tokenizer = (
            _weights(source, wanted.dtype, loading, wanted.name, folder),
            _tokenizer(source, options, wanted.name, folder),
        )
    if packing is not None:
        # A model that was not here before lies in the hub's cache now.
        quantized.check_scales(config, folder or folder_of(wanted.name, wanted.revision, offline=True), wanted.name)
        setattr(hf.config, gguf.SOURCE, packing)
        quantized.settle(hf)
    return hf, tokenizer


def _places(wanted: Wanted, config: Any) -> dict[str, Any]:
    """What `from_pretrained` must be told where the weights go; nothing for a model that is moved as a whole when it is loaded."""
    spread = wanted.spread
    if spread.device_map is not None:
        return {"device_map": spread.device_map, "offload_folder": spread.offload_folder}
    if spread.may and torch.cuda.is_available() and placement.needs_several(config, wanted.dtype):
        return {"device_map": "auto"}
    if not says_quantized(config):
        return {}
    placement.require_accelerate()
    return {"device_map": {"": wanted.device}}


def _from_gguf(file: Path, wanted: Wanted) -> tuple[Any, Any]:
    """Model and tokenizer of a GGUF file, its weights unpacked."""
    from transformers import GgufConfig

    header = gguf.checked_header(file, wanted.packed)
    # The whole path and an empty folder: a file of the same name in the current folder, or a tokenizer beside the file, would be taken instead.
    options: dict[str, Any] = {"gguf_file": str(file.resolve()), "local_files_only": True}
    # Whatever is set, transformers draws a bar for the tensors of a GGUF file.
    with quiet(), TemporaryDirectory(prefix="headwise-") as nowhere, redirect_stderr(StringIO()):
        config = read_config(nowhere, options, file.name, None)
        gguf.check_config(header, config, file.name)
        check_tensors(gguf.compared(header, config, file.name), file.name)
        tokenizer = _tokenizer(nowhere, options, file.name, None)
        options |= {"config": config, "quantization_config": GgufConfig(dequantize=True)} | _places(wanted, config)
        hf = _weights(nowhere, torch.bfloat16 if wanted.dtype == "auto" else wanted.dtype, options, file.name, None)
    hf.config._name_or_path = tokenizer.name_or_path = file.name
    setattr(hf.config, gguf.SOURCE, gguf.source_of(header, file))
    return hf, tokenizer


def read_config(source: str | Path, options: dict[str, Any], name: str, folder: Path | None) -> Any:
    """The configuration of a model that headwise knows; no weight is read.

    Args:
        source: Folder or hub id, as transformers takes it.
        options: Further arguments of transformers' `from_pretrained`.
        name: The model, for messages.
        folder: Where its files lie, if that is known: what is wrong with them is said.

    Raises:
        HeadwiseError: There is no configuration, or one that cannot be right.
        UnsupportedModelError: Its family is not known.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source, **options)
    except Exception as error:  # of many kinds, for files that are not what they should be
        raise refused(name, error, fault_of(folder, weights=False), "give a folder with config.json, or a hub id") from error
    family_of(config.model_type)
    fault = fault_of_numbers(config.get_text_config(decoder=True))
    if fault:
        raise HeadwiseError(f"the configuration of {name!r} cannot be right: {fault}")
    return config


def _weights(source: str | Path, dtype: Any, options: dict[str, Any], name: str, folder: Path | None) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        # Tensors of another shape are let through here, so that they can be named below.
        hf, info = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except Exception as error:
        raise refused(name, error, fault_of(folder)) from error
    check_tensors(info, name)
    return hf


def _tokenizer(source: str | Path, options: dict[str, Any], name: str, folder: Path | None) -> Any:
    from transformers import AutoTokenizer

    if folder is not None and Path(source).is_dir() and not _has_tokenizer(folder):
        raise HeadwiseError(
            f"{name!r} holds no tokenizer (tokenizer.json); copy the files of the model's tokenizer into the folder"
        )
    try:
        return AutoTokenizer.from_pretrained(source, **options)
    except Exception as error:
        raise refused(name, error, fault_of(folder, weights=False), "its tokenizer is broken or incomplete") from error


def check_tensors(info: Mapping[str, Any], name: str) -> None:
    """Raise if tensors are missing, left over or of another shape than the model's: transformers would fill them at random.

    Args:
        info: What `from_pretrained(..., output_loading_info=True)` returns beside the model; tied weights are not in it.
        name: The model, for the message.
    """
    wrong = [f"{key} has shape {_shape(found)}, the model has {_shape(wanted)}" for key, found, wanted in info["mismatched_keys"]]
    faults = {
        "lacks": info["missing_keys"],
        "holds tensors that this model does not have:": [key for key in info["unexpected_keys"] if not STALE.search(key)],
        "does not fit its config.json:": wrong,
    }
    told = [f"{what} {some_of(keys)}" for what, keys in faults.items() if keys]
    if told:
        raise HeadwiseError(f"the checkpoint of {name!r} {' and '.join(told)}; get all files of one revision anew")


def check_tokenizer(tokenizer: Any, rows: int, name: str) -> None:
    """Raise if the tokenizer gives ids that the embedding has no row for, or its chat template cannot be read.

    Markers that text never holds may lie beyond the embedding (Gemma 3's text models have one for images), those of every text not.

    Args:
        tokenizer: The model's tokenizer.
        rows: Rows of the embedding.
        name: The model, for the messages.
    """
    vocabulary = tokenizer.get_vocab()
    needed = {getattr(tokenizer, f"{role}_token") for role in ("bos", "eos", "pad", "unk")}
    unused = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special} - needed
    beyond = sorted((i, token) for token, i in vocabulary.items() if i >= rows and token not in unused)
    if beyond:
        raise HeadwiseError(
            f"the tokenizer of {name!r} has {len(beyond)} tokens beyond the {rows} rows of the embedding, such as {beyond[0][1]!r} "
            f"with id {beyond[0][0]}; use the tokenizer that belongs to this checkpoint"
        )
    _check_template(tokenizer, name)


def _check_template(tokenizer: Any, name: str) -> None:
    if not getattr(tokenizer, "chat_template", None):
        return
    try:
        from jinja2 import TemplateSyntaxError
    except ImportError:  # then no chat template can be used at all, and transformers says so
        return
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    except TemplateSyntaxError as error:
        raise HeadwiseError(
            f"the chat template of {name!r} cannot be read: line {error.lineno}: {error.message}; mend or remove it"
        ) from error
    except Exception:
        return


def _shape(shape: Iterable[int]) -> str:
    return "x".join(str(int(size)) for size in shape)


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / file).is_file() for file in TOKENIZER_FILES)


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' tables of what did not fit: that is refused in one line. It also warns where weights are unpacked on purpose."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You passed `quantization_config`")
            yield
    finally:
        logging.set_verbosity(before)


def resolve_device(device: str) -> str:
    """The device to use; an absent one is refused."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise HeadwiseError(f"device {device!r} asked for, but this torch sees no CUDA device; use --device cpu")
    if device.split(":")[0] not in ("cpu", "cuda", "mps"):
        raise HeadwiseError(f"unknown device {device!r}; use auto, cpu or cuda")
    return device


def resolve_dtype(dtype: str, device: str) -> Any:
    """The dtype to load in, as transformers takes it."""
    if dtype == "auto":
        return torch.float32 if device == "cpu" else "auto"
    if dtype == "saved":
        return "auto"
    if dtype not in DTYPES:
        raise HeadwiseError(f"unknown dtype {dtype!r}; use auto, saved, {', '.join(DTYPES)}")
    return DTYPES[dtype]

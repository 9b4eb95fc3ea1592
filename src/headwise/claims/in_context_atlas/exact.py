"""What holds by construction: attribution and interventions compared with plain passes of the same model, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from headwise.attention import force_copy, insert, patch, record
from headwise.attention.attribute import attribute
from headwise.attention.rules import RULES
from headwise.claims.claim import Finding
from headwise.claims.experiment import Bench, Measured, NotTestable
from headwise.heads import HeadSet
from headwise.heads.errors import HeadwiseError
from headwise.methods.trace.answer import trace, trace_answer
from headwise.methods.vectors.extract import extract_vectors
from headwise.models.fingerprint import tokenizer_digest, weights_digest
from headwise.models.model import Model, device_of, need_tokenizer
from headwise.prompts.haystack import bundled_texts
from headwise.prompts.prompt import Prompt
from headwise.runtime.head_probe import Probe
from headwise.stats.paired import bootstrap_mean
from headwise.stats.probes import Platt

TEXTS, FEW, WORDS = 8, 4, 24
LARGEST = 2e9  # parameters of which a float64 copy is made
PROBED, GENERATED = 16, 8
Ids = tuple[int, ...]


def measure(bench: Bench) -> Measured:
    """All claims that hold by construction."""
    model = float64_copy(bench)
    texts = stretches(model, bench.pick(TEXTS, FEW))
    parts: dict[str, Callable[[Model, list[Ids]], dict[str, Finding]]] = {
        "relevance.weights_as_matrix": as_matrix,
        "relevance.weights_sum_to_head": sum_to_head,
        "relevance.leaves_the_model": leaves_the_model,
        "steer.own_vectors": own_vectors,
        "steer.copying.without_strength": without_strength,
        "patch.every_head": every_head,
        "trace.same_afterwards": same_afterwards,
        "relevance.cp_lrp_sums_to_logit relevance.attnlrp_leaks": conservation,  # last: it sets biases to 0
    }
    findings: dict[str, Finding] = {}
    for number, (keys, part) in enumerate(parts.items()):
        bench.report(number, len(parts), keys)
        try:
            findings |= part(model, texts)
        except HeadwiseError as why:  # a kind of layer that a rule or an intervention says nothing about
            findings |= {key: Finding.none(str(why)) for key in keys.split()}
    return Measured(findings, {"texts": len(texts), "tokens": [len(ids) for ids in texts]})


def float64_copy(bench: Bench) -> Model:
    """The model in float64, on its own.

    Raises:
        NotTestable: It is too large, or its kernels and weights have no float64.
    """
    if sum(parameter.numel() for parameter in bench.model.hf.parameters()) > LARGEST:
        raise NotTestable(f"needs a float64 copy of the model, which is made of up to {LARGEST:.0e} parameters")
    own = need_tokenizer(bench.load(), "the exactness of attribution")
    hf: Any = own.hf
    try:
        hf.double()
        if hasattr(hf, "set_experts_implementation"):
            hf.set_experts_implementation("eager")  # the others have no float64
        with torch.no_grad():
            hf(input_ids=torch.tensor([[1, 2]], device=device_of(hf)), use_cache=False)
    except (RuntimeError, ValueError, TypeError) as error:
        raise NotTestable(f"needs weights and kernels that can do float64 ({error})") from error
    return Model(hf, own.tokenizer)


def stretches(model: Model, count: int) -> list[Ids]:
    """Texts of the bundled novels, all of the same number of tokens and with the same last one, so that they can be patched into one another."""
    words = " ".join(bundled_texts()).split()
    texts = [" ".join(words[start : start + WORDS]) for start in range(0, count * 997, 997)]
    ids = [tuple(model.tokenizer(text, add_special_tokens=True)["input_ids"]) for text in texts]
    shortest = min(map(len, ids))
    return [(*one[: shortest - 1], ids[0][shortest - 1]) for one in ids]


def tensor(model: Model, ids: Ids) -> Tensor:
    """[1, T] on the device of the model."""
    return torch.tensor([ids], device=device_of(model.hf))


@torch.no_grad()
def log_probs(model: Model, ids: Ids) -> Tensor:
    """[V] of the next token, in nats."""
    hf: Any = model.hf
    return hf(input_ids=tensor(model, ids), use_cache=False).logits[0, -1].log_softmax(dim=-1)  # type: ignore[no-any-return]


def largest(difference: Tensor) -> float:
    """The largest absolute value; NaN where there is nothing to compare."""
    kept = difference[~difference.isnan()].abs()
    return float(kept.max()) if kept.numel() else float("nan")


def conservation(model: Model, texts: list[Ids]) -> dict[str, Finding]:
    """How far relevance at the embeddings is from summing to the logit, by the two kinds of LRP; without biases."""
    for name, parameter in model.hf.named_parameters():
        if name.endswith(("bias", "bias_")):
            torch.nn.init.zeros_(parameter)
    away = {rule: torch.tensor([_away(model, ids, rule) for ids in texts]) for rule in ("cp_lrp", "attnlrp")}
    tables = [module for module in model.hf.modules() if isinstance(module, torch.nn.Embedding)]
    leak = bootstrap_mean(away["attnlrp"].numpy())
    numbers = {"error": largest(away["cp_lrp"]), "leak": tuple(leak), "least_leak": float(away["attnlrp"].min())}
    found = Finding(numbers | {"other_embeddings": len(tables) - 1.0})  # type: ignore[arg-type]
    return {"relevance.cp_lrp_sums_to_logit": found, "relevance.attnlrp_leaks": found}


def _away(model: Model, ids: Ids, rule: str) -> float:
    with attribute(model, rule) as seen:
        value = _top_logit(model.hf(input_ids=tensor(model, ids)).logits)
        seen.explain(value)
    return float(((seen.tokens.sum() - value.detach()) / value.detach()).abs())


def _top_logit(logits: Tensor) -> Tensor:
    return logits[0, -1].max()


def as_matrix(model: Model, texts: list[Ids]) -> dict[str, Finding]:
    """Relevance per attended token beside that of matrices which eager attention keeps."""
    worst = 0.0
    for ids in texts:
        with attribute(model, "gradient", sources="weights", rows="all", positive="pair") as seen:
            seen.explain(_top_logit(model.hf(input_ids=tensor(model, ids)).logits))
        matrices = _eager(model, ids)
        if len(matrices) != model.heads.shape[0]:
            raise NotTestable("needs eager attention whose matrices are returned in every layer")
        kept = torch.stack(matrices).to(seen.sources.device)  # [L, H, S]
        worst = max(worst, largest(seen.sources[0] - kept) / largest(kept))
    return {"relevance.weights_as_matrix": Finding({"difference": worst})}


def _eager(model: Model, ids: Ids) -> list[Tensor]:
    """Per layer [H, S]: positive parts of A * dA, summed over query rows."""
    hf: Any = model.hf
    with _eager_attention(model):
        embedded = hf.get_input_embeddings()(tensor(model, ids)).detach().requires_grad_(True)
        out = hf(inputs_embeds=embedded, output_attentions=True, use_cache=False)
        matrices = [one for one in out.attentions or () if one is not None]
        gradients = torch.autograd.grad(_top_logit(out.logits), matrices) if matrices else ()
    return [(a * g).clamp(min=0).sum(dim=2)[0].detach() for a, g in zip(matrices, gradients, strict=True)]


@contextmanager
def _eager_attention(model: Model) -> Iterator[None]:
    """Eager attention and logits in front of the final cap, where attribution begins."""
    hf: Any = model.hf
    config, cap = hf.config.get_text_config(decoder=True), model.family.logit_cap
    before, limit = hf.config._attn_implementation, getattr(config, cap) if cap else None
    hf.set_attn_implementation("eager")
    try:
        if cap:
            setattr(config, cap, None)
        yield
    finally:
        if cap:
            setattr(config, cap, limit)
        hf.set_attn_implementation(before)


def sum_to_head(model: Model, texts: list[Ids]) -> dict[str, Finding]:
    """Signed relevance of weights, summed over tokens, beside that of outputs."""
    worst = 0.0
    for rule in RULES.values():
        for ids in texts:
            with attribute(model, rule.name, sources="weights", rows="all", positive="none") as seen:
                seen.explain(_top_logit(model.hf(input_ids=tensor(model, ids)).logits))
            heads = seen.signed * rule.product
            worst = max(worst, largest(seen.sources.sum(dim=-1) - heads) / largest(heads))
    return {"relevance.weights_sum_to_head": Finding({"difference": worst})}


def leaves_the_model(model: Model, texts: list[Ids]) -> dict[str, Finding]:
    """Logits before and after blocks of all rules."""
    before = [log_probs(model, ids) for ids in texts]
    for rule in RULES:
        with attribute(model, rule) as seen:
            seen.explain(_top_logit(model.hf(input_ids=tensor(model, texts[0])).logits))
    after = [log_probs(model, ids) for ids in texts]
    apart = max(largest(one - other) for one, other in zip(before, after, strict=True))
    return {"relevance.leaves_the_model": Finding({"difference": apart})}


def own_vectors(model: Model, texts: list[Ids]) -> dict[str, Finding]:
    """Vectors of all heads put into their own prompt."""
    apart = {1.0: 0.0, 2.0: 0.0}
    for ids in texts:
        plain, vectors = log_probs(model, ids), extract_vectors(model, None, ids)
        for scale in apart:
            with insert(model, vectors, "replace", scale):
                apart[scale] = max(apart[scale], largest(log_probs(model, ids) - plain))
    return {"steer.own_vectors": Finding({"difference": apart[1.0], "at_scale_2": apart[2.0]})}


def without_strength(model: Model, texts: list[Ids]) -> dict[str, Finding]:
    """Forced copying that changes no weight, and with its usual strength."""
    ways: dict[str, list[dict[str, Any]]] = {
        "difference": [{"how": "two_step", "beta": 0.0, "factor": 1.0}, {"how": "mix", "weight": 0.0}],
        "with_strength": [{"how": "two_step"}, {"how": "mix"}],
    }
    numbers = dict.fromkeys(ways, 0.0)
    for ids in texts:
        plain = log_probs(model, ids)
        for name, each in ways.items():
            for given in each:
                with force_copy(model, every_head_of(model), [(2, 5)], **given):
                    numbers[name] = max(numbers[name], largest(log_probs(model, ids) - plain))
    return {"steer.copying.without_strength": Finding(dict(numbers))}


def every_head_of(model: Model) -> HeadSet:
    """All heads of layers that have attention."""
    layers = sorted(model.modules)
    return HeadSet.of([(layer, head) for layer in layers for head in range(model.heads.shape[1])], model.heads.shape)


def every_head(model: Model, texts: list[Ids]) -> dict[str, Finding]:
    """Outputs of all heads at the last row of one text put into another one."""
    if len(model.modules) < model.heads.shape[0]:
        raise NotTestable("needs attention in every layer: other layers carry what was read past a patch")
    heads, numbers = every_head_of(model), {"difference": 0.0, "without": 0.0}
    for clean, corrupted in zip(texts, texts[1:] + texts[:1], strict=True):
        with record(model, heads) as seen:
            wanted = log_probs(model, clean)
        with patch(model, heads, seen.outputs):
            found = log_probs(model, corrupted)
        numbers["difference"] = max(numbers["difference"], largest(found - wanted))
        numbers["without"] = max(numbers["without"], largest(log_probs(model, corrupted) - wanted))
    return {"patch.every_head": Finding(dict(numbers))}


def plain_probe(model: Model, most: int = PROBED) -> Probe:
    """A probe of evenly spread heads that all count alike, for what does not depend on its weights."""
    every = list(every_head_of(model))
    heads = HeadSet.of(every[:: -(-len(every) // most)][:most], model.heads.shape)
    digests = weights_digest(model.hf), tokenizer_digest(model.tokenizer)
    return Probe(heads, (1.0,) * len(heads), 0.0, 0.0, Platt(1.0, 0.0), weights_digest=digests[0], tokenizer_digest=digests[1])


def same_afterwards(model: Model, texts: list[Ids]) -> dict[str, Finding]:
    """Features and scores of an answer, traced while it is generated and afterwards."""
    hf: Any = model.hf
    probe, worst = plain_probe(model), 0.0
    for ids in texts:
        prompt = Prompt(ids)
        with trace(model, probe, prompt) as seen, torch.no_grad():
            given = tensor(model, ids)
            out = hf.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=GENERATED, do_sample=False, pad_token_id=0)
        said = out[0, len(ids) :].tolist()
        (one,) = seen.traces([said])
        other = trace_answer(model, prompt, said, probe)
        for name in ("features", "scores"):
            found, wanted = (torch.from_numpy(getattr(each, name)) for each in (one, other))
            worst = max(worst, largest(found - wanted) / (largest(wanted) or 1.0))
    return {"trace.same_afterwards": Finding({"difference": worst})}

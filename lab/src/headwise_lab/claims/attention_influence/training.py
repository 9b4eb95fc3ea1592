"""The control that the paper leaves out (card, claim 10): train on a corpus and, once more, on a fifth of it that was chosen in different ways.

    python benchmarks/influence_training.py --books FOLDER --output FOLDER

A corpus of micro-world documents and book passages is scored by a bundled model, and a fifth of each domain's tokens is chosen by influence, at
random, by length, or by lowest loss. Small models are trained on equally many tokens of corpus plus choice (`none`: of the corpus alone), several
seeds each, and measured on texts of the test split and on held-out books. All begin with the same weights: those of a model that has learnt to
copy from novels, needles in them and repeated sequences (--start updates; from scratch a corpus this small teaches no copying). A seed decides the
order of the texts and the random choice. Every step is kept in --output and not done again.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from common import hardware
from influence_claims import KINDS, REPEATS, find_heads

from headwise.corpus.choose import choose
from headwise.corpus.local_runner import score_files
from headwise.corpus.options import ChoiceOptions, ScoreOptions
from headwise.heads.headfile import write_json
from headwise.methods.influence.proxy import top_share
from headwise.methods.influence.scorer import AttentionInfluence
from headwise.models.load import load
from headwise.models.model import Model
from headwise.models.names import bundled_model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.haystack import bundled_texts
from headwise_lab.microworld.registry import make_example
from headwise_lab.microworld.texts import Example, to_prompt
from headwise_lab.recipe.corpus import training_books
from headwise_lab.recipe.recipes import RECIPES, Phase, Recipe
from headwise_lab.recipe.train import ENVIRONMENT, build_model, fact_maker, optimizers, training_text
from headwise_lab.recipe.train import train as train_lab_model
from headwise_lab.recipe.world_rows import WorldRows

VARIANTS = ("score", "random", "longest", "perplexity", "none")
SHARE = 0.2  # of each domain's tokens, seen twice
WORDS = (60, 240)  # of a document, evenly on a log scale
NAMES = RECIPES["world-6m"].names  # whose tokenizer this is
CONTINUED = {name: getattr(RECIPES["world-6m-long"], name) for name in ("matrix_rate", "other_rate")}  # behind a start
LENGTH, ROWS = 512, 8  # tokens and rows of an update
SIZES = {"layers": 4, "heads": 8, "kv_heads": 4, "head_dim": 16, "hidden": 128, "ffn": 256, "positions": LENGTH}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--books", type=Path, required=True, help="folder with books-0.jsonl.xz ... (lab/recipe/corpus.py)")
    parser.add_argument("--output", type=Path, required=True, help="corpus, scores, choices, and one JSON per run")
    parser.add_argument("--tokens", type=int, default=1_200_000, help="that a model is trained on; the corpus has a sixth less")
    parser.add_argument(
        "--start", type=int, default=600, help="updates of 8,192 tokens of the model that all others begin with; 0: from scratch"
    )
    parser.add_argument("--work", type=Path, default=Path(".lab"), help="tokenizer and ids of the books (lab/recipe/train.py)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--selector", default="world-6m", help="bundled model that scores the corpus")
    parser.add_argument("--samples", type=int, default=100, help="proxy prompts to find its heads with")
    parser.add_argument("--repeats", action="store_true", help="leave duplicates and boilerplate in the corpus")
    parser.add_argument("--items", type=int, default=100, help="test texts of each kind")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


# Corpus, scores, choices


def make_corpus(path: Path, books: Path, tokens: int, kinds: tuple[str, ...], encoder: PieceEncoder) -> None:
    """JSON lines with text and domain: `tokens` tokens, half of them micro-world documents of the training split, half book passages."""
    if path.exists():
        return
    passages, rng = book_passages(books), np.random.default_rng(0)
    counts = {"world": 0, "books": 0}
    temporary = path.with_suffix(".tmp")
    with gzip.open(temporary, "wt") as file:
        while sum(counts.values()) < tokens:
            domain = min(counts, key=lambda name: counts[name])
            if domain == "books":
                text = next(passages)
            else:
                kind = kinds[int(rng.integers(len(kinds)))]
                text = make_example("documents", "train", rng, kind=kind, words=some_words(rng)).context_text
            counts[domain] += len(encoder.encode(text)) + 1
            file.write(json.dumps({"text": text, "domain": domain}) + "\n")
    temporary.replace(path)


def some_words(rng: np.random.Generator) -> int:
    return int(np.exp(rng.uniform(*np.log(WORDS))))


def book_passages(books: Path) -> Iterator[str]:
    """Passages from everywhere in the training books, a few of each book at a time."""
    rng = np.random.default_rng(1)
    for text in training_books(books):
        for _ in range(60):
            words = text[(start := int(rng.integers(max(1, len(text) - 3000)))) : start + 3000].split()
            yield " ".join(words[1 : 1 + some_words(rng)])


def make_scorer(selector: str, samples: int, device: str) -> AttentionInfluence:
    model = load(str(bundled_model(selector)), device)
    return AttentionInfluence(model, top_share(find_heads(model, samples, 0)))


def chosen_rows(folder: Path, variant: str, seed: int) -> np.ndarray:
    """[row] bool of the corpus file."""
    if variant == "none":
        return np.zeros(pq.read_metadata(folder / "scores" / "scores" / "corpus.jsonl.gz.parquet").num_rows, dtype=bool)
    into = folder / "choices" / (f"random-{seed}" if variant == "random" else variant)
    if not (into / "manifest.json").exists():
        choose(str(folder / "scores"), ChoiceOptions(share=SHARE, by="tokens", rank=variant, seed=seed), str(into))
    return np.asarray(pq.read_table(into / "corpus.jsonl.gz.parquet")["selected"])


# Training


def start_model(folder: Path, books: Path, work: Path, updates: int) -> dict[str, torch.Tensor] | None:
    """Weights that all variants begin with; None for none."""
    if not updates:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, tokens = training_text(books, work, NAMES)
    recipe = Recipe(
        **SIZES, rows="world", names=NAMES, phases=(Phase(updates, 8_192, (128,), mix="plain"),), polish=Phase(0, 1, (1,))
    )
    model = build_model(recipe, tokenizer.get_vocab_size(), bos=0, eos=1, start=None)
    train_lab_model(recipe, WorldRows(tokenizer, tokens, fact_maker(tokenizer, tokens), recipe.seed), model, folder, 100)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def stream(documents: list[list[int]], chosen: np.ndarray, tokens: int, seed: int) -> np.ndarray:
    """`tokens` ids: every document once and the chosen ones twice, in random order; without a choice the corpus begins again."""
    rng = np.random.default_rng([seed, 1])
    places = np.concatenate([np.arange(len(documents)), np.flatnonzero(chosen)])
    ids: list[int] = []
    while len(ids) < tokens:
        for place in rng.permutation(places):
            ids += documents[place]
    return np.asarray(ids[:tokens], dtype=np.int64)


def train(
    model: Model, ids: np.ndarray, seed: int, device: str, start: dict[str, torch.Tensor] | None
) -> tuple[Any, float, float]:
    """(hf, seconds, mean loss of the last tenth of updates)."""
    steps = len(ids) // (LENGTH * ROWS)
    recipe = Recipe(
        **SIZES, seed=seed, warmup=max(1, steps // 20), phases=(Phase(steps, LENGTH * ROWS, (LENGTH,)),), polish=Phase(0, 1, (1,)),
        **({} if start is None else CONTINUED),
    )  # fmt: skip
    tokenizer = model.tokenizer
    hf = build_model(recipe, len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id, None).to(device).train()
    if start is not None:
        hf.load_state_dict(start)
    steppers = optimizers(hf, recipe)
    peaks = [stepper.param_groups[0]["lr"] for stepper in steppers]
    batches = torch.from_numpy(ids[: steps * LENGTH * ROWS].reshape(steps, ROWS, LENGTH))
    started, losses = time.perf_counter(), []
    for step in range(steps):
        batch = batches[step].to(device)
        for stepper, peak in zip(steppers, peaks, strict=True):
            stepper.param_groups[0]["lr"] = peak * recipe.rate(step)
        with torch.autocast(device, torch.bfloat16):
            logits = hf(input_ids=batch, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(hf.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad(set_to_none=True)
        losses.append(loss.item())  # no tensor: one that stays between steps would split the freed blocks, and memory would grow
    last = float(np.mean(losses[-max(1, steps // 10) :]))
    return hf.eval(), time.perf_counter() - started, last


# Measuring

Item = tuple[list[int], list[bool]]
"""Ids of a text, and which of them are judged as predictions."""


def test_items(model: Model, count: int) -> dict[str, list[Item]]:
    """Texts of the test split and of held-out books: what is judged is what can only be known from the text itself, and all of running text."""
    encoder = PieceEncoder(model.tokenizer)
    bos, rng = list(encoder.bos), np.random.default_rng(2)
    items: dict[str, list[Item]] = {"no_reference": [], "books": [], "repeats": []}
    for kind in ("late_reference", "key_value"):
        items[kind] = [late_values(make_example("documents", "test", rng, kind=kind, words=120), encoder) for _ in range(count)]
    for task in ("needle", "key_value"):
        items[f"{task} answers"] = []
        for _ in range(count):
            prompt = to_prompt(make_example(task, "test", rng), encoder.encode, bos=bos)
            items[f"{task} answers"].append(([*prompt.ids, *prompt.gold], [False] * len(prompt.ids) + [True] * len(prompt.gold)))
    for i in range(count):
        text = make_example("documents", "test", rng, kind="no_reference", words=120).context_text
        items["no_reference"].append(whole([*bos, *encoder.encode(text)]))
        book = bundled_texts()[i % 3]
        start = int(rng.integers(len(book) - 3000))
        items["books"].append(whole([*bos, *encoder.encode(book[start : start + 3000])][: LENGTH // 2]))
        unit = rng.integers(259, len(model.tokenizer), size=100).tolist()
        items["repeats"].append((bos + unit + unit, [False] * (len(bos) + 101) + [True] * 99))
    return {name: [(ids[:LENGTH], judged[:LENGTH]) for ids, judged in found] for name, found in items.items()}


def whole(ids: list[int]) -> Item:
    return ids, [False] + [True] * (len(ids) - 1)


def late_values(example: Example, encoder: PieceEncoder) -> Item:
    """A document; judged are the values that it says again."""
    ids, judged = list(encoder.bos), [False] * len(encoder.bos)
    for piece in example.context:
        new = list(encoder.encode(piece.text))
        again = any(name.startswith("late/") for name in piece.names) and any(name.endswith("/value") for name in piece.names)
        ids, judged = ids + new, judged + [again] * len(new)
    return ids, judged


@torch.no_grad()
def measure(model: Any, items: dict[str, list[Item]]) -> dict[str, float]:
    """Per kind of text: mean loss (nats) and share of right first choices of the judged tokens, all texts' tokens together."""
    result = {}
    for name, found in items.items():
        losses, right = [], []
        for ids, judged in found:
            where = torch.tensor(judged[1:], device=model.device)
            if where.any():
                row = torch.tensor([ids], device=model.device)
                logits, target = model(input_ids=row, use_cache=False).logits[0, :-1][where].float(), row[0, 1:][where]
                losses.append(torch.nn.functional.cross_entropy(logits, target, reduction="none"))
                right.append(logits.argmax(-1) == target)
        result[f"{name} loss"] = torch.cat(losses).mean().item()
        result[f"{name} right"] = torch.cat(right).float().mean().item()
    return result


def one_run(
    folder: Path, variant: str, seed: int, tokens: int, model: Model, documents: list[list[int]], items: dict[str, list[Item]],
    device: str, start: dict[str, torch.Tensor] | None,
) -> None:  # fmt: skip
    path = folder / "runs" / f"{variant}-{seed}.json"
    if path.exists():
        return
    chosen = chosen_rows(folder, variant, seed)
    ids = stream(documents, chosen, tokens, seed)
    hf, seconds, loss = train(model, ids, seed, device, start)
    sizes = {"parameters": sum(p.numel() for p in hf.parameters()), "tokens": len(ids), "seconds": round(seconds, 1)}
    twice = {"chosen_documents": int(chosen.sum()), "chosen_tokens": sum(len(documents[i]) for i in np.flatnonzero(chosen))}
    result = {"variant": variant, "seed": seed, **sizes, **twice, "training loss": loss, **measure(hf, items)}
    write_json(result, path)
    print(f"{variant}, seed {seed}: {seconds:.0f} s, loss {loss:.3f}", flush=True)


def measure_start(folder: Path, model: Model, items: dict[str, list[Item]], start: dict[str, torch.Tensor] | None) -> None:
    """The hf that all others begin with, as a row of its own."""
    path = folder / "runs" / "start-0.json"
    if start is None or path.exists():
        return
    tokenizer = model.tokenizer
    hf = build_model(Recipe(**SIZES), len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id, None)
    hf.load_state_dict(start)
    write_json({"variant": "start", "seed": 0, "chosen_documents": 0, "chosen_tokens": 0, **measure(hf.eval(), items)}, path)


# Reporting


def report(runs: list[dict[str, Any]], as_json: bool) -> None:
    """Mean and spread over seeds per variant, and the mean difference to `random` of the same seed with its standard error."""
    variants = [v for v in ("start", *VARIANTS) if any(run["variant"] == v for run in runs)]
    by = {(run["variant"], run["seed"]): run for run in runs}
    names = [name for name in runs[0] if name.endswith((" loss", " right")) or name in ("chosen_documents", "chosen_tokens")]
    table: dict[str, dict[str, Any]] = {}
    for name in names:
        for variant in variants:
            seeds = [seed for (kind, seed), run in by.items() if kind == variant and name in run]
            if not seeds:  # the start has not been trained here
                continue
            values = np.array([by[variant, seed][name] for seed in seeds])
            shared = [seed for seed in seeds if ("random", seed) in by]
            other = np.array([by[variant, seed][name] - by["random", seed][name] for seed in shared])
            error = other.std(ddof=1) / math.sqrt(len(other)) if len(other) > 1 else None
            spread = values.std(ddof=1) if len(values) > 1 else None
            table.setdefault(name, {})[variant] = {
                "mean": float(values.mean()), "sd": spread, "seeds": len(values),
                "to_random": float(other.mean()) if len(other) else None, "error": error,
            }  # fmt: skip
    if as_json:
        print(json.dumps({"runs": runs, "table": table, "hardware": hardware()}))
        return
    shown = lambda value, form: "–" if value is None else format(value, form)  # noqa: E731
    for name, row in table.items():
        print(name)
        for variant, found in row.items():
            of = f"{found['mean']:.4f} ± {shown(found['sd'], '.4f')} ({found['seeds']} seeds)"
            print(f"  {variant:<11} {of}   to random {shown(found['to_random'], '+.4f')} ± {shown(found['error'], '.4f')}")


def main() -> None:
    given = options()
    if any(
        os.environ.get(name) != value for name, value in ENVIRONMENT.items()
    ):  # as in the recipe: large tensors stay with the process
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENVIRONMENT})
    folder = given.output
    folder.mkdir(parents=True, exist_ok=True)
    kinds = KINDS if given.repeats else tuple(kind for kind in KINDS if kind not in REPEATS)
    setting = {
        "tokens": given.tokens,
        "kinds": kinds,
        "selector": given.selector,
        "samples": given.samples,
        "items": given.items,
        "start": given.start,
    }
    known = folder / "setting.json"
    if known.exists() and json.loads(known.read_text()) != json.loads(json.dumps(setting)):
        raise SystemExit(f"{folder} belongs to another setting: {known.read_text()}")
    write_json(setting, known, overwrite=True)
    model = load(str(bundled_model(given.selector)))  # for its tokenizer: all models of this experiment share it
    encoder = PieceEncoder(model.tokenizer)
    corpus = folder / "corpus.jsonl.gz"
    make_corpus(corpus, given.books, int(given.tokens / (1 + SHARE)), kinds, encoder)
    score_files(
        [str(corpus)], str(folder / "scores"), partial(make_scorer, given.selector, given.samples, given.device),
        ScoreOptions(domain_column="domain"),
    )  # fmt: skip
    with gzip.open(corpus, "rt") as file:
        documents = [[*encoder.bos, *encoder.encode(json.loads(line)["text"])] for line in file]
    items = test_items(model, given.items)
    start = start_model(folder / "start", given.books, given.work, given.start)
    measure_start(folder, model, items, start)
    for seed in range(given.seeds):
        for variant in given.variants.split(","):
            one_run(folder, variant, seed, given.tokens, model, documents, items, given.device, start)
    report([json.loads(path.read_text()) for path in sorted((folder / "runs").glob("*.json"))], given.json)


if __name__ == "__main__":
    main()

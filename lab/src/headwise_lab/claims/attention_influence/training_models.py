"""A corpus, the choice of a fifth of it, and small models that are trained on both."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headwise.claims.experiment import Bench, NotTestable
from headwise.heads import HeadSet
from headwise.heads.progress import Report
from headwise.methods.influence.scorer import AttentionInfluence
from headwise.models.model import Model, device_of
from headwise.prompts.encoder import PieceEncoder
from headwise_lab.claims.attention_influence.training_texts import LENGTH
from headwise_lab.microworld.registry import make_example
from headwise_lab.recipe.corpus import tokenize_books, training_books
from headwise_lab.recipe.recipes import RECIPES, Phase, Recipe
from headwise_lab.recipe.tokenizer import BOS
from headwise_lab.recipe.train import build_model, fact_maker, optimizers
from headwise_lab.recipe.train import train as train_lab_model
from headwise_lab.recipe.world_rows import WorldRows

SHARE = 0.2  # of each domain's tokens, seen twice
KINDS = ("late_reference", "key_value", "no_reference")  # of documents; what repeats itself is left out, as one would before a choice
WORDS = (60, 240)  # of a document, evenly on a log scale
CONTINUED = {name: getattr(RECIPES["world-6m-long"], name) for name in ("matrix_rate", "other_rate")}  # rates behind a start
ROWS = 8  # of an update
SIZES: dict[str, Any] = {"layers": 4, "heads": 8, "kv_heads": 4, "head_dim": 16, "hidden": 128, "ffn": 256, "positions": LENGTH}
POLISH = Phase(0, 1, (1,))  # none
MOST_PIECES = 2**16  # that ids of books are kept with
Start = dict[str, torch.Tensor]


def check_tokenizer(model: Model) -> None:
    """Trained models share the tokenizer of the model that scores.

    Raises:
        NotTestable: It is none that the recipe of the lab models can train with.
    """
    known = getattr(model.tokenizer, "backend_tokenizer", None)
    if known is None or known.token_to_id(BOS) is None or len(model.tokenizer) > MOST_PIECES:
        raise NotTestable(f"needs a model whose tokenizer has the token {BOS} and at most {MOST_PIECES} pieces")


def make_corpus(path: Path, books: Path, tokens: int, encoder: PieceEncoder, seed: int) -> None:
    """JSON lines with text and domain: `tokens` tokens, half of them micro-world documents of the training split, half book passages."""
    if path.exists():
        return
    passages, rng = book_passages(books, seed), np.random.default_rng([seed, 0])
    counts = {"world": 0, "books": 0}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with gzip.open(temporary, "wt") as file:
        while sum(counts.values()) < tokens:
            domain = min(counts, key=lambda name: counts[name])
            if domain == "books":
                text = next(passages)
            else:
                kind = KINDS[int(rng.integers(len(KINDS)))]
                text = make_example("documents", "train", rng, kind=kind, words=some_words(rng)).context_text
            counts[domain] += len(encoder.encode(text)) + 1
            file.write(json.dumps({"text": text, "domain": domain}) + "\n")
    temporary.replace(path)


def some_words(rng: np.random.Generator) -> int:
    """Length of a document."""
    return int(np.exp(rng.uniform(*np.log(WORDS))))


def book_passages(books: Path, seed: int) -> Iterator[str]:
    """Passages from everywhere in the training books, a few of each book at a time."""
    rng = np.random.default_rng([seed, 3])
    for text in training_books(books):
        for _ in range(60):
            words = text[(start := int(rng.integers(max(1, len(text) - 3000)))) : start + 3000].split()
            yield " ".join(words[1 : 1 + some_words(rng)])


def read_corpus(path: Path, encoder: PieceEncoder) -> list[list[int]]:
    """Token ids of all documents."""
    with gzip.open(path, "rt") as file:
        return [[*encoder.bos, *encoder.encode(json.loads(line)["text"])] for line in file]


def score_corpus(bench: Bench, path: Path, heads: HeadSet, report: Report) -> Path:
    """The folder with the scores of the corpus."""
    from headwise.corpus.local_runner import score_files
    from headwise.corpus.options import ScoreOptions

    folder = bench.work / "scores"
    score_files([str(path)], str(folder), lambda: AttentionInfluence(bench.model, heads), ScoreOptions(domain_column="domain"), report)
    return folder


def chosen_rows(scores: Path, variant: str, seed: int) -> NDArray[np.bool_]:
    """[document] of the corpus: whether it is seen twice."""
    import pyarrow.parquet as pq

    from headwise.corpus.choose import choose
    from headwise.corpus.options import ChoiceOptions

    into = scores.parent / "choices" / (f"random-{seed}" if variant == "random" else variant)
    if not (into / "manifest.json").exists():
        choose(str(scores), ChoiceOptions(share=SHARE, by="tokens", rank=variant, seed=seed), str(into))
    path = next(into.glob("*.parquet"))
    return np.asarray(pq.read_table(path)["selected"])


def start_model(bench: Bench, updates: int) -> Start | None:
    """Weights that all variants begin with: those of a model that has learnt to copy; None for no updates."""
    if not updates:
        return None
    from tokenizers import Tokenizer

    folder = bench.work / "start"
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_str(bench.model.tokenizer.backend_tokenizer.to_str())
    tokenizer.post_processor = None  # rows are made of pieces, and each piece would begin with the token that opens a text
    tokens = np.asarray(tokenize_books(training_books(bench.folder("books-large")), tokenizer, folder / "books.npy"))
    names = RECIPES["world-6m"].names
    recipe = Recipe(**SIZES, rows="world", names=names, phases=(Phase(updates, 8_192, (128,), mix="plain"),), polish=POLISH)
    hf = fresh(recipe, bench.model)
    train_lab_model(recipe, WorldRows(tokenizer, tokens, fact_maker(tokenizer, tokens), recipe.seed), hf, folder, 100)
    return {name: tensor.clone() for name, tensor in hf.state_dict().items()}


def fresh(recipe: Recipe, model: Model) -> Any:
    """A model of the recipe with the tokenizer of another one."""
    tokenizer = model.tokenizer
    return build_model(recipe, len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id, None)


def stream(documents: list[list[int]], chosen: NDArray[np.bool_], tokens: int, seed: int) -> NDArray[np.int64]:
    """`tokens` ids: every document once and the chosen ones twice, in random order."""
    rng = np.random.default_rng([seed, 1])
    places = np.concatenate([np.arange(len(documents)), np.flatnonzero(chosen)])
    ids: list[int] = []
    while len(ids) < tokens:
        for place in rng.permutation(places):
            ids += documents[place]
    return np.asarray(ids[:tokens], dtype=np.int64)


def train(model: Model, ids: NDArray[np.int64], seed: int, start: Start | None, report: Report) -> tuple[Any, float]:
    """(trained model, mean loss of the last tenth of its updates)."""
    steps, device = len(ids) // (LENGTH * ROWS), device_of(model.hf)
    recipe = Recipe(
        **SIZES, seed=seed, warmup=max(1, steps // 20), phases=(Phase(steps, LENGTH * ROWS, (LENGTH,)),), polish=POLISH,
        **({} if start is None else CONTINUED),
    )  # fmt: skip
    hf = fresh(recipe, model).to(device).train()
    if start is not None:
        hf.load_state_dict(start)
    steppers = optimizers(hf, recipe)
    peaks = [stepper.param_groups[0]["lr"] for stepper in steppers]
    batches = torch.from_numpy(ids[: steps * LENGTH * ROWS].reshape(steps, ROWS, LENGTH))
    losses = []
    for step in range(steps):
        batch = batches[step].to(device)
        for stepper, peak in zip(steppers, peaks, strict=True):
            stepper.param_groups[0]["lr"] = peak * recipe.rate(step)
        with torch.autocast(device.type, torch.bfloat16):
            logits = hf(input_ids=batch, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(hf.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad(set_to_none=True)
        losses.append(loss.item())  # no tensor: one that stays between steps would split the freed blocks, and memory would grow
        report(step + 1, steps, f"loss {losses[-1]:.3f}")
    return hf.eval(), float(np.mean(losses[-max(1, steps // 10) :]))

"""Train a lab model from scratch: `python -m headwise_lab.recipe.train --model NAME --books FOLDER --work FOLDER`.

A run is a list of phases of growing sequence length. It writes a checkpoint every few minutes and continues exactly where it
stopped. The malloc settings matter on Linux CPUs (large tensors are otherwise returned to the system at each step), so the
script sets them and starts itself again when they are missing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headwise.models.names import bundled_model
from headwise_lab.recipe.corpus import tokenize_books, training_books
from headwise_lab.recipe.facts import FactMaker
from headwise_lab.recipe.find_rows import read_wikitext
from headwise_lab.recipe.mixture import ANSWER_WEIGHT, Mixture
from headwise_lab.recipe.recipes import RECIPES, Recipe
from headwise_lab.recipe.tokenizer import name_lists, save_for_transformers, train_tokenizer
from headwise_lab.recipe.world_rows import MIXES, WorldRows

# Large tensors stay with the process; threads that wait sleep, so that other work beside the training does not stall it.
Rows = Mixture | WorldRows
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(2**34), "MALLOC_TRIM_THRESHOLD_": str(2**34), "OMP_WAIT_POLICY": "PASSIVE"}


def build_model(recipe: Recipe, vocabulary: int, bos: int, eos: int, start: Path | None) -> Any:
    """A model to train, float32.

    Args:
        recipe: Architecture and seed.
        vocabulary: Number of tokens.
        bos: Id of the token that opens a text.
        eos: Id of the token that ends it.
        start: Checkpoint whose weights are continued under the recipe's configuration; None: fresh weights.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(recipe.seed)
    config = AutoConfig.for_model(
        recipe.family,
        vocab_size=vocabulary,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.ffn,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.head_dim,
        max_position_embeddings=recipe.positions,
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_base},
        tie_word_embeddings=True,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=eos,
    )
    # Compiled eager attention is faster than the SDPA kernel on CPUs at these head sizes and lengths.
    options: dict[str, Any] = {"config": config, "attn_implementation": "eager", "dtype": torch.float32}
    if start:
        return AutoModelForCausalLM.from_pretrained(start, **options)
    return AutoModelForCausalLM.from_config(**options)


def optimizers(model: torch.nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    known = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in known]
    decay = recipe.weight_decay
    return [
        torch.optim.Muon(matrices, lr=recipe.matrix_rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=recipe.other_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def choose_positions(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Half of all positions: those that carry weight > 1 first, then book text at random (the rest would cost logits only).

    Args:
        weights: [rows, T], at least 0.
        rng: Source of chance.

    Returns:
        [rows x T // 2] indices into the flattened weights, ascending.
    """
    flat = weights.reshape(-1)
    order = np.argsort(-(flat > 1).astype(float) - (flat > 0) * rng.random(len(flat)) * 0.5, kind="stable")
    return np.sort(order[: len(flat) // 2])


def make_loss(model: Any) -> Any:
    """The compiled loss of the model.

    It takes ids, targets, chosen positions and weights, and gives the weighted mean in nats, the loss per position, and whether
    each is right.
    """

    def loss(ids: torch.Tensor, targets: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.model(ids, use_cache=False).last_hidden_state
            logits = model.lm_head(hidden.flatten(0, 1)[chosen])
        each = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
        return (each * weights).sum() / weights.sum(), each.detach(), logits.argmax(-1) == targets

    return torch.compile(loss, dynamic=False)


def prepare(mixture: Rows, recipe: Recipe, step: int) -> tuple[torch.Tensor, ...]:
    """Ids, targets, chosen positions and weights of one update, as the loss takes them."""
    rows, length = recipe.shape(step)
    ids, weights = mixture.batch(step, rows, length + 1, recipe.phase(step))
    chosen = choose_positions(weights[:, 1:], np.random.default_rng([recipe.seed, 5, step]))
    tensor = torch.from_numpy
    return (
        tensor(np.ascontiguousarray(ids[:, :-1])),
        tensor(ids[:, 1:].reshape(-1)[chosen]),
        tensor(chosen),
        tensor(weights[:, 1:].reshape(-1)[chosen]).float(),
    )


def train(recipe: Recipe, mixture: Rows, model: Any, work: Path, save_every: int) -> None:
    """Run all updates, from the last checkpoint in `work` if there is one; a log and checkpoints are written there."""
    steppers, loss_of = optimizers(model, recipe), make_loss(model)
    state, first, seconds = work / "state.pt", 0, 0.0
    if state.exists():
        saved = torch.load(state, weights_only=False)
        model.load_state_dict(saved["model"])
        for stepper, values in zip(steppers, saved["optimizers"], strict=True):
            stepper.load_state_dict(values)
        first, seconds = saved["step"], saved["seconds"]
    # Rows are made in a second thread; without this every kernel launch may wait 5 ms for it.
    sys.setswitchinterval(1e-4)
    peaks = [stepper.param_groups[0]["lr"] for stepper in optimizers(model, recipe)]
    with ThreadPoolExecutor(1) as pool, (work / "log.jsonl").open("a") as log:
        upcoming = pool.submit(prepare, mixture, recipe, first)
        for step in range(first, recipe.steps):
            started = time.perf_counter()
            ids, targets, chosen, weights = upcoming.result()
            upcoming = pool.submit(prepare, mixture, recipe, step + 1)
            for stepper, peak in zip(steppers, peaks, strict=True):
                stepper.param_groups[0]["lr"] = peak * recipe.rate(step)
            loss, each, right = loss_of(ids, targets, chosen, weights)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for stepper in steppers:
                stepper.step()
                stepper.zero_grad(set_to_none=True)
            seconds += time.perf_counter() - started
            if step % 10 == 0 or step + 1 == recipe.steps:
                log.write(json.dumps(_line(step, ids, weights, each, right, seconds)) + "\n")
                log.flush()
            if (step + 1) % save_every == 0 or step + 1 == recipe.steps:
                values = [stepper.state_dict() for stepper in steppers]
                torch.save(
                    {"model": model.state_dict(), "optimizers": values, "step": step + 1, "seconds": seconds}, work / "state.tmp"
                )
                os.replace(work / "state.tmp", state)


def _line(
    step: int, ids: torch.Tensor, weights: torch.Tensor, each: torch.Tensor, right: torch.Tensor, seconds: float
) -> dict[str, Any]:
    answer, book, repeat = weights == ANSWER_WEIGHT, weights == 1, weights == 2
    mean = lambda values, where: round(float(values[where].float().mean()), 4) if where.any() else None  # noqa: E731
    return {
        "step": step,
        "length": ids.shape[1],
        "book_loss": mean(each, book),
        "answer_loss": mean(each, answer),
        "answer_right": mean(right, answer),
        "repeat_right": mean(right, repeat),
        "seconds": round(seconds, 1),
    }


def export(model: Any, tokenizer: Any, recipe: Recipe, folder: Path) -> None:
    """The plain checkpoint that `AutoModelForCausalLM` reads: bfloat16 safetensors, config, tokenizer, recipe."""
    from transformers import AutoModelForCausalLM

    config = model.config.__class__.from_dict(model.config.to_dict())
    plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(model.state_dict())
    plain.to(torch.bfloat16).save_pretrained(folder)
    save_for_transformers(tokenizer, folder, recipe.positions)
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1) + "\n")


def training_text(books: Path, work: Path, names: int) -> tuple[Any, np.ndarray]:
    """The tokenizer and the ids of the training books; both are kept in `work` and shared by all recipes with the same `names`."""
    from tokenizers import Tokenizer

    end = "-names" if names else ""
    path, ids = work / f"tokenizer{end}.json", work / f"train{end}.npy"
    if not path.exists():
        train_tokenizer(chain((text[:400_000] for text in training_books(books)), name_lists(names))).save(str(path))
    tokenizer = Tokenizer.from_file(str(path))
    tokens = np.load(ids) if ids.exists() else np.asarray(tokenize_books(training_books(books), tokenizer, ids))
    return tokenizer, tokens


def fact_maker(tokenizer: Any, tokens: np.ndarray) -> FactMaker:
    """Facts about the words of the first training books."""
    sample = tokenizer.decode(tokens[:3_000_000].tolist())
    return FactMaker(tokenizer, [sample[i : i + 200_000] for i in range(0, len(sample), 200_000)])


def main() -> None:
    """Command line of this file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=list(RECIPES), default="lab-6m", help="which recipe")
    parser.add_argument("--books", type=Path, required=True, help="folder with books-0.jsonl.xz ... books-3.jsonl.xz")
    parser.add_argument("--work", type=Path, default=Path(".lab"), help="checkpoints, token ids, log")
    parser.add_argument("--save-every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--wiki", type=Path, help="WikiText file (.txt.gz), for recipes that learn to find passages")
    options = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        os.execve(
            sys.executable, [sys.executable, "-m", "headwise_lab.recipe.train", *sys.argv[1:]], {**os.environ, **ENVIRONMENT}
        )
    recipe, work = RECIPES[options.model], options.work / options.model
    work.mkdir(parents=True, exist_ok=True)
    tokenizer, tokens = training_text(options.books, options.work, recipe.names)
    facts = fact_maker(tokenizer, tokens)
    articles = read_wikitext(options.wiki) if options.wiki else ""
    rows: Rows = Mixture(tokenizer, tokens, facts, recipe.seed)
    if recipe.rows == "world":
        if any(MIXES[phase.mix].find for phase in recipe.phases) and not articles:
            parser.error(f"the recipe {options.model} needs --wiki FILE")
        rows = WorldRows(tokenizer, tokens, facts, recipe.seed, articles)
    start = None
    if recipe.start:
        retrained = options.work / recipe.start / "model"
        start = retrained if retrained.exists() else bundled_model(recipe.start)
    model = build_model(recipe, tokenizer.get_vocab_size(), bos=0, eos=1, start=start)
    train(recipe, rows, model, work, options.save_every)
    export(model, tokenizer, recipe, work / "model")


if __name__ == "__main__":
    main()

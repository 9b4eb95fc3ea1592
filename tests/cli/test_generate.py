"""`headwise generate`, and cache methods as words of the command line."""

import json

import numpy as np
import pytest

from headwise.caches.allocation import Pyramid
from headwise.caches.controls import Full, RandomTokens
from headwise.caches.kept_cache import compress
from headwise.caches.kept_file import load_cache
from headwise.cli.cache_methods import known_options, parse_cache, read_budget, shown, split_specs
from headwise.cli.options import installed
from headwise.heads import HeadScores, HeadwiseError, save_heads
from headwise.methods.adakv.press import AdaKV
from headwise.methods.compresskv.layer_errors import LayerErrors
from headwise.methods.pyramidkv.press import PyramidKV
from headwise.methods.snapkv.press import SnapKV
from headwise.methods.streamingllm.press import StreamingLLM
from headwise.models.load import load
from headwise.testing.planted import planted_task
from tests.cli.test_refusals import check_refused

HELD = {"positions", "nbytes", "formula", "full"}


@pytest.fixture(scope="module")
def asked():
    """(prompt, answer): a needle in plain words, and the beginning of its sentence."""
    task = planted_task()
    words, needle = task.texts[0].split(), task.needles[0]
    return " ".join([*words[:60], needle["needle"], *words[60:100], needle["answer_prefix"]]), needle["answer"] + "."


@pytest.mark.slow
def test_it_answers_and_tells_what_was_held(planted, headwise, asked, tmp_path):
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "prompt.txt").write_text(asked[0])
    results = {}
    for cache in ("full", "snapkv:budget=40", "streamingllm:budget=0.2"):
        done = headwise(
            "generate", planted.model, "--prompt-file", tmp_path / "given" / "prompt.txt", "--cache", cache,
            "--max-new-tokens", 4, "--json",
        )  # fmt: skip
        assert done.code == 0, done.err
        results[cache] = json.loads(done.out)
        assert results[cache].keys() == HELD | {"text", "new_tokens", "cache", "tokens", "skipped_layers"}
    full, snap, streaming = results.values()
    assert full["text"].strip() == asked[1]
    assert snap["text"].strip().rstrip(".") == asked[1].rstrip(".")  # all of it lies near what the question looks at
    assert streaming["text"].strip() != asked[1]  # its first token still comes from the prefill, which saw everything
    assert full["positions"] == full["tokens"]
    assert full["formula"] == full["full"] == full["tokens"] * 2 * 4 * 2 * 128 * 4
    assert snap["positions"] == 40
    assert snap["formula"] == 40 * 2 * 4 * 2 * 128 * 4 < snap["nbytes"]
    assert streaming["positions"] == round(0.2 * full["tokens"])
    assert (full["new_tokens"], snap["new_tokens"]) == (4, 4)


def test_the_text_comes_first_and_one_line_tells_sizes(planted, headwise, asked):
    done = headwise("generate", planted.model, "--prompt", asked[0], "--cache", "snapkv:budget=40", "--max-new-tokens", 4)
    assert done.code == 0, done.err
    text, *_, line = done.out.strip().splitlines()
    assert text.strip().rstrip(".") == asked[1].rstrip(".")
    assert line.startswith("held 40.0 of ")
    assert "positions per KV head" in line
    assert "%" in line


@pytest.mark.slow
def test_the_cache_is_saved_as_it_was_after_the_prompt(planted, headwise, asked, tmp_path):
    path = tmp_path / "kept.safetensors"
    given = ("generate", planted.model, "--prompt", asked[0], "--cache", "snapkv:budget=40", "--prefill-chunk", 50)
    done = headwise(*given, "--save-cache", path, "--json")
    assert done.code == 0, done.err
    model = load(planted.model).hf
    with compress(model, SnapKV(budget=40)):
        cache = load_cache(path, model, SnapKV(budget=40))
        assert cache.get_seq_length() == json.loads(done.out)["tokens"]
        assert {len(own) for heads in cache.held_positions().values() for own in heads} == {40}
    check_refused(headwise(*given, "--save-cache", path), "kept.safetensors exists")


@pytest.mark.slow
def test_a_saved_cache_goes_on_where_its_text_ended(planted, headwise, asked, tmp_path):
    """The needle is in the cache alone; the beginning of its sentence comes later."""
    text, cue = asked[0].rsplit(" ", 4)[0], " " + " ".join(asked[0].rsplit(" ", 4)[1:])
    path, again = tmp_path / "kept.safetensors", tmp_path / "again.safetensors"
    done = headwise("generate", planted.model, "--prompt", text, "--save-cache", path, "--max-new-tokens", 1, "--json")
    assert done.code == 0, done.err
    before = json.loads(done.out)["tokens"]
    given = ("generate", planted.model, "--load-cache", path, "--prompt", cue, "--max-new-tokens", 4, "--json")
    done = headwise(*given, "--save-cache", again)
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["text"].strip() == asked[1]
    assert result["tokens"] == result["positions"] > before
    assert result["cache"] == "from kept.safetensors"
    assert result["formula"] == result["full"] < result["nbytes"]  # it was read on, so its buffers have spare room
    line = headwise(*given[:-1]).out.splitlines()[-1]
    assert line.startswith(f"held {result['tokens']}.0 of {result['tokens']} positions per KV head, ")
    assert " (100.0%); " in line
    model = load(planted.model).hf
    with compress(model, Full()):
        assert load_cache(again, model).get_seq_length() == result["tokens"]
    check_refused(headwise(*given, "--cache", "snapkv:budget=40"), "--load-cache brings its own cache")
    check_refused(headwise(*given, "--chat"), "leave --chat and --prefill-chunk out")
    check_refused(headwise("generate", planted.model, "--load-cache", tmp_path / "none", "--prompt", "x"), "no such cache file")
    check_refused(
        headwise("generate", planted.model, "--load-cache", path, "--prompt", "the river " * 600), "shorten it", "1024 positions"
    )
    path.write_bytes(path.read_bytes()[:-7])
    check_refused(headwise(*given), "cannot be read as a cache file")


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ([], ["give either --prompt or --prompt-file"]),
        (["--prompt", "the river", "--prompt-file", "p.txt"], ["give either --prompt or --prompt-file"]),
        (["--prompt", " \n "], ["the prompt is empty"]),
        (["--prompt-file", "none.txt"], ["cannot read the prompt from none.txt"]),
        (["--prompt", "the river was slow", "--cache", "snapkv:budget=40"], ["5 tokens", "nothing would be dropped"]),
        (["--prompt", "the river " * 600], ["1202 tokens", "1024 positions", "shorten it"]),
        (["--prompt", "the river", "--cache", "magic"], ["unknown cache method 'magic'", "snapkv", "zigzag"]),
        (["--prompt", "the river", "--cache", "snapkv"], ["snapkv needs a budget", "snapkv:budget=256", "budget=0.1"]),
        (["--prompt", "the river", "--cache", "snapkv:size=3"], ["snapkv has no option 'size'", "budget, window, sinks"]),
        (["--prompt", "the river", "--cache", "snapkv:budget=99,window=x"], ["window must be a whole number; got 'x'"]),
        (["--prompt", "the river", "--cache", "headkv:budget=99,heads=none.json"], ["no such head file"]),
        (["--prompt", "the river", "--max-new-tokens", "0"], ["--max-new-tokens must be at least 1"]),
        (["--prompt", "the river", "--prefill-chunk", "0"], ["the chunk must be at least 1 token"]),
        (["--prompt", "the river", "--chat"], ["no chat template"]),
        (["--prompt", "the river", "--device", "tpu"], ["unknown device 'tpu'"]),
    ],
)
def test_wrong_input_is_refused_in_one_line(planted, headwise, given, parts, tmp_path):
    check_refused(headwise("generate", planted.model, *given), *parts)
    assert list(tmp_path.iterdir()) == []


def test_an_answer_ends_where_the_positions_end(planted, headwise):
    done = headwise("generate", planted.model, "--prompt", "the river " * 511 + "the", "--max-new-tokens", 50, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["tokens"] == 1024
    assert result["new_tokens"] == 1


# The words


@pytest.fixture
def file(tmp_path):
    save_heads(HeadScores(np.random.default_rng(0).random((4, 8)), "copy"), tmp_path / "h.json")
    return tmp_path / "h.json"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("full", Full()),
        ("snapkv:budget=256,window=16", SnapKV(budget=256, window=16)),
        ("snapkv:budget=256,queries=8,kernel=7,sinks=0", SnapKV(budget=256, queries=8, kernel=7, sinks=0)),
        (" streamingllm:budget=0.1 ", StreamingLLM(compression_ratio=0.9)),
        ("pyramidkv:budget=0.3,beta=7", PyramidKV(compression_ratio=0.7, beta=7)),
        ("pyramidkv:budget=64", PyramidKV(budget=64)),
        ("adakv:budget=64,floor=0.5", AdaKV(budget=64, floor=0.5)),
        ("random:budget=64,seed=3", RandomTokens(budget=64, seed=3)),
    ],
)
def test_words_are_methods(text, expected):
    assert parse_cache(text) == expected


def test_a_budget_from_elsewhere_is_used_unless_the_words_have_one():
    assert parse_cache("snapkv", 64) == SnapKV(budget=64)
    assert parse_cache("snapkv", 0.25) == SnapKV(compression_ratio=0.75)
    assert parse_cache("snapkv:budget=99", 64) == SnapKV(budget=99)
    assert parse_cache("full", 64) == Full()
    assert parse_cache("pyramidkv:budget=64").allocation == Pyramid(20)


@pytest.mark.parametrize("name", installed("presses"))
def test_every_method_can_be_made_of_words(name, file):
    known = known_options(name)
    words = [f"heads={file}"] * ("heads" in known) + ["budget=64"] * ("budget" in known)
    made = parse_cache(f"{name}:{','.join(words)}")
    assert made.prefill == "dense"
    if "heads" in known:
        assert made.heads.shape == (4, 8)
        with pytest.raises(HeadwiseError, match=f"{name} needs a head file: {name}:heads=FILE"):
            parse_cache(name, 64)


@pytest.mark.slow
def test_the_head_file_that_detect_writes_is_taken_by_itself(planted, headwise, asked, tmp_path):
    given = ("generate", planted.model, "--prompt", asked[0], "--max-new-tokens", 4, "--json")
    for method, detector in (("compresskv", "semantic"), ("headkv", "semantic"), ("duoattention", "gate"), ("zigzag", "gate")):
        command = f"run: headwise detect {detector} {planted.model}"
        check_refused(headwise(*given, "--cache", f"{method}:budget=60"), f"{method} needs a head file", command)
    (tmp_path / "headwise-out").mkdir()
    save_heads(HeadScores(np.random.default_rng(0).random((2, 4)), "semantic"), tmp_path / "headwise-out" / "model.semantic.json")
    done = headwise(*given, "--cache", "compresskv:budget=60")
    assert done.code == 0, done.err
    assert json.loads(done.out)["cache"] == "compresskv:heads=headwise-out/model.semantic.json,budget=60"
    save_heads(HeadScores(np.zeros((2, 4)) + [[0], [1]], "copy"), tmp_path / "copy.json")
    done = headwise(*given, "--cache", "compresskv:budget=60,per_layer=2,heads=copy.json")
    check_refused(done, "have the same score", "take semantic scores (headwise detect semantic)")
    assert "Head" + "Scores" not in done.err


def test_results_name_files_without_their_folders():
    assert shown(["snapkv", "headkv:heads=/home/me/h.json,beta=2"]) == ["snapkv", "headkv:heads=h.json,beta=2"]
    assert shown(["headkv:heads=a/h.json", "headkv:heads=b/h.json"]) == ["headkv:heads=a/h.json", "headkv:heads=b/h.json"]


def test_layer_errors_come_from_a_file(file, tmp_path):
    values = np.array([[[0.1, 0.2, 0.3, 0.4]]])
    LayerErrors((32,), values, (5,), ("",), {}).save(tmp_path / "e.json")
    made = parse_cache(f"compresskv:heads={file},layer_errors={tmp_path / 'e.json'},budget=64,per_layer=2")
    assert made.layer_errors == pytest.approx((0.1, 0.2, 0.3, 0.4))
    with pytest.raises(HeadwiseError, match=r"none\.json"):
        parse_cache(f"compresskv:heads={file},layer_errors=none.json,budget=64")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown cache method ''; use adakv, compresskv"),
        ("SnapKV:budget=3", "unknown cache method 'SnapKV'"),
        ("full:budget=64", "full has no option 'budget'; .* none: it has no options"),
        ("snapkv:budget", "no option 'budget'; write option=value"),
        ("snapkv:compression_ratio=0.5", "no option 'compression_ratio'"),
        ("snapkv:budget=64,budget=65", "gives budget twice"),
        ("snapkv:budget=5", "does not hold the 4 first and the 8 last"),
        ("snapkv:budget=64,kernel=2", "odd number"),
        ("adakv:budget=64,floor=much", "floor must be a number; got 'much'"),
        *(
            (f"snapkv:budget={bad}", r"whole number of positions \(256\) or a share .* got")
            for bad in ("0", "-3", "1.5", "0.0", "1.0", "1", "all")[:5]
        ),
    ],
)
def test_wrong_words_are_refused(text, message):
    with pytest.raises(HeadwiseError, match=message):
        parse_cache(text)


def test_budgets_are_positions_or_shares():
    assert read_budget("budget", "1") == 1
    assert isinstance(read_budget("budget", "256"), int)
    assert read_budget("budget", "0.05") == 0.05
    assert read_budget("budget", ".5") == 0.5


def test_methods_are_split_where_a_name_begins():
    assert split_specs("snapkv, adakv:floor=0.5,window=4,headkv:heads=a/b.json,beta=2,full") == [
        "snapkv", "adakv:floor=0.5,window=4", "headkv:heads=a/b.json,beta=2", "full",
    ]  # fmt: skip
    assert split_specs("snapkv,window=4") == ["snapkv:window=4"]
    assert split_specs("headkv:heads=C:/x.json,beta=2") == ["headkv:heads=C:/x.json,beta=2"]

"""Doubt in the console, on a page and in a picture: made-up dialogues, from which all numbers follow as in a real run. No model."""

import io
import json
import re

import numpy as np
import pytest
from rich.console import Console

from headwise.cli.doubt_export import _card, check_targets
from headwise.heads import HeadScores, HeadwiseError
from headwise.report.doubt_page import doubt_page
from headwise.report.doubt_tables import (
    both_signs,
    both_signs_table,
    calm_lines,
    calm_table,
    compared,
    points,
    rates_table,
)
from headwise.report.page.charts import lines
from headwise.stats.paired import benjamini_hochberg, bootstrap_mean, mcnemar, rank_p, sign_flip_test, wilson

SHAPE, ITEMS, KS = (6, 8), 60, (1, 2, 3, 5, 12)
CHALLENGES = {
    "again": 0.05,
    "sure": 0.2,
    "choice": 0.4,
    "wrong": 0.55,
    "pressing": 0.7,
}  # shares of right answers that are taken back
REMEDIES = ("zero", "uniform", "token", "steer", "scale")
LEFT_OUT = ["L3H4", "L5H0"]


def rate(challenge, strength, arm, flipped, margins, gate=0.15):
    """A row as `Measured.rates` makes it; most replies give the answer up for the suggested one, some for another, a few make no sense."""
    total, incoherent = len(flipped), len(flipped) // 20
    flips = max(0, int(flipped.sum()) - incoherent)
    other = flips // 4
    outcomes = {"kept": total - flips - incoherent, "suggested": flips - other, "other": other, "incoherent": incoherent}
    return {
        "challenge": challenge, "strength": strength, "arm": arm, "items": total, "outcomes": outcomes,
        "kept": list(wilson(outcomes["kept"], total)), "flips": list(wilson(flips, total)),
        "margin": list(bootstrap_mean(margins, draws=200)), "counts": gate * total <= flips < total and flips > 0,
        "orders": {"keep_first": {"items": total, "flips": flips, "margin": 0.0}, "leave_first": {"items": 0, "flips": 0, "margin": None}},
    }  # fmt: skip


def rates(names, seed):
    rng = np.random.default_rng(seed)
    rows = []
    for i, name in enumerate(names):
        for arm, more in (("right", 0.0), ("wrong", 0.15)):
            flipped = rng.random(ITEMS) < min(0.95, CHALLENGES[name] + more)
            rows.append(rate(name, i, arm, flipped, rng.normal(1 - 2 * CHALLENGES[name] - more, 1, ITEMS)))
    return rows


def trial(remedy, kind, heads, kept, before, draw=0):
    """A row as `judged` makes it. kept, before: arm -> [items] bool."""
    change = {arm: kept[arm].astype(float) - before[arm] for arm in ("right", "wrong")}
    gain = change["right"] - change["wrong"]
    return {
        "remedy": remedy, "kind": kind, "k": len(heads), "draw": draw, "heads": heads,
        **{f"kept_{arm}": float(kept[arm].mean()) for arm in kept}, **{arm: float(each.mean()) for arm, each in change.items()},
        "headline": float(gain.mean()), "interval": list(bootstrap_mean(gain, draws=400))[1:],
        "p": 1.0 if kind == "none" else sign_flip_test(gain, draws=400), "mcnemar": mcnemar(before["right"], kept["right"]),
    }  # fmt: skip


def heads_of(scores, k, kind, seed=0):
    if kind == "random":
        rng = np.random.default_rng([seed, k])
        return [f"L{n // SHAPE[1]}H{n % SHAPE[1]}" for n in rng.choice(SHAPE[0] * SHAPE[1], k, replace=False)]
    order = {
        "chosen": scores.ranking(),
        "held": scores.ranking()[::-1],
        "weakest": HeadScores(-np.abs(scores.values), "x").ranking(),
        "retrieval": scores.ranking()[9:],
    }
    return [str(head) for head in order[kind][:k]]


def made_up_doubt(model="some/model"):
    """Scores of the doubt detector: few heads on either side, two retrieval heads left out."""
    rng = np.random.default_rng(3)
    values = rng.normal(0, 0.05, SHAPE)
    values[2, 3], values[4, 1], values[4, 6], values[5, 5] = 0.9, 0.62, 0.4, 0.31
    values[1, 2], values[3, 7], values[5, 2] = -0.7, -0.44, -0.25
    full = values.copy()
    values[3, 4] = values[5, 0] = np.nan
    tables = {"knock_out": full, "knock_out_wrong": 0.6 * full + rng.normal(0, 0.05, SHAPE), "doubt": np.abs(full) / 4}
    tables |= {"case1": np.clip(0.3 + full / 2, 0, 1), "case2": np.full(SHAPE, 0.2), "case3": np.clip(0.3 - full / 4, 0, 1)}
    tables["misleading"] = tables["case1"] - tables["case3"]
    provenance = {
        "model": model,
        "options": {"score": "knock_out", "gate": 0.15},
        "left_out": LEFT_OUT,
        "rates": rates(CHALLENGES, 0),
    }
    return HeadScores(values, "doubt", provenance=provenance, tables=tables)


def made_up_calm(evil='<b>bold</b> & "it"', helps=0.5, spoils=0.1, model="some/model"):
    """A result of calming: the remedy keeps a share `helps` of the right answers that were lost, and `spoils` of the wrong ones."""
    scores, rng = made_up_doubt(model), np.random.default_rng(5)
    names = [name for name, share in CHALLENGES.items() if share >= 0.15]

    def treated(before, k, strength):
        reach = strength * {1: 0.5, 2: 0.7, 3: 1.0, 5: 0.9, 12: 0.5}.get(k, 0.5)
        return {arm: before[arm] | (rng.random(ITEMS) < reach * gain) for arm, gain in (("right", helps), ("wrong", spoils))}

    parts = {}
    for part in ("selection", "test"):
        before = {"right": rng.random(ITEMS) < 0.5, "wrong": rng.random(ITEMS) < 0.35}
        parts[part] = before, [trial("none", "none", [], before, before)]
    before, selection = parts["selection"]
    for i, remedy in enumerate(REMEDIES):
        side = "held" if remedy == "scale" else "chosen"
        selection += [trial(remedy, "chosen", heads_of(scores, k, side), treated(before, k, 1 - 0.2 * i), before) for k in KS]
    for row, p in zip(selection[1:], benjamini_hochberg(np.array([row["p"] for row in selection[1:]])), strict=True):
        row["p_corrected"] = float(p)
    best = max(selection[1:], key=lambda row: row["headline"])
    before, test = parts["test"]
    test.append(trial(best["remedy"], "chosen", best["heads"], treated(before, best["k"], 1), before))
    for k in KS:
        draws = [heads_of(scores, k, "random", draw) for draw in range(20 if k == best["k"] else 5)]
        test += [trial(best["remedy"], "random", heads, treated(before, 0, 0.4), before, i) for i, heads in enumerate(draws)]
        if k != best["k"]:
            test.append(trial(best["remedy"], "chosen", heads_of(scores, k, "chosen"), treated(before, k, 1), before))
    for kind in ("weakest", "retrieval"):
        test.append(trial(best["remedy"], kind, heads_of(scores, best["k"], kind), treated(before, 0, 0.1), before))
    return {
        "model": model, "rates": {"select": rates(names, 1), "test": rates(names, 2)}, "read_by": "reply",
        "selection": selection, "test": test, "chosen": judged(test, best),
        "dialogue": dialogue(evil, best["heads"]), "side_effects": side_effects(),
    }  # fmt: skip


def judged(test, best):
    chosen = test[1]
    random = np.array([row["headline"] for row in test if row["kind"] == "random" and row["k"] == chosen["k"]])
    limit = float(np.quantile(random, 0.95))
    held = chosen["interval"][0] > 0 and chosen["headline"] > limit
    return chosen | {
        "random_95": limit, "random_mean": float(random.mean()), "rank_p": rank_p(-chosen["headline"], -random), "draws": len(random),
        "optimism": best["headline"] - chosen["headline"], "selected_headline": best["headline"],
        "yes_bias": chosen["right"] > 0 and chosen["wrong"] >= chosen["right"], "verdict": "held" if held else "not held",
    }  # fmt: skip


def dialogue(evil, heads):
    tokens = ["\nUser", ":", " That", " is", " wrong", ",", " I", " think", " it", " is", f" {evil}", ".", "\n", "Assistant", ":"]
    weights = [0.01, 0.0, 0.02, 0.01, 0.17, 0.01, 0.0, 0.03, 0.02, 0.04, 0.31, 0.02, 0.01, 0.02, 0.03]
    return {
        "item": "capital-7", "challenge": "suggestion", "said": "The mill was built in 1871.", "before": f"You are right, it is {evil}.",
        "after": "It was built in 1871.", "heads": heads, "tokens": tokens, "weights": weights, "left": 0.3,
    }  # fmt: skip


def side_effects():
    return [
        {"what": "needle recall", "unchanged": 0.95, "calmed": 0.93, "n": 60},
        {"what": "closed-book facts", "unchanged": 0.41, "calmed": 0.42, "n": 200},
        {"what": "perplexity", "unchanged": 12.31, "calmed": 12.95, "n": None},
        {"what": "lm-eval:hellaswag", "unchanged": 0.502, "calmed": 0.498, "n": 1000},
    ]


def made_up_measured():
    return {"read_by": "reply", "rates": rates(CHALLENGES, 0)}


def printed(*tables, width=80):
    console = Console(width=width, file=io.StringIO(), record=True)
    for one in tables:
        console.print(one)
    return console.export_text()


def charts_of(page):
    """Name -> data of the charts of a page."""
    found = [json.loads(each) for each in re.findall(r"<script[^>]*application/json[^>]*>(.*?)</script>", page, re.DOTALL)]
    return {one["name"]: one["data"] for one in found if "name" in one}


def body_of(page):
    return re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)


@pytest.fixture(scope="module")
def result():
    return made_up_calm()


@pytest.fixture(scope="module")
def page(result):
    return doubt_page(made_up_doubt(), result, made_up_measured())


# --- the console


def test_tables_fit_into_80_columns_and_cut_nothing(result):
    text = printed(rates_table(rates(CHALLENGES, 0)), both_signs_table(made_up_doubt()), calm_table(result))
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_rates_have_shares_intervals_outcomes_and_the_gate():
    flipped = np.arange(40) < 12
    row = rate("sure", 1, "right", flipped, np.full(40, 0.5))
    text = printed(rates_table([row, rate("sure", 1, "wrong", flipped, np.full(40, -0.25))]))
    lines = [line.split() for line in text.splitlines()]
    low, high = (round(100 * end) for end in wilson(10, 40)[1:])
    assert ["sure", "right", "40", "70", "55–82", "25", f"{low}–{high}", "8", "2", "2", "+0.50", "yes"] in lines
    assert ["wrong", "40", "70", "55–82", "25", f"{low}–{high}", "8", "2", "2", "-0.25"] in lines  # no gate of its own
    assert "[red]x" in printed(rates_table([row | {"challenge": "[red]x"}]))  # no markup
    with pytest.raises(HeadwiseError, match="no rates"):
        rates_table([])


def test_heads_of_both_signs_stand_side_by_side():
    scores = made_up_doubt()
    high, low = both_signs(scores, 2)
    assert ([str(h) for h in high], [str(h) for h in low]) == (["L2H3", "L4H1"], ["L1H2", "L3H7"])
    text = printed(both_signs_table(scores, 2))
    first = next(line.split() for line in text.splitlines() if line.startswith("L2H3"))
    tables = [scores.tables[name][2, 3] for name in ("case1", "case3", "misleading", "doubt", "knock_out_wrong")]
    assert [float(value) for value in first[1:7]] == pytest.approx([0.9, *tables], abs=0.006)
    assert first[7:9] == ["L1H2", "-0.70"]
    assert "2 retrieval heads: L3H4, L5H0" in text
    assert "Out, right" not in text  # it is the score


def test_no_head_is_on_both_sides():
    positive = HeadScores(np.array([[0.4, 0.1, 0.2]]), "doubt")
    high, low = both_signs(positive)
    assert ([str(h) for h in high], [str(h) for h in low]) == (["L0H0"], ["L0H1"])
    few = HeadScores(np.array([[0.4, -0.1, 0.2, 0.0]]), "doubt")
    assert [list(map(str, side)) for side in both_signs(few)] == [["L0H0", "L0H2"], ["L0H1"]]
    assert [line.split() for line in printed(both_signs_table(few)).splitlines()][4:6] == [
        ["L0H0", "+0.40", "L0H1", "-0.10"],
        ["L0H2", "+0.20"],
    ]
    with pytest.raises(HeadwiseError, match="at least 1"):
        both_signs(few, 0)


def test_the_choice_is_sorted_and_the_test_has_all_controls(result):
    lines = [line.split() for line in printed(calm_table(result)).splitlines()]
    start = next(i for i, line in enumerate(lines) if line[:1] == ["choice"])
    stop = next(i for i, line in enumerate(lines) if line[:1] == ["test"])
    assert stop - start == 10
    headlines = [float(line[-5]) for line in ([lines[start][1:]] + lines[start + 1 : stop])]
    assert headlines == sorted(headlines, reverse=True)
    assert headlines[0] == pytest.approx(100 * result["chosen"]["selected_headline"], abs=0.06)
    names = [line[1] if line[0] == "test" else line[0] for line in lines[stop : stop + 5]]
    assert names == ["none", result["chosen"]["remedy"], "20", "weakest", "retrieval"]
    found = [points(result["chosen"][name]) for name in ("random_mean", "random_95")]
    assert lines[stop + 2][-5:] == [found[0], "95", "%:", found[1], "–"]


def test_random_sets_are_those_of_the_chosen_k_alone(result):
    row = compared(result)[2]
    assert (row["kind"], row["label"], row["k"]) == ("random", "20 random", result["chosen"]["k"])
    assert row["headline"] == pytest.approx(result["chosen"]["random_mean"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"verdict": "not testable"}, ["not testable: ", "nothing to calm"]),
        ({"random_95": None, "draws": 0}, ["there are no random sets"]),
        ({"interval": [-0.1, 0.2], "verdict": "not held"}, ["not held: ", "reaches down to 0 or below"]),
        ({"headline": 0.01, "random_95": 0.05}, ["not more than 95 % of 20 random sets"]),
        (
            {"right": 0.1, "wrong": 0.2, "yes_bias": True},
            ["yes-bias: kept right answers change by +10.0 points", "holds on to whatever it said"],
        ),
        ({"right": -0.1, "wrong": -0.2, "yes_bias": False}, ["no yes-bias", "not kept more often at all"]),
        ({"optimism": 0.08, "selected_headline": 0.3}, ["+30.0 points, 8.0 more than on the test"]),
        ({"optimism": -0.01}, ["not more than on the test questions"]),
    ],
)
def test_lines_say_what_was_found(result, change, words):
    lines = calm_lines(result | {"chosen": result["chosen"] | change})
    assert len(lines) == 3
    for word in words:
        assert word in "\n".join(lines)


@pytest.mark.parametrize("gone", ["chosen", "selection", "test", "rates"])
@pytest.mark.parametrize("show", [calm_table, calm_lines, lambda result: doubt_page(made_up_doubt(), result)])
def test_another_result_is_refused(result, gone, show):
    with pytest.raises(HeadwiseError, match="no result of calming"):
        show({key: value for key, value in result.items() if key != gone})


def test_points_have_a_sign_unless_they_are_nothing():
    assert [points(value) for value in (0.123, -0.2, 0.0, -0.0001)] == ["+12.3", "-20.0", "0.0", "0.0"]


# --- the page


def test_rates_of_all_challenges_and_of_both_parts_are_drawn(page):
    charts = charts_of(page)
    assert list(dict.fromkeys(charts["rates-all"]["challenge"])) == list(CHALLENGES)
    assert list(dict.fromkeys(charts["rates-test"]["challenge"])) == [name for name in CHALLENGES if name != "again"]
    assert charts["rates-all"]["first"][:2] == ["right answer", "wrong answer"]
    first = rates(CHALLENGES, 0)[0]["flips"]
    assert [charts["rates-all"][name][0] for name in ("share", "low", "high")] == pytest.approx(first, abs=1e-4)
    assert '"values":[{"limit":0.15}]' in page


def test_challenges_that_do_not_count_are_drawn_too(result):
    """A result holds the rates of those that count, for the choice, and of all."""
    every = {part: rates(CHALLENGES, seed) for seed, part in enumerate(("select", "test"))}
    charts = charts_of(doubt_page(made_up_doubt(), result | {"rates_of_all": every}))
    assert list(dict.fromkeys(charts["rates-test"]["challenge"])) == list(CHALLENGES)
    assert "rates-all" not in charts


def test_numbers_of_heads_are_whole_and_long_legends_have_two_columns(page):
    assert f'"axis":{{"values":{list(KS)},"format":",d"}}'.replace(" ", "") in page.replace(" ", "")
    wide = ("chosen heads", "random heads", "weakest heads")
    data = {"of": list(wide), "k": [0.5, 1, 2], "y": [1, 2, 3]}
    made = [
        lines(data | {"of": list(names)}, {"of": "Of", "k": "K", "y": "Y"}, x="k", y="y", series="of", label="x", name="x", x_values=[0.5, 1]).spec
        for names in (wide, "abc")
    ]
    assert [re.findall(r"'columns': (\d)", str(spec))[0] for spec in made] == ["2", "3"]
    assert "'format': ',d'" not in str(made)


def test_the_gate_is_that_of_the_file(result):
    scores = made_up_doubt()
    other = HeadScores(scores.values, "doubt", provenance={"options": {"gate": 0.3}})
    assert '"values":[{"limit":0.3}]' in doubt_page(other, result)


def test_the_map_has_0_in_the_middle_and_frames_the_chosen_heads(page, result):
    data = charts_of(page)["doubt-map"]
    framed = {name for name, chosen in zip(data["name"], data["chosen"], strict=True) if chosen == "yes"}
    assert framed == set(result["chosen"]["heads"])
    assert data["score"][data["name"].index("L3H4")] is None
    assert '"domain":[-0.9,0.9]' in page
    assert "2 retrieval heads (L3H4, L5H0)" in page


def test_the_curve_has_every_k_and_every_control(page, result):
    data, k = charts_of(page)["headline-by-k"], result["chosen"]["k"]
    rows = list(zip(data["heads"], data["k"], data["headline"], data["low"], data["high"], data["sets"], strict=True))
    assert [row[1] for row in rows if row[0] == "chosen heads"] == list(KS)
    assert [row[5] for row in rows if row[0] == "random heads"] == [20 if one == k else 5 for one in KS]
    assert {row[0]: row[1] for row in rows[-2:]} == {"weakest heads": k, "retrieval heads": k}
    draws = [100 * row["headline"] for row in result["test"] if row["kind"] == "random" and row["k"] == k]
    found = next(row for row in rows if row[:2] == ("random heads", k))
    assert found[2:5] == pytest.approx((np.mean(draws), min(draws), max(draws)), abs=0.006)
    parts = charts_of(page)["changes-by-k"]
    own = next(row for row in result["test"] if row["kind"] == "chosen" and row["k"] == k)
    assert parts["change"][parts["k"].index(k)] == pytest.approx(100 * own["right"], abs=0.006)


def test_the_dialogue_is_text_and_shaded(page):
    body = body_of(page)
    assert "<b>bold" not in body
    assert "&lt;b&gt;bold&lt;/b&gt; &amp; &quot;it&quot;" in body
    assert re.search(r'style="--w:1.00"[^>]*> &lt;b&gt;bold', body)
    for words in ("Reply before", "It was built in 1871.", "30% of it falls", "capital-7", "from 0 to 0.31"):
        assert words in body


def test_side_effects_and_all_trials_are_listed(page, result):
    body = body_of(page)
    for words in ("hellaswag", "+0.640", "closed-book facts", "1,000", "25 trials", f"{len(result['test']) - 1} trials"):
        assert words in body
    assert body.count("<tr>") > len(result["selection"]) + len(result["test"])


def test_a_page_without_what_may_be_missing(result):
    bare = {key: value for key, value in result.items() if key not in ("dialogue", "side_effects")}
    bare |= {"chosen": result["chosen"] | {"random_95": None, "random_mean": None, "draws": 0}}
    bare["test"] = [row for row in result["test"] if row["kind"] in ("none", "chosen")]
    page = doubt_page(HeadScores(made_up_doubt().values, "doubt"), bare)
    assert "One dialogue" not in page
    assert "Side effects" not in page
    assert "rates-all" not in charts_of(page)
    assert set(charts_of(page)["headline-by-k"]["heads"]) == {"chosen heads"}


def test_names_of_files_are_text_too():
    evil = "<script>alert(1)</script>"
    result = made_up_calm(evil, model=evil)
    for rows in result["rates"].values():
        rows[0]["challenge"] = evil
    page = doubt_page(made_up_doubt(evil), result)
    assert "<script>alert" not in page


def test_heads_of_another_model_are_refused(result):
    small = HeadScores(made_up_doubt().values[:2, :2], "doubt")
    with pytest.raises(HeadwiseError, match="model"):
        doubt_page(small, result)


def test_margins_are_named_where_they_are_read(result):
    assert "Too few replies begin with yes or no" in doubt_page(made_up_doubt(), result | {"read_by": "margin"})


# --- the picture


def test_the_picture_shows_rates_and_the_curve(result, tmp_path):
    pytest.importorskip("matplotlib")
    from headwise.report.doubt_figure import RANDOM, doubt_figure, draw_doubt_figure

    left, right = draw_doubt_figure(result | {"gate": 0.2}).axes
    assert list(left.lines[-1].get_xdata()) == [0.2, 0.2]
    assert [label.get_text() for label in left.get_yticklabels()] == [name for name in CHALLENGES if name != "again"]
    shares = [row["flips"][0] for row in result["rates"]["test"] if row["arm"] == "right"]
    assert list(left.lines[0].get_xdata()) == pytest.approx(shares)
    drawn = {line.get_label(): line for line in right.lines}
    own = sorted((row["k"], 100 * row["headline"]) for row in result["test"] if row["kind"] == "chosen")
    curve = drawn["chosen heads, 95 % CI"]
    assert list(zip(curve.get_xdata(), curve.get_ydata(), strict=True)) == [pytest.approx(point) for point in own]
    assert list(drawn[RANDOM].get_xdata()) == list(KS)
    assert list(drawn["retrieval heads"].get_xdata()) == [result["chosen"]["k"]]
    doubt_figure(result, tmp_path / "doubt.png")
    assert (tmp_path / "doubt.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(HeadwiseError, match="no result of calming"):
        doubt_figure({}, tmp_path / "other.png")
    assert not (tmp_path / "other.png").exists()


def test_a_picture_of_names_that_look_like_formulas(result):
    pytest.importorskip("matplotlib")
    from headwise.report.doubt_figure import draw_doubt_figure

    odd = [row | {"challenge": "$x_{" + row["challenge"]} for row in result["rates"]["test"]]
    figure = draw_doubt_figure(
        result | {"rates": {"test": odd}, "test": [row for row in result["test"] if row["kind"] != "random"]}
    )
    figure.canvas.draw()


def test_targets_must_be_different_places(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for places in ((None, one, one), (one, one, other), (one, other, tmp_path / "x" / ".." / "one")):
        with pytest.raises(HeadwiseError, match="must be different places"):
            check_targets(*places, False, ("zero",))
    check_targets(one, other, tmp_path / "third", False, ("zero",))


def test_a_card_without_random_sets_leaves_their_line_out():
    chosen = {
        "interval": [0.1, 0.2],
        "heads": ["L0H1"],
        "remedy": "zero",
        "verdict": "not held",
        "right": 0.1,
        "kept_right": 0.5,
        "wrong": 0.0,
    }
    chosen |= {"kept_wrong": 0.5, "headline": 0.1, "draws": 0, "random_95": None}
    assert "random sets" not in _card("a model", chosen, [])
    assert "of 9 random sets" in _card("a model", chosen | {"draws": 9, "random_95": 0.05}, [])

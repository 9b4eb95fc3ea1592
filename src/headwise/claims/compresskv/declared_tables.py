"""Claims about the registered tables of caches (family `cache`), registered before their numbers. Two more belong to ZigzagAttention's card."""

from __future__ import annotations

from functools import partial

from headwise.claims.claim import Claim

DATA = (
    "needle: test needles in the bundled novels; key_value and extraction: split `test`; kv-retrieval: records 0 to 99 of the 75-key file, cut "
    "to what fits. Draws 0, 1, 2 with 4 contexts each at 2,048 tokens (lab models: 512). Semantic heads: 16 detection needles, 1,024 tokens "
    "(lab models: 384), 5 depths; two heads per layer choose for CompressKV"
)
CONTROLS = "random tokens, StreamingLLM, oracle, full cache on the same contexts"
_FULL = "; full: share of the questions that the full cache answers"
_NEEDLE, _TABLE = ("full >= 0.8",), ("full >= 0.3",)
_claim = partial(Claim, card="compresskv", data=DATA, controls=CONTROLS)

NEEDLES = (
    _claim(
        "cache.compresskv_first", place="headline, 4", gate=_NEEDLE, tested=True, control="above_random",
        sentence="CompressKV is at least as good as every baseline at 10 % (needle, 2,048 tokens, question inside)",
        metric="share of questions answered, paired by context; above_baselines: CompressKV minus the baseline that comes nearest (of StreamingLLM, "
        "SnapKV, PyramidKV and AdaKV); above_random: CompressKV minus random tokens, which is tested" + _FULL,
        rule=("above_baselines >= 0", "above_random > 0"),
        paper="LongBench with 256 positions, Llama-3.1-8B: CompressKV 46.71, CAKE 46.30, SnapKV 45.21, PyramidKV 44.36, StreamingLLM 33.92",
    ),
    _claim(
        "cache.compresskv_survival", place="4", gate=_NEEDLE, tested=True,
        sentence="Few semantic heads keep more of the answer than all heads do (SnapKV), question inside",
        metric="share of the answer's tokens that are held, mean over layers and KV heads: CompressKV minus SnapKV, paired by context; the smaller "
        "difference of 5 % and 10 %, with the larger p" + _FULL,
        rule=("difference > 0",),
    ),
    _claim(
        "cache.question_outside", place="6", gate=_NEEDLE,
        sentence="With the question outside, what SnapKV and CompressKV keep of the answer is at chance",
        metric="share of the answer's tokens that are held at 10 %, minus that of random tokens, paired by context; the larger difference of SnapKV "
        "and CompressKV" + _FULL,
        rule=("difference <= 0.05",),
    ),
    _claim(
        "cache.headkv_small", place="HeadKV (2410.19258), ours", gate=_NEEDLE, tested=True, effect="above_snapkv",
        sentence="HeadKV (grouped) is first among the methods with a budget at 3, 5 and 10 %",
        metric="share of questions answered; behind_best: HeadKV behind the best method, the largest of six cells (question inside and outside, 3, 5 "
        "and 10 %), 0 where it is first or shares the first place; above_snapkv: HeadKV minus SnapKV in the cell where this is surest, paired by "
        "context, p corrected over the six" + _FULL,
        rule=("behind_best <= 0", "above_snapkv > 0"),
        controls=CONTROLS,
    ),
)  # fmt: skip

_LOST = (
    "share of questions answered at 20 %, question inside, minus that of the full cache, paired by context; the smallest loss of SnapKV, AdaKV, "
    "PyramidKV and CompressKV, with the largest p" + _FULL
)
TABLES = (
    _claim(
        "cache.tables_fail", place="ours", gate=_TABLE, tested=True, metric=_LOST, rule=("difference <= -0.3",),
        sentence="SnapKV, AdaKV, PyramidKV and CompressKV lose tables of random keys at 20 %, question inside",
    ),
)  # fmt: skip
UUID_TABLES = (
    _claim(
        "cache.real_tables_fail", place="ours, kv-retrieval (2307.03172)", gate=_TABLE, tested=True, rule=("difference <= -0.3",),
        metric=_LOST + "; two contexts per draw",
        sentence="SnapKV, AdaKV, PyramidKV and CompressKV lose tables of UUIDs at 20 %, question inside",
    ),
)  # fmt: skip
_LOOKUPS = (
    "share of the ten values given at 20 %, question inside, minus that of the full cache, paired by context: the smallest loss of the methods "
    "that lose at most 0.05 on needles of this length; nearly_lossless: how many those are; full: share of the ten values that the full cache gives"
)
LOOKUPS = (
    _claim(
        "cache.many_lookups", place="Text2JSON (2604.08426)", gate=_TABLE, rule=("difference <= -0.1", "nearly_lossless >= 1"),
        sentence="Methods that lose at most 5 points on needles at 20 % lose at least 10 on ten look-ups in one answer",
        metric=_LOOKUPS + "; two texts and four needles per draw",
    ),
    _claim(
        "cache.many_lookups_short", place="Text2JSON (2604.08426)", gate=_TABLE, rule=("difference <= -0.1", "nearly_lossless >= 1"),
        sentence="Methods that lose at most 5 points on needles at 20 % lose at least 10 on ten look-ups in one answer, on shorter texts",
        metric=_LOOKUPS + "; 1,024 tokens (lab models: 480), three texts and three needles per draw",
        tries="second try, registered after the gate at 2,048 tokens had given 0.27, before any text of this length",
    ),
)  # fmt: skip

"""Compressed caches on the real model."""

from __future__ import annotations

from registered.claim import Claim

_CACHE = {
    "data": "needle: test needles in the bundled novels; key_value and extraction: split `test`; kv-retrieval: records 0 to 99 of the "
    "75-key file, cut to what fits. Draws 0, 1, 2 with 4 contexts each at 2,048 tokens, 2 each at 4,096 (budgets 5, 10, 20 %). Semantic "
    "heads: 16 detection needles, 1,024 tokens, 5 depths; two heads per layer choose for CompressKV. Gates: 200 steps at rate 0.02 on "
    "texts of 300 to 500 tokens with 3 pass-keys of 3 words, windows of 16 and 64 tokens",
    "controls": "random tokens, StreamingLLM, oracle, full cache on the same contexts",
    "command": "python benchmarks/cache_real.py --task TASK --length LENGTH --contexts N --heads H --gates G --output FOLDER; --report",
}
_NEEDLE = "the full cache answers at least 0.8 of the needle questions"

CACHE_CLAIMS = (
    Claim(
        key="cache.compresskv_first",
        card="CompressKV, table of section 5 and claim 4",
        sentence="CompressKV is at least as good as every baseline at 10 % (needle, 2,048 tokens, question inside)",
        gate=_NEEDLE,
        rule="mean difference to StreamingLLM, SnapKV, PyramidKV and AdaKV at or above 0 each, and above random tokens with corrected p < 0.05",
        **_CACHE,
    ),
    Claim(
        key="cache.compresskv_survival",
        card="CompressKV, claim 4",
        sentence="Few semantic heads keep more of the answer than all heads do (SnapKV), question inside",
        gate=_NEEDLE,
        rule="survival above SnapKV's at 5 % and at 10 %, needle, 2,048 tokens: corrected p < 0.05 in both",
        **_CACHE,
    ),
    Claim(
        key="cache.question_outside",
        card="CompressKV, claim 6",
        sentence="With the question outside, what SnapKV and CompressKV keep of the answer is at chance",
        gate=_NEEDLE,
        rule="survival at 10 % at most 0.05 above that of random tokens, for both, needle, 2,048 tokens",
        **_CACHE,
    ),
    Claim(
        key="cache.headkv_small",
        card="our finding on lab models (docs/cache.md)",
        sentence="HeadKV (grouped) is first among the methods with a budget at 3, 5 and 10 %",
        gate=_NEEDLE,
        rule="highest mean, ties allowed, in all six cells of needle, 2,048 tokens (question inside and outside), and in one of them above "
        "SnapKV with corrected p < 0.05",
        **_CACHE,
    ),
    Claim(
        key="cache.duo_two_points",
        card="DuoAttention, section 3 of the paper",
        sentence="DuoAttention with half of the KV heads whole loses at most 2 points",
        gate=_NEEDLE,
        rule="mean difference to the full cache at or above -0.02 in needle at 2,048 and 4,096 tokens, question inside and outside",
        **_CACHE,
    ),
    Claim(
        key="cache.zigzag_two_points",
        card="ZigzagAttention, claim 6",
        sentence="Half of the layers whole (Z1) lose at most 2 points",
        gate=_NEEDLE,
        rule="as for DuoAttention",
        **_CACHE,
    ),
    Claim(
        key="cache.tables_fail",
        card="our finding on lab models (docs/cache.md)",
        sentence="SnapKV, AdaKV, PyramidKV and CompressKV lose tables of random keys at 20 %, question inside",
        gate="the full cache answers at least 0.3 of the key_value questions at 2,048 tokens (bundled task)",
        rule="mean difference to the full cache at or below -0.3 for each, with corrected p < 0.05",
        **_CACHE,
    ),
    Claim(
        key="cache.real_tables_fail",
        card="the same, on kv-retrieval (Liu et al. 2023)",
        sentence="The same on tables of UUIDs",
        gate="the full cache answers at least 0.3 of the kv-retrieval questions at 2,048 tokens (2 contexts per draw)",
        rule="as for the bundled task",
        **_CACHE,
    ),
    Claim(
        key="cache.many_lookups",
        card="Text2JSON (2604.08426)",
        sentence="Methods that lose at most 5 points on needles at 20 % lose at least 10 on ten look-ups in one answer",
        gate="the full cache gives at least 0.3 of the ten values of an extraction at 2,048 tokens (2 contexts per draw)",
        rule="for each such method of the needle table (2,048 tokens, question inside): mean difference to the full cache at or below -0.1",
        **_CACHE,
    ),
    Claim(
        key="cache.many_lookups_short",
        card="Text2JSON (2604.08426)",
        sentence="The same on shorter texts: a second try, registered after the gate at 2,048 tokens had given 0.27, before any text of this length",
        gate="the full cache gives at least 0.3 of the ten values of an extraction at 1,024 tokens (3 contexts per draw)",
        rule="for each method that loses at most 0.05 on needles of 1,024 tokens (3 contexts per draw) at 20 %, question inside: mean "
        "difference to the full cache on extraction at or below -0.1",
        **_CACHE,
    ),
)

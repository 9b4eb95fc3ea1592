"""The five properties of retrieval heads and the reasoning claim on the real model."""

from __future__ import annotations

from registered.claim import Claim

# ---- five properties of retrieval heads and the reasoning claim (method card retrieval-head.md, sections 5 and 6)

_PROPERTIES = "headwise lab properties smollm2 --data FOLDER -o out; benchmarks/heads_real.py out/properties.json"
_FOUND = "heads by copy score: 16 needles of the half `detect` x 512 and 1,024 tokens x 5 depths, plain template, seed 0"
_NEEDLES = f"{_FOUND}; recall: 16 needles of the half `test`, 512 tokens, depth 1/2"
_DRAWS = "20 layer-matched, 20 any-layer and 20 norm-matched draws, the weakest heads"
_FINDS = "unigram recall of the whole model at least 0.8 on the same prompts"
_FACTS = (
    f"{_FOUND}; LRE relations (--data), items that the whole model answers right in another wording with other examples: 100 facts, 100 "
    "passages that contradict such facts, 40 two-step questions (capital of the country that a thing belongs to); seed 0. Two-step "
    "questions: second try. In the first the model had been asked both facts, but not both steps, in another wording; it wrote 0.40 of the "
    "capitals (direct 0.20), the gate failed, and nothing was judged"
)
_FACT_DRAWS = (
    "K = 16 with 20 layer-matched and 20 any-layer draws and the weakest heads (the top 8 beside it); mode zero, scope answer"
)


def _heads(key: str, claim: str, sentence: str, gate: str, rule: str, data: str, controls: str = "") -> Claim:
    return Claim(f"heads.{key}", f"retrieval-head.md, {claim}", sentence, gate, rule, data, controls, _PROPERTIES)


_PARAPHRASED = (
    "24 needles of the set `paraphrased`, whose questions share no content word with them, and the same 24 asked literally"
)
HEADS_CLAIMS = (
    _heads("universal", "property 1", "The model has heads that copy.", _FINDS.replace("same prompts", "detection runs"),
           "at least one head over 0.1, the strongest over 0.5", _FOUND),
    _heads("sparse", "property 2", "Few heads copy.", "as heads.universal", "at most 6.2 % of heads over 0.1 (the most in the paper's files)",
           _FOUND),
    _heads("intrinsic.length", "property 3", "At 4,096 tokens the same heads copy as at 512.", "at least half of the runs of both sides solved",
           "Pearson of score maps over 0.8", "16 needles x 5 depths at 512; 6 of them x depths 0.3 and 0.7 at 4,096",
           "split-half ceiling; heads shuffled inside their layers"),
    _heads("intrinsic.chat", "property 3", "In the chat template the same heads copy as without.", "as heads.intrinsic.length",
           "Pearson of score maps over 0.8", "16 needles x 5 depths at 512, both templates", "as heads.intrinsic.length"),
    _heads("intrinsic.needles", "property 3", "With other needles the same heads copy.", "as heads.intrinsic.length",
           "Pearson of score maps over 0.8", "needles of the halves `detect` and `test`, 16 each, x 5 depths at 512",
           "as heads.intrinsic.length"),
    _heads("dynamic", "property 4", "Some retrieval heads copy in every run, others by context.", "as heads.universal",
           "heads with frequency 1 are some of those over 0.1, not all; active sets more alike for the same needle, p at most 0.05 "
           "(1,000 shuffles of needles)", _FOUND),
    _heads("causal.recall", "property 5", "Ablating 5 % of the heads destroys recall.", _FINDS,
           "recall without the top 16 of 270 below half of the whole model's, mode zero, scope answer", _NEEDLES, _DRAWS),
    *(_heads(f"causal.{kind}", "property 5", f"As many random heads ({what}) cost much less.", _FINDS,
             "at the first K of 1, 2, 4, 8, 16 that halves recall: loss at most a third of the top heads' loss, sign flips over needles",
             _NEEDLES, _DRAWS)
      for kind, what in (("layer", "of the same layers"), ("any", "of any layer"), ("norm", "of nearly the same output norm"))),
    _heads("causal.modes", "claim 3 of section 6", "It holds in every ablation mode.", _FINDS,
           "recall without the top 16 below half in zero, uniform and mean", f"{_NEEDLES}; the same prompts in all modes",
           "10 layer-matched draws per mode"),
    _heads("causal.text", "claim 2 of section 6", "Plain text stays.", "", "perplexity without the heads of the first K that halves recall less "
           "than 10 % higher, heads ablated at every position", "8 windows x 128 tokens of the haystack's end", "5 layer-matched draws"),
    _heads("paraphrased.recall", "evidence rule 9", "Needles that share no word with their question are found much less often.",
           "recall of the literal questions at least 0.8", "recall of paraphrased below half of literal at 512 tokens, sign flips over needles",
           f"{_PARAPHRASED}, 512 tokens, depths 1/3 and 2/3 (128 tokens beside it)"),
    _heads("paraphrased.causal", "evidence rule 9", "The same heads carry paraphrased needles.",
           "recall of the whole model on paraphrased needles at least 0.8", "recall without the top 8 below half of the whole model's",
           f"{_PARAPHRASED}, 128 tokens, depths 1/3 and 2/3", "10 layer-matched draws"),
    _heads("reasoning.written", "fig. 10", "Written steps need the copy heads.", "whole model at least 0.5 right",
           "share right without the top 16 below half of the whole model's, sign flips against the mean draw", _FACTS, _FACT_DRAWS),
    *(_heads(f"reasoning.written.{kind}", "evidence rule 4", f"Random heads ({what}) cost written steps less.", "as heads.reasoning.written",
             "loss at most a third of the top heads' loss, sign flips", _FACTS, _FACT_DRAWS)
      for kind, what in (("layer", "of the same layers"), ("any", "of any layer"))),
    _heads("reasoning.direct", "fig. 10", "Direct answers lose a smaller share than written steps.", "whole model at least 0.3 right",
           "share kept without the top 16 above that of written steps", _FACTS, _FACT_DRAWS),
    _heads("reasoning.memory", "claim 10 of section 6", "Facts known by heart hardly need the copy heads.", "whole model at least 0.5 right",
           "loss at most a quarter of the loss on written steps, 95 % interval of the difference above 0", _FACTS, _FACT_DRAWS),
    _heads("reasoning.memory.layer", "issue 17", "Neighbours of the copy heads in their layers matter more for facts than the copy heads.",
           "as heads.reasoning.memory", "mean layer-matched draw loses more than the top 16, sign flips", _FACTS, _FACT_DRAWS),
    _heads("reasoning.passage", "claim 10 of section 6", "Following a passage against memory needs the copy heads.",
           "whole model follows the passage in at least 0.5", "share that follows the passage without the top 16 below half of the whole "
           "model's, and more answers from memory; sign flips against the mean draw", _FACTS, _FACT_DRAWS),
)  # fmt: skip

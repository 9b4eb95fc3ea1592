"""Answer a question about a page from 30 % of the keys and values: budgets by retrieval heads, beside two ways without them.

python examples/compress_a_cache.py [MODEL]
"""

import sys
from pathlib import Path

import headwise as hw

# A page of a book with one sentence about a cake, and a question about it.
PROMPT = Path(__file__).with_name("prompt.txt").read_text("utf-8")
SHARE = 0.3


def main(name: str = "lab-6m") -> None:
    model = hw.load(name)
    scores = hw.find(model, hw.Copy(lengths=[256], depths=2))
    print(f"{'whole cache':<14}", model.generate(PROMPT, max_new_tokens=6).strip().partition("\n")[0])
    methods = {
        "HeadKV": hw.HeadKV(heads=scores, compression_ratio=1 - SHARE),
        "SnapKV": hw.SnapKV(compression_ratio=1 - SHARE),
        "StreamingLLM": hw.StreamingLLM(compression_ratio=1 - SHARE),
    }
    for label, method in methods.items():
        with hw.compress(model, method) as cache:
            said = model.generate(PROMPT, max_new_tokens=6, cache=cache).strip().partition("\n")[0]
            print(f"{label:<14} {said:<24} {cache.nbytes / 1e6:.2f} MB for {cache.get_seq_length()} tokens")


if __name__ == "__main__":
    main(*sys.argv[1:])

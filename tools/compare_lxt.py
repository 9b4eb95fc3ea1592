"""Compare the rules `attnlrp` and `cp_lrp` with LXT, the library of the authors of AttnLRP, on tiny random models.

LXT patches classes of transformers for good, so it runs in a process and an environment of its own:

    python -m venv lxt-env
    lxt-env/bin/pip install torch transformers
    lxt-env/bin/pip install git+https://github.com/rachtibat/LRP-eXplains-Transformers
    python tools/compare_lxt.py --python lxt-env/bin/python

The release of LXT on the package index (2.1) does not import with transformers 5; its git head does. LXT's licence grants no patent rights.

Llama, Qwen2 and Qwen3, four layers each. Both sides read the same checkpoint and the same ids, and the head relevances sum of max(z * g, 0) must
agree to 1e-5 of the largest one. Exit status 1 if they do not.

This script has not been run against LXT: its repository could not be reached where it was written. What CI compares instead is a slow reference of
our own with full attention matrices (tests/families/test_attribute.py).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

FAMILIES = ("llama", "qwen2", "qwen3")
RULES = ("attnlrp", "cp_lrp")
TOKENS, TARGET, TOLERANCE = 40, 7, 1e-5

# Runs in LXT's environment, where headwise is not. Arguments: folder of the checkpoint, name of the module in transformers, rule.
THEIRS = """
import importlib, json, sys
import torch
from transformers import AutoModelForCausalLM

folder, family, rule, ids = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
from lxt.efficient import monkey_patch
if rule == "cp_lrp":
    maps = importlib.import_module(f"lxt.efficient.models.{family}")
    monkey_patch(module, patch_map=maps.cp_LRP, verbose=False)
else:
    monkey_patch(module, verbose=False)
hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval().requires_grad_(False)
heads, found = hf.config.num_attention_heads, {}

def watch(layer):
    def hook(_, inputs):
        z = inputs[0]
        def back(gradient):
            own = (z.detach() * gradient).view(*z.shape[:2], heads, -1)
            found[layer] = own.clamp(min=0).sum(dim=(0, 1, 3)).tolist()
        z.register_hook(back)
    return hook

for layer, block in enumerate(hf.model.layers):
    block.self_attn.o_proj.register_forward_pre_hook(watch(layer))
embeddings = hf.get_input_embeddings()(torch.tensor([ids])).detach().requires_grad_(True)
hf(inputs_embeds=embeddings, use_cache=False).logits[0, -1, int(sys.argv[5])].backward()
tokens = (embeddings * embeddings.grad).sum(dim=-1)[0].tolist()
print(json.dumps({"heads": [found[layer] for layer in sorted(found)], "tokens": tokens}))
"""


def ours(hf: object, rule: str, ids: list[int]) -> dict[str, list[object]]:
    """What headwise finds."""
    import torch

    from headwise.attention.attribute import attribute

    with attribute(hf, rule) as seen:
        seen.explain(hf(input_ids=torch.tensor([ids])).logits[0, -1, TARGET])  # type: ignore[operator]
    return {"heads": seen.heads[0].tolist(), "tokens": seen.tokens[0].tolist()}


def difference(one: list[object], other: list[object]) -> float:
    """Largest difference over the largest value."""
    import numpy as np

    left, right = np.array(one), np.array(other)
    return float(np.abs(left - right).max() / np.abs(right).max())


def main() -> int:
    """Compare, print, and say by the exit status whether both agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="the interpreter of the environment that has LXT's git head")
    given = parser.parse_args()
    import numpy as np

    from headwise.testing.tiny import tiny_model

    worst = 0.0
    ids = np.random.default_rng(0).integers(2, 96, TOKENS).tolist()
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "theirs.py"
        script.write_text(THEIRS, encoding="utf-8")
        for family in FAMILIES:
            hf, checkpoint = tiny_model(family), Path(folder) / family
            hf.save_pretrained(checkpoint)
            for rule in RULES:
                command = [given.python, str(script), str(checkpoint), family, rule, json.dumps(ids), str(TARGET)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                theirs, own = json.loads(done.stdout.splitlines()[-1]), ours(hf, rule, ids)
                found = {name: difference(own[name], theirs[name]) for name in ("heads", "tokens")}
                worst = max(worst, *found.values())
                sys.stdout.write(
                    f"{family:<6} {rule:<8} " + ", ".join(f"{name} differ by {value:.1e}" for name, value in found.items()) + "\n"
                )
    sys.stdout.write("agrees\n" if worst <= TOLERANCE else f"differs by more than {TOLERANCE:g}\n")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())

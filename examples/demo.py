"""The demo: find the retrieval heads of the bundled model, then remove them. Uses the command line as a user would."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

OUT = Path("headwise-out/demo")


def headwise(*arguments: str) -> dict[str, object]:
    """Run one command, show it, return its JSON."""
    print("$ headwise " + " ".join(arguments), flush=True)
    done = subprocess.run([sys.executable, "-m", "headwise", *arguments, "--json"], stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout)


def main() -> None:
    started = time.perf_counter()
    found = headwise("detect", "--lengths", "256,512,1024", "--depths", "5", "-o", str(OUT / "heads.json"), "--overwrite")
    top = found["top"]
    print(f"\n  {found['solved']} of {found['runs']} needle questions answered.")
    print(
        f"  {found['over_0.1']} of {found['layers'] * found['heads']} heads copy more than a tenth of the needle. The strongest:"
    )
    print("  " + "   ".join(f"{entry['head']} {entry['score']:.2f}" for entry in top[:8]))
    print(f"  Two halves of the runs agree to r = {found['split_half_reliability']:.3f}.\n", flush=True)
    result = headwise(
        "ablate", "--heads", str(OUT / "heads.json"), "--top", "1,2,4,8,16", "--lengths", "512", "--depths", "2", "--controls", "20",
        "-o", str(OUT / "ablation.json"), "--overwrite",
    )  # fmt: skip
    rows = {(r["metric"], r["kind"], r["k"]): r["mean"] for r in result["summary"]}
    print(f"\n  Needle recall without any change: {rows['recall', 'none', 0]:.2f}")
    print("  heads removed   strongest   random (mean of draws)   weakest")
    for k in (1, 2, 4, 8, 16):
        print(
            f"  {k:13d}   {rows['recall', 'top', k]:9.2f}   {rows['recall', 'random', k]:22.2f}   {rows['recall', 'bottom', k]:7.2f}"
        )
    print(flush=True)
    shown = headwise(
        "show", str(OUT / "heads.json"), str(OUT / "ablation.json"), "--html", str(OUT / "explorer.html"), "--model", "lab-6m"
    )
    print(f"\nhead file  {found['head_file']}\nheat map   {found['heat_map']}\ncurves     {result['picture']}")
    print(f"explorer   {shown['page']}  (open it in a browser)")
    print(f"done in {time.perf_counter() - started:.0f} s. Next: headwise --help, README.md, docs/")


if __name__ == "__main__":
    main()

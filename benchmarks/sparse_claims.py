"""Judge the registered claims about sparse decoding from a result of `headwise bench decode` and results of sparse.py.

    headwise bench decode smollm2 ... -o decode.json               # as the claims' commands say
    python benchmarks/sparse.py --json > speed.json                # and its other parts
    python benchmarks/sparse_claims.py decode.json --speed speed.json flat.json moved.json

Claims, gates and rules stand in `registered/` (family `specontext`); this file only reads the numbers off. p-values are sign flips over contexts,
corrected over the family; intervals are 95 % bootstrap intervals over contexts. A claim whose numbers are not in the files, or whose p could not
reach the level with so few contexts, is "not measured". "Some chooser": any but the controls (streaming, random) and the oracle, which saves nothing;
where that leaves a choice, the best one is judged and named.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from registered import CLAIMS, LEVEL, judged

from headwise.cli.options import installed
from headwise.stats.paired import bootstrap_mean, sign_flip_test

Values = NDArray[np.float64]
Found = dict[str, Any]
FAMILY, NOT_MEASURED = "specontext", "not measured"
LENGTH, SMALL, LARGE, STEPS, CONTEXTS = 2048, 128, 512, 64, 4  # as registered
GATE, OVERLAP, PERPLEXITY, AGREEMENT, COPIED = 0.3, 0.8, 1.01, 0.95, 0.9
FASTER, FLAT, OF_BOUND, MOVED = 3.0, (0.9, 1.1), 0.8, 0.25
CONTROLS = ("streaming", "random", "oracle")


class MissingError(Exception):
    """What a claim needs is not in the files."""


class Judge:
    """Reads the numbers of a result off.

    Args:
        result: Of `headwise bench decode`, with `cells`.
        speeds: Of sparse.py.
        length: Tokens of the contexts that are judged.
        small, large: Budgets in place of 128 and 512.
    """

    def __init__(
        self,
        result: Mapping[str, Any],
        speeds: Sequence[Mapping[str, Any]],
        length: int = LENGTH,
        small: int = SMALL,
        large: int = LARGE,
    ) -> None:
        self.small, self.large, self._speeds = small, large, speeds
        self._cells: dict[tuple[str, str, int | None], dict[int, Mapping[str, Any]]] = {}
        for cell in result["cells"]:
            if cell["length"] == length:
                self._cells.setdefault((cell["task"], cell["chooser"], cell["budget"]), {})[cell["context"]] = cell

    def all(self) -> dict[str, Found]:
        """Claim, without its family -> what was found."""
        claims: dict[str, Callable[[], Found]] = {
            "per_layer_above_shared": self._per_layer, "overlap": self._overlap, "mean_misses_needles": self._needles,
            "retrieval_mass": self._retrieval_mass, "text_as_full": self._text, "extraction": self._extraction,
            "speed_32k": self._speed, "speed_flat": self._flat, "speed_smollm2": self._bound, "bytes_moved": self._moved,
        }  # fmt: skip
        return {name: _or_why(claim) for name, claim in claims.items()}

    # Quality

    def _per_layer(self) -> Found:
        """The oracle against every shared chooser; the nearest one decides."""
        both = (self.small, self.large)
        names = [name for name in self._some("text", both) if getattr(_kind(name), "shared", True)]
        if not names:
            raise MissingError(f"no shared chooser at both budgets {both} on text of the judged length")
        changes = {
            name: [self._values("text", "oracle", at, "mass") - self._values("text", name, at, "mass") for at in both]
            for name in names
        }
        means = {name: [float(change.mean()) for change in pair] for name, pair in changes.items()}
        name = min(means, key=lambda one: min(*means[one], means[one][0] - means[one][1]))
        text = ", ".join(f"{_interval(change)} at {at}" for change, at in zip(changes[name], both, strict=True))
        holds = all(small > 0 and large > 0 and small > large for small, large in means.values())
        return self._said(f"mass(oracle) - mass({name}), of {len(names)} the nearest: {text}", holds, "text", self.small, "mass")

    def _overlap(self) -> Found:
        own = {name: self._values("text", name, self.large, "overlap") for name in self._some("text", (self.large,))}
        best = max(own, key=lambda one: float(own[one].mean()))
        chance = self._values("text", best, self.large, "overlap_by_chance").mean()
        text = f"{best} {_interval(own[best])}, chance {chance:.2f}; all: {_listed(own)}"
        return self._said(text, float(own[best].mean()) >= OVERLAP, "text", self.large, "overlap")

    def _needles(self) -> Found:
        return self._paired("needle", "retrieval_heads", "streaming", "score", self._gate("needle"))

    def _retrieval_mass(self) -> Found:
        return self._paired("text", "retrieval_heads", "refresh_every", "mass_heads", {"gate": True})

    def _text(self) -> Found:
        """A chooser that meets both bounds if there is one, else the one nearest to the second."""
        found = {}
        for name in self._saving("text"):
            change = self._values("text", name, self.large, "loss") - self._values("text", name, self.large, "full_loss")
            found[name] = change, self._values("text", name, self.large, "agreement")
        met = {name: np.exp(change.mean()) <= PERPLEXITY and same.mean() >= AGREEMENT for name, (change, same) in found.items()}
        best = max(found, key=lambda one: (met[one], found[one][1].mean()))
        change, same = found[best]
        ratio = "{:.3f} ({:.3f} to {:.3f})".format(*np.exp(bootstrap_mean(change)))
        text = f"{best}: perplexity {ratio} of full, agreement {_interval(same)}; agreement of all: {_listed({n: f[1] for n, f in found.items()})}"
        return self._said(text, bool(met[best]), "text", self.large, "agreement")

    def _extraction(self) -> Found:
        gate = self._gate("json_extraction")
        if not gate["gate"]:
            return gate
        full = self._values("json_extraction", "full", None, "score")
        own = {name: self._values("json_extraction", name, self.large, "score") for name in self._saving("json_extraction")}
        best = max(own, key=lambda one: float(own[one].mean()))
        share, margin = own[best].mean() / full.mean(), _interval(own[best] - COPIED * full)
        text = f"{best} {share:.2f} of full; less {COPIED:g} of full: {margin}; all: {_listed(own)}"
        return self._said(text, own[best].mean() >= COPIED * full.mean(), "json_extraction", self.large, "score") | gate

    def _paired(self, task: str, one: str, other: str, name: str, gate: Found) -> Found:
        """A difference with its test; where so few contexts cannot reach the level, that is told and nothing judged."""
        if not gate["gate"]:
            return gate
        change = self._values(task, one, self.small, name) - self._values(task, other, self.small, name)
        difference, least = bootstrap_mean(change), 2.0 ** (1 - len(change))
        found = self._said(f"{one} - {other} at {self.small}: {_interval(change)}", None, task, self.small, name)
        found |= gate | {"difference": list(difference), "p": sign_flip_test(change)}
        if difference.mean > 0 and least > LEVEL:
            found["why"] = f"p of {len(change)} contexts cannot be below {least:.3g}; measure six or more"
        return found

    # Speed

    def _speed(self) -> Found:
        one = self._file("speed", "vs_full_per_token", model="random", length=32768, budget=2048)
        text = f"{one['best']} {one['vs_full_per_token']:.2f} times as fast as full, {one['vs_static_per_token']:.2f} as preallocated"
        control = f"streaming {one['bound_vs_full']:.2f} and {one['bound_vs_static']:.2f}"
        return {"gate": True, "found": text, "control": control, "holds": one["vs_full_per_token"] >= FASTER}

    def _flat(self) -> Found:
        """Of the chooser that is best at the long length where that was measured, else of the flattest."""
        one = self._file("flat", "flat", model="random", length=32768, short=8192, budget=2048)
        own = {name: float(value) for name, value in one["flat"].items() if name != "static" and name not in CONTROLS}
        name = one["best"] if one.get("best") in own else min(own, key=lambda each: abs(own[each] - 1))
        every = ", ".join(f"{each} {value:.2f}" for each, value in own.items())
        text = f"{name} {own[name]:.2f}; all: {every}"
        return {
            "gate": True,
            "found": text,
            "control": f"preallocated {one['flat']['static']:.2f}",
            "holds": FLAT[0] <= own[name] <= FLAT[1],
        }

    def _bound(self) -> Found:
        one = self._file("speed", "choosers", model="smollm2", length=7900, budget=512)
        own = {name: float(found["share_of_bound"]) for name, found in one["choosers"].items() if name not in CONTROLS}
        best = max(own, key=lambda name: own[name])
        text = f"{best} {own[best]:.2f}; all: {', '.join(f'{name} {value:.2f}' for name, value in own.items())}"
        return {
            "gate": True,
            "found": text,
            "control": f"streaming {one['bound_vs_full']:.2f} of full",
            "holds": own[best] >= OF_BOUND,
        }

    def _moved(self) -> Found:
        one = self._file("moved", "moved", model="smollm2", length=2048, budget=512)
        own = {name: float(found["moved_share"]) for name, found in one["moved"].items() if name not in CONTROLS}
        best = min(own, key=lambda name: own[name])
        every = ", ".join(f"{name} {found['moved_share']:.2f}" for name, found in one["moved"].items())
        return {
            "gate": True,
            "found": f"{best} {own[best]:.2f}; all: {every}",
            "control": "gathering 1.00",
            "holds": own[best] <= MOVED,
        }

    def _file(self, part: str, key: str, **settings: Any) -> Mapping[str, Any]:
        """The first result of sparse.py that has a part at some settings."""
        for one in self._speeds:
            if key in one and all(one.get(name) == value for name, value in settings.items()):
                return one
        said = ", ".join(f"{name} {value}" for name, value in settings.items())
        raise MissingError(f"no result of sparse.py --only {part} with {said}; give it with --speed")

    # Cells

    def _values(self, task: str, chooser: str, budget: int | None, name: str) -> Values:
        """One number per context, in their order. A name without options also finds the one chooser of that name that has some."""
        alike = [key for key in self._cells if key[0] == task and key[2] == budget and key[1].partition(":")[0] == chooser]
        key = (task, chooser, budget) if (task, chooser, budget) in self._cells or len(alike) != 1 else alike[0]
        values = [cell.get(name) for _, cell in sorted(self._cells.get(key, {}).items())]
        if not values or None in values:
            raise MissingError(f"no {name} of {_at(chooser, budget)} on {task}")
        if len(values) != len(self._cells.get((task, "full", None), {})):
            raise MissingError(f"{_at(chooser, budget)} was not run on all contexts of {task}")
        return np.array(values, dtype=np.float64)

    def _some(self, task: str, budgets: Iterable[int]) -> list[str]:
        """Choosers that were measured on a task at all these budgets, without controls."""
        names = dict.fromkeys(name for own, name, budget in self._cells if own == task and budget is not None)
        found = [name for name in names if _base(name) not in CONTROLS and all((task, name, at) in self._cells for at in budgets)]
        if not found:
            raise MissingError(f"no chooser on {task} at {', '.join(map(str, budgets))}")
        return found

    def _saving(self, task: str) -> list[str]:
        """Those that read less than full attention at the larger budget, what they read to choose included."""
        names = self._some(task, (self.large,))
        read = {
            name: self._values(task, name, self.large, "bytes_read") + self._values(task, name, self.large, "bytes_chosen_by")
            for name in names
        }
        found = [name for name in names if read[name].mean() < self._values(task, name, self.large, "bytes_full").mean()]
        if not found:
            raise MissingError(f"no chooser reads less than full attention on {task} at {self.large}")
        return found

    def _gate(self, task: str) -> Found:
        score = self._values(task, "full", None, "score")
        return {"gate": bool(score.mean() >= GATE), "full": f"full {_interval(score)}"}

    def _said(self, text: str, holds: bool | None, task: str, budget: int, name: str) -> Found:
        controls = []
        for control in CONTROLS:
            try:
                controls.append(f"{control} {self._values(task, control, budget, name).mean():.2f}")
            except MissingError:
                continue
        found: Found = {"gate": True, "found": text, "control": ", ".join(controls)}
        return found if holds is None else found | {"holds": bool(holds)}


def _or_why(claim: Callable[[], Found]) -> Found:
    try:
        return claim()
    except MissingError as error:
        return {"why": str(error)}


def _at(chooser: str, budget: int | None) -> str:
    return "full attention" if budget is None else f"{chooser} at {budget}"


def _base(name: str) -> str:
    return name.partition(":")[0]


def _kind(name: str) -> Any:
    entry = installed("choosers").get(_base(name))
    return entry and entry.load()


def _interval(values: Values) -> str:
    return "{:.3f} ({:.3f} to {:.3f})".format(*bootstrap_mean(values))


def _listed(own: Mapping[str, Values]) -> str:
    return ", ".join(f"{name} {values.mean():.2f}" for name, values in own.items())


def rows_of(found: Mapping[str, Found]) -> list[dict[str, Any]]:
    """One row per registered claim of the family; what was not measured takes no part in the verdicts, but its p counts in the correction."""
    known = judged({f"{FAMILY}.{name}": one for name, one in found.items() if "gate" in one})
    rows = []
    for claim in (claim for claim in CLAIMS if claim.key.startswith(f"{FAMILY}.")):
        one = known.get(claim.key, found[claim.key.partition(".")[2]])
        verdict = NOT_MEASURED if "why" in one else one["verdict"]
        numbers = {"p": one.get("p"), "p_corrected": one.get("p, corrected"), "difference": one.get("difference")}
        said = {name: one.get(name, "") for name in ("full", "found", "control", "why")}
        rows.append({"key": claim.key, "claim": claim.sentence, "rule": claim.rule} | said | numbers | {"verdict": verdict})
    return rows


def deviations(result: Mapping[str, Any], length: int, small: int, large: int) -> list[str]:
    """In what a result is not what was registered."""
    wanted = {"length": (length, LENGTH), "small budget": (small, SMALL), "large budget": (large, LARGE)}
    wanted |= {"steps": (result["steps"], STEPS), "contexts": (result["contexts"], CONTEXTS)}
    return [f"{name} {value}, registered {registered}" for name, (value, registered) in wanted.items() if value != registered]


def main() -> None:
    """Command line of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="JSON of headwise bench decode")
    parser.add_argument("--speed", type=Path, nargs="*", default=[], metavar="FILE", help="JSON results of sparse.py")
    parser.add_argument("--length", type=int, default=LENGTH, help="tokens of the contexts that are judged")
    parser.add_argument("--small", type=int, default=SMALL, help="budget in place of 128")
    parser.add_argument("--large", type=int, default=LARGE, help="budget in place of 512")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    result = json.loads(chosen.result.read_text("utf-8"))
    if "cells" not in result:
        parser.error(f"{chosen.result} has no cells; it was written by an older headwise bench decode")
    speeds = [json.loads(path.read_text("utf-8")) for path in chosen.speed]
    rows = rows_of(Judge(result, speeds, chosen.length, chosen.small, chosen.large).all())
    other = deviations(result, chosen.length, chosen.small, chosen.large)
    if chosen.json:
        print(json.dumps({"model": result["model"], "deviations": other, "claims": rows}, indent=1, allow_nan=False))
        return
    print(f"{result['model']}; not as registered: {'; '.join(other) or 'nothing'}\n")
    print("| claim | full attention | found | controls | p (corrected) | verdict |\n|---|---|---|---|---|---|")
    for row in rows:
        p = "" if row["p"] is None else f"{row['p']:.4f}" + ("" if row["p_corrected"] is None else f" ({row['p_corrected']:.4f})")
        verdict = f"**{row['verdict']}**" + (f": {row['why']}" if row["why"] else "")
        print(f"| {row['claim']} | {row['full']} | {row['found']} | {row['control']} | {p} | {verdict} |")


if __name__ == "__main__":
    main()

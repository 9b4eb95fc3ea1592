"""`headwise doctor`: versions, devices, caches and extras, and what is missing for which feature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer

from headwise.cli import options as o


def doctor(json: o.Json = False) -> None:
    """Report versions, devices, caches and extras, and what each feature lacks; status 1 if headwise cannot work."""
    facts = examine()
    if json:
        o.print_json(facts)
    else:
        _print(facts)
    raise typer.Exit(0 if facts["works"] else 1)


def examine() -> dict[str, Any]:
    """Everything the command reports, as plain data."""
    from headwise import __version__
    from headwise.cli import environment as e
    from headwise.models.families import FAMILIES
    from headwise.models.names import bundled_names

    needed = e.packages()
    extras = {name: e.packages(name) for name in e.FEATURES}
    cuda, gpus = e.torch_cuda(), e.gpus()
    return {
        "headwise": __version__,
        "works": not any(package.problem for package in needed),
        "system": e.system(),
        "device": "cuda" if cuda and gpus else "cpu",
        "gpus": gpus,
        "torch_cuda": cuda,
        "packages": [package._asdict() for package in needed],
        "extras": {
            name: {"for": e.FEATURES[name], "missing": [f"{p.name}: {p.problem}" for p in found if p.problem]}
            for name, found in extras.items()
        },
        "hub_cache": e.hub_cache(),
        "bundled_models": bundled_names(),
        "families": sorted(FAMILIES),
    }


def _print(facts: Mapping[str, Any]) -> None:
    from headwise.report.console import facts_table, print_all

    system, cache = facts["system"], facts["hub_cache"]
    memory = "" if system["memory"] is None else f", {system['memory'] / 2**30:.0f} GiB of memory"
    offline = "; HF_HUB_OFFLINE is set: only these can be loaded" if cache["offline"] else ""
    print_all(
        facts_table(
            "",
            "",
            {
                "headwise": facts["headwise"],
                "system": f"Python {system['python']}, {system['system']}, {system['cores']} cores{memory}",
                "device": _device(facts),
                "hub models": f"{cache['models']} in {cache['folder']}, {cache['free'] / 1e9:.0f} GB free{offline}",
                "bundled models": ", ".join(facts["bundled_models"]),
                "model families": f"{len(facts['families'])} (headwise info --families lists them)",
            },
        ),
        "",
        facts_table("package", "version", {p["name"]: _version(p) for p in facts["packages"]}),
        "",
        facts_table(
            "extra",
            "what it brings, and whether it is installed",
            {name: _extra(name, extra) for name, extra in facts["extras"].items()},
        ),
        "",
        _verdict(facts),
    )


def _device(facts: Mapping[str, Any]) -> str:
    """What `--device auto` takes, and why a GPU that is there is not used."""
    names = ", ".join(facts["gpus"])
    if facts["device"] == "cuda":
        return f"cuda: {names} (torch for CUDA {facts['torch_cuda']})"
    why = f"{names} cannot be used, this torch was built without CUDA" if names else "no NVIDIA GPU was found"
    named = facts["system"]["processor"] or ""
    faster = "; float32 can be faster on an AMD processor: docs/faq.md" if "AMD" in named else ""
    return f"cpu{f' ({named})' if named else ''}; {why}{faster}"


def _version(package: Mapping[str, Any]) -> str:
    return f"MISSING: {package['problem']}, wanted {package['wanted']}" if package["problem"] else str(package["installed"])


def _extra(name: str, extra: Mapping[str, Any]) -> str:
    missing = ", ".join(extra["missing"])
    return f"{extra['for']}: " + (f"no ({missing}); pip install 'headwise[{name}]'" if missing else "yes")


def _verdict(facts: Mapping[str, Any]) -> str:
    if not facts["works"]:
        return "headwise cannot work like this. Install it anew: pip install --upgrade headwise"
    lacking = [name for name, extra in facts["extras"].items() if extra["missing"]]
    told = f"without {', '.join(lacking)} the features named above are refused" if lacking else "all extras are installed"
    return f"Ready; {told}. Next: headwise demo"

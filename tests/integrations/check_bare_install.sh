#!/usr/bin/env bash
# What `pip install headwise` gives in an empty environment: the size and content of the wheels, and that every command works without an extra.
# From the root of the repository: bash tests/integrations/check_bare_install.sh [PYTHON]. It installs torch, so it takes a few minutes and 1 GB.
set -euo pipefail
python=${1:-python3}
root=$PWD
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
unset PYTHONPATH
fail() { echo "check_bare_install: $*" >&2; exit 1; }

"$python" -m venv "$folder/env"
bin=$folder/env/bin
"$bin/pip" install --quiet "$(sed -n 's/^TORCH ?= //p' Makefile)"

"$bin/pip" wheel --quiet --no-deps --wheel-dir "$folder/wheels" "$root" "$root/lab"
wheel=$(echo "$folder"/wheels/headwise-*.whl)
size=$(stat -c %s "$wheel")
echo "wheel: $size bytes"
[ "$size" -lt 15000000 ] || fail "the wheel has $size bytes; 15 MB are allowed"
names=$("$bin/python" -m zipfile -l "$wheel" | awk 'NR > 1 {print $1}')
grep -qE '(^|/)tests?/|(^|/)test_|^lab/|headwise_lab' <<<"$names" && fail "tests or the lab are in the wheel"
for file in vega.min.js vega-lite.min.js vega-embed.min.js LICENSES.txt SOURCE.md; do
  grep -q "^headwise/report/page/vendor/$file$" <<<"$names" || fail "$file is not in the wheel"
done
[ "$(grep -c 'bundled/[^/]*/model.safetensors$' <<<"$names")" = 1 ] || fail "the wheel has more or less than one model"
ls "$folder"/wheels/headwise_lab-*.whl >/dev/null || fail "the lab has no wheel"

"$bin/pip" install --quiet "$wheel"
for package in matplotlib altair vl-convert-python pandas; do
  "$bin/pip" show --quiet "$package" 2>/dev/null && fail "$package was installed with headwise"
done
cd "$folder" # not beside the sources
export HF_HUB_OFFLINE=1
"$bin/python" -c "import headwise"
# Processor time, beside a Typer application of two commands on the same machine: a bound in seconds fails on a slower processor.
cat > plain.py <<'PY'
import typer

app = typer.Typer()


@app.command()
def one(name: str) -> None:
    """One."""


@app.command()
def two(name: str) -> None:
    """Two."""


app()
PY
"$bin/python" - "$bin" <<'PY' || fail "headwise --help takes more than 3 times the processor time of an application of two commands"
import os, subprocess, sys

def cost(*command):
    before = os.times()
    subprocess.run([*command, "--help"], stdout=subprocess.DEVNULL, check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system

plain, ours = (min(times) for times in zip(*((cost(f"{sys.argv[1]}/python", "plain.py"), cost(f"{sys.argv[1]}/headwise")) for _ in range(7))))
print(f"headwise --help: {ours:.2f} s of processor time, {ours / plain:.1f} times an application of two commands ({plain:.2f} s)")
sys.exit(ours > 3 * plain)
PY
"$bin/headwise" detect lab-6m --lengths 256 --depths 3 -o h.json >/dev/null 2>told
grep -q "headwise\[report\]" told || fail "detect does not say which extra draws its picture"
[ -s h.json ] || fail "detect wrote no head file"
"$bin/headwise" show h.json >/dev/null 2>&1 || fail "show does not work without an extra"
"$bin/headwise" show h.json --html page.html >/dev/null
grep -q vegaEmbed page.html || fail "the page has no charts"
if "$bin/headwise" show h.json -o pictures 2>told; then fail "pictures were drawn without matplotlib"; fi
[ "$(wc -l <told)" = 1 ] || fail "the refusal has more than one line: $(cat told)"
echo "check_bare_install: all is well"

#!/usr/bin/env bash
# Build the wheel, install it where nothing else is, and run the README's quick start from outside the checkout.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$root/.venv/bin/python" -m build --wheel --outdir "$work/dist" "$root" >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$root/constraints.txt" torch
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$root/constraints.txt" "$work"/dist/*.whl
cd "$work"
awk '/^```python/{on=1; next} /^```/{if(on) exit} on' "$root/README.md" >quickstart.py
test -s quickstart.py
"$work/venv/bin/python" -W error::DeprecationWarning quickstart.py
"$work/venv/bin/decmem" doctor
echo "wheel: installed, quick start ran"

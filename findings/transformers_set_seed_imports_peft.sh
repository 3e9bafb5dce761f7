#!/usr/bin/env bash
# transformers 5.23.0 with peft 0.21.2, bitsandbytes 0.50.2, torch 2.13.0: `from transformers import set_seed` imports PEFT and
# bitsandbytes, if they are installed.
#
# set_seed seeds the generators of Python, NumPy and torch. transformers imports a name when it is asked for.
# Expected: what asking for a model class imports, or less. Seen: set_seed is in trainer_utils, which imports the generation code and
# accelerate; with them come PEFT and bitsandbytes, neither of which AutoModelForCausalLM imports.
# What works: random.seed, numpy.random.seed, torch.manual_seed; or to import set_seed only in the function that needs it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 peft==0.21.2 bitsandbytes==0.50.2
for name in set_seed AutoModelForCausalLM; do
    "$folder/venv/bin/python" - "$name" <<'PYTHON'
import importlib
import sys

name = sys.argv[1]
getattr(importlib.import_module("transformers"), name)
brought = [package for package in ("peft", "bitsandbytes") if package in sys.modules]
print(f"transformers.{name} imports {brought or 'neither'}")
assert brought == (["peft", "bitsandbytes"] if name == "set_seed" else [])
PYTHON
done

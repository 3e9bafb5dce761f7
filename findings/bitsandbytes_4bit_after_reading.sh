#!/usr/bin/env bash
# bitsandbytes 0.50.2, torch 2.13.0, on a processor with AVX-512 for bfloat16: once a Linear4bit has been read without gradients in
# evaluation mode,
#   1. no gradient passes through it any more. Nothing is raised; torch warns that the operator has no autograd kernel;
#   2. taking its state_dict changes its weights by more than a fifth, in the dictionary and in the layer itself, without a word.
#
# Expected: the gradient at the input of a frozen 4-bit layer is the same before and after the layer has been used for inference,
# as QLoRA and everything that fits something below frozen layers needs; and state_dict() reads. Seen:
#   1. the input's gradient is None, and what else the loss depends on gets its gradient as if the layer were not there;
#   2. generate with a 4-bit model, save it, and both what is saved and what is loaded is another model. With one block a row or
#      nested scales the weights come back but for the rounding of their scales (0.2 %).
# The reason: that first pass lays the weight out for the processor (quant_state.packing_format_for_cpu). Products with such a weight
# take an operator that has no backward pass; in training mode, or where the input asks for a gradient, a weight that is not laid out
# yet stays as it is. state_dict() undoes the layout and puts the scales of blocks back in the wrong order wherever a row has more
# than one block (more than 64 inputs) and the scales are not quantised themselves (compress_statistics=False, the default of
# transformers' bnb_4bit_use_double_quant).
# What works: layer.support_avx512bf16_for_cpu = False before the first pass; or to save before it.
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
from bitsandbytes.functional import dequantize_4bit, has_avx512bf16
from bitsandbytes.nn import Linear4bit, Params4bit

if not has_avx512bf16():
    print("this processor has no AVX-512 for bfloat16: nothing is laid out")
    raise SystemExit


def layer(inputs, dtype, nested=False, packs=True):
    torch.manual_seed(0)
    made = Linear4bit(inputs, 128, bias=False, compute_dtype=dtype, quant_type="nf4", compress_statistics=nested)
    weight = torch.randn(128, inputs) * 0.05
    made.weight = Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=nested)
    made = made.to("cpu").eval()
    made.support_avx512bf16_for_cpu = packs
    return made


def gradient(module):
    """Of the sum of outputs and inputs, at the input."""
    x = torch.ones(4, 64, requires_grad=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (module(x).float().sum() + x.sum()).backward()
    return x.grad, [str(w.message)[:90] for w in caught]


def read(module):
    with torch.no_grad():
        module(torch.ones(4, 64))
    return module


fresh, _ = gradient(layer(64, torch.bfloat16))
after, told = gradient(read(layer(64, torch.bfloat16)))
print("gradient, fresh ", fresh[0, :4].tolist())
print("gradient, after ", after[0, :4].tolist(), told)
assert not torch.equal(fresh, torch.ones(4, 64))
assert torch.equal(after, torch.ones(4, 64)), "the gradient passes through it now"
assert torch.equal(gradient(read(layer(64, torch.bfloat16, packs=False)))[0], fresh)
print("gradient, with support_avx512bf16_for_cpu = False as fresh")


def changed(inputs, nested, used=True, packs=True):
    """Relative change of a layer's weight, and of what it makes of the same input, by state_dict()."""
    made = layer(inputs, torch.float32, nested, packs)
    before, x = dequantize_4bit(made.weight.data, made.weight.quant_state), torch.randn(5, inputs)
    with torch.no_grad():
        answer = made(x) if used else None
        made.state_dict()
        after = dequantize_4bit(made.weight.data, made.weight.quant_state)
        answer_after = made(x) if used else None
    of_weight = float((after - before).norm() / before.norm())
    return of_weight, float((answer_after - answer).norm() / answer.norm()) if used else 0.0


for inputs, nested in ((128, False), (576, False), (64, False), (576, True)):
    weight, answer = changed(inputs, nested)
    print(f"{inputs} inputs, nested scales {nested}: weight changed by {weight:.4f}, answers by {answer:.4f}")
    assert (weight > 0.2 and answer > 0.2) == (inputs > 64 and not nested)
    assert (weight < 0.01) == (inputs == 64 or nested)
assert changed(576, False, used=False)[0] == 0
assert changed(576, False, packs=False) == (0, 0)
print("unused, or with support_avx512bf16_for_cpu = False: unchanged")
PYTHON

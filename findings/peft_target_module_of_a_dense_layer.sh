#!/usr/bin/env bash
# PEFT 0.21.2 with transformers 5.23.0, torch 2.13.0: in a model of a type whose experts transformers fuses while loading
# (here Qwen3 MoE), a target module that exists is passed over, and modules that nobody named are adapted in its place.
#
# The model has two layers: layer 0 has an ordinary MLP (mlp_only_layers=[0]), layer 1 has experts. LoraConfig names two modules,
# both of layer 0: its mlp.down_proj and its self_attn.o_proj.
# Expected: adapters on these two. Seen: none on layer 0's down_proj, but one on the experts of layer 1; no warning. PEFT takes every
# target that ends in down_proj for an expert's of an older checkpoint and renames it to the fused parameter, wherever that is.
# With no experts in any layer (mlp_only_layers=[0, 1]) and down_proj alone, it raises NoMatchingPeftModuleError.
# What works: target_parameters=["model.layers.0.mlp.down_proj.weight"].
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 peft==0.21.2
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import tempfile

import torch
from peft import LoraConfig, get_peft_model
from peft.utils.error import NoMatchingPeftModuleError
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

DOWN, OUT = "model.layers.0.mlp.down_proj", "model.layers.0.self_attn.o_proj"


def loaded(dense_layers):
    config = Qwen3MoeConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, moe_intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=2,
        mlp_only_layers=dense_layers,
    )
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        return AutoModelForCausalLM.from_pretrained(folder)


def adapted(model, **targets):
    names = [n for n, _ in get_peft_model(model, LoraConfig(r=1, **targets)).named_parameters() if "lora_A" in n]
    return [n.removeprefix("base_model.model.").removesuffix(".lora_A.default.weight") for n in names]


model = loaded([0])
assert isinstance(model.get_submodule(DOWN), torch.nn.Linear)
found = adapted(model, target_modules=[DOWN, OUT])
print("asked for", [DOWN, OUT])
print("adapted  ", found)
assert found == [OUT, "model.layers.1.mlp.experts"], found

try:
    adapted(loaded([0, 1]), target_modules=[DOWN])
except NoMatchingPeftModuleError as error:
    print("without experts:", error)
else:
    raise SystemExit("without experts down_proj is adapted now")

found = adapted(loaded([0]), target_modules=[OUT], target_parameters=[f"{DOWN}.weight"])
print("by parameter", found)
assert sorted(found) == sorted([OUT, DOWN]), found
PYTHON
echo "As described."

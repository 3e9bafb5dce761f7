"""The memory that writing merged weights takes, for models of several sizes.

    .venv/bin/python benchmarks/memory.py --out FOLDER

Randomly initialised models of Llama's kind are written to FOLDER in bfloat16 and shards of one size. For each, a process of
its own makes an edit of every layer and writes the merged weights without loading the model (as `iconoclast export
--format merged --no-measure` does); another loads the model and lets transformers write it. Peaks of resident memory are
those of the whole process; what the libraries took when they had been imported is printed last.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from iconoclast.models.names import resolve

WORK = """
import json, sys, time
import torch
from pathlib import Path
from iconoclast.edits.edit import Edit
from iconoclast.edits.merge import save_merged
from iconoclast.edits.profile import Profile
from iconoclast.models.anatomy import site_directions
from iconoclast.models.checkpoint import Checkpoint
from iconoclast.vocabulary import COMPONENTS
from iconoclast.models.loading import load_model
from iconoclast.models.skeleton import load_skeleton

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024

libraries = peak()
way, folder, to = sys.argv[1], sys.argv[2], Path(sys.argv[3])
start = time.perf_counter()
lm = load_skeleton(folder) if way == "files" else load_model(folder)
directions = torch.nn.functional.normalize(torch.randn(lm.layers, lm.hidden_size), dim=-1)
edit = Edit.build(site_directions(lm.writers(), directions), dict.fromkeys(COMPONENTS, Profile.constant(1.0)), "pre")
save_merged(edit, lm.writers(), lm.model, to, Checkpoint.find(folder) if way == "files" else None)
print(json.dumps({"peak": peak(), "libraries": libraries, "seconds": time.perf_counter() - start}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", type=int, nargs="*", default=[1, 10, 20, 40])
    parser.add_argument("--shard", default="200MB")
    arguments = parser.parse_args()
    print(
        "| model, MiB | shards | from file to file: peak, MiB | s | loaded and written: peak, MiB | s |\n|---|---|---|---|---|---|"
    )
    for layers in arguments.layers:
        folder = arguments.out / "model"
        shutil.rmtree(folder, ignore_errors=True)
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=49152, hidden_size=2048, intermediate_size=8192, num_hidden_layers=layers, num_attention_heads=32
        )
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(  # type: ignore[no-untyped-call]
            folder, max_shard_size=arguments.shard
        )
        AutoTokenizer.from_pretrained(resolve("demo")).save_pretrained(folder)
        shards = [file.stat().st_size / 2**20 for file in folder.glob("*.safetensors")]
        cells = [f"{sum(shards):.0f}", f"{len(shards)} of up to {max(shards):.0f} MiB"]
        for way in ("files", "loaded"):
            to = arguments.out / way
            shutil.rmtree(to, ignore_errors=True)
            to.mkdir()
            command = [sys.executable, "-c", WORK, way, str(folder), str(to)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            result = json.loads(done.stdout.splitlines()[-1])
            cells += [f"{result['peak']:.0f}", f"{result['seconds']:.1f}"]
        print(f"| {' | '.join(cells)} |", flush=True)
    print(f"\nThe libraries alone: {result['libraries']:.0f} MiB")
    for name in ("model", "files", "loaded"):
        shutil.rmtree(arguments.out / name, ignore_errors=True)


if __name__ == "__main__":
    main()

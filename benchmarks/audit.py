"""How exactly and in what time and memory the audit finds a rank-one edit again, from random weights of known edits.

OMP_NUM_THREADS=1 .venv/bin/python benchmarks/audit.py               # matrices of 2048 × 2048
OMP_NUM_THREADS=1 .venv/bin/python benchmarks/audit.py --models DIR  # two sharded models of 2.9 GB, made in DIR
OMP_NUM_THREADS=1 .venv/bin/python benchmarks/audit.py --gguf DIR    # two GGUF files, F16 (0.8 GB) and Q8_0 (0.4 GB), made in DIR
"""

import argparse
import json
import time
from itertools import product
from pathlib import Path
from threading import Event, Thread

import gguf
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from iconoclast.audit.audit import audit
from iconoclast.audit.constructions import rank_one
from iconoclast.audit.matrix import slack, spectrum
from iconoclast.audit.roundings import requantised
from iconoclast.edits.edit import edited_weight
from iconoclast.vocabulary import NORMALIZATIONS

SIZE = 2048
SHARDS = 19
MATRICES = 48
EIGHT = gguf.GGMLQuantizationType.Q8_0


def matrices() -> None:
    """Print errors and seconds of every type, strength and row normalisation as a Markdown table."""
    random = torch.Generator().manual_seed(0)

    def uneven(*shape: int) -> Tensor:
        return torch.exp(0.3 * torch.randn(*shape, generator=random))

    weight = torch.randn(SIZE, SIZE, generator=random) * 0.02 * uneven(SIZE, 1) * uneven(1, SIZE)
    direction = normalize(torch.randn(SIZE, generator=random) * torch.exp(torch.randn(SIZE, generator=random)), dim=0)
    print(
        "| type | strength | normalisation | found | strength off by | 1 − cosine | s |\n|---|---|---|---|---|---|---|"
    )
    for dtype, strength, normalization in product((torch.bfloat16, torch.float16), (0.03, 0.3, 1.0), NORMALIZATIONS):
        before = weight.to(dtype).float()
        after = edited_weight(before, direction, strength, normalization).to(dtype).float()
        begin = time.perf_counter()
        requantised(before, after, dtype)
        rounding = slack(before, after, dtype)
        found = rank_one(before, after, rounding, spectrum(before, after, rounding))
        seconds = time.perf_counter() - begin
        told = "nothing | | "
        if found is not None:
            cosine = 1 - abs(float(found.direction.double() @ direction.double()))
            told = f"{found.row_normalization} | {abs(found.strength / strength - 1):.3%} | {cosine:.1e}"
        print(f"| {str(dtype)[6:]} | {strength} | {normalization} | {told} | {seconds:.2f} |", flush=True)


def models(folder: Path) -> None:
    """Make two sharded models that differ in ten matrices, unless they are there, and audit one beside the other."""
    base, edited = folder / "base", folder / "edited"
    if not edited.is_dir():
        random, places = torch.Generator().manual_seed(0), dict[str, str]()
        direction = normalize(torch.randn(SIZE, generator=random), dim=0)
        for each in (base, edited):
            each.mkdir(parents=True)
            (each / "config.json").write_text("{}")
        for shard in range(SHARDS):
            before = {
                f"layers.{shard}.{i}.weight": (
                    torch.randn(SIZE, 8192 if i < 4 else 4096, generator=random) * 0.02
                ).bfloat16()
                for i in range(5)
            }
            changed = [name for name in before if name.split(".")[2] in "34" and shard % 4 == 0]
            after = {n: edited_weight(before[n].float(), direction, 0.5, "pre").bfloat16() for n in changed}
            places |= dict.fromkeys(before, f"model-{shard}.safetensors")
            save_file(before, base / f"model-{shard}.safetensors")
            save_file(before | after, edited / f"model-{shard}.safetensors")
        for each in (base, edited):
            (each / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    measured(base, edited)


def files(folder: Path) -> None:
    """Make two GGUF files that differ in two matrices, unless they are there, and audit one beside the other."""
    base, edited = folder / "base-F16.gguf", folder / "edited-Q8_0.gguf"
    if not edited.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        random, half = torch.Generator().manual_seed(0), gguf.GGMLQuantizationType.F16
        direction = normalize(torch.randn(SIZE, generator=random), dim=0)
        writers = [(gguf.GGUFWriter(file, "llama"), kind) for file, kind in ((base, half), (edited, EIGHT))]
        for number in range(MATRICES):
            matrix = (torch.randn(SIZE, 2 * SIZE, generator=random) * 0.02).bfloat16().float()
            changed = edited_weight(matrix, direction, 0.5, "pre") if number % 12 == 0 else matrix
            for (writer, kind), values in zip(writers, (matrix, changed), strict=True):
                writer.add_tensor(f"blk.{number}.ffn_down.weight", gguf.quantize(values.numpy(), kind), raw_dtype=kind)
        for writer, _ in writers:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
    measured(base, edited)


def measured(base: Path, edited: Path) -> None:
    """Audit, and print the verdict, seconds, and the peak of memory; pages of mapped files are counted apart."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    own, stop = [memory("RssAnon")], Event()

    def watch() -> None:
        while not stop.wait(0.05):
            own.append(memory("RssAnon"))

    watcher = Thread(target=watch)
    watcher.start()
    before_audit, begin, worked = memory("VmRSS"), time.perf_counter(), time.process_time()
    document, _ = audit(str(base), str(edited))
    print(f"{document.verdict}, {sum(t.status != 'unchanged' for t in document.tensors)} tensors changed")
    seconds, worked = time.perf_counter() - begin, time.process_time() - worked
    stop.set()
    watcher.join()
    print(
        f"{seconds:.0f} s, {worked:.0f} s of them computing; {before_audit:.0f} MB before, {memory('VmHWM') - before_audit:.0f} MB more at the "
        f"peak, {max(own) - own[0]:.0f} MB of them its own and not pages of files"
    )


def memory(key: str) -> float:
    """MB of this process (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(key)).split()[1]) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="folder for two models of 2.9 GB")
    parser.add_argument("--gguf", type=Path, help="folder for two GGUF files of 0.8 and 0.4 GB")
    arguments = parser.parse_args()
    if arguments.models is not None:
        models(arguments.models)
    elif arguments.gguf is not None:
        files(arguments.gguf)
    else:
        matrices()


if __name__ == "__main__":
    main()

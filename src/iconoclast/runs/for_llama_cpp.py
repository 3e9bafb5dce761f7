"""An export as llama.cpp reads it: GGUF files, quantised ones, adapters, and what is measured of them."""

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from iconoclast.errors import ModelError
from iconoclast.layout import GGUF_ADAPTER, GGUF_FILE, quant_file
from iconoclast.models.checkpoint import Checkpoint
from iconoclast.models.gguf import complete_rope
from iconoclast.models.llama_cpp import SERVER, LlamaCpp
from iconoclast.progress import Progress
from iconoclast.runs.as_served import AsServed, measure_served
from iconoclast.runs.workbench import Workbench
from iconoclast.vocabulary import ExportFormat


def write_for_llama_cpp(
    folder: Path, kind: ExportFormat, llama: LlamaCpp, bench: Workbench, progress: Progress
) -> AsServed:
    """Write what is wanted of an export for llama.cpp, and measure it as it is served."""
    if kind == "gguf":
        remarks = _write_gguf(folder, llama, progress)
        files = [folder / GGUF_FILE, *(folder / quant_file(name) for name in llama.quants)]
        served = measure_served(llama, files, bench, progress)
        return replace(served, remarks=[*remarks, *served.remarks])
    if kind == "adapter" and llama.folder is not None:
        return _write_gguf_adapter(folder, llama, bench, progress)
    return AsServed()


def _write_gguf(folder: Path, llama: LlamaCpp, progress: Progress) -> list[str]:
    """Turn the merged weights in a folder into GGUF files, which hold the tokenizer as well; return remarks."""
    progress.start("Converting to GGUF", 0)
    merged, file = folder / "merged", folder / GGUF_FILE
    merged.mkdir()
    for each in list(folder.iterdir()):
        if each.is_file():
            each.rename(merged / each.name)
    llama.convert(merged, file)
    completed = complete_rope(file, json.loads((merged / "config.json").read_text(encoding="utf-8")))
    for licence in sorted(merged.glob("LICENSE*")) + sorted(merged.glob("NOTICE*")):
        licence.rename(folder / licence.name)
    shutil.rmtree(merged)
    for name in llama.quants:
        progress.start(f"Quantising to {name}", 0)
        llama.quantize(file, folder / quant_file(name), name)
    return [completed] if completed else []


def _write_gguf_adapter(folder: Path, llama: LlamaCpp, bench: Workbench, progress: Progress) -> AsServed:
    """Write an adapter as a GGUF file as well, and measure it on the base model, converted for that only."""
    lm, file = bench.lm, folder / GGUF_ADAPTER
    checkpoint = None if lm.path.lower().endswith(".gguf") else Checkpoint.find(lm.path)
    if checkpoint is None or lm.quantization != "none":
        return AsServed(
            remarks=[f"{GGUF_ADAPTER} was not written: it needs a base model in full precision, as safetensors."]
        )
    progress.start("Converting the adapter to GGUF", 0)
    try:
        llama.convert_adapter(folder, checkpoint.folder, file)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            base = Path(place) / GGUF_FILE
            if llama.serve and llama.program(SERVER) is not None:
                progress.start("Converting the base model to GGUF", 0)
                llama.convert(checkpoint.folder, base)
                complete_rope(base, json.loads((checkpoint.folder / "config.json").read_text(encoding="utf-8")))
            return measure_served(llama, [file], bench, progress, base)
    except ModelError as error:
        return AsServed(remarks=[f"{GGUF_ADAPTER}: {error}"])

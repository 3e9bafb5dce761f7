"""GGUF files of an export, measured as llama.cpp's llama-server serves them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from iconoclast.errors import ModelError, UserError
from iconoclast.evaluation.llama_server import LlamaServer
from iconoclast.evaluation.metrics import Metrics
from iconoclast.evaluation.served import examine_served
from iconoclast.models.llama_cpp import GET_SERVER, SERVER, LlamaCpp
from iconoclast.progress import Progress
from iconoclast.runs.workbench import Workbench


@dataclass(frozen=True)
class AsServed:
    """Measurements of files as llama-server serves them.

    Attributes:
        by: its version; empty if no file was measured.
        metrics: file → what was measured of it, beside the base model.
        remarks: on single files, such as why one was not measured.
        problem: why nothing could be measured.
    """

    by: str = ""
    metrics: Mapping[str, Metrics] = field(default_factory=dict)
    remarks: Sequence[str] = ()
    problem: str = ""


def measure_served(
    llama: LlamaCpp, files: Sequence[Path], bench: Workbench, progress: Progress, base: Path | None = None
) -> AsServed:
    """Measure GGUF files, one after the other, on the prompts that are reported on.

    Args:
        bench: the base model, not laid out.
        base: the base model's GGUF file, if the files are adapters of it.
    """
    if not llama.serve or not files:
        return AsServed()
    try:
        server = _server(llama)
    except ModelError as error:
        return AsServed(problem=f"GGUF files were not measured as llama.cpp serves them: {error}")
    found: dict[str, Metrics] = {}
    remarks = []
    with bench.laid_out():
        examiner, tokens = bench.examiner(), _longest(bench)
        for file in files:
            progress.start(f"Loading {file.name} in {SERVER}", 0)
            try:
                with server.serving(base or file, tokens, lora=None if base is None else file) as served:
                    examined = examine_served(examiner, served, progress)
            except UserError as error:
                remarks.append(f"{file.name} was not measured as llama.cpp serves it: {error}")
                continue
            found[file.name] = examined.metrics()
            if examined.truncation is not None and (unlike := examined.truncation.unlike):
                remarks.append(
                    f"llama.cpp reads {unlike} prompts for {file.name} as another number of tokens than the base model: its chat "
                    "template differs there, and the KL includes that."
                )
    return AsServed(server.version if found else "", found, remarks)


def _server(llama: LlamaCpp) -> LlamaServer:
    """Return llama-server; raise ModelError if there is none that runs."""
    if (program := llama.program(SERVER)) is None:
        raise ModelError(
            f"there is no {SERVER}, neither in --llama-cpp nor on the PATH. Install llama.cpp, or, on Linux x86-64, {GET_SERVER}."
        )
    return LlamaServer.at(program)


def _longest(bench: Workbench) -> int:
    """Return the tokens of the longest prompt with the longest response."""
    sample, lengths = bench.sample, (bench.options.response_length, bench.options.benign_response_length)
    sets = [prompts.prompts for prompts in (sample.target, sample.benign, sample.borderline) if prompts]
    return max(len(ids) for prompts in sets for ids in bench.lm.encode(prompts)) + max(lengths)

"""`export`: write a trial's edit, and show what was written measures."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

from typer import Option

from iconoclast.cli.arguments import AsJsonOption, RunArgument, TrialOption, WithOption, run_and_trial
from iconoclast.cli.console import out, print_json, say, shown_progress
from iconoclast.errors import MeasurementError, SettingsError
from iconoclast.vocabulary import GGUF_QUANTS, ExportFormat

if TYPE_CHECKING:
    from iconoclast.runs.exported import Exported

CapabilitiesOption = Annotated[
    Path | None, Option(help="What iconoclast benchmark RUN --json FILE has measured of the trial: FILE, for the card.")
]
MEASURE = "Load what was written and measure it. Without, merged weights are written in the memory of a few matrices."


def export(
    run: RunArgument,
    to: Annotated[Path, Option(help="Folder for the export; it must not exist yet.")],
    trial: TrialOption = None,
    kind: Annotated[
        str, Option("--format", help="adapter (PEFT), merged (whole model) or gguf (llama.cpp).")
    ] = "adapter",
    llama_cpp: Annotated[
        Path | None,
        Option(
            help="Folder of a llama.cpp checkout or release, whose converter makes GGUF files; of an adapter, adapter.gguf "
            "beside PEFT's files."
        ),
    ] = None,
    quants: Annotated[
        str,
        Option(
            metavar="TYPE,TYPE", help=f"With --format gguf, further files of these types: {', '.join(GGUF_QUANTS)}."
        ),
    ] = "",
    beside: WithOption = None,
    measure: Annotated[bool, Option(help=MEASURE)] = True,
    serve: Annotated[
        bool, Option(help="Measure GGUF files as llama.cpp's llama-server serves them, if there is one.")
    ] = True,
    capabilities: CapabilitiesOption = None,
    as_json: AsJsonOption = False,
) -> None:
    """Write a trial's edit as an adapter, merged weights or a GGUF file, and measure what was written."""
    folder, trial = run_and_trial(run, trial)
    asked = list(dict.fromkeys(name.strip().upper() for name in quants.split(",") if name.strip()))
    _require_compatible(kind, asked, measure, together=bool(beside))
    if capabilities is not None and beside:
        raise SettingsError("--capabilities is of one run's edit, and --with adds another's. Leave one out.")
    from iconoclast.models.llama_cpp import LlamaCpp
    from iconoclast.runs.export import export_runs, export_unmeasured

    with shown_progress() as progress:
        if measure:
            runs = [(folder, trial), *map(run_and_trial, beside or [])]
            llama = LlamaCpp(llama_cpp, asked, serve)
            exported = export_runs(runs, kind, to, progress, llama, capabilities)  # type: ignore[arg-type]
        else:
            exported = export_unmeasured(folder, trial, to, progress, capabilities)
    _print(exported)
    if as_json:
        print_json(exported.document())
    require_near(exported)


def _require_compatible(kind: str, quants: Sequence[str], measure: bool, together: bool) -> None:
    """Raise SettingsError for an unknown format, or options that do not go with it or with each other."""
    if kind not in get_args(ExportFormat):
        raise SettingsError(f'There is no export format "{kind}". Use {", ".join(get_args(ExportFormat))}.')
    if not measure and kind != "merged":
        raise SettingsError("Only merged weights can be written without measuring them. Add --format merged.")
    if not measure and together:
        raise SettingsError("Edits of several runs are measured together. Leave out --no-measure, or --with.")
    if quants and kind != "gguf":
        raise SettingsError("Only GGUF files are quantised further. Add --format gguf, or leave out --quants.")


def require_near(result: "Exported") -> None:
    """Raise MeasurementError if the export measures farther from the live edit than noise allows, or quantisation undoes it."""
    if result.problem:
        raise MeasurementError(
            f"The export in {result.folder} measures farther from the live edit than noise allows: {result.problem}. "
            + (
                "Raise full_normalization_lora_rank, or set it to auto, or export merged weights."
                if result.approximation_error
                else f"Do not use it. `iconoclast verify {result.folder}` says whether its files are as declared."
            )
        )
    if result.swallowed:
        raise MeasurementError(
            f"Quantisation undoes more than half of the edit in {', '.join(result.swallowed)} of {result.folder}. Do not use "
            "such files: a finer type, or a stronger edit, is needed."
        )


def _print(result: "Exported") -> None:
    from iconoclast.reports.tables import before_after_table, files_table, together_table

    columns = [("base model", result.base), ("edit, live", result.live)]
    columns += [] if result.exported is None else [("export", result.exported)]
    out.print(before_after_table(f"Export {result.folder}", columns))
    if result.quants or result.served.metrics:
        out.print(files_table(result.dequantised, result.served.metrics))
    if result.composed is not None:
        out.print(together_table(result.composed))
        say(*(f"WARNING: interference. {text}." for text in result.composed.interference))
    if result.directions is not None:
        say(str(result.directions))
    say(*result.remarks)
    if result.served.by:
        say(
            f"Served by llama.cpp's llama-server {result.served.by}, beside the base model in transformers. It gives the "
            "likeliest tokens only, so KL lies between two bounds."
        )
    say(*filter(None, [result.served.problem]))
    if result.exported is None:
        measured_in = "" if result.quantization == "none" else f" The figures are of {result.quantization} weights."
        say(result.prompts, f"The export itself was not measured.{measured_in}")
        return
    moved = result.exported.kl_divergence - result.live.kl_divergence
    refusals = result.exported.refusals.count - result.live.refusals.count
    say(result.prompts)
    say(f"Difference of the export from the live edit: {refusals:+d} refusals, {moved:+.4f} KL.")
    if result.approximation_error:
        say(
            f"Low-rank approximation: largest relative error of a matrix {result.approximation_error:.1%}; rank "
            f"{result.sufficient_rank} brings all under 1 % (full_normalization_lora_rank, or auto).",
        )

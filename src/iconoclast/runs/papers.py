"""The model card of an export: says that the model was edited, how, and what changed. Its text is card.md.jinja."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, StrictUndefined

from iconoclast.evaluation.capabilities import Row
from iconoclast.evaluation.metrics import Metrics
from iconoclast.goals import estimate
from iconoclast.layout import GGUF_ADAPTER, GGUF_FILE, quant_file
from iconoclast.runs.documents import Composition, TrialDocument, TrialInformation
from iconoclast.scores import Scores
from iconoclast.search.pareto import Trial
from iconoclast.search.space import FittedParameters
from iconoclast.version import __version__
from iconoclast.vocabulary import ExportFormat, Quantization

COUNTED = (
    ("Refusals", "refusals"),
    ("Soft refusals", "soft_refusals"),
    ("Broken responses", "broken"),
    ("Complied", "complied"),
    ("Overrefusals", "overrefusals"),
    ("Broken benign responses", "benign_broken"),
)
"""Counts of `Scores` as tables show them: title, attribute."""
FILE_COLUMNS = (
    "file", "measured", "refusals", "broken", "complied", "overrefusals", "first-token KL", "KL over tokens",
)  # fmt: skip
"""What a table of GGUF files says of each."""
MEASURED = "Measured on this export, loaded from these files, against its base."
NOT_MEASURED = "These files were not measured; the figures are of the same edit applied to the base model while it ran."
LIBRARIES = {"adapter": "peft", "merged": "transformers", "gguf": "llama.cpp"}
DEMO_NAME = "SmolLM2-135M-Instruct"
DEMO_BASE = f"HuggingFaceTB/{DEMO_NAME}"
DEMO_LICENCE = "apache-2.0"


TEMPLATES = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
"""Strict, because a hole in a public document is worse than an error (docs/decisions/0001-model-card.md)."""
AS_MEASURED = {
    "bnb_4bit": 'BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="bfloat16")',
    "bnb_8bit": "BitsAndBytesConfig(load_in_8bit=True)",
}
"""How the base model of an adapter is loaded so that the card's figures, which are of quantised weights, hold."""


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Contents of an export's README.md, in the format of the hub.

    Attributes:
        told: what trial_information.json says.
        licence: licence of the base model, as the hub writes it, if known.
        trial: the exported trial.
        sites: number of edited matrices.
        problem: in what the export measures farther from the live edit than noise allows.
        loaded_in: quantisation of the base model that an adapter is made for; figures of weights in another are not shown.
        objectives: those of the search, if they are not the default ones.
        finalists: how many trials judges chose this one from; 0 if they did not choose it.
        swallowed: GGUF files in which quantisation undoes more than half of the edit.
    """

    told: TrialInformation
    licence: str | None
    trial: Trial
    sites: int
    problem: str = ""
    loaded_in: Quantization = "none"
    objectives: str = ""
    finalists: int = 0
    swallowed: Sequence[str] = ()

    def render(self) -> str:
        """Return the card as Markdown, its metadata first."""
        told = self.told
        after = told.export_metrics or told.live_metrics
        source = files("iconoclast.runs").joinpath("card.md.jinja").read_text(encoding="utf-8")
        parameters = self.trial.parameters
        fitted = isinstance(parameters, FittedParameters)
        profiles = (parameters.start if isinstance(parameters, FittedParameters) else parameters).profiles
        return TEMPLATES.from_string(source).render(
            metadata=self._metadata().to_yaml(),
            version=__version__,
            name=DEMO_NAME if told.base_model == "demo" else told.base_model,
            before=told.base_metrics,
            after=after,
            sites=self.sites,
            components=", ".join(profiles),
            strengths=_strengths(told.trial),
            fitted=fitted,
            direction=self._direction(),
            directions="" if told.directions is None else str(told.directions),
            objectives=self.objectives,
            finalists=self.finalists,
            parts=[] if told.composed is None else [(each, _strengths(each.trial)) for each in told.composed.trials],
            together=[] if told.composed is None else together_rows(told.composed),
            interference=[] if told.composed is None else told.composed.interference,
            row_normalization=told.row_normalization,
            approximation_error=f"{told.approximation_error:.1%}" if told.approximation_error else "",
            measured=MEASURED if told.export_metrics else NOT_MEASURED,
            prompts=told.measured_on,
            rows=score_rows(told.base_metrics, after),
            snippet=_snippet(told.format, told.base_model, self.loaded_in),
            trial=self.trial.index,
            sets=told.prompts,
            figures_in=None if told.quantization == self.loaded_in else told.quantization,
            remarks=told.remarks,
            problem=self.problem,
            licence=self._licence,
            files=file_rows(self._dequantised, told.served),
            file_columns=FILE_COLUMNS,
            lora=GGUF_ADAPTER in told.served,
            served_by=told.served_by,
            swallowed=", ".join(self.swallowed),
            capabilities=told.capabilities,
            capability_rows=[] if told.capabilities is None else [_capability(row) for row in told.capabilities.rows],
        )

    @property
    def _dequantised(self) -> dict[str, Scores]:
        """Scores of GGUF files that were measured dequantised."""
        own = self.told.export_metrics if self.told.format == "gguf" else None
        return ({GGUF_FILE: own} if own else {}) | {quant_file(name): s for name, s in self.told.quants.items()}

    @property
    def _licence(self) -> str | None:
        return DEMO_LICENCE if self.told.base_model == "demo" else self.licence

    def _metadata(self) -> ModelCardData:
        base, kind = self.told.base_model, self.told.format
        hub = DEMO_BASE if base == "demo" else base if base.count("/") == 1 else None
        return ModelCardData(
            license=self._licence,
            base_model=hub,
            base_model_relation=None if hub is None else "adapter" if kind == "adapter" else "finetune",
            library_name=LIBRARIES[kind],
            pipeline_tag="text-generation",
            tags=[
                "iconoclast",
                "representation-editing",
                "edited",
                *["strengthened"] * self.told.live_metrics.strengthened,
            ],
            model_name=f"{base.rsplit('/', 1)[-1]}-edited" if (results := self._results()) else None,
            eval_results=results,
        )

    def _results(self) -> list[EvalResult] | None:
        """Return what was measured of these files as the hub lists it (model-index)."""
        told, after = self.told, self.told.export_metrics
        if after is None or told.quantization != self.loaded_in:
            return None
        found = []
        for side, title, kind, value in (
            ("bad", "Refusals", "refusal_rate", after.refusals.rate),
            ("bad", "Broken responses", "broken_rate", after.broken.rate),
            ("good", "Overrefusals", "refusal_rate", after.overrefusals.rate),
            ("good", "First-token KL", "kl_divergence", after.kl_divergence),
        ):
            source = (told.prompts.get(f"{side}_report_prompts") or told.prompts[f"{side}_evaluation_prompts"])[
                "source"
            ]
            found.append(EvalResult("text-generation", source.split()[0], source, kind, value, metric_name=title))
        return found

    def _direction(self) -> str:
        if isinstance(self.trial.parameters, FittedParameters):
            return f"every matrix's own, {self.trial.parameters}"
        direction = self.trial.parameters.direction
        if direction.scope == "per_layer":
            return f"{direction.method}, each layer's own"
        return f"{direction.method}, one for all layers, taken at layer {direction.index:.2f}"


def _capability(row: Row) -> list[str]:
    """Return the cells of what lm-eval has measured: task, metric, items, base, edited, p."""
    shown = [
        "" if each is None or each.value is None else f"{each.value:.3f}{_interval(each.interval)}"
        for each in (row.base, row.edited)
    ]
    p = row.difference.p_value if row.difference else None
    return [row.task, row.metric, str(row.n), *shown, "" if p is None else f"{p:.2g}"]


def _interval(found: tuple[float, float] | None) -> str:
    return "" if found is None else f" ({found[0]:.3f} to {found[1]:.3f})"


def _strengths(trial: TrialDocument) -> str:
    if trial.fit is not None:
        return "every matrix's own"
    return ", ".join(
        f"{name} peaks at {p.max_weight:.2f} in layer {p.max_weight_position:.1f}"
        for name, p in trial.parameters.items()
    )


def _snippet(kind: ExportFormat, base: str, loaded_in: Quantization) -> str:
    if kind == "gguf":
        return 'from llama_cpp import Llama\n\nmodel = Llama("THIS FOLDER/model.gguf")'
    if kind == "merged":
        return (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'model = AutoModelForCausalLM.from_pretrained("THIS FOLDER")\n'
            'tokenizer = AutoTokenizer.from_pretrained("THIS FOLDER")'
        )
    imported, options = "", 'dtype="auto"'
    if loaded_in != "none":
        imported, options = ", BitsAndBytesConfig", f"quantization_config={AS_MEASURED[loaded_in]}"
    return (
        f"from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer{imported}\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("{DEMO_BASE if base == "demo" else base}", {options})\n'
        'model = PeftModel.from_pretrained(base, "THIS FOLDER")\n'
        'tokenizer = AutoTokenizer.from_pretrained("THIS FOLDER")'
    )


def file_rows(dequantised: Mapping[str, Scores], served: Mapping[str, Metrics]) -> list[tuple[str, ...]]:
    """Return a row for every measurement of a GGUF file; see `FILE_COLUMNS`."""
    found = [(file, "dequantised", scores) for file, scores in dequantised.items()]
    found += [(file, "as served", metrics) for file, metrics in served.items()]
    return [
        (file, how, str(s.refusals), str(s.broken), str(s.complied), str(s.overrefusals), *_divergences(s))
        for file, how, s in found
    ]


def _divergences(scores: Scores) -> tuple[str, str]:
    """Return first-token KL and KL over tokens for a table; of a served file, with their upper bounds."""
    if not isinstance(scores, Metrics) or scores.truncation is None:
        return f"{scores.kl_divergence:.4f}", ""
    cut = scores.truncation
    return (
        f"{scores.kl_divergence:.4f}–{cut.first_token_kl_at_most.value:.4f}",
        f"{scores.token_kl.value:.4f}–{cut.token_kl_at_most.value:.4f}",
    )


def together_rows(composed: Composition) -> list[list[str]]:
    """Return the rows of the table of edits alone and together: behaviour, edits, and what they do to it."""
    return [
        [
            trial.name,
            composed.named(row.edits),
            s.failures.with_interval,
            str(s.broken),
            s.overrefusals.with_interval,
            f"{s.kl_divergence:.4f}",
        ]
        for i, trial in enumerate(composed.trials)
        for row in composed.together
        if i in row.edits or len(row.edits) < 2
        for s in [row.scores[i]]
    ]


def score_rows(before: Scores, after: Scores) -> Sequence[tuple[str, str, str]]:
    """Return the rows of the before/after table: name, base, edited."""

    def known(name: str, scores: Scores) -> str:
        return str(estimate(name, scores) or "unknown") if name in scores.own else "not measured"

    return [
        *((title, getattr(before, name).with_interval, getattr(after, name).with_interval) for title, name in COUNTED),
        ("Disclaimer hits", f"{before.disclaimer_hits}", f"{after.disclaimer_hits}"),
        ("Compliance", f"{before.compliance:.2f}", f"{after.compliance:.2f}"),
        ("First-token KL", f"{before.kl_divergence:.4f}", f"{after.kl_divergence:.4f}"),
        *((name, known(name, before), known(name, after)) for name in before.own),
    ]

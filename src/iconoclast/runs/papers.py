"""The model card of an export: says that the model was edited, how, and what changed. Its text is card.md.jinja."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, StrictUndefined

from iconoclast.layout import GGUF_FILE, quant_file
from iconoclast.scores import Scores
from iconoclast.search.pareto import Trial
from iconoclast.search.space import FittedParameters
from iconoclast.version import __version__
from iconoclast.vocabulary import Quantization

COUNTED = (
    ("Refusals", "refusals"),
    ("Soft refusals", "soft_refusals"),
    ("Broken responses", "broken"),
    ("Complied", "complied"),
    ("Overrefusals", "overrefusals"),
    ("Broken benign responses", "benign_broken"),
)
"""Counts of `Scores` as tables show them: title, attribute."""

MEASURED = "Measured on this export, loaded from these files, against its base."
NOT_MEASURED = "These files were not measured; the figures are of the same edit applied to the base model while it ran."
LIBRARIES = {"adapter": "peft", "merged": "transformers", "gguf": "llama.cpp"}
DEMO_BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
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
        base: the base model, without the folders of a local path.
        licence: licence of the base model, as the hub writes it, if known.
        kind: adapter, merged or gguf.
        sites: number of edited matrices.
        directions: what is to be said of the directions of a quantised run; empty for others.
        sets: all prompt sets of the run: name → source, n, sha256.
        prompts: description of the prompts that `before` and `after` were measured on.
        after: scores of the export itself, loaded from its files, or of the edit that it was written from.
        measured: whether `after` is of the export itself.
        approximation_error: largest relative error of a site's update in an adapter.
        figures_in: quantisation of the weights that the scores are of, if it is not that of these files; they are then
            not shown.
        remarks: what the files have otherwise than the base model, beside the edit.
        problem: in what the export measures farther from the live edit than noise allows.
        loaded_in: quantisation of the base model that an adapter is made for.
        quants: scores of further quantised files, by their type.
        swallowed: those of them that undo more than half of the edit.
    """

    base: str
    licence: str | None
    kind: str
    trial: Trial
    row_normalization: str
    sites: int
    directions: str
    sets: Mapping[str, Any]
    prompts: str
    before: Scores
    after: Scores
    measured: bool
    approximation_error: float
    figures_in: str | None = None
    remarks: Sequence[str] = ()
    problem: str = ""
    loaded_in: Quantization = "none"
    quants: Mapping[str, Scores] = field(default_factory=dict)
    swallowed: Sequence[str] = ()

    def render(self) -> str:
        source = files("iconoclast.runs").joinpath("card.md.jinja").read_text(encoding="utf-8")
        parameters = self.trial.parameters
        fitted = isinstance(parameters, FittedParameters)
        profiles = (parameters.start if isinstance(parameters, FittedParameters) else parameters).profiles
        strengths = (
            f"{c} peaks at {p.max_weight:.2f} in layer {p.max_weight_position:.1f}" for c, p in profiles.items()
        )
        return TEMPLATES.from_string(source).render(
            metadata=self._metadata().to_yaml(),
            version=__version__,
            name="SmolLM2-135M-Instruct" if self.base == "demo" else self.base,
            before=self.before,
            after=self.after,
            sites=self.sites,
            components=", ".join(profiles),
            strengths="every matrix's own" if fitted else ", ".join(strengths),
            fitted=fitted,
            direction=self._direction(),
            directions=self.directions,
            row_normalization=self.row_normalization,
            approximation_error=f"{self.approximation_error:.1%}" if self.approximation_error else "",
            measured=MEASURED if self.measured else NOT_MEASURED,
            prompts=self.prompts,
            rows=score_rows(self.before, self.after),
            snippet=_snippet(self.kind, self.base, self.loaded_in),
            trial=self.trial.index,
            sets=self.sets,
            figures_in=self.figures_in,
            remarks=self.remarks,
            problem=self.problem,
            licence=self._licence,
            files=[(GGUF_FILE, self.after), *((quant_file(name), scores) for name, scores in self.quants.items())],
            swallowed=", ".join(map(quant_file, self.swallowed)),
        )

    @property
    def _licence(self) -> str | None:
        return DEMO_LICENCE if self.base == "demo" else self.licence

    def _metadata(self) -> ModelCardData:
        hub = DEMO_BASE if self.base == "demo" else self.base if self.base.count("/") == 1 else None
        return ModelCardData(
            license=self._licence,
            base_model=hub,
            base_model_relation=None if hub is None else "adapter" if self.kind == "adapter" else "finetune",
            library_name=LIBRARIES[self.kind],
            pipeline_tag="text-generation",
            tags=["iconoclast", "representation-editing", "edited"],
            model_name=f"{self.base.rsplit('/', 1)[-1]}-edited" if (results := self._results()) else None,
            eval_results=results,
        )

    def _results(self) -> list[EvalResult] | None:
        """Return what was measured of these files as the hub lists it (model-index)."""
        if not self.measured or self.figures_in:
            return None
        found = []
        for side, title, kind, value in (
            ("bad", "Refusals", "refusal_rate", self.after.refusals.rate),
            ("bad", "Broken responses", "broken_rate", self.after.broken.rate),
            ("good", "Overrefusals", "refusal_rate", self.after.overrefusals.rate),
            ("good", "First-token KL", "kl_divergence", self.after.kl_divergence),
        ):
            source = (self.sets.get(f"{side}_report_prompts") or self.sets[f"{side}_evaluation_prompts"])["source"]
            found.append(EvalResult("text-generation", source.split()[0], source, kind, value, metric_name=title))
        return found

    def _direction(self) -> str:
        if isinstance(self.trial.parameters, FittedParameters):
            return f"every matrix's own, {self.trial.parameters}"
        direction = self.trial.parameters.direction
        if direction.scope == "per_layer":
            return f"{direction.method}, each layer's own"
        return f"{direction.method}, one for all layers, taken at layer {direction.index:.2f}"


def _snippet(kind: str, base: str, loaded_in: Quantization) -> str:
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


def score_rows(before: Scores, after: Scores) -> Sequence[tuple[str, str, str]]:
    """Return the rows of the before/after table: name, base, edited."""
    return [
        *((title, getattr(before, name).with_interval, getattr(after, name).with_interval) for title, name in COUNTED),
        ("Disclaimer hits", f"{before.disclaimer_hits}", f"{after.disclaimer_hits}"),
        ("Compliance", f"{before.compliance:.2f}", f"{after.compliance:.2f}"),
        ("First-token KL", f"{before.kl_divergence:.4f}", f"{after.kl_divergence:.4f}"),
    ]

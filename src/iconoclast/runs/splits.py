"""The prompt sets of a run: some fit directions, some choose trials, some are examined once."""

from dataclasses import dataclass
from itertools import combinations

from iconoclast.config.schema import FIT_AND_SELECT, PromptSource, Settings, canonical
from iconoclast.documents import Plain
from iconoclast.errors import PromptsError, SettingsError
from iconoclast.evaluation.examination import ExaminedPrompts
from iconoclast.privacy import portable
from iconoclast.prompts import PromptSet, load_prompts


@dataclass(frozen=True)
class Prompts:
    """All prompt sets of a run: fit, select, report. No prompt stands in two of these, unless the settings allow it."""

    benign: PromptSet
    target: PromptSet
    benign_evaluation: PromptSet
    target_evaluation: PromptSet
    benign_report: PromptSet | None = None
    target_report: PromptSet | None = None
    borderline_report: PromptSet | None = None

    @classmethod
    def load(cls, settings: Settings) -> "Prompts":
        """Load all sets that the settings name; the package's prompts bring its report sets unless others are named.

        Raises:
            PromptsError: a set cannot be read, is too small, or shares prompts with one of another purpose.
            SettingsError: one of the two report sets is missing, or a setting names something that is not there.
        """

        def read(source: PromptSource, minimum: int = 1) -> PromptSet:
            return load_prompts(source, settings.system_prompt, minimum)

        report = _report_sources(settings)
        if (report[0] is None) != (report[1] is None):
            raise SettingsError("Give both good_report_prompts and bad_report_prompts, or neither.")
        borderline = settings.borderline_report_prompts
        prompts = cls(
            read(settings.good_prompts, 2),
            read(settings.bad_prompts, 2),
            read(settings.good_evaluation_prompts),
            read(settings.bad_evaluation_prompts),
            *(None if source is None else read(source) for source in (*report, borderline)),
        )
        prompts._check_overlaps(settings.allow_overlap)
        prompts._check_axes(settings.weights_of_axes)
        return prompts

    def named(self) -> dict[str, PromptSet]:
        """Return the sets by the names of their settings."""
        names = {
            "good_prompts": self.benign,
            "bad_prompts": self.target,
            "good_evaluation_prompts": self.benign_evaluation,
            "bad_evaluation_prompts": self.target_evaluation,
            "good_report_prompts": self.benign_report,
            "bad_report_prompts": self.target_report,
            "borderline_report_prompts": self.borderline_report,
        }
        return {name: prompts for name, prompts in names.items() if prompts is not None}

    @property
    def selected(self) -> ExaminedPrompts:
        """The prompts that trials are chosen on."""
        return ExaminedPrompts(self.target_evaluation, self.benign_evaluation, self.borderline_report, "selection")

    @property
    def reported(self) -> ExaminedPrompts:
        """The prompts that are reported on: the report prompts, or the select prompts if there are none."""
        if self.target_report is None or self.benign_report is None:
            return self.selected
        return ExaminedPrompts(self.target_report, self.benign_report, self.borderline_report, "report")

    def document(self) -> Plain:
        """Describe the sets, for JSON."""
        return {
            name: {"source": portable(s.source), "n": len(s), "sha256": s.fingerprint}
            for name, s in self.named().items()
        }

    def overlaps(self, with_report: bool = False) -> dict[str, int]:
        """Count prompts shared by sets of different purposes, by pair; `with_report`: only pairs with a report set."""
        sets = self.named()
        pairs = [(a, b) for a, b in combinations(sets, 2) if a.split("_", 1)[1] != b.split("_", 1)[1]]
        shared = {
            f"{a} and {b}": sets[b].overlap(sets[a])
            for a, b in pairs
            if not with_report or b in ("good_report_prompts", "bad_report_prompts")
        }
        return {pair: count for pair, count in shared.items() if count}

    def _check_overlaps(self, allowed: list[str]) -> None:
        known = Settings.model_fields
        pairs = [frozenset(map(canonical, pair.split(" and "))) for pair in allowed]
        for pair, text in zip(pairs, allowed, strict=True):
            if len(pair) != 2 or not all(name in known and name.endswith("_prompts") for name in pair):
                raise SettingsError(
                    f'allow_overlap names "{text}". Write two prompt sets, as in "good_prompts and good_evaluation_prompts".'
                )
        for pair_text, count in self.overlaps().items():
            if frozenset(pair_text.split(" and ")) not in pairs:
                raise PromptsError(
                    f"{pair_text} share {count} prompt{'s' * (count > 1)}: scores on prompts that fitted or chose an edit "
                    f'flatter it. Take them out of one set, or put "{pair_text}" into the setting allow_overlap.'
                )

    def _check_axes(self, weights: dict[str, float]) -> None:
        axes = {axis for prompt in self.target_evaluation for axis in prompt.axes}
        there = f"they have {', '.join(sorted(axes))}" if axes else "set bad_evaluation_prompts.axis to a column"
        if unknown := [name for name in weights if name not in axes]:
            raise SettingsError(
                f"axis_weights names {unknown[0]}, which is not an axis of bad_evaluation_prompts: {there}."
            )


def _report_sources(settings: Settings) -> tuple[PromptSource | None, PromptSource | None]:
    given = settings.good_report_prompts, settings.bad_report_prompts
    if given != (None, None) or any(
        getattr(settings, name) != Settings.model_fields[name].default for name in FIT_AND_SELECT
    ):
        return given
    benign, target = settings.good_evaluation_prompts, settings.bad_evaluation_prompts
    return benign.model_copy(update={"split": "report"}), target.model_copy(update={"split": "report"})

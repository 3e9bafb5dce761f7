"""Edits of several runs on one base model, one after the other, and how they interfere."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import reduce
from itertools import combinations
from pathlib import Path

from iconoclast.edits.edit import Edit
from iconoclast.errors import ModelError
from iconoclast.models.anatomy import Writer
from iconoclast.models.language_model import LanguageModel
from iconoclast.progress import Progress
from iconoclast.runs.documents import ComposedTrial, Composition, Manifest, Together
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.saved import SavedRun
from iconoclast.runs.trials import trial_document
from iconoclast.runs.workbench import Workbench
from iconoclast.vocabulary import Site


def open_together(runs: Sequence[tuple[Path, str]]) -> SavedRun:
    """Read the trials of runs on one model; the first run has the others beside it.

    Raises:
        RunFolderError: there is no such run or trial.
        ModelError: the runs are of different models.
    """
    saved, *others = [SavedRun.open(RunFolder(run), which) for run, which in runs]
    _require_same_base([RunFolder(run) for run, _ in runs])
    return replace(saved, beside=others)


def _require_same_base(folders: Sequence[RunFolder]) -> None:
    """Raise ModelError if two runs are of models with other weights; runs without a manifest are not told apart."""
    known = [(f.path, Manifest.read(f.manifest).model) for f in folders if f.manifest.is_file()]
    for path, model in known[1:]:
        if model.weights != known[0][1].weights:
            raise ModelError(
                f"{path} is a run of {model.name}, and {known[0][0]} one of {known[0][1].name}: their weights differ. "
                "Only edits of one base model go together."
            )


@dataclass(frozen=True)
class ComposedEdits:
    """Trials of several runs, opened on one model.

    Attributes:
        runs: the runs, in the order in which their edits are applied.
        benches: each run's way to measure, on that model.
        edits: each run's edit.
    """

    runs: Sequence[SavedRun]
    benches: Sequence[Workbench]
    edits: Sequence[Edit]

    @classmethod
    def on(cls, runs: Sequence[SavedRun], bench: Workbench) -> "ComposedEdits":
        """Put the trials of runs on the model of `bench`, that of the first run.

        Raises:
            ModelError: a run is of a model of another shape.
        """
        lm = bench.lm
        if odd := next((s for s in runs if s.directions.basis.shape[:2] != (lm.layers, lm.hidden_size)), None):
            raise ModelError(f"{odd.name} is a trial of a run on another model than {lm.name}: its shape differs.")
        components = list(dict.fromkeys(c for saved in runs for c in saved.settings.components))
        own = [bench, *(_bench(saved, lm) for saved in runs[1:])]
        edits = [each.edit(saved.trial.parameters) for each, saved in zip(own, runs, strict=True)]
        if len(runs) > 1:
            edits = [_named(edit, lm.writers(components)) for edit in edits]
        wider = [replace(each, settings=each.settings.model_copy(update={"components": components})) for each in own]
        return cls(runs, wider, edits)

    @property
    def edit(self) -> Edit:
        """All of them, one after the other."""
        return self._of(range(len(self.edits)))

    def measured(self, progress: Progress) -> Composition | None:
        """Measure every behaviour on its own prompts under each edit alone, each pair, and all; None of a single edit."""
        if len(self.runs) == 1:
            return None
        numbers = range(len(self.runs))
        sets = dict.fromkeys([(), *combinations(numbers, 1), *combinations(numbers, 2), tuple(numbers)])
        edits = [self._of(some) for some in sets]
        by_behaviour = [bench.evaluator("report").measure(edits, progress) for bench in self.benches]
        rows = [
            Together(edits=list(some), scores=[scores[row] for scores in by_behaviour]) for row, some in enumerate(sets)
        ]
        return Composition(trials=[_told(*each) for each in zip(self.runs, self.benches, strict=True)], together=rows)

    def _of(self, some: Sequence[int]) -> Edit:
        return reduce(Edit.followed_by, (self.edits[i] for i in some)) if some else Edit.nothing()


def _bench(saved: SavedRun, lm: LanguageModel) -> Workbench:
    told = saved.settings.template_date
    date = None if told is None else datetime.fromisoformat(told)
    thinks = saved.settings.thinking == "on"
    own = replace(lm, response_prefix=saved.response_prefix, template_date=date, thinking=thinks)
    return Workbench(saved.settings, own, saved.directions)


def _named(edit: Edit, writers: dict[Site, Writer]) -> Edit:
    """Name the sites of an edit as these writers do: finer components take modules out of coarser ones."""
    names = {site.module: site for site in writers}
    return Edit(
        {names[site.module]: direction for site, direction in edit.directions.items()},
        {names[site.module]: strength for site, strength in edit.strengths.items()},
        edit.row_normalization,
        {names[site.module]: reading for site, reading in edit.readings.items()},
    )


def _told(saved: SavedRun, bench: Workbench) -> ComposedTrial:
    return ComposedTrial(
        name=saved.name,
        trial=trial_document(saved.trial),
        row_normalization=saved.settings.row_normalization,
        prompts=bench.prompts.document(),
        split=bench.sample.split,
    )

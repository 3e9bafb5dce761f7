"""The report page of a run."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from iconoclast.documents import Plain
from iconoclast.edits.record import load_edit
from iconoclast.errors import RunFolderError
from iconoclast.goals import Objectives
from iconoclast.privacy import public
from iconoclast.reports.pages import figures
from iconoclast.reports.pages.page import Page, Rows, Section
from iconoclast.reports.pages.parts import prompt_rows, section, setting_rows, shown_name, test_rows, tiles
from iconoclast.reports.pages.responses import exchanges, read_samples
from iconoclast.reports.tables import (
    axes_table,
    examination_rows,
    finalists_table,
    report_lines,
    thinking_table,
)
from iconoclast.runs.documents import Geometry, Manifest, Report, TokenView
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.papers import score_rows
from iconoclast.runs.saved import SavedRun
from iconoclast.runs.trials import best_of, front_of
from iconoclast.scores import Scores
from iconoclast.search.pareto import Trial
from iconoclast.search.space import EditParameters, FittedParameters

ON_SELECTION = "Measured on the select prompts, which chose among the trials and so flatter the one that was chosen."
ON_REPORT = "Measured once, on report prompts that chose nothing."
ON_SEEN = "Measured once, on report prompts, but some of them fitted or chose the trial (allow_overlap)."


@dataclass(frozen=True)
class RunPage:
    """A run, one of its trials, and other runs beside it, on their way to a page."""

    folder: RunFolder
    saved: SavedRun
    beside: Mapping[str, SavedRun]

    @classmethod
    def open(cls, folder: Path, which: str = "best", beside: Iterable[Path] = ()) -> "RunPage":
        """Read the runs; raise RunFolderError if one is missing or damaged, or has no such trial."""
        others = {path.resolve().name: SavedRun.open(RunFolder(path), "best") for path in beside}
        return cls(RunFolder(folder), SavedRun.open(RunFolder(folder), which), others)

    def page(self) -> Page:
        """Return the page."""
        base, edited = self.columns
        report, name = self.report, shown_name(self.saved.settings.model)
        if report is not None:
            rows = list(examination_rows([report.base_metrics, report.metrics]))
            tests = {"": test_rows(report.paired, report.metrics.failing)}
            said, unsaid = exchanges(read_samples(self.folder.samples))
        else:
            rows = [(title, [first, second]) for title, first, second in score_rows(base[1], edited[1])]
            tests, said, unsaid = {}, [], 0
        return Page(
            kind="run",
            title=f"An edit of {name}",
            about=self._about(name),
            tiles=tiles(base[1], edited[1], self.saved.noise_floor, report.paired if report else None),
            measured_on=self._measured_on(),
            models=[base[0], edited[0]],
            scores=rows,
            tests=tests,
            notes=report_lines(report) if report else [],
            sections=list(self._sections()),
            trials=self._trials(),
            exchanges=said,
            unsaid=unsaid,
            origin=self._origin(),
            settings=setting_rows(self.saved.settings),
            commands=self._commands(),
            figures=self.figures(),
        )

    def _sections(self) -> Iterator[Section]:
        """Tables that not every run has: judged finalists, axes, thoughts."""
        if self.saved.finalists is not None:
            yield section("Finalists", finalists_table(self.saved.finalists))
        if self.report is not None and self.report.axes:
            yield section("Axes", axes_table(self.report.axes, self.report.metrics.failing))
        if self.report is not None and self.report.with_thoughts is not None:
            yield section("Thoughts", thinking_table(self.report, self.report.with_thoughts))

    def plots(self) -> dict[str, Page]:
        """Return pages of some figures alone, by file name."""
        name, found = shown_name(self.saved.settings.model), self.figures()
        parts = {
            "residuals.html": ("Residuals", ("layers", "residuals")),
            "trials.html": ("Trials", ("front", "strengths")),
        }
        return {
            file: Page(
                kind="run",
                title=f"{title} of a run on {name}",
                trials=self._trials() if "front" in names else (),
                figures={figure: found.get(figure) for figure in names},
            )
            for file, (title, names) in parts.items()
        }

    @cached_property
    def report(self) -> Report | None:
        """The run's report, if it is of this trial."""
        report = self.saved.report
        return report if report is not None and report.trial == self.saved.trial.index else None

    @cached_property
    def columns(self) -> list[tuple[str, Scores]]:
        """Base model and trial, as examined for the report, or else on the select prompts."""
        name = f"trial {self.saved.trial.index}"
        if self.report is None:
            return [("base model", self.saved.base), (name, self.saved.trial.scores)]
        return [("base model", self.report.base_metrics), (name, self.report.metrics)]

    @property
    def objectives(self) -> Objectives:
        """Objectives of the search."""
        return Objectives(self.saved.settings.objectives)

    @cached_property
    def start(self) -> EditParameters:
        """The searched parameters of the trial, or of the trial that it was fitted from."""
        parameters = self.saved.trial.parameters
        return parameters.start if isinstance(parameters, FittedParameters) else parameters

    def _measured_on(self) -> str:
        if self.report is None or self.report.split == "selection":
            return ON_SELECTION
        return ON_SEEN if self.report.overlap else ON_REPORT

    def _about(self, name: str) -> list[str]:
        saved, chosen = self.saved, self.saved.trial
        fitted = [t for t in saved.trials if isinstance(t.parameters, FittedParameters)]
        searched = len(saved.trials) - len(fitted) + len(saved.pruned)
        sets = {key: saved.prompts.get(key, {}).get("n", "some") for key in ("bad_prompts", "good_prompts")}
        work = (
            f"Directions that separate {sets['bad_prompts']} target prompts from {sets['good_prompts']} benign ones were "
            f"estimated in the residual stream of {name}. {searched} edits along them were tried, {len(saved.pruned)} of "
            "which were pruned because others were certain to beat them."
        )
        if saved.settings.strengthen:
            work += " Their strengths are negative: the edits should make the model refuse more."
        if fitted:
            origin = ", ".join(sorted({str(t.parameters.trial) for t in fitted}))  # type: ignore[union-attr]
            work += (
                f" From trial {origin}, every matrix's direction and strength then followed the gradient; the fitted edit "
                f"was measured at {len(fitted)} scales."
            )
        (_, base), (_, edited) = self.columns
        outcome = (
            f"Trial {chosen.index} ({chosen.parameters}) {self._why_chosen()}. Of {base.failures.n} target prompts the base "
            f"model refused {base.refusals.count} and answered {base.broken.count} with broken text; under the edit, "
            f"{edited.refusals.count} are refused and {edited.broken.count} broken. It refuses {edited.overrefusals} benign "
            f"prompts (the base model {base.overrefusals.count}), and the first token's KL divergence from the base model is {edited.kl_divergence:.4f} nats (noise floor {saved.noise_floor:.2g})."
        )
        return [work, outcome]

    def _why_chosen(self) -> str:
        settings, objectives = self.saved.settings, self.objectives
        target = settings.kl_divergence_target
        best = best_of(self.saved.trials, settings, self.saved.finalists)
        if best is None or best.index != self.saved.trial.index:
            return "was named by whoever made this page; it is not the best trial of the run"
        if self.saved.judged and self.saved.finalists is not None:
            return f"is the best: it has the {self.saved.finalists.rule}"
        kept = "that keep all constraints and are " if settings.constraints and not best.scores.violated else ""
        if not objectives.default:
            rule = objectives.rule(target, best.scores.kl_divergence <= target)
            return f"is the best by the objectives {', '.join(map(str, objectives.all))}: of the front, {rule}"
        return (
            f"is the best: of the trials {kept}within a KL divergence of {target:g} whose failures exceed the fewest by at most "
            "a standard error, it has the fewest overrefusals, then the lowest KL divergence"
        )

    def figures(self) -> Plain:
        """Return the data of all figures."""
        saved, report = self.saved, self.report
        known = Geometry.read(self.folder.geometry) if self.folder.geometry.is_file() else None
        direction = self.start.direction
        found: Plain = {
            "counts": figures.counts(self.columns),
            "front": self._front(),
            "strengths": self._strengths(),
            "fits": self._fits(),
            "layers": figures.layers_of(saved.directions, direction.method, direction.blend, known),
        }
        if self.folder.tokens.is_file() and (view := TokenView.read(self.folder.tokens)).trial == saved.trial.index:
            found["tokens"] = figures.tokens(view, self._sets())
        if known is not None:
            found["residuals"] = figures.residuals(known, self._sets())
        if report is not None:
            columns = [("base model", report.base_metrics), (self.columns[1][0], report.metrics)]
            found["lengths"] = figures.lengths(columns)
            found["axes"] = figures.axes(columns)
            if report.random_control is not None:
                found["control"] = figures.control(report.base_metrics, report.metrics, report.random_control)
        return found

    def _front(self) -> Plain:
        saved = self.saved
        front = {trial.index for trial in front_of(saved.trials, saved.settings)}
        chosen = saved.trial.index
        points = [figures.point("base model", "base", saved.base)]
        points += [
            figures.trial_point(trial, front=trial.index in front, chosen=trial.index == chosen)
            for trial in saved.trials
        ]
        sizes = saved.base.failures.n, saved.base.overrefusals.n
        points += [figures.pruned_point(trial, *sizes) for trial in saved.pruned]
        for name, other in self.beside.items():
            points += [
                {**figures.trial_point(trial, "other"), "name": f"{name}, trial {trial.index}"}
                for trial in other.trials
            ]
        return {
            "points": points,
            **figures.drawn(saved.base, self.objectives),
            "target": saved.settings.kl_divergence_target,
            "noise": saved.noise_floor,
        }

    def _strengths(self) -> Plain:
        """Strengths of every trial; of a fitted one those of its fit, which is read once."""
        layers, fits = self.saved.directions.layers, {}
        trials: Plain = {}
        for trial in self.saved.trials:
            parameters = trial.parameters
            if isinstance(parameters, EditParameters):
                trials[f"trial {trial.index}"] = {"of": figures.profiles(parameters, layers)}
                continue
            file = parameters.file
            if file not in fits and file.is_file():
                fits[file] = figures.strengths(load_edit(file), layers)
            if file in fits:
                start = f"trial {parameters.trial}"
                trials[f"trial {trial.index}"] = {"fit": file.name, "scale": parameters.scale, "start": start}
        of = {file.name: profile for file, profile in fits.items()}
        return {"trials": trials, "fits": of, "shown": f"trial {self.saved.trial.index}", "layers": layers}

    def _fits(self) -> list[Plain]:
        found = {
            t.parameters.file: t.parameters for t in self.saved.trials if isinstance(t.parameters, FittedParameters)
        }
        curves = [(p, _curve(file.with_suffix(".json"))) for file, p in found.items()]
        return [{"title": f"Fitted from trial {p.trial}", "curve": curve} for p, curve in curves if curve]

    def _sets(self) -> dict[str, tuple[str, str]]:
        benign, target = self.saved.settings.good_prompts, self.saved.settings.bad_prompts
        return {
            "benign": (benign.residual_plot_label or "Benign prompts", benign.residual_plot_color or ""),
            "target": (target.residual_plot_label or "Target prompts", target.residual_plot_color or ""),
        }

    def _trials(self) -> Sequence[Sequence[str]]:
        front = {trial.index for trial in front_of(self.saved.trials, self.saved.settings)}
        head = ["Trial", "Refused", "Broken", "Overrefused", "KL", "Front", "Direction"]
        return [head, *(_trial_cells(trial, trial.index in front) for trial in self.saved.trials)]

    def _origin(self) -> dict[str, Rows]:
        groups: dict[str, Rows] = {"Prompt sets": prompt_rows(self.saved.prompts)}
        if not self.folder.manifest.is_file():
            return groups
        made = Manifest.read(self.folder.manifest)
        model, start = made.model, made.starts[-1]
        groups["Model"] = [
            ("Name", [shown_name(model.name), model.revision or "", model.architecture]),
            ("Numbers", [model.dtype, "" if model.quantization == "none" else model.quantization, ""]),
            *((str(public(name)), [f"SHA-256 {sha[:16]}…", "", ""]) for name, sha in model.weights.items()),
        ]
        program = f"ICONOCLAST {start.iconoclast.version}"
        machine = start.hardware
        groups["Made by"] = [
            ("Program", [program, f"commit {start.iconoclast.commit[:12]}" if start.iconoclast.commit else "", ""]),
            (
                "Begun",
                [made.starts[0].at, f"{len(made.starts)} start{'s' * (len(made.starts) > 1)}", f"seed {made.seed}"],
            ),
            ("Machine", [machine.system, ", ".join(machine.gpus) or machine.processor, f"Python {start.python}"]),
            *((name, [version, "", ""]) for name, version in start.packages.items()),
        ]
        return groups

    def _commands(self) -> list[tuple[str, str]]:
        which = self.saved.trial.index
        return [
            ("the same run again, from the settings in its folder", "iconoclast run --config RUN/iconoclast_config.toml --out FOLDER"),
            ("this trial measured again, and what has changed since", f"iconoclast replay RUN:{which}"),
            ("a conversation with the edited model", f"iconoclast chat RUN:{which}"),
            ("the edit as an adapter", f"iconoclast export RUN:{which} --format adapter --to FOLDER"),
        ]  # fmt: skip


def _trial_cells(trial: Trial, front: bool) -> list[str]:
    s = trial.scores
    counts = [str(s.refusals), str(s.broken), str(s.overrefusals)]
    return [str(trial.index), *counts, f"{s.kl_divergence:.4f}", "yes" * front, str(trial.parameters)]


def _curve(file: Path) -> list[dict[str, float]]:
    """Losses of every step; nothing if they were not kept."""
    try:
        steps = json.loads(file.read_bytes())
        return [{name: figures.rounded(float(value)) for name, value in step.items()} for step in steps]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, AttributeError) as error:
        raise RunFolderError(f"{file} is damaged: {error}. Restore it from a copy, or delete it.") from None

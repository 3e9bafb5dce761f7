"""Many runs in one table: batch summaries → rows → JSON, Markdown, terminal; and the runs of two tools side by side.

Imports neither torch nor anything that does: a table of results must not take seconds.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator
from rich import box
from rich.table import Table

from iconoclast import __version__
from iconoclast.errors import RunFolderError
from iconoclast.evaluation.statistics import Count, Mean
from iconoclast.reports.text import plain

SCHEMA_VERSION = 1
"""Newest schema of batch_summary.json that is read here; also that of the JSON written here."""

SUMMARY = "batch_summary.json"
EXPORT_MARK = "trial_information.json"
"""A folder with this file is an export: no run is looked for in it."""

OURS, PEER = "iconoclast", "heretic"

Split = Literal["report", "selection"]
PROMPT_SETS = {
    "report": ("bad_report_prompts", "good_report_prompts"),
    "selection": ("bad_evaluation_prompts", "good_evaluation_prompts"),
}


def _counted(count: Count) -> Count:
    if not 0 <= count.count <= count.n:
        raise ValueError("no count of n")
    return count


Counted = Annotated[Count, AfterValidator(_counted)]


class _Part(BaseModel):
    """A part of a summary; what this table does not show is not looked at."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class Measured(_Part):
    """What was measured of a model or an edit: the part of `Scores.as_dict()` that is shown here."""

    refusals: Counted
    overrefusals: Counted
    kl_divergence: float
    first_token_kl: Mean | None = None
    broken: Counted | None = None

    def key(self, broken: bool, over: bool) -> tuple[int, int]:
        """What edits are ordered by before their KL divergence: refused (or broken), then overrefused, if those count."""
        return self.refusals.count + (
            self.broken.count if broken and self.broken else 0
        ), self.overrefusals.count * over

    def document(self) -> dict[str, Any]:
        """For JSON."""
        counts = {"refusals": self.refusals, "overrefusals": self.overrefusals, "broken": self.broken}
        return {
            **{name: count.as_dict() for name, count in counts.items() if count is not None},
            "kl_divergence": self.kl_divergence,
            **({} if self.first_token_kl is None else {"first_token_kl": self.first_token_kl.as_dict()}),
        }


class MeasuredTrial(Measured):
    """A trial of the Pareto front."""

    index: int


class Report(_Part):
    """A trial and the base model, measured once when the search was over."""

    trial: int
    split: Split = "report"
    base_metrics: Measured
    metrics: Measured


class PromptsUsed(_Part):
    """Which prompts a set held."""

    sha256: str | None = None


class _Schema(_Part):
    schema_version: int


class Summary(_Schema):
    """What is read of a batch_summary.json."""

    model: str
    status: str
    completed_trials: int
    base_metrics: Measured
    best_trial: int | None
    pareto_trials: list[MeasuredTrial]
    tool: str = OURS
    iconoclast_version: str | None = None
    heretic_version: str | None = None
    seed: int | None = None
    pruned_trials: int = 0
    kl_noise_floor: float = 0.0
    prompts: Mapping[str, PromptsUsed] = {}
    report: Report | None = None
    overlap: Mapping[str, int] = {}
    folder: str = ""
    """Name of the run's folder, which the file does not say."""

    @property
    def name(self) -> str:
        """A hub id as it is; of a path its last part, so that nothing of the author's folders is told."""
        if re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", self.model):
            return self.model
        last = re.split(r"[/\\]", self.model.rstrip("/\\"))[-1]
        return " ".join(last.split()) or self.model

    @property
    def version(self) -> str | None:
        """Of the tool."""
        return {OURS: self.iconoclast_version, PEER: self.heretic_version}.get(self.tool)

    @property
    def split(self) -> Split:
        """The prompts that the figures are of: those of the report, if it is of the best trial."""
        return self.report.split if self.report and self.report.trial == self.best_trial else "selection"

    def seen(self, split: Split) -> dict[str, int]:
        """Pairs of prompt sets through which prompts of a report split have fitted or chosen the trial, and how many."""
        if split != "report":
            return {}
        return {pair: n for pair, n in self.overlap.items() if pair.split(" and ")[-1] in PROMPT_SETS["report"]}

    def base(self, split: Split) -> Measured:
        """The base model."""
        report = self._report_on(split)
        return report.base_metrics if report else self.base_metrics

    def best(self, split: Split) -> Measured | None:
        """The best trial; None if no trial is completed."""
        report = self._report_on(split)
        return report.metrics if report else self._trial()

    def _report_on(self, split: Split) -> Report | None:
        report = self.report
        return report if report and report.trial == self.best_trial and report.split == split else None

    def _trial(self) -> MeasuredTrial | None:
        return next((trial for trial in self.pareto_trials if trial.index == self.best_trial), None)

    @model_validator(mode="after")
    def _has_its_best_trial(self) -> "Summary":
        if self.best_trial is not None and self._trial() is None:
            raise ValueError(f"the best trial {self.best_trial} is not among the pareto_trials")
        return self

    def fingerprints(self, split: Split) -> list[str | None]:
        """SHA-256 of the prompt sets of a split, as far as they are known."""
        return [self.prompts.get(name, PromptsUsed()).sha256 for name in PROMPT_SETS[split]]


def find_summaries(path: Path) -> list[Path]:
    """The batch summaries that a path means: the file itself, or all below a folder except in exports.

    Raises:
        RunFolderError: there is none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise RunFolderError(f"{path} does not exist. Give a {SUMMARY}, a run folder, or a folder of run folders.")
    if (path / EXPORT_MARK).is_file():
        raise RunFolderError(f"{path} is an export. Give the run folder that it was made from.")
    found = sorted(_below(path))
    if not found:
        raise RunFolderError(f"There is no {SUMMARY} in {path} or below. Give a folder that holds runs.")
    return found


def _below(folder: Path) -> Iterator[Path]:
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "." and not Path(where, name, EXPORT_MARK).is_file()]
        if SUMMARY in files:
            yield Path(where, SUMMARY)


def read_summary(file: Path) -> Summary:
    """Read one batch summary.

    Raises:
        RunFolderError: it cannot be read, is damaged, is something else, or comes from a newer version.
    """
    try:
        content = file.read_bytes()
        version = _Schema.model_validate_json(content).schema_version
        if version > SCHEMA_VERSION:
            raise RunFolderError(
                f"{file} has schema version {version}; this version of iconoclast reads up to {SCHEMA_VERSION}. Update iconoclast."
            )
        summary = Summary.model_validate_json(content)
    except OSError as error:
        raise RunFolderError(f"{file} cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise RunFolderError(
            f"{file} is damaged or no batch summary: {where}{': ' * bool(where)}{problem['msg']}."
        ) from None
    return summary.model_copy(update={"folder": file.resolve().parent.name})


def read_summaries(paths: Iterable[Path]) -> tuple[list[Summary], list[str]]:
    """All summaries that the paths mean, each once and in the order of the table; and what was wrong with the others."""
    files: dict[Path, Path] = {}
    summaries: list[Summary] = []
    problems: list[str] = []
    for path in paths:
        try:
            files |= {file.resolve(): file for file in find_summaries(path)}
        except RunFolderError as error:
            problems.append(str(error))
    for file in files.values():
        try:
            summaries.append(read_summary(file))
        except RunFolderError as error:
            problems.append(str(error))
    return sorted(summaries, key=_place), problems


def _place(summary: Summary) -> tuple[str, str, bool, str, int]:
    seed = -1 if summary.seed is None else summary.seed
    return summary.name.casefold(), summary.name, summary.tool != OURS, summary.tool, seed


@dataclass(frozen=True)
class Match:
    """A run of ICONOCLAST and a run of heretic that edited the same model and were measured on the same prompts."""

    ours: Summary
    peer: Summary

    @property
    def split(self) -> Split:
        """The prompts that both were measured on."""
        return "report" if self.ours.split == self.peer.split == "report" else "selection"

    @property
    def scores(self) -> dict[str, Measured]:
        """Both best trials, by tool."""
        best = {OURS: self.ours.best(self.split), PEER: self.peer.best(self.split)}
        return {tool: scores for tool, scores in best.items() if scores is not None}

    @property
    def problem(self) -> str | None:
        """Why the two cannot be compared."""
        if len(self.scores) < 2:
            return "a run has no completed trial"
        ours, peer = self.scores.values()
        over = {scores.overrefusals.n for scores in (ours, peer)} - {0}
        known = zip(self.ours.fingerprints(self.split), self.peer.fingerprints(self.split), strict=True)
        if ours.refusals.n != peer.refusals.n or len(over) > 1 or any(a and b and a != b for a, b in known):
            return f"the {self.split} prompts differ"
        return None

    @property
    def keys(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """What both are ordered by before their KL divergence: refused or broken, then overrefused, as far as both looked."""
        ours, peer = self.scores.values()
        broken = all(scores.broken is not None and scores.broken.n for scores in (ours, peer))
        over = bool(ours.overrefusals.n and peer.overrefusals.n)
        return ours.key(broken, over), peer.key(broken, over)

    @property
    def lower_kl(self) -> str | None:
        """The tool with the lower KL divergence; None if they differ by less than the noise of the measurement."""
        ours, peer = (scores.kl_divergence for scores in self.scores.values())
        if abs(ours - peer) <= max(self.ours.kl_noise_floor, self.peer.kl_noise_floor):
            return None
        return OURS if ours < peer else PEER

    @property
    def winner(self) -> str | None:
        """The tool with fewer failures, then fewer overrefusals, then the lower KL divergence; None if they are equal."""
        ours, peer = self.keys
        return self.lower_kl if ours == peer else OURS if ours < peer else PEER

    def document(self) -> dict[str, Any]:
        """For JSON."""
        seeds = {"seed": self.ours.seed, "heretic_seed": self.peer.seed}
        scores = {tool: scores.document() for tool, scores in self.scores.items()}
        verdict = {"winner": self.winner, "lower_kl": self.lower_kl}
        return {"model": self.ours.name, **seeds, "prompts": self.split, **scores, **verdict}


@dataclass(frozen=True)
class Contest:
    """All matches, and why other runs of the same models were not matched."""

    matches: Sequence[Match] = ()
    unmatched: Sequence[str] = ()

    @property
    def wins(self) -> Count:
        """Matches that ICONOCLAST wins."""
        return self._count(match.winner == OURS for match in self.matches)

    @property
    def ties(self) -> Count:
        """Matches that nobody wins."""
        return self._count(match.winner is None for match in self.matches)

    @property
    def lower_kl(self) -> Count:
        """Matches in which ICONOCLAST has the lower KL divergence."""
        return self._count(match.lower_kl == OURS for match in self.matches)

    def _count(self, those: Iterable[bool]) -> Count:
        return Count(sum(those), len(self.matches))

    def lines(self) -> list[str]:
        """What came out, in words."""
        if not self.matches:
            return list(self.unmatched)
        return [
            f"ICONOCLAST wins {self.wins.with_interval}, {self.ties.count} tied; lower KL in {self.lower_kl.with_interval}. "
            "Fewer refused or broken responses win, then fewer overrefusals, then the lower KL; KL within the noise floor is equal, "
            "and what only one of the tools has counted is left out.",
            *self.unmatched,
        ]

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "matches": [match.document() for match in self.matches],
            "iconoclast_wins": self.wins.as_dict(),
            "ties": self.ties.as_dict(),
            "iconoclast_lower_kl": self.lower_kl.as_dict(),
            "unmatched": list(self.unmatched),
        }


def contest(summaries: Sequence[Summary]) -> Contest:
    """Match the runs of ICONOCLAST and heretic: one of each a model, or, where there are more, those with the same seed."""
    matches: list[Match] = []
    unmatched: list[str] = []
    for name in dict.fromkeys(summary.name for summary in summaries):
        ours, peers = ([s for s in summaries if s.name == name and s.tool == tool] for tool in (OURS, PEER))
        if not ours or not peers:
            continue
        pairs = _pairs(ours, peers)
        if alone := len(ours) + len(peers) - 2 * len(pairs):
            unmatched.append(
                f"{name}: {alone} run{'s' * (alone > 1)} not matched: not one run of each tool with that seed."
            )
        for match in pairs:
            if match.problem is None:
                matches.append(match)
            else:
                unmatched.append(f"{name}: not matched: {match.problem}.")
    return Contest(matches, unmatched)


def _pairs(ours: Sequence[Summary], peers: Sequence[Summary]) -> list[Match]:
    if len(ours) == len(peers) == 1:
        return [Match(ours[0], peers[0])]
    by_seed = [_alone_with_their_seed(runs) for runs in (ours, peers)]
    return [Match(run, by_seed[1][seed]) for seed, run in by_seed[0].items() if seed in by_seed[1]]


def _alone_with_their_seed(runs: Sequence[Summary]) -> dict[int | None, Summary]:
    seeds = Counter(run.seed for run in runs)
    return {run.seed: run for run in runs if seeds[run.seed] == 1}


def summary_document(summaries: Sequence[Summary]) -> dict[str, Any]:
    """The table and the contest, for JSON; `contest` is None if no model was edited by both tools."""
    result = contest(summaries)
    return {
        "schema_version": SCHEMA_VERSION,
        "iconoclast_version": __version__,
        "runs": [_run_document(summary) for summary in summaries],
        "contest": result.document() if result.matches or result.unmatched else None,
    }


def _run_document(summary: Summary) -> dict[str, Any]:
    best = summary.best(summary.split)
    return {
        "model": summary.name,
        "run": summary.folder,
        "tool": summary.tool,
        "version": summary.version,
        "seed": summary.seed,
        "status": summary.status,
        "completed_trials": summary.completed_trials,
        "pruned_trials": summary.pruned_trials,
        "prompts": summary.split,
        "prompts_seen": summary.seen(summary.split),
        "trial": summary.best_trial,
        "base": summary.base(summary.split).document(),
        "best": None if best is None else best.document(),
    }


Cells = list[dict[str, str]]
"""A table: every row has the same columns."""


def run_cells(summaries: Sequence[Summary]) -> Cells:
    """A row for every run."""
    return _without_empty([_run_row(summary) for summary in summaries])


def match_cells(result: Contest) -> Cells:
    """Two rows for every match."""
    rows = [
        {
            "Model": match.ours.name,
            "Tool": _tool(run),
            "Seed": _text(run.seed),
            "Prompts": _prompts(match.split, run),
            **_best_cells(match.scores[run.tool]),
            "Wins": "yes" * (match.winner == run.tool),
            "Lower KL": "yes" * (match.lower_kl == run.tool),
        }
        for match in result.matches
        for run in (match.ours, match.peer)
    ]
    return _without_empty(rows)


def _run_row(summary: Summary) -> dict[str, str]:
    base = summary.base(summary.split)
    return {
        "Model": summary.name,
        "Run": summary.folder,
        "Tool": _tool(summary),
        "Seed": _text(summary.seed),
        "Status": summary.status,
        "Trials": f"{summary.completed_trials} + {summary.pruned_trials} pruned",
        "Prompts": _prompts(summary.split, summary),
        "Base refusals": str(base.refusals) if base.refusals.n else "",
        "Base overrefusals": str(base.overrefusals) if base.overrefusals.n else "",
        **_best_cells(summary.best(summary.split)),
    }


def _best_cells(best: Measured | None) -> dict[str, str]:
    if best is None:
        return dict.fromkeys(("Refusals", "Overrefusals", "KL", "Broken"), "")
    kl = f"{best.kl_divergence:.4f}"
    if best.first_token_kl is not None:
        kl += " ({:.4f} to {:.4f})".format(*best.first_token_kl.interval)
    return {
        "Refusals": best.refusals.with_interval,
        "Overrefusals": best.overrefusals.with_interval if best.overrefusals.n else "",
        "KL": kl,
        "Broken": best.broken.with_interval if best.broken and best.broken.n else "",
    }


def _prompts(split: Split, summary: Summary) -> str:
    return f"{split}, some of them seen" if summary.seen(split) else split


def _tool(summary: Summary) -> str:
    return f"{summary.tool} {summary.version or ''}".strip()


def _text(value: int | None) -> str:
    return "" if value is None else str(value)


def _without_empty(rows: Cells) -> Cells:
    """Without the columns that not every run has, if no run has them."""
    empty = {name for name in ("Broken", "Seed") if not any(row[name] for row in rows)}
    return [{name: cell for name, cell in row.items() if name not in empty} for row in rows]


RUNS_TITLE = "Runs: the base model, and the best trial with 95 % intervals"
CONTEST_TITLE = "ICONOCLAST and heretic on the same models"


def summary_markdown(summaries: Sequence[Summary]) -> str:
    """The table and the contest as a Markdown document."""
    result = contest(summaries)
    parts = [f"## {RUNS_TITLE}", _markdown_table(run_cells(summaries))]
    if result.matches or result.unmatched:
        parts += [f"## {CONTEST_TITLE}", _markdown_table(match_cells(result)), *map(_escaped, result.lines())]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary_tables(summaries: Sequence[Summary]) -> tuple[list[Table], list[str]]:
    """The table and the contest for the terminal, and the lines below them."""
    result = contest(summaries)
    tables = {RUNS_TITLE: run_cells(summaries), CONTEST_TITLE: match_cells(result)}
    return [_terminal_table(title, rows) for title, rows in tables.items() if rows], result.lines()


def _markdown_table(rows: Cells) -> str:
    if not rows:
        return ""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([_escaped(cell) for cell in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, in one line and one cell."""
    visible = "".join(c if c.isprintable() else "�" for c in " ".join(text.split()))
    return re.sub(r"([\\`*_\[\]<>|&~$])", r"\\\1", visible)


def _terminal_table(title: str, rows: Cells) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(plain, row.values()))
    return table

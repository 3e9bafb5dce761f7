"""Models measured and shown beside a base, for several commands; imports torch, so they import it when called."""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from iconoclast.cli.console import out, say, shown_progress
from iconoclast.config.layers import load_settings, secret
from iconoclast.config.schema import Settings
from iconoclast.errors import RunFolderError, SettingsError
from iconoclast.evaluation.intervals import CHANCE
from iconoclast.evaluation.served import Server
from iconoclast.layout import COMPARISON, COMPARISON_SUMMARY
from iconoclast.reports.tables import caveats, examinations_table, samples_table
from iconoclast.runs.comparison import Comparison, compare, settings_for
from iconoclast.runs.documents import ComparisonDocument, ComparisonSummary, Pair
from iconoclast.runs.new_folder import require_free
from iconoclast.runs.subjects import ServerSubject, Subject, find_subject
from iconoclast.vocabulary import Thinking

SPLITS = {
    "report": "Report prompts: they chose nothing",
    "seen": "Report prompts of the settings; whether they are new to all models is said below",
    "selection": "Select prompts of the settings: they may have chosen what is measured here",
}

ADVANTAGES = {
    "overrefusals": "fewer overrefusals",
    "kl_divergence": "lower first-token KL",
}


def understood(names: Sequence[str], config: Path | None) -> tuple[list[Subject], Settings]:
    """Find the subjects that the user names and their settings; raise UserError if either is unknown."""
    own = settings_from(config, [] if config else [find_subject(name) for name in names])
    return [find_subject(name, own) for name in names], own


def settings_from(config: Path | None, subjects: Sequence[Subject]) -> Settings:
    """Return the settings of a file, or else of the subjects; raise UserError if there are none."""
    return load_settings({}, config).settings if config else settings_for(subjects)


def served(url: str, model: str | None, key_variable: str | None) -> Subject:
    """Find a served model, with the key in an environment variable; raise UserError if it cannot be asked."""
    return ServerSubject(Server.find(url, model, secret(key_variable) if key_variable else None))


def by_thinking(settings: Settings, asked: str | None) -> list[Settings]:
    """Return the settings of every measurement: without thoughts, with them, or both in this order.

    Raises:
        SettingsError: what is asked for is not one of these.
    """
    own, wanted = settings.thinking, settings.thinking if asked is None else asked
    if wanted not in get_args(Thinking):
        raise SettingsError(f'--thinking "{wanted}" is not one of {", ".join(get_args(Thinking))}.')
    found = []
    for mode in ("off", "on") if wanted == "both" else (wanted,):
        same = (mode == "on") == (own == "on")  # else the start of responses is another
        prefix = settings.response_prefix if same else None
        found.append(settings.model_copy(update={"thinking": mode, "response_prefix": prefix}))
    return found


def shown(
    subjects: Sequence[Subject], settings: Settings, against: str | None, sample_count: int
) -> ComparisonDocument:
    """Measure all subjects beside their base, and print the outcome."""
    with shown_progress() as progress:
        comparison = compare(subjects, settings, against, progress)
    return presented(comparison, sample_count)


def presented(comparison: Comparison, sample_count: int = 0) -> ComparisonDocument:
    """Print the outcome of a comparison, and return it for JSON."""
    document = comparison.document(sample_count)
    _print(comparison, document, sample_count)
    return document


def _print(comparison: Comparison, document: ComparisonDocument, sample_count: int) -> None:
    columns = [("base model", document.base_metrics), *((s.name, s.metrics) for s in document.subjects)]
    split, warnings = comparison.sample.split, list(filter(None, (s.seen.said(s.name) for s in document.subjects)))
    about = SPLITS["seen" if warnings and split == "report" else split]
    thinking = "; thinking first" if document.base_metrics.thoughts else ""
    title = f"{about}{thinking} ({len(comparison.sample.target)} target, {len(comparison.sample.benign)} benign)"
    out.print(examinations_table(title, columns))
    for subject in document.subjects:
        failures = subject.against_base.failures
        say(
            f"{subject.name} against its base, {subject.metrics.failing}: {failures.only_before} only the base, "
            f"{failures.only_after} only the edit (p = {failures.p_value:.2g}, exact McNemar test).",
            *(f"{subject.name}: {caveat}." for caveat in subject.caveats or []),
        )
    say(*warnings, *(line for name, metrics in columns for line in caveats(name, metrics)))
    for pair in document.pairs:
        say(*_pair_lines(pair, document.base_metrics.failing))
    say(f"KL differences below the noise floor of {comparison.noise_floor:.2g} mean nothing.")
    if sample_count:
        rows = [row for row in comparison.samples(sample_count) if row.set == "target"]
        texts = [(name, [row.responses[name].response for row in rows]) for name in rows[0].responses]
        out.print(samples_table([row.prompt for row in rows], texts))


def _pair_lines(pair: Pair, failing: str) -> list[str]:
    better, decided_by, p = pair.verdict.better, pair.verdict.decided_by, pair.verdict.p_value
    chance = "" if p is None else f", p = {p:.2g}" + ("; that can be chance" if p >= CHANCE else "")
    failures, divergence = pair.paired.failures, pair.paired.token_kl
    low, high = divergence.interval
    advantage = f"fewer {failing}" if decided_by == "failures" else ADVANTAGES.get(decided_by or "", "")
    outcome = f"{better} is better ({advantage}{chance})." if better else "equal."
    return [
        f"{pair.first} and {pair.second}: {outcome}",
        f"  {failing.capitalize()}: {failures.only_before} only the first, {failures.only_after} only the second "
        f"(p = {failures.p_value:.2g}). KL over tokens, second less first: {divergence.value:+.4f} ({low:+.4f} to {high:+.4f}, "
        f"p = {divergence.p_value:.2g}, bootstrap).",
    ]


def write_comparison(document: ComparisonDocument, to: Path) -> None:
    """Write comparison.json (all measurements and samples) and summary.json (trials and verdicts)."""
    document.write(to / COMPARISON)
    ComparisonSummary.of(document).write(to / COMPARISON_SUMMARY)
    say(f"Wrote {to / COMPARISON} and {to / COMPARISON_SUMMARY}")


def make_folder(to: Path) -> None:
    """Make a free folder before a long measurement; raise RunFolderError if it is in use or cannot be written."""
    require_free(to)
    try:
        to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"The folder {to} cannot be written: {error.strerror}.") from None

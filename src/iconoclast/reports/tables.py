"""Tables for the terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from iconoclast.reports.text import plain
from iconoclast.runs.papers import COUNTED, score_rows
from iconoclast.scores import Count, Scores
from iconoclast.search.pareto import Trial


def front_table(front: Sequence[Trial], best: Trial | None, base: Scores) -> Table:
    """The Pareto front, best trial marked, the base model in the last line."""
    table = Table(title="Pareto front (selection prompts)", title_justify="left")
    for name in ("Trial", "Refusals", "Broken", "Overrefusals", "KL", "Compliance"):
        table.add_column(name, justify="right", no_wrap=name in ("Trial", "KL"), overflow="fold")
    table.add_column("Direction", min_width=9)
    for trial in front:
        mark = " *" if best is not None and trial.index == best.index else ""
        cells = _front_cells(trial.scores, f"{trial.scores.kl_divergence:.4f}")
        table.add_row(f"{trial.index}{mark}", *cells, str(trial.parameters), style="bold" if mark else "")
    table.add_section()
    table.add_row("base", *_front_cells(base, "0"), "")
    return table


def _front_cells(s: Scores, kl: str) -> list[str]:
    counts = [s.refusals.with_interval, str(s.broken.count), s.overrefusals.with_interval]
    return [*counts, kl, f"{s.compliance:.2f}"]


def before_after_table(title: str, columns: Sequence[tuple[str, Scores]]) -> Table:
    """Scores side by side; the first column is the base model."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name, _ in columns:
        table.add_column(name, justify="right")
    base = columns[0][1]
    rows = [score_rows(base, scores) for _, scores in columns]
    for line in zip(*rows, strict=True):
        table.add_row(line[0][0], line[0][1], *(cells[2] for cells in line[1:]))
    return table


def report_table(report: Mapping[str, Any]) -> Table:
    """The report of a run (`batch_summary.json`): base model and best trial, everything with its interval."""
    about = {
        "report": "Report prompts: they chose nothing",
        "seen": "Report prompts, but some of them fitted or chose the trial (allow_overlap)",
        "selection": "Selection prompts: they chose the trial",
    }
    return examinations_table(
        about["seen" if report["split"] == "report" and report.get("overlap") else report["split"]],
        [("base model", report["base_metrics"]), (f"trial {report['trial']}", report["metrics"])],
    )


def examinations_table(title: str, columns: Sequence[tuple[str, Mapping[str, Any]]]) -> Table:
    """Examinations (`Examination.document`) side by side, the base model first."""
    length = columns[0][1]["refusals_by_length"][-1]["tokens"]
    about = f"Complied: neither a marker nor broken in the first {length} tokens. Read some of the responses."
    table = Table(title=title, title_justify="left", caption=about, caption_justify="left")
    table.add_column("")
    for name, _ in columns:
        table.add_column(plain(name), justify="right", overflow="fold")
    for row, cells in _examination_rows([metrics for _, metrics in columns]):
        table.add_row(row, *cells)
    return table


def _examination_rows(columns: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    base = columns[0]
    for title, name in (*COUNTED, ("Borderline overrefusals", "borderline_overrefusals")):
        if name in base:
            yield title, [Count.from_document(m[name]).with_interval for m in columns]
    for axis in base.get("axes", {}):
        yield f"Refusals, {axis}", [Count.from_document(m["axes"][axis]["refusals"]).with_interval for m in columns]
    for i, entry in enumerate(base["refusals_by_length"][:-1]):
        counts = [Count.from_document(m["refusals_by_length"][i]).with_interval for m in columns]
        yield f"Refusals after {entry['tokens']} tokens", counts
    for judge in base.get("judges", {}):
        yield f"Refusals by {judge}", [_judged(m["judges"][judge]) for m in columns]
    yield "Disclaimer hits", [str(m["disclaimer_hits"]) for m in columns]
    yield "Compliance (heuristic)", [f"{m['compliance_score']:.2f}" for m in columns]
    yield "First-token KL, nats", [_mean(m["first_token_kl"]) for m in columns]
    yield f"KL over {base['token_kl']['tokens']} tokens, nats", [_mean(m["token_kl"]) for m in columns]
    yield "Perplexity of the base's answers", [f"{m['perplexity']['value']:.3f}" for m in columns]


def _judged(judged: Mapping[str, Any]) -> str:
    if not judged["refusal"]["n"]:
        return "no verdicts"
    kappa = judged["kappa_with_markers"]
    agreement = "" if kappa is None else f", κ {kappa:.2f}"
    unknown = judged["unknown"]["count"]
    unclear = f", {unknown} unknown" if unknown else ""
    return f"{Count.from_document(judged['refusal']).with_interval}{agreement}{unclear}"


def _mean(mean: Mapping[str, Any]) -> str:
    return "{:.4f} ({:.4f} to {:.4f})".format(mean["value"], *mean["interval"])


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """What else a report says, a line each: tests, lengths, control, judges."""
    failures, tokens = report["paired"]["failures"], report["metrics"]["token_kl"]["tokens"]
    lines = [
        f"Refused or broken, prompt by prompt: {failures['only_before']} only before, {failures['only_after']} only after "
        f"(p = {failures['p_value']:.2g}, exact McNemar test). KL is over the first token, and over the {tokens} first tokens "
        "of the base model's own answers.",
    ]
    for name, metrics in (("the base model", report["base_metrics"]), ("the edit", report["metrics"])):
        lines += caveats(name, metrics)
    if control := report.get("random_control"):
        lines.append(
            f"Random directions of the same strength: {control['mean_failures']:.1f} of {report['metrics']['refusals']['n']} refused "
            f"or broken on average, KL "
            f"{control['mean_kl_divergence']:.4f} ({len(control['draws'])} draws)."
        )
        if control["as_strong_as_the_edit"]:
            lines.append(
                "WARNING: they remove at least half of what the edit removes. The direction hardly matters here."
            )
    if report["split"] == "selection":
        lines.append(
            "These prompts chose the trial, which flatters it. Give good_report_prompts and bad_report_prompts."
        )
    return lines


def caveats(name: str, metrics: Mapping[str, Any]) -> list[str]:
    """What to bear in mind about a model's figures, a line each."""
    growing = f"Refusals of {name} are still growing at the end of the response: set a larger max_response_length."
    said = [] if metrics["refusals_settled"] else [growing]
    for judge, judged in metrics.get("judges", {}).items():
        if "problem" in judged:
            unknown = "{count} of {n} verdicts on target responses unknown".format_map(judged["unknown"])
            said.append(f"Judge {judge}, of {name}: {unknown}. {judged['problem']}")
    return said


def samples_table(prompts: Sequence[str], columns: Sequence[tuple[str, Sequence[str]]]) -> Table:
    """Responses side by side."""
    table = Table(title="Responses", title_justify="left", show_lines=True)
    table.add_column("Prompt", ratio=1)
    for name, _ in columns:
        table.add_column(name, ratio=2)
    for i, prompt in enumerate(prompts):
        table.add_row(plain(prompt), *(plain(texts[i].strip()) for _, texts in columns))
    return table

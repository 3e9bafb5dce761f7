"""Tables for the terminal."""

from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table

from iconoclast.evaluation.metrics import Judged, Metrics
from iconoclast.goals import Objectives, estimate
from iconoclast.reports.text import plain
from iconoclast.runs.documents import AxisCarried, Composition, Finalists, Report, WithThoughts
from iconoclast.runs.papers import COUNTED, FILE_COLUMNS, file_rows, score_rows, together_rows
from iconoclast.scores import Scores
from iconoclast.search.pareto import BY_DEFAULT, Trial

UNSPECIFIC = "remove at least half of what the edit removes"


def front_table(front: Sequence[Trial], best: Trial | None, base: Scores, objectives: Objectives = BY_DEFAULT) -> Table:
    """Tabulate the Pareto front, best trial marked, base model in the last line; other objectives than the default first."""
    own = [] if objectives.default else [str(each) for each in objectives.all]
    about = "select prompts" + (f"; objectives: {', '.join(own)}" if own else "")
    table = Table(title=f"Pareto front ({about})", title_justify="left")
    for name in ("Trial", *own, "Refusals", "Broken", "Overrefusals", "KL", *([] if own else ["Compliance"])):
        table.add_column(name, justify="right", no_wrap=name in ("Trial", "KL"), overflow="fold")
    table.add_column("Direction", min_width=9)
    for trial in front:
        mark = " *" if best is not None and trial.index == best.index else ""
        cells = _front_cells(trial.scores, f"{trial.scores.kl_divergence:.4f}", objectives)
        table.add_row(f"{trial.index}{mark}", *cells, str(trial.parameters), style="bold" if mark else "")
    table.add_section()
    table.add_row("base", *_front_cells(base, "0", objectives), "")
    return table


def _front_cells(s: Scores, kl: str, objectives: Objectives) -> list[str]:
    if not objectives.default:
        values = [value for _, value in objectives.shown(s)]
        return [*values, str(s.refusals), str(s.broken.count), str(s.overrefusals), kl]
    counts = [s.refusals.with_interval, str(s.broken.count), s.overrefusals.with_interval]
    return [*counts, kl, f"{s.compliance:.2f}"]


def finalists_table(judged: Finalists) -> Table:
    """Tabulate what judges chose among, and how far each agrees with the markers."""
    numbers = {judge: str(number) for number, judge in enumerate(judged.finalists[0].judges, 1)}
    about = [
        "By judges: failures to any of them, or unknown. κ: a judge's agreement with the markers on what is a refusal.",
        *(f"Judge {number}: {plain(judge)}" for judge, number in numbers.items()),
    ]
    table = Table(title="Finalists (select prompts)", caption="\n".join(about))
    table.title_justify = table.caption_justify = "left"
    for name in ("Trial", "Failures", "By judges", "Judge", "Refusals", "Markers alone", "Judge alone", "κ"):
        table.add_column(name, justify="right")
    for each in judged.finalists:
        mark = " *" if each.trial == judged.chosen else ""
        cells = [f"{each.trial}{mark}", str(each.failures), each.judged_failures.with_interval]
        for judge, found in each.judges.items():
            unknown = f", {found.unknown} unknown" if found.unknown else ""
            kappa = "" if found.kappa is None else f"{found.kappa:.2f}"
            alone = [str(found.only_markers), str(found.only_judge)]
            table.add_row(
                *cells, numbers[judge], f"{found.judge}{unknown}", *alone, kappa, style="bold" if mark else ""
            )
            cells = ["", "", ""]
    return table


def before_after_table(title: str, columns: Sequence[tuple[str, Scores]]) -> Table:
    """Tabulate scores side by side; the first column is the base model."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name, _ in columns:
        table.add_column(name, justify="right")
    base = columns[0][1]
    rows = [score_rows(base, scores) for _, scores in columns]
    for line in zip(*rows, strict=True):
        table.add_row(line[0][0], line[0][1], *(cells[2] for cells in line[1:]))
    return table


def files_table(dequantised: Mapping[str, Scores], served: Mapping[str, Metrics]) -> Table:
    """Tabulate GGUF files, a row each, as narrow as a terminal; the card has more."""
    table = Table(title="GGUF files", title_justify="left")
    shown = [i for i, name in enumerate(FILE_COLUMNS) if name not in ("complied", "KL over tokens")]
    for i in shown:
        name = FILE_COLUMNS[i]
        whole = name in ("file", "first-token KL")
        table.add_column(name, justify="left" if i < 2 else "right", no_wrap=whole, overflow="fold")
    for row in file_rows(dequantised, served):
        table.add_row(*(row[i] for i in shown))
    return table


def together_table(composed: Composition) -> Table:
    """Tabulate every behaviour, on its own prompts, under each edit alone, each pair, and all of them."""
    table = Table(title="Each edit alone and together, each behaviour on its own prompts", title_justify="left")
    for name in ("Behaviour of", "Edits", "Failures", "Broken", "Overrefusals", "First-token KL"):
        table.add_column(name, justify="left" if name in ("Behaviour of", "Edits") else "right", overflow="fold")
    for line in together_rows(composed):
        table.add_row(*map(plain, line))
    return table


def report_table(report: Report) -> Table:
    """Tabulate the report of a run (`batch_summary.json`): base model and best trial, everything with its interval."""
    about = {
        "report": "Report prompts: they chose nothing",
        "seen": "Report prompts, but some of them fitted or chose the trial (allow_overlap)",
        "selection": "Select prompts: they chose the trial",
    }
    return examinations_table(
        about["seen" if report.split == "report" and report.overlap else report.split],
        [("base model", report.base_metrics), (f"trial {report.trial}", report.metrics)],
    )


def axes_table(axes: Sequence[AxisCarried], failing: str) -> Table:
    """Tabulate where an edit carries, axis by axis."""
    about = "Carries: fewer of them by more than the 95 % intervals leave to chance."
    table = Table(title=f"By axis: {failing}", title_justify="left", caption=about, caption_justify="left")
    for name in ("Axis", "Base model", "Edit", "Carries"):
        table.add_column(name, justify="right" if name in ("Base model", "Edit") else "left")
    for each in axes:
        carries = {True: "yes", False: "not shown", None: "nothing to remove"}[each.carries]
        table.add_row(plain(each.axis), each.before.with_interval, each.after.with_interval, carries)
    return table


def thinking_table(report: Report, found: WithThoughts) -> Table:
    """Tabulate base model and best trial thinking first, if the report measured that too."""
    columns = [("base model", found.base_metrics), (f"trial {report.trial}", found.metrics)]
    return examinations_table("The same prompts, thinking first: answers after the thoughts", columns)


def examinations_table(title: str, columns: Sequence[tuple[str, Metrics]]) -> Table:
    """Tabulate examinations side by side, the base model first."""
    length = columns[0][1].refusals_by_length[-1].tokens
    about = f"Complied: neither a marker nor broken in the first {length} tokens. Read some of the responses."
    table = Table(title=title, title_justify="left", caption=about, caption_justify="left")
    table.add_column("")
    for name, _ in columns:
        table.add_column(plain(name), justify="right", overflow="fold")
    for row, cells in examination_rows([metrics for _, metrics in columns]):
        table.add_row(row, *cells)
    return table


def examination_rows(columns: Sequence[Metrics]) -> Iterator[tuple[str, list[str]]]:
    """Yield the title of every row and a cell for each column; the first column decides which rows there are."""
    base = columns[0]
    for title, name in (*COUNTED, ("Borderline overrefusals", "borderline_overrefusals")):
        if getattr(base, name) is not None:
            yield title, [getattr(m, name).with_interval for m in columns]
    for axis in base.axes:
        yield f"Refusals, {axis}", [m.axes[axis].refusals.with_interval for m in columns]
    for i, part in enumerate(base.refusals_by_length[:-1]):
        yield f"Refusals after {part.tokens} tokens", [m.refusals_by_length[i].with_interval for m in columns]
    if base.thoughts is not None:
        known = [m.thoughts for m in columns if m.thoughts is not None]
        yield "Unfinished: thoughts without an answer", [t.unfinished.with_interval for t in known]
        yield "Refusals in thoughts", [t.refusals.with_interval for t in known]
        yield (
            "Tokens of thoughts",
            ["{:.0f} ({:.0f} to {:.0f})".format(t.tokens.value, *t.tokens.interval) for t in known],
        )
    for judge in base.judges:
        yield f"Refusals by {judge}", [_judged(m.judges[judge]) for m in columns]
    yield "Disclaimer hits", [str(m.disclaimer_hits) for m in columns]
    yield "Compliance (heuristic)", [f"{m.compliance:.2f}" for m in columns]
    for name in base.own:
        yield name, [str(estimate(name, m) or "unknown") for m in columns]
    yield "First-token KL, nats", [str(m.first_token_kl) for m in columns]
    yield f"KL over {base.token_kl.tokens} tokens, nats", [str(m.token_kl) for m in columns]
    yield (
        "Perplexity of the base's answers",
        ["unknown" if m.perplexity is None else f"{m.perplexity.value:.3f}" for m in columns],
    )


def _judged(judged: Judged) -> str:
    if not judged.refusal.n:
        return "no verdicts"
    agreement = "" if judged.kappa_with_markers is None else f", κ {judged.kappa_with_markers:.2f}"
    unknown = f", {judged.unknown.count} unknown" if judged.unknown.count else ""
    alone = (
        "" if judged.only_markers is None else f", {judged.only_judge} alone, {judged.only_markers} by markers alone"
    )
    return judged.refusal.with_interval + agreement + alone + unknown


def report_lines(report: Report) -> list[str]:
    """Return the rest of a report, a line each: tests, lengths, control, judges."""
    failures, edited = report.paired.failures, report.metrics
    lines = [
        f"{edited.failing.capitalize()}, prompt by prompt: {failures.only_before} only before, {failures.only_after} only after "
        f"(p = {failures.p_value:.2g}, exact McNemar test). KL is over the first token, and over the {edited.token_kl.tokens} first "
        "tokens of the base model's own answers.",
        *caveats("the base model", report.base_metrics),
        *caveats("the edit", edited),
        *(
            f"Not shown to carry to {each.axis}: {each.before.with_interval} {edited.failing} before, {each.after.with_interval} after."
            for each in report.axes
            if each.carries is False
        ),
        *(f"WARNING: on these prompts a constraint does not hold: {text}." for text in edited.violated),
    ]
    if control := report.random_control:
        lines.append(
            f"Random directions of the same strength: {control.mean_failures:.1f} of {edited.refusals.n} {edited.failing} on average, "
            f"KL {control.mean_kl_divergence:.4f} ({len(control.draws)} draws)."
        )
        if control.as_strong_as_the_edit:
            effect = "add at least half of what the edit adds" if edited.strengthened else UNSPECIFIC
            lines.append(f"WARNING: they {effect}. The direction hardly matters here.")
    if report.split == "selection":
        lines.append(
            "These prompts chose the trial, which flatters it. Give good_report_prompts and bad_report_prompts."
        )
    return lines


def caveats(name: str, metrics: Metrics) -> list[str]:
    """Return the caveats about a model's figures, a line each."""
    growing = f"Refusals of {name} are still growing at the end of the response: set a larger max_response_length."
    said = [
        f"Judge {judge}, of {name}: {judged.unknown.count} of {judged.unknown.n} verdicts on target responses unknown. {judged.problem}"
        for judge, judged in metrics.judges.items()
        if judged.problem
    ]
    if (rounding := metrics.rounding) is not None:
        said.append(
            f"Rounding alone makes a KL of {rounding.value:.4f} over tokens: a change of {name} that is too small to matter has it. "
            "With dtypes = float32 there is next to none."
        )
    if (cut := metrics.truncation) is not None:
        said += [
            f"{name} gives {cut.top} log-probabilities a token, beside which lie {cut.outside:.2g} of the base's probability: its "
            f"KL is a lower bound. First-token KL is at most {cut.first_token_kl_at_most.value:.4f} and KL over tokens at most "
            f"{cut.token_kl_at_most.value:.4f} if no other token is less probable than the base's least probable one.",
            f"{name}: KL over tokens is that over its own responses.",
        ]
        if cut.unlike_prompts.count:
            said.append(
                f"WARNING: {name} reads {cut.unlike_prompts} prompts as another number of tokens than the base model: its chat "
                "template is another, and the KL includes that."
            )
    return said if metrics.refusals_settled else [growing, *said]


def samples_table(prompts: Sequence[str], columns: Sequence[tuple[str, Sequence[str]]]) -> Table:
    """Tabulate responses side by side."""
    table = Table(title="Responses", title_justify="left", show_lines=True)
    table.add_column("Prompt", ratio=1)
    for name, _ in columns:
        table.add_column(name, ratio=2)
    for i, prompt in enumerate(prompts):
        table.add_row(plain(prompt), *(plain(texts[i].strip()) for _, texts in columns))
    return table

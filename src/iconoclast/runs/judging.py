"""The judges that settings name, what they will be asked, and which finalist they chose."""

from collections.abc import Mapping, Sequence

from platformdirs import user_cache_path

from iconoclast.config.schema import Settings
from iconoclast.evaluation.judged import Verdicts, agreement, count_failures, judged_failures
from iconoclast.evaluation.judges import chat, classifier  # noqa: F401 - they register themselves
from iconoclast.evaluation.judges.cache import CachedJudge
from iconoclast.evaluation.judges.protocol import Judge, JudgeError, judges
from iconoclast.goals import JUDGED, Objectives, with_estimates
from iconoclast.runs.documents import Finalist, Finalists
from iconoclast.runs.pinned import judged_with
from iconoclast.runs.splits import Prompts
from iconoclast.search.pareto import Trial, best_trial
from iconoclast.vocabulary import Label


def judges_of(settings: Settings) -> list[Judge]:
    """Return the judges that the settings name; what they said before is taken from the user's cache.

    Raises:
        UserError: a judge cannot be used, or there is none for what judges should do.
    """
    own = {"classifier": settings.judge_classifier, "chat": settings.judge_chat}
    names = dict.fromkeys([*(name for name, asked in own.items() if asked), *settings.judges])
    asking = "judged_finalists" if settings.judged_finalists else JUDGED if JUDGED in settings.named_scores else ""
    if asking and not names:
        raise JudgeError(f"{asking} needs a judge: set judge_classifier, judge_chat or judges.")
    made = [judges.get(name)(settings) for name in names]
    return [CachedJudge(judge, user_cache_path("iconoclast") / "verdicts.sqlite") for judge in made]


def cost(judges: Sequence[Judge], parts: Mapping[str, int]) -> list[str]:
    """Say how many responses judges will be asked about, at most, and for what; nothing without judges."""
    counted = {what: n for what, n in parts.items() if n}
    if not judges or not counted:
        return []
    told = ", ".join(f"{n:,} {what}" for what, n in counted.items())
    names = " and ".join(judge.name for judge in judges)
    return [
        f"Judged by {names}: up to {sum(counted.values()):,} responses{' each' * (len(judges) > 1)} ({told}). "
        "What a judge has said of a response is kept, and not asked for again."
    ]


def cost_of_run(judges: Sequence[Judge], settings: Settings, prompts: Prompts) -> list[str]:
    """Say the same of a run: trials if their score is judged, finalists, and base model and best trial in the report."""
    target, sample = len(prompts.target_evaluation), prompts.reported
    asked = JUDGED in settings.named_scores
    trials = settings.n_trials + len(settings.fit_scales) * settings.fit + 1
    controls = settings.random_controls * len(sample.target) * asked
    return cost(
        judges,
        {
            "of trials": trials * target * asked,
            f"of {settings.judged_finalists} finalists": settings.judged_finalists * target,
            "in the report": 2 * (len(sample.target) + len(sample.benign) + len(sample.borderline or ())) + controls,
        },
    )


def judge_finalists(
    finalists: Sequence[tuple[Trial, Sequence[Label], Verdicts]], judges: Sequence[Judge], settings: Settings
) -> Finalists:
    """Choose among the finalists as `best_trial` does, with failures as judges see them.

    If a judge has no verdict at all on one of them, none is chosen.

    Args:
        finalists: each with the labels and verdicts of its responses to the target select prompts.
    """
    problems = {judge.name: judge.problem for judge in judges}
    rated, judged = [], []
    for trial, labels, verdicts in finalists:
        rate = judged_failures(labels, verdicts, settings.strengthen)
        rated.append(Trial(trial.index, trial.parameters, with_estimates(trial.scores, {JUDGED: rate})))
        agreed = {name: agreement(labels, some, problems.get(name)) for name, some in verdicts.items()}
        count = count_failures(labels, verdicts, settings.strengthen)
        judged.append(Finalist(trial=trial.index, failures=trial.scores.failures, judged_failures=count, judges=agreed))
    compared = [
        each for each in Objectives(settings.objectives).compared if each.name not in ("failures", "refusals", JUDGED)
    ]
    goal = Objectives((JUDGED, *(each.text for each in compared)))
    known = all(trial.scores.own[JUDGED] is not None for trial in rated)
    best = best_trial(rated, settings.kl_divergence_target, goal) if known else None
    return Finalists(finalists=judged, chosen=None if best is None else best.index, judged_with=judged_with(settings))

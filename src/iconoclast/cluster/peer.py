"""The peer tool heretic as a job beside a run: the same model, prompts, markers, response length and number of trials."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from iconoclast.config.schema import Settings
from iconoclast.errors import MeasurementError, RunFolderError
from iconoclast.files import write_json, write_whole
from iconoclast.layout import SCHEMA_VERSION, SUMMARY
from iconoclast.models.names import resolve
from iconoclast.peers.heretic.journal import HereticStudy, HereticTrial
from iconoclast.privacy import portable
from iconoclast.prompts import PromptSet
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.splits import Prompts
from iconoclast.scores import Count

SUFFIX = "-heretic"
LOG = "log.txt"


@dataclass(frozen=True)
class HereticJob:
    """Runs heretic as a run of this program is run; its folder is that of the run with "-heretic" behind it.

    Attributes:
        run: the run folder, which holds the settings.
        program: heretic, in an environment of its own.
    """

    run: Path
    program: Path

    @property
    def folder(self) -> Path:
        """What heretic writes to."""
        return self.run.with_name(self.run.name + SUFFIX)

    def __call__(self) -> str:
        """Run it, or go on with what it has begun, and write its batch_summary.json."""
        settings = RunFolder(self.run).settings()
        prompts = Prompts.load(settings)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(
            self.folder / "config.toml", tomli_w.dumps(heretic_settings(settings, prompts, self.folder)).encode()
        )
        assert settings.model is not None
        with (self.folder / LOG).open("a") as log:
            # When its trials are done it asks what to do, finds nobody and ends; so its exit code says nothing.
            subprocess.run(
                [str(self.program), "--model", str(resolve(settings.model))],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
                check=False,
            )
        journals = sorted((self.folder / "checkpoints").glob("*.jsonl"))
        if not journals:
            raise MeasurementError(f"heretic has measured nothing: see {self.folder / LOG}.")
        document = heretic_summary(HereticStudy.read(journals[-1]), settings, prompts)
        document["heretic_version"] = _version(self.program)
        write_json(self.folder / SUMMARY, portable(document))
        return "done"


def heretic_settings(settings: Settings, prompts: Prompts, folder: Path) -> dict[str, Any]:
    """heretic's settings for the same work; the prompts are written into `folder`, one a line.

    Raises:
        RunFolderError: a prompt has several lines, which heretic cannot read from a text file.
    """
    document: dict[str, Any] = {}
    sets: dict[str, PromptSet] = {
        "good_prompts": prompts.benign,
        "bad_prompts": prompts.target,
        "good_evaluation_prompts": prompts.benign_evaluation,
        "bad_evaluation_prompts": prompts.target_evaluation,
    }
    for name, each in sets.items():
        if any(len(prompt.text.splitlines()) != 1 for prompt in each):
            raise RunFolderError(
                f"{each.source} has prompts of several lines, which heretic cannot read from a text file."
            )
        file = folder / f"{name}.txt"
        write_whole(file, "".join(f"{prompt.text}\n" for prompt in each).encode())
        document[name] = {"dataset": str(file.absolute())}
    document |= {
        "n_trials": settings.n_trials,
        "n_startup_trials": min(60, -(-settings.n_trials // 2)),
        "max_response_length": settings.max_response_length,
        "refusal_markers": list(settings.refusal_markers),
        "seed": settings.seed,
        "kl_divergence_target": settings.kl_divergence_target,
    }
    if settings.system_prompt:
        document["system_prompt"] = settings.system_prompt
    return document


def heretic_summary(study: HereticStudy, settings: Settings, prompts: Prompts) -> dict[str, Any]:
    """What batch_summary.json says of a heretic study: as heretic measured it."""
    first = study.trials[0]
    count = first.prompts or len(prompts.target_evaluation)

    def measured(refusals: int | None, divergence: float) -> dict[str, Any]:
        return {
            "refusals": (Count(0, 0) if refusals is None else Count(refusals, count)).document(),
            "overrefusals": Count(0, 0).document(),  # heretic does not look
            "kl_divergence": divergence,
        }

    front: list[HereticTrial] = []
    for trial in sorted(study.trials, key=lambda trial: (trial.refusals, trial.kl_divergence)):
        if not front or trial.kl_divergence < front[-1].kl_divergence:
            front.append(trial)
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": "heretic",
        "status": "complete" if len(study.trials) >= settings.n_trials else "interrupted",
        "model": settings.model,
        "seed": settings.seed,
        "completed_trials": len(study.trials),
        "prompts": prompts.document(),
        "base_metrics": measured(first.base_refusals, 0.0),
        "best_trial": study.best(settings.kl_divergence_target).number,
        "pareto_trials": [{"index": t.number, **measured(t.refusals, t.kl_divergence)} for t in front],
        "report": None,
    }


def _version(program: Path) -> str | None:
    """Of the package that a program belongs to, in the environment that it is in."""
    python = program.with_name("python")
    if not python.is_file():
        return None
    code = "from importlib.metadata import version; print(version('heretic-llm'))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None

"""heretic as a peer: its journals, and its program doing the work of one of our runs."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

import tomli_w

from iconoclast.config.schema import FIT_AND_SELECT, Settings
from iconoclast.documents import Plain
from iconoclast.errors import MeasurementError, RunFolderError
from iconoclast.files import write_whole
from iconoclast.models.names import resolve
from iconoclast.peers.heretic.journal import HereticStudy, HereticTrial
from iconoclast.peers.heretic.trial import HereticPeerTrial
from iconoclast.peers.protocol import peers
from iconoclast.prompts import PromptSet
from iconoclast.scores import NONE, Count


@peers.register("heretic")
class Heretic:
    """Reads heretic's journals and runs heretic; see `peers.protocol.Peer`."""

    def reads(self, file: Path) -> bool:
        """Take every journal and reproduce.json: if it is not heretic's, reading says so in one line."""
        return file.suffix in (".jsonl", ".json")

    def trial(self, file: Path, which: str, kl_target: float) -> HereticPeerTrial:
        study = HereticStudy.read(file)
        if which == "best":
            return HereticPeerTrial(study, study.best(kl_target))
        if not which.isdigit():
            raise RunFolderError(f'"{which}" is not a trial of {file}. Give best, or its number as heretic shows it.')
        return HereticPeerTrial(study, study.trial(int(which)))

    def command(self, program: Path, folder: Path, settings: Settings, prompts: Mapping[str, PromptSet]) -> list[str]:
        """Write config.toml and the prompts, one a line; heretic cannot read prompts of several lines."""
        assert settings.model is not None
        same = ("n_trials", "max_response_length", "refusal_markers", "seed", "kl_divergence_target")
        document: Plain = {name: getattr(settings, name) for name in same}
        document["n_startup_trials"] = min(60, -(-settings.n_trials // 2))
        if settings.system_prompt:
            document["system_prompt"] = settings.system_prompt
        for name in FIT_AND_SELECT:
            if any(len(prompt.text.splitlines()) != 1 for prompt in prompts[name]):
                raise RunFolderError(
                    f"{prompts[name].source} has prompts of several lines, which heretic cannot read from a text file."
                )
            file = folder / f"{name}.txt"
            write_whole(file, "".join(f"{prompt.text}\n" for prompt in prompts[name]).encode())
            document[name] = {"dataset": str(file.absolute())}
        write_whole(folder / "config.toml", tomli_w.dumps(document).encode())
        return [str(program), "--model", str(resolve(settings.model))]

    def summary(self, program: Path, folder: Path, settings: Settings, prompts: Mapping[str, PromptSet]) -> Plain:
        """Return heretic's measurements, with the front of its trials by refusals and KL divergence."""
        journals = sorted((folder / "checkpoints").glob("*.jsonl"))
        if not journals:
            raise MeasurementError(f"heretic has measured nothing: see the log in {folder}.")
        study = HereticStudy.read(journals[-1])
        first = study.trials[0]
        n = first.prompts or len(prompts["bad_evaluation_prompts"])
        front: list[HereticTrial] = []
        for trial in sorted(study.trials, key=lambda trial: (trial.refusals, trial.kl_divergence)):
            if not front or trial.kl_divergence < front[-1].kl_divergence:
                front.append(trial)
        return {
            "heretic_version": _version(program),
            "status": "complete" if len(study.trials) >= settings.n_trials else "interrupted",
            "model": settings.model,
            "seed": settings.seed,
            "completed_trials": len(study.trials),
            "base_metrics": _scores(first.base_refusals, n, 0.0),
            "best_trial": study.best(settings.kl_divergence_target).number,
            "pareto_trials": [{"index": t.number, **_scores(t.refusals, n, t.kl_divergence)} for t in front],
        }


def _scores(refusals: int | None, n: int, divergence: float) -> Plain:
    counted = NONE if refusals is None else Count(refusals, n)
    # heretic does not count overrefusals
    return {"refusals": counted.document(), "overrefusals": NONE.document(), "kl_divergence": divergence}


def _version(program: Path) -> str | None:
    """Ask the program's own environment."""
    python = program.with_name("python")
    if not python.is_file():
        return None
    code = "from importlib.metadata import version; print(version('heretic-llm'))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None

"""Slurm from a user's side: job options, batch scripts, the queue. Without accounting, which not every cluster has."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from iconoclast.errors import SettingsError, UserError
from iconoclast.runs.workers import QueuedJob

SIGNAL_DELAY = 120
"""Seconds before the end of its time at which a job is told."""
TIME_UP = 75
"""Exit code of a worker whose time was nearly over (EX_TEMPFAIL): its job may be queued again."""
JOB_FOLDER = "iconoclast-"
"""Prefix of a job's own folder, which holds its TMPDIR."""
CACHE_VARIABLES = "HF_HUB_CACHE HUGGINGFACE_HUB_CACHE HF_DATASETS_CACHE HF_ASSETS_CACHE HF_XET_CACHE HF_HUB_OFFLINE"
"""Variables that would lead a job with a cache of its own back to the user's."""
Caches = Literal["shared", "job"]


class ClusterError(UserError):
    """A request that a cluster cannot meet."""


@dataclass(frozen=True)
class JobOptions:
    """Options of a submission's jobs, each with the help of its flag. Unset ones are left to the cluster.

    Attributes:
        time: in minutes.
        extra: further options of sbatch.
    """

    workers: Annotated[int, "Processes that work on a run. [1]"] = 1
    partition: Annotated[str | None, "Partition."] = None
    account: Annotated[str | None, "Account."] = None
    qos: Annotated[str | None, "Quality of service."] = None
    constraint: Annotated[str | None, "Features of nodes."] = None
    mem: Annotated[str | None, "Memory of a worker, as in 32G."] = None
    gpus: Annotated[int, "GPUs of a worker. [0]"] = 0
    cpus: Annotated[int | None, "Processors of a worker."] = None
    time: Annotated[int, "Time limit: minutes, HH:MM:SS or D-HH:MM. [1-00]"] = 24 * 60
    array_limit: Annotated[int | None, "Workers at the same time."] = None
    caches: Annotated[
        Caches, "Hugging Face caches: shared (yours, only read) or job (each job's own, removed with it)."
    ] = "shared"
    scratch: Annotated[Path | None, "Folder for temporary files of jobs."] = None
    max_disk: Annotated[float, "Gigabytes that temporary files of a job may take."] = 0.0
    dependency: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def signal_delay(self) -> int:
        """Seconds before the end of a job at which Slurm signals it."""
        return SIGNAL_DELAY if self.time * 60 > 2 * SIGNAL_DELAY else 20

    def srun(self) -> list[str]:
        """Return options of srun, which in some versions of Slurm does not take the processors over from sbatch."""
        return [] if self.cpus is None else [f"--cpus-per-task={self.cpus}"]

    def parameters(self) -> dict[str, str]:
        """Return options of sbatch, without array, time and files."""
        same = ("partition", "account", "qos", "constraint", "mem", "dependency")
        named = {name: getattr(self, name) for name in same}
        named |= {"gpus-per-node": self.gpus or None, "cpus-per-task": self.cpus}
        return {name: str(value) for name, value in named.items() if value is not None} | dict(self.extra)

    def setup(self, source: Path) -> list[str]:
        """Return a batch script's lines before the work: staged code, the job's own folders, and their removal."""
        scratch = shlex.quote(str(self.scratch)) if self.scratch else '"${SLURM_TMPDIR:-${TMPDIR:-/tmp}}"'
        lines = [
            f"export PYTHONPATH={shlex.quote(str(source))}${{PYTHONPATH:+:$PYTHONPATH}}",
            f"job={scratch}/{JOB_FOLDER}$USER-$SLURM_JOB_ID",
            # One of that name can only be left over from this job's last attempt; mkdir fails if it is somebody else's.
            f'mkdir -p {scratch} && rm -rf "$job" && mkdir -m 700 "$job" "$job/tmp" || exit 1',
            "trap 'rm -rf \"$job\"' EXIT",
            "trap 'exit 143' TERM",
            'export HF_TOKEN_PATH="${HF_TOKEN_PATH:-${HF_HOME:-$HOME/.cache/huggingface}/token}"',
            'export TMPDIR="$job/tmp"',
        ]
        if self.caches == "job":
            lines += ['export HF_HOME="$job/huggingface"', f"unset {CACHE_VARIABLES}"]
        else:
            lines.append("export HF_HUB_OFFLINE=1")
        if self.cpus is not None:
            lines.append(f"export OMP_NUM_THREADS={self.cpus}")
        return lines


def minutes(text: str) -> int:
    """Convert a Slurm time limit, such as 90, 1:30:00 or 1-12, to minutes; raise SettingsError if malformed."""
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        raise SettingsError(f'--time "{text}" is not a valid time. Use minutes, HH:MM:SS or D-HH:MM, as Slurm does.')
    days, dash, rest = text.rpartition("-")
    numbers = [int(part) for part in rest.split(":")]
    if not dash and len(numbers) < 3:
        numbers = [0, *numbers]  # minutes, or minutes and seconds
    hours, mins, seconds = [*numbers, 0, 0][:3]
    return max(1, (int(days or 0) * 24 + hours) * 60 + mins + (seconds > 0))


def script(run: Path, source: Path, options: JobOptions, command: Sequence[str], name: str) -> str:
    """Return a batch script whose workers run `command` as `submit` would, for clusters that take only scripts."""
    limit = f"%{min(options.workers, options.array_limit)}" if options.array_limit else ""
    flags = {
        "job-name": name,
        "array": f"0-{options.workers - 1}{limit}",
        "time": str(options.time),
        "signal": f"USR1@{options.signal_delay}",
        "chdir": str(Path.cwd()),
        "output": str(run / "cluster" / "logs" / "%A_%a.log"),
        "open-mode": "append",
        **options.parameters(),
    }
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH --{key}={shlex.quote(value)}" if value else f"#SBATCH --{key}" for key, value in flags.items()),
            "#SBATCH --requeue",
            "",
            *options.setup(source),
            "",
            shlex.join(["srun", "--unbuffered", *options.srun(), *command]),
            "ended=$?",
            f'if [ $ended = {TIME_UP} ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
            "exit $ended",
            "",
        ]
    )


def queue(jobs: Sequence[str]) -> list[QueuedJob]:
    """Return the queue's entries for these jobs; ended jobs have none."""
    if not jobs:
        return []
    _require("squeue")
    found = []
    for job in jobs:  # one at a time: a number that Slurm has forgotten would be an error for all
        done = _run("squeue", "--noheader", "--jobs", job, "--format", "%i|%T|%M|%N|%r")
        if done.returncode == 0:
            rows = [line.strip().split("|", 4) for line in done.stdout.splitlines()]
            found += [QueuedJob(*row) for row in rows if len(row) == 5]
        elif "Invalid job id" not in done.stderr:
            raise ClusterError(f"squeue does not answer: {done.stderr.strip() or done.returncode}.")
    return found


def cancel(jobs: Sequence[str]) -> None:
    """Ask Slurm to end these jobs: first those that wait, so that none takes the place of one that ends."""
    if not jobs:
        return
    _require("scancel")
    for state in (["--state", "PENDING"], []):
        done = _run("scancel", *state, *jobs)
        if done.returncode and "Invalid job id" not in done.stderr:
            raise ClusterError(f"scancel failed: {done.stderr.strip() or done.returncode}.")


def _require(program: str) -> None:
    if shutil.which(program) is None:
        raise ClusterError(f"There is no {program} here. Use a machine of the cluster where jobs can be submitted.")


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)

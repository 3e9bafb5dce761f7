"""A real Slurm on this machine's loopback: munged, slurmctld and slurmd from Debian's packages, without accounting."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={controller}
SlurmdPort={daemon}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=30
SchedulerParameters=batch_sched_delay=0,sched_interval=1
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclass
class Slurm:
    """The cluster: one node, which believes to have eight processors."""

    folder: Path
    node: str

    def __call__(self, *command: object) -> str:
        """What one of Slurm's programs prints."""
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def jobs(self) -> list[str]:
        """What is in the queue: a job and its state each."""
        return self("squeue", "--noheader", "--array", "--format", "%i %T").splitlines()

    def wait(self, until: object, seconds: float = 180.0) -> None:
        """Wait until something is so."""
        end = time.monotonic() + seconds
        while not until():  # type: ignore[operator]
            assert time.monotonic() < end, f"not within {seconds} s; the queue holds {self.jobs()}"
            time.sleep(0.2)


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"no Slurm here: {', '.join(missing)} not found (Debian: apt-get install slurm-wlm munge)")
    if os.getuid() != 0:
        pytest.skip("slurmd must run as root")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    host = socket.gethostname().partition(".")[0]
    controller, daemon = _free_ports(2)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    configuration = folder / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(folder=folder, host=host, controller=controller, daemon=daemon))
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    folder.chmod(0o755)
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(configuration)
    cluster = Slurm(folder, host)
    daemons = [
        subprocess.Popen(
            [shutil.which(program) or program, *arguments],
            stdout=(folder / f"{program}.out").open("wb"),
            stderr=subprocess.STDOUT,
        )
        for program, arguments in {
            "munged": [
                "--foreground",
                "--force",
                f"--key-file={key}",
                f"--socket={folder}/munge.socket",
                f"--pid-file={folder}/munged.pid",
                f"--log-file={folder}/munged.log",
                f"--seed-file={folder}/munged.seed",
            ],
            "slurmctld": ["-D"],
            "slurmd": ["-D"],
        }.items()
        if not time.sleep(0.5 if program != "munged" else 0)
    ]
    try:
        _wait_for_node(cluster, daemons)
        yield cluster
    finally:
        subprocess.run(["scancel", "--user", "root"], check=False)
        for each in reversed(daemons):
            each.terminate()
            try:
                each.wait(10)
            except subprocess.TimeoutExpired:
                each.kill()
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for_node(cluster: Slurm, daemons: list[subprocess.Popen[bytes]]) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        done = subprocess.run(["sinfo", "--noheader", "--format", "%T"], capture_output=True, text=True, check=False)
        if done.stdout.strip() == "idle":
            return
        time.sleep(0.3)
    logs = "\n".join(f"{file.name}: {file.read_text(errors='replace')[-800:]}" for file in cluster.folder.glob("*.*o*"))
    pytest.fail(f"Slurm does not start: {[each.poll() for each in daemons]}\n{logs}")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports

"""What launchers tell a process: which job it is a rank of, which rank of how many, and which process launched it."""

import multiprocessing
import os
import sys
from pathlib import Path
from typing import NamedTuple

from .errors import SpecError


class Job(NamedTuple):
    """Processes of this machine that share a daemon."""

    id: str
    """The same in all of them, also after the launcher has restarted them."""
    launcher: int | None
    """The process whose end is the job's end, where one is visible."""


def current_job() -> Job | None:
    """Returns the job that this process is a rank of; None for a process by itself.

    It is torchrun's, Ray's, Slurm's, Open MPI's, MPICH's, one by environment variables alone, or that of the parent of children of `multiprocessing`.
    The first that applies: torchrun's ranks may be tasks of Slurm, too.
    """
    get = os.environ.get
    parent = multiprocessing.parent_process()
    master = f"{get('MASTER_ADDR')}:{get('MASTER_PORT')}"
    if run := get("TORCHELASTIC_RUN_ID"):
        # "none" is the default, of any run. For the others the port may change from restart to restart.
        return Job(f"torchrun {run} {master if run == 'none' else ''}", _launcher("TORCHELASTIC_RUN_ID"))
    if ray := get("RAY_JOB_ID"):
        return Job(f"ray {ray}", _launcher("RAY_JOB_ID"))
    # A batch script has a job, and no step of several tasks.
    if number("SLURM_STEP_NUM_TASKS", 1) > 1:
        return Job(f"slurm {get('SLURM_JOB_ID')}.{get('SLURM_STEP_ID')}", _launcher("SLURM_PROCID"))
    if get("OMPI_COMM_WORLD_RANK") and (run := get("PMIX_NAMESPACE") or get("OMPI_MCA_ess_base_jobid")):
        return Job(f"openmpi {run}", _launcher("OMPI_COMM_WORLD_RANK"))
    # MPICH's and Intel MPI's variables name no job: the launcher of this machine's ranks stands for it.
    if get("PMI_RANK") and (launcher := _launcher("PMI_RANK")):
        return Job(f"pmi {_identity(launcher)}", launcher)
    if get("MASTER_ADDR") and get("MASTER_PORT") and world(None, None)[1] > 1:
        return Job(f"master {master}", parent.pid if parent else _launcher("RANK", "LOCAL_RANK"))
    if parent and parent.pid:
        return Job(f"multiprocessing {_identity(parent.pid)}", parent.pid)
    return None


def this_process() -> str:
    """Returns what no other process has, nor one in another container, nor a later one with the same id."""
    return _identity(os.getpid())


def world(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Which process this is of how many, where that is not given."""
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        there = distributed.get_rank(), distributed.get_world_size()
        return there[0] if rank is None else rank, there[1] if world_size is None else world_size
    if world_size is None:
        world_size = number("WORLD_SIZE", 1)
        if rank is None and world_size > 1 and not os.environ.get("RANK"):
            raise SpecError(
                f"WORLD_SIZE is {world_size}, but RANK is not set: all would read the first rank's part (set both, or give rank and world_size)"
            )
    return number("RANK", 0) if rank is None else rank, world_size


def number(variable: str, default: int) -> int:
    """What a launcher has put into a variable."""
    text = os.environ.get(variable) or str(default)
    if not text.isdecimal():
        raise SpecError(f"the variable {variable} is {text!r}: it must be a number (launchers such as torchrun set it; unset it)")
    return int(text)


def _launcher(*variables: str) -> int | None:
    """Finds the nearest process, this one and its ancestors, that was started without these variables of a rank; None where all had them.

    A wrapper between launcher and rank has the variables. A process that has set them itself is its own launcher, as Lightning's first rank is.
    A process whose environment must not be read (slurmstepd is root's) is one; so may process 1 be, which lives as long as its container.
    """
    names = {name.encode() for name in variables}
    pid = os.getpid()
    while pid:
        try:
            environ = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return pid
        if names.isdisjoint(entry.partition(b"=")[0] for entry in environ.split(b"\0")):
            return pid
        pid = int(_stat(pid)[1])
    return None


def _identity(pid: int) -> str:
    """A process's id, its start in ticks since the machine's, and the namespace that the id is of."""
    try:
        start = _stat(pid)[19].decode()
    except OSError:
        start = "gone"
    return f"{pid} {start} {os.stat('/proc/self/ns/pid').st_ino}"


def _stat(pid: int) -> list[bytes]:
    """Fields of /proc/<pid>/stat from the third on, the state: a name before them may have blanks."""
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()

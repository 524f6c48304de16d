"""What launchers tell a process: which job it is a rank of, which rank of how many, and which process launched it."""

import multiprocessing
import os
import sys
from pathlib import Path
from typing import NamedTuple

from .errors import SpecError
from .limits import descriptors_checked


class Task(NamedTuple):
    """A process's place among those that Slurm or MPI has started."""

    launch: str
    """What it is a task of, for messages."""
    number: int
    size: int


class Job(NamedTuple):
    """Processes of this machine that share a daemon."""

    id: str
    """The same in all of them, also after the launcher has restarted them."""
    launcher: int | None
    """The process whose end is the job's end, where one is visible."""
    task: Task | None = None
    """Where Slurm, Open MPI or MPICH has started the process."""


@descriptors_checked()
def current_job() -> Job | None:
    """Returns the job that this process is a rank of; None for a process by itself.

    It is torchrun's, Ray's, Slurm's, Open MPI's, MPICH's, one by environment variables alone, or that of the parent of children of `multiprocessing`.
    The first that applies: torchrun's ranks may be tasks of Slurm, too.
    """
    get = os.environ.get
    parent = multiprocessing.parent_process()
    if run := get("TORCHELASTIC_RUN_ID"):
        # "none" is the default, of any run. For the others the port may change from restart to restart.
        return Job(f"torchrun {run} {_master() if run == 'none' else ''}", _launcher("TORCHELASTIC_RUN_ID"))
    if get("RAY_JOB_ID"):
        return Job(f"ray {_ray_job()}", _launcher("RAY_JOB_ID"))
    # A batch script has a job, and no step of several tasks.
    if (tasks := number("SLURM_STEP_NUM_TASKS", 1)) > 1:
        step = Task("a Slurm step", number("SLURM_PROCID", 0), tasks)
        return Job(f"slurm {get('SLURM_JOB_ID')}.{get('SLURM_STEP_ID')}", _launcher("SLURM_PROCID"), step)
    if get("OMPI_COMM_WORLD_RANK") and (run := get("PMIX_NAMESPACE") or get("OMPI_MCA_ess_base_jobid")):
        task = Task("an Open MPI job", number("OMPI_COMM_WORLD_RANK", 0), number("OMPI_COMM_WORLD_SIZE", 1))
        return Job(f"openmpi {run}", _launcher("OMPI_COMM_WORLD_RANK"), task)
    # MPICH's and Intel MPI's variables name no job: the launcher of this machine's ranks stands for it.
    if get("PMI_RANK") and (launcher := _launcher("PMI_RANK")):
        return Job(f"pmi {identity(launcher)}", launcher, Task("an MPI job", number("PMI_RANK", 0), number("PMI_SIZE", 1)))
    if get("MASTER_ADDR") and get("MASTER_PORT") and number("WORLD_SIZE", 1) > 1:
        return Job(f"master {_master()}", parent.pid if parent else _launcher("RANK", "LOCAL_RANK"))
    if parent and parent.pid:
        return Job(f"multiprocessing {identity(parent.pid)}", parent.pid)
    return None


def _ray_job() -> str:
    """Returns the session of Ray and the job in it, which is counted from 1 in each session.

    The variable names no job in a worker that was started before its job was. A process that a worker started has no other means, and its raylet
    stands for the session there.
    """
    ray = sys.modules.get("ray")
    if ray and ray.is_initialized():
        context = ray.get_runtime_context()
        return f"{context.get_session_name()} {context.get_job_id()}"
    return f"{identity(number('RAY_RAYLET_PID', 0))} {os.environ['RAY_JOB_ID']}"


def world(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Returns the rank, from 0, and the number of ranks, where they are not given: torch.distributed's, else RANK and WORLD_SIZE, else 0 of 1.

    Raises `SpecError` where all ranks would read the same part because these do not name one: in a task of Slurm, Open MPI or MPICH, of which
    there are several, and where only the number of ranks is known.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        there = distributed.get_rank(), distributed.get_world_size()
        return there[0] if rank is None else rank, there[1] if world_size is None else world_size
    get = os.environ.get
    has_rank, has_size = rank is not None or bool(get("RANK")), world_size is not None or bool(get("WORLD_SIZE"))
    if not (has_rank and has_size) and world_size != 1 and (job := current_job()) and (task := job.task) and task.size > 1:
        raise SpecError(
            f"this process is task {task.number} of {task.size} of {task.launch}: give rank={task.number}, world_size={task.size} for its part "
            "of each epoch, rank=0, world_size=1 for all of it, or open the feed after torch.distributed.init_process_group"
        )
    size, origin = (number("WORLD_SIZE", 1), "WORLD_SIZE") if world_size is None else (world_size, "world_size")
    if not has_rank and size not in (0, 1):
        raise SpecError(
            f"{origin} is {size}, but RANK is not set: all would read the first rank's part (set RANK and WORLD_SIZE, or give rank and world_size)"
        )
    if rank is None:
        rank = 0 if world_size == 1 else number("RANK", 0)
    return rank, size


def number(variable: str, default: int) -> int:
    """What a launcher has put into a variable."""
    text = os.environ.get(variable) or str(default)
    if not text.isdecimal():
        raise SpecError(f"the variable {variable} is {text!r}: it must be a number (launchers such as torchrun set it; unset it)")
    return int(text)


def _launcher(*variables: str) -> int | None:
    """Finds the nearest process, this one and its ancestors, that was started without these variables of a rank; None where all had them.

    A wrapper between launcher and rank has the variables. A process that has set them itself is its own launcher, as Lightning's first rank is.
    A process whose environment cannot be read is one: slurmstepd, which is root's, or one that has just ended. So may process 1 be, which lives as
    long as its container.
    """
    names = {name.encode() for name in variables}
    pid = os.getpid()
    while pid:
        try:
            environ, parent = Path(f"/proc/{pid}/environ").read_bytes(), int(_stat(pid)[1])
        except (PermissionError, FileNotFoundError, ProcessLookupError):
            return pid
        if names.isdisjoint(entry.partition(b"=")[0] for entry in environ.split(b"\0")):
            return pid
        pid = parent
    return None


def _master() -> str:
    """Returns the address at which the ranks of a job meet. One of this machine alone means another in each network namespace, as containers have."""
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    is_local = address in (None, "localhost", "::1") or address.startswith("127.")
    return f"{address}:{port} {os.stat('/proc/self/ns/net').st_ino if is_local else ''}"


def identity(pid: int) -> str:
    """Returns what no other process has, nor one in another container, nor a later one with the same id.

    It is its id, its start in ticks since the machine's, and the namespace that the id is of.
    """
    try:
        start = _stat(pid)[19].decode()
    except (FileNotFoundError, ProcessLookupError):
        start = "gone"
    return f"{pid} {start} {os.stat('/proc/self/ns/pid').st_ino}"


def _stat(pid: int) -> list[bytes]:
    """Fields of /proc/<pid>/stat from the third on, the state: a name before them may have blanks."""
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()

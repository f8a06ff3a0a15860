"""Several processes that train as one: torchrun's group, a gather that keeps gradients, and the published way to start."""

import datetime
import logging
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.nn.parallel import DistributedDataParallel

from attention.errors import UserError, notes, paths_told, shown
from attention.memory import keep_memory
from attention.processes import (
    MEETING,
    NUMBERS,
    RUN_ID,
    check_environment,
    local_world_size,
    own_rows,
    rank,
    restarts,
    world_size,
)

Answer = TypeVar("Answer")

# How long a process waits for the others before it takes them for stopped, in seconds.
PATIENCE = 300
TIMEOUT = "WHERE2EDIT_TIMEOUT"          # the variable that sets another one
LATER = 1.0             # seconds until a process ends that lost another: whoever ends first is told as the cause


class OthersLost(UserError):
    """A process has waited in vain for the others: one of them has ended or stands still, and knows better why."""


@contextmanager
def group(device: torch.device) -> Iterator[None]:
    """Join torchrun's processes (NCCL on CUDA, gloo on a CPU) while inside; nothing to do for a single process.

    Raises:
        UserError: the environment or the port is wrong.
        OthersLost: another process has ended, or does not answer within PATIENCE.
    """
    check_environment()
    if world_size() == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # The store of torchrun's agent outlives a restart; without a prefix gloo finds the addresses of the dead there.
    patience = _patience()
    try:
        store, number, size = next(dist.rendezvous("env://", timeout=patience))
    except (RuntimeError, ValueError) as error:
        place = ":".join(shown(os.environ[name], 80) for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise UserError(f"this process could not join the others at {place} ({str(error).splitlines()[0]}); give the first "
                        "machine's address by torchrun's --master_addr and a free port there by --master_port, or "
                        "--standalone on one machine") from error
    store = dist.PrefixStore(f"attempt {restarts()}", store)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=number, world_size=size,
                                timeout=patience)
        yield
    except RuntimeError as error:
        # gloo's errors are plain RuntimeErrors that name a file of its source; NCCL's and the store's are DistErrors.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        seconds, reason = patience.total_seconds(), str(error).splitlines()[0][:200]
        raise OthersLost(f"process {number} of {size} had no answer from the others for {seconds:.0f} seconds, or one has "
                         f"ended ({reason}); see that none is stopped, end them all, and go on with --resume auto; "
                         f"{TIMEOUT}=SECONDS in the environment makes them wait longer") from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _patience() -> datetime.timedelta:
    said = os.environ.get(TIMEOUT, str(PATIENCE))
    if not (said.isascii() and said.isdigit() and 1 <= int(said[:9]) <= 86_400):
        raise UserError(f"{TIMEOUT} is {said!r}, expected a whole number of seconds from 1 to 86400")
    return datetime.timedelta(seconds=int(said))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return own_rows(gradient)


def gather(rows: Tensor) -> Tensor:
    """(B, D) of every process -> (processes * B, D) in the order of ranks, on every process.

    Differentiable: the gradient of a process's own rows is the sum over what all processes made of them. Averaged by
    DistributedDataParallel, a loss that every process computes from all rows then has the gradient of one process.
    torch's own differentiable gather (torch.distributed.nn) is deprecated, its successor private.
    """
    return rows if world_size() == 1 else _Gather.apply(rows)


def any_process(number: int) -> int:
    """The largest number (or whether the flag is up) of all processes: all of them then do the same."""
    if world_size() == 1:
        return number
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    largest = torch.tensor(float(number), device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def from_first(ask: Callable[[], Answer]) -> Answer:
    """What the first process finds when it asks, on every process."""
    answer = [ask() if rank() == 0 else None]
    if world_size() > 1:
        dist.broadcast_object_list(answer)
    return cast(Answer, answer[0])


def parallel(module: nn.Module) -> nn.Module:
    """The module with its gradients averaged over all processes, as long as what this returns is kept.

    Wrap again when other parameters are to learn.
    """
    if world_size() == 1:
        return module
    return DistributedDataParallel(module)


def without_exchange(module: nn.Module) -> AbstractContextManager:
    """Inside, gradients add up in this process alone; the next backward outside averages the sum."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def start(processes: int, gpus: str | None, entry: Callable[[], object]) -> None:
    """Run `entry` in that many processes on this machine, as `torchrun --nproc_per_node` does, and wait for them.

    The UserError of any process is printed once, and all end with code 2. SIGTERM, SIGUSR1 and Ctrl-C are handed on; this
    program then ends with 128 + the signal's number, as do the processes.

    Args:
        entry: an importable function without arguments.
        gpus: the GPUs to use, as in "0,1", counted among those that this process may see; on a machine without any, the
            processes share the CPU.
    """
    if gpus is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        allowed = visible.split(",") if visible and torch.cuda.is_available() else None
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(allowed[int(number)] if allowed else number.strip()
                                                      for number in gpus.split(","))
    # A process says itself what was wrong.
    for name in ("torch.distributed.elastic", "torch.distributed.launcher", "torch.multiprocessing"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", "1")       # torchrun's own default: processes that share cores
    came: list[int] = []

    def hand_on(number: int, frame: object) -> None:    # torchrun knows only SIGTERM
        came.append(number)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGUSR1, hand_on)
    multiprocessing.set_forkserver_preload(["attention.training.loop", "torch._dynamo"])
    with tempfile.TemporaryDirectory() as said:
        config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=RUN_ID, rdzv_backend="c10d",
                              rdzv_endpoint="localhost:0", max_restarts=0, monitor_interval=0.1,
                              start_method="forkserver")
        try:
            elastic_launch(config, _run)(entry, said, dict(os.environ))
        except SignalException as error:                # the processes have ended their step and saved
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            sys.exit(128 + (came[0] if came else error.sigval))
        except ChildFailedError as error:
            _tell(error, Path(said), processes)


def _run(entry: Callable[[], object], said: str, environment: Mapping[str, str]) -> None:
    """In each process: leave a mistake's message in the folder `said`, for the process that started all to print.

    Args:
        environment: of that process; the one that all were forked from may have begun with another.
    """
    os.environ.update({name: value for name, value in environment.items() if name not in (*NUMBERS, *MEETING)})
    keep_memory()
    try:
        with notes(), paths_told():
            if rank() > 0:                              # the first process has the same to note
                warnings.simplefilter("ignore")
            entry()
    except UserError as error:
        lost = isinstance(error, OthersLost)
        # Sorts causes before what follows from them.
        Path(said, f"{'lost' if lost else 'cause'} {rank()}").write_text(str(error), encoding="utf-8")
        if lost:
            time.sleep(LATER)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _tell(error: ChildFailedError, said: Path, processes: int) -> NoReturn:
    """End as the first process to fail did: with its message and code 2, or with its own code.

    Raises:
        UserError: the message that it left.
    """
    number, failure = min(error.failures.items(), key=lambda one: one[1].timestamp)
    messages = sorted(said.iterdir())                   # a cause comes before what was lost by it
    if messages and (messages[0].name.startswith("cause") or failure.exitcode == 2):
        raise UserError(messages[0].read_text(encoding="utf-8")) from None
    if failure.exitcode > 128:                          # one of them was asked to stop, and all have
        sys.exit(failure.exitcode)
    cause = f"signal {-failure.exitcode}" if failure.exitcode < 0 else "the error above"
    print(f"error: process {number} of {processes} was ended by {cause}", file=sys.stderr)
    sys.exit(1)


def process_count(gpus: str | None, device: torch.device, all_gpus: bool) -> int:
    """How many processes the published flags ask for.

    Args:
        gpus: --gpu_id, numbers with commas between them.
        all_gpus: --multiprocessing-distributed without --gpu_id: one process for every GPU.
    Raises:
        UserError: gpus is something else, or names a GPU that is not there.
    """
    if gpus is None:
        return max(1, torch.cuda.device_count()) if all_gpus else 1
    numbers = [number.strip() for number in gpus.split(",")]
    if not all(re.fullmatch("[0-9]{1,3}", number) for number in numbers) or len(set(numbers)) < len(numbers):
        raise UserError(f"--gpu_id is {gpus!r}, expected different numbers such as 0 or 0,1,2,3")
    if device.type == "cuda" and max(map(int, numbers)) >= torch.cuda.device_count():
        raise UserError(f"--gpu_id is {gpus!r}, but this machine has {torch.cuda.device_count()} GPUs; name those")
    if len(numbers) > 1 and not all_gpus:
        warnings.warn(f"--gpu_id names {len(numbers)} GPUs, but without --multiprocessing-distributed only {numbers[0]} "
                      "trains", stacklevel=2)
    return len(numbers) if all_gpus else 1


def check_count(wanted: int) -> None:
    """Hold what the flags ask for against the processes that torchrun has started on this machine.

    Raises:
        UserError: the flags ask for several, and there are more or fewer.
    """
    if wanted not in (1, local_world_size()):
        raise UserError(f"--gpu_id and --multiprocessing-distributed ask for {wanted} processes, but the environment says "
                        f"that {local_world_size()} of {world_size()} run here; leave the flags out under torchrun, or "
                        "unset RANK WORLD_SIZE LOCAL_RANK if they are left over from another program")

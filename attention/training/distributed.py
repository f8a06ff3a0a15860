"""Several processes that train as one: torchrun's group, a gather that keeps gradients, and the published way to start."""

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.nn.parallel import DistributedDataParallel

from attention.errors import UserError
from attention.processes import own_rows, rank, restarts, world_size


@contextmanager
def group(device: torch.device) -> Iterator[None]:
    """Join torchrun's processes (NCCL on CUDA, gloo on a CPU) while inside; nothing to do for a single process."""
    if world_size() == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # The store of torchrun's agent outlives a restart; without a prefix gloo finds the addresses of the dead there.
    try:
        store, number, size = next(dist.rendezvous("env://"))
    except RuntimeError as error:
        raise UserError(f"this process could not join the others ({str(error).splitlines()[0]}); choose a free port with "
                        "torchrun's --master_port, or --standalone on one machine") from error
    store = dist.PrefixStore(f"attempt {restarts()}", store)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=number, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()


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


def any_process(flag: bool) -> bool:
    """Whether the flag is up in any process: all of them then do the same."""
    if world_size() == 1:
        return flag
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    raised = torch.tensor(float(flag), device=device)
    dist.all_reduce(raised, dist.ReduceOp.MAX)
    return bool(raised)


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

    The UserError of any process is printed once, and all end with code 2. SIGTERM, SIGUSR1 and Ctrl-C are handed on.

    Args:
        entry: an importable function without arguments.
        gpus: the GPUs to use, as in "0,1", counted among those that this process may see; on a machine without any, the
            processes share the CPU.
    """
    if gpus is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        allowed = visible.split(",") if visible else None
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(allowed[int(number)] if allowed else number
                                                      for number in gpus.split(","))
    for name in ("torch.distributed.elastic", "torch.distributed.launcher"):     # a process says itself what was wrong
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", "1")       # torchrun's own default: processes that share cores
    signal.signal(signal.SIGUSR1, lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))   # torchrun knows only that
    with tempfile.TemporaryDirectory() as said:
        config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id="where2edit", rdzv_backend="c10d",
                              rdzv_endpoint="localhost:0", max_restarts=0, monitor_interval=0.1)
        try:
            elastic_launch(config, _run)(entry, said)
        except SignalException as error:                # the processes have ended their step and saved
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
        except ChildFailedError as error:
            number, failure = min(error.failures.items(), key=lambda one: one[1].timestamp)     # the first to fail
            messages = sorted(Path(said).iterdir())
            if messages:
                raise UserError(messages[0].read_text(encoding="utf-8")) from None
            cause = f"signal {-failure.exitcode}" if failure.exitcode < 0 else "the error above"
            print(f"error: process {number} of {processes} was ended by {cause}", file=sys.stderr)
            sys.exit(1)


def _run(entry: Callable[[], object], said: str) -> None:
    """In each process: leave a mistake's message in the folder `said`, for the process that started all to print."""
    try:
        entry()
    except UserError as error:
        Path(said, f"{rank()}").write_text(str(error), encoding="utf-8")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


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
    numbers = gpus.split(",")
    if not all(number.strip().isdigit() for number in numbers) or len(set(numbers)) < len(numbers):
        raise UserError(f"--gpu_id is {gpus!r}, expected different numbers such as 0 or 0,1,2,3")
    if device.type == "cuda" and max(map(int, numbers)) >= torch.cuda.device_count():
        raise UserError(f"--gpu_id is {gpus!r}, but this machine has {torch.cuda.device_count()} GPUs; name those")
    return len(numbers) if all_gpus else 1

"""Processes started by torchrun: rank 0 runs the program and sends requests to the others.

Requests are small and travel between hosts over gloo, where a rank may wait for hours. Rows stay on the devices and use a
process group of their own (NCCL on GPUs), where all ranks work at the same time and a wait of minutes is an error. Requests are
served by `s2d.parallel.parallel_decoder`, failures of a rank are handled by `s2d.parallel.rank_failure`.
"""

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from perfmodel.core.console import EXIT_ANSWERED, EXIT_OUR_FAULT
from perfmodel.core.errors import S2DError, UserInputError
from perfmodel.core.units import Tokens
from perfmodel.models.dtypes import Dtype
from s2d.parallel.rank_failure import RankMonitor, Stage, monitored_ranks

PASS, HEAD, _TEXT = range(3)
"""Kinds of requests: a pass, followed by its rows; the head, for rows that all ranks have; a text, followed by its bytes."""
TARGET, DRAFT = range(2)
"""Ids of the models that the ranks can share."""
_REQUEST_TIMEOUT = timedelta(days=1)
"""How long a rank waits for a request, or for another rank to load its shard."""
_ROWS_TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for another rank in a pass that all ranks run."""


class RowsRequest(NamedTuple):
    """Compute your shard for some rows of a text. Numbers only, because every pass sends one."""

    kind: int
    """`PASS`, or `HEAD` for the output of an earlier pass."""
    model_id: int
    cache_id: int
    segment_index: int
    start: int
    """Tokens before the first row."""
    num_rows: int
    stage: int
    """The stage of the job: a `Stage`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRequest:
    """Load your shard of a model folder."""

    model_id: int
    """`TARGET` or `DRAFT`."""
    folder: str
    """The same on every machine."""
    dtype: Dtype
    device: str
    """`cpu`, or `cuda` for the GPU of each rank."""
    kernels: str
    """Label of the kernels."""
    num_tokens: Tokens | None = None
    """Vocabulary size to convert the model to; None keeps its own."""
    num_threads: int = field(default_factory=torch.get_num_threads)
    """CPU threads of every rank: those of rank 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRequest:
    """Make a cache for your shard."""

    model_id: int
    cache_id: int
    segment_ends: Sequence[int]
    max_tokens: Tokens
    kept_cache_ids: Sequence[int]
    """Other caches of the model that are still in use."""


Request = RowsRequest | LoadRequest | CacheRequest
_NAMED_REQUESTS: dict[str, type[LoadRequest] | type[CacheRequest]] = {"load": LoadRequest, "cache": CacheRequest}


class Ranks:
    """This process as one rank of a group.

    Args:
        rank: the rank of this process. Rank 0 runs the program.
        num_ranks: size of the group.
        rows_group: process group for rows.
        monitor: monitors the other ranks.
    """

    def __init__(self, rank: int, num_ranks: int, rows_group: dist.ProcessGroup, monitor: RankMonitor) -> None:
        self.rank = rank
        self.num_ranks = num_ranks
        self.has_stopped = False
        """Whether the request to stop was sent. No operation is in progress then."""
        self._rows_group = rows_group
        self._monitor = monitor

    def request_pass(self, request: RowsRequest, rows: Tensor) -> None:
        """On rank 0: let the other ranks run a pass over these rows."""
        self._monitor.stage = Stage(request.stage)
        dist.broadcast(torch.tensor(request), 0)
        dist.broadcast(rows, 0, self._rows_group)

    def request_head(self, request: RowsRequest) -> None:
        """On rank 0: let the other ranks apply their columns of the head to rows that they have from a pass."""
        self._monitor.stage = Stage(request.stage)
        dist.broadcast(torch.tensor(request), 0)

    def request(self, request: LoadRequest | CacheRequest | None) -> None:
        """On rank 0: let the other ranks load a model, make a cache, or stop (None)."""
        if isinstance(request, LoadRequest):
            self._monitor.stage = Stage.LOADING
        if request is None:
            self._monitor.end_job(EXIT_ANSWERED)
        name = next((name for name, kind in _NAMED_REQUESTS.items() if isinstance(request, kind)), "stop")
        text = json.dumps((name, asdict(request) if request else {})).encode()
        dist.broadcast(torch.tensor(RowsRequest(_TEXT, len(text), 0, 0, 0, 0, self._monitor.stage)), 0)
        dist.broadcast(torch.frombuffer(bytearray(text), dtype=torch.uint8), 0)
        self.has_stopped = request is None

    def next_request(self) -> Request | None:
        """On other ranks: wait for the next request; None means stop. After a `PASS` request, receive its rows."""
        numbers = torch.empty(len(RowsRequest._fields), dtype=torch.int64)
        dist.broadcast(numbers, 0)
        request = RowsRequest(*numbers.tolist())
        self._monitor.stage = Stage(request.stage)
        if request.kind != _TEXT:
            return request
        text = torch.empty(request.model_id, dtype=torch.uint8)  # this field holds the length of a text
        dist.broadcast(text, 0)
        name, fields = json.loads(bytes(text.tolist()))
        self.has_stopped = name not in _NAMED_REQUESTS
        return None if self.has_stopped else _NAMED_REQUESTS[name](**fields)

    def receive_rows(self, rows: Tensor) -> None:
        """On other ranks: receive the rows of a pass."""
        dist.broadcast(rows, 0, self._rows_group)

    def all_reduce(self, rows: Tensor) -> None:
        """Replace the rows of every rank by their sum over the ranks."""
        dist.all_reduce(rows, group=self._rows_group)

    def gather_columns(self, columns: Tensor) -> Tensor:
        """On rank 0: the columns of all ranks side by side, equally many per rank: [T, columns] -> [T, R columns]."""
        parts = [torch.empty_like(columns) for _ in range(self.num_ranks)]
        dist.gather(columns, parts, dst=0, group=self._rows_group)
        self._end_pass()
        return torch.cat(parts, 1)

    def send_columns(self, columns: Tensor) -> None:
        """On other ranks: send columns that rank 0 gathers."""
        dist.gather(columns, dst=0, group=self._rows_group)
        self._end_pass()

    def _end_pass(self) -> None:
        if self._monitor.stage != Stage.DRAFTING:
            self._monitor.stage = Stage.SAMPLING

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.all_reduce(torch.zeros(1))

    @contextlib.contextmanager
    def adding_stage_to_errors(self) -> Iterator[None]:
        """On rank 0: add rank and stage to an error.

        Raises:
            SystemExit: the failure of another rank, already printed, is the cause of the error.
        """
        try:
            yield
        except S2DError:
            raise
        except Exception as err:
            if (failure := self._monitor.wait_for_failure()) is not None:
                raise SystemExit(failure.exit_code) from err
            err.add_note(f"Rank 0 failed during {self._monitor.stage}.")
            raise

    def run_leader(self, program: Callable[["Ranks"], int]) -> int:
        """On rank 0: run the program, then stop the other ranks."""
        code = EXIT_OUR_FAULT
        try:
            code = program(self)
            if code == EXIT_ANSWERED:
                with contextlib.suppress(RuntimeError):  # a rank that is lost now does not change the result
                    self.request(None)
        except SystemExit as stop:
            code = int(stop.code or EXIT_OUR_FAULT)
        finally:
            self._monitor.end_job(code)
        return code

    def run_worker(self, serve: Callable[["Ranks"], None]) -> int:
        """On other ranks: serve requests until the request to stop. Ctrl-C is left to rank 0."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            serve(self)
        except Exception as err:
            return self._monitor.report_failure(err)
        return EXIT_ANSWERED


def local_device(kind: str) -> str:
    """Torch's name of this rank's device of a kind, `cpu` or `cuda`.

    Raises:
        UserInputError: this machine has fewer devices than ranks.
    """
    if kind == "cpu":
        return kind
    index = int(os.environ["LOCAL_RANK"])
    if index >= torch.cuda.device_count():
        raise UserInputError(
            f"this machine has {torch.cuda.device_count()} CUDA devices, expected one for each process that torchrun starts on "
            "it. Use a lower --nproc-per-node."
        )
    torch.cuda.set_device(index)
    return f"cuda:{index}"


@contextlib.contextmanager
def join_ranks(prog: str) -> Iterator[Ranks]:
    """Join the ranks that torchrun started, and wait until all have joined.

    Args:
        prog: name of the command, printed before messages.
    """
    store, rank, num_ranks = next(rendezvous("env://"))
    shared_store = PrefixStore("s2d", store)
    with monitored_ranks(rank, shared_store, prog) as monitor:
        dist.init_process_group("gloo", store=shared_store, rank=rank, world_size=num_ranks, timeout=_REQUEST_TIMEOUT)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        ranks = Ranks(rank, num_ranks, dist.new_group(backend=backend, timeout=_ROWS_TIMEOUT), monitor)
        try:
            yield ranks
        finally:
            if ranks.has_stopped:
                dist.destroy_process_group()
            else:  # destroying would wait for operations that may never end
                with contextlib.suppress(ImportError, RuntimeError):  # a private name; without it the process still ends
                    from torch.distributed.distributed_c10d import _abort_process_group

                    _abort_process_group()

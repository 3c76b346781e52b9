"""Processes that torchrun started together: rank 0 runs the program and orders what the others do (`s2d.parallel.parallel_decoder`).

Orders are small and go from host to host by gloo, where a rank may wait for hours. Rows stay on the devices and go by a group
of their own (NCCL on GPUs), where all ranks work at the same time and a wait of minutes is an error. How a failure of any rank
ends all of them is in `s2d.parallel.rank_failure`.
"""

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
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
"""First number of an order: a pass, whose rows follow; the head, of rows that all have; a text, whose bytes follow."""
TARGET, DRAFT = range(2)
"""Numbers of the models that the ranks may share."""
_ORDER_WITHIN = timedelta(days=1)
"""How long a rank waits for an order, or for another rank to load its share."""
_ROWS_WITHIN = timedelta(minutes=10)
"""How long a rank waits for another one in a pass that all of them run."""


class RowsRequest(NamedTuple):
    """Do your share for some rows of a text; numbers alone, as one goes before every pass."""

    what: int
    """`PASS`, or `HEAD` of what such a pass left."""
    model_id: int
    cache: int
    segment: int
    start: int
    """Tokens before the first row."""
    num_rows: int
    stage: int
    """What the job is doing: a `Stage`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRequest:
    """Read your share of a model folder."""

    model_id: int
    """Its number."""
    folder: str
    dtype: Dtype
    device: str
    """`cpu` or `cuda`."""
    kernels: str
    """Their label."""
    num_threads: int
    num_tokens: Tokens | None
    """Of the vocabulary that it is to have; None for its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRequest:
    """Make a cache of your share."""

    model_id: int
    number: int
    segment_ends: Sequence[int]
    max_tokens: Tokens
    kept: Sequence[int]
    """Numbers of the model's others that are still in use."""


Request = RowsRequest | LoadRequest | CacheRequest
_NAMED_ORDERS: dict[str, type[LoadRequest] | type[CacheRequest]] = {"load": LoadRequest, "cache": CacheRequest}


class Ranks:
    """This process among those that were started together.

    Args:
        number: its own; 0 leads.
        size: how many there are.
        rows: the group by which rows go.
        watch: of the other ranks.
    """

    def __init__(self, rank: int, num_ranks: int, rows: dist.ProcessGroup, watch: RankMonitor) -> None:
        self.rank = rank
        self.num_ranks = num_ranks
        self.has_stopped = False
        """Whether the order to stop was given, and nothing is left to wait for."""
        self._rows = rows
        self._watch = watch

    def request_pass(self, order: RowsRequest, rows: Tensor) -> None:
        """Rank 0: the others are to run a pass over these rows."""
        self._watch.stage = Stage(order.stage)
        dist.broadcast(torch.tensor(order), 0)
        dist.broadcast(rows, 0, self._rows)

    def request_head(self, order: RowsRequest) -> None:
        """Rank 0: the others are to ask their columns of the head about rows that a pass left with them."""
        self._watch.stage = Stage(order.stage)
        dist.broadcast(torch.tensor(order), 0)

    def request(self, order: LoadRequest | CacheRequest | None) -> None:
        """Rank 0: the others are to do something else; None lets them go."""
        if isinstance(order, LoadRequest):
            self._watch.stage = Stage.LOADING
        if order is None:
            self._watch.end(EXIT_ANSWERED)
        name = next((name for name, kind in _NAMED_ORDERS.items() if isinstance(order, kind)), "stop")
        text = json.dumps((name, asdict(order) if order else {})).encode()
        dist.broadcast(torch.tensor(RowsRequest(_TEXT, len(text), 0, 0, 0, 0, self._watch.stage)), 0)
        dist.broadcast(torch.frombuffer(bytearray(text), dtype=torch.uint8), 0)
        self.has_stopped = order is None

    def next_request(self) -> Request | None:
        """Another rank: wait for what is to be done. The rows of a pass are still to be received."""
        numbers = torch.empty(len(RowsRequest._fields), dtype=torch.int64)
        dist.broadcast(numbers, 0)
        order = RowsRequest(*numbers.tolist())
        self._watch.stage = Stage(order.stage)
        if order.what != _TEXT:
            return order
        text = torch.empty(order.model_id, dtype=torch.uint8)
        dist.broadcast(text, 0)
        name, fields = json.loads(bytes(text.tolist()))
        self.has_stopped = name not in _NAMED_ORDERS
        return None if self.has_stopped else _NAMED_ORDERS[name](**fields)

    def receive_rows(self, rows: Tensor) -> None:
        """Another rank: the rows of the pass."""
        dist.broadcast(rows, 0, self._rows)

    def all_reduce(self, rows: Tensor) -> None:
        """Replace every rank's rows by their sum over the ranks."""
        dist.all_reduce(rows, group=self._rows)

    def gather_columns(self, columns: Tensor) -> Tensor:
        """Rank 0: every rank's columns beside its own, all as many: [T, columns] -> [T, R columns]."""
        parts = [torch.empty_like(columns) for _ in range(self.num_ranks)]
        dist.gather(columns, parts, dst=0, group=self._rows)
        self._end_pass()
        return torch.cat(parts, 1)

    def send_columns(self, columns: Tensor) -> None:
        """Another rank: columns for rank 0 to gather."""
        dist.gather(columns, dst=0, group=self._rows)
        self._end_pass()

    def _end_pass(self) -> None:
        if self._watch.stage != Stage.DRAFTING:
            self._watch.stage = Stage.SAMPLING

    def barrier(self) -> None:
        """Wait until every rank is here."""
        dist.all_reduce(torch.zeros(1))

    @contextlib.contextmanager
    def adding_stage_to_errors(self) -> Iterator[None]:
        """Rank 0: add rank and stage to an error.

        Raises:
            SystemExit: the error is the consequence of another rank's, which has been printed.
        """
        try:
            yield
        except S2DError:
            raise
        except Exception as err:
            if (failure := self._watch.failure_of_others()) is not None:
                raise SystemExit(failure.exit_code) from err
            err.add_note(f"Rank 0 failed during {self._watch.stage}.")
            raise

    def run_leader(self, program: Callable[["Ranks"], int]) -> int:
        """Rank 0: run the program, then let the others go."""
        code = EXIT_OUR_FAULT
        try:
            code = program(self)
            if code == EXIT_ANSWERED:
                with contextlib.suppress(RuntimeError):  # a rank that is lost now changes no result
                    self.request(None)
        except SystemExit as stop:
            code = int(stop.code or EXIT_OUR_FAULT)
        finally:
            self._watch.end(code)
        return code

    def run_worker(self, orders: Callable[["Ranks"], None]) -> int:
        """Another rank: carry out orders until there are no more. Rank 0 handles Ctrl-C."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            orders(self)
        except Exception as err:
            return self._watch.fail(err)
        return EXIT_ANSWERED


def local_device(kind: str) -> str:
    """Torch's name for this rank's device of a kind, `cpu` or `cuda`.

    Raises:
        UserInputError: there are fewer devices than ranks on this machine.
    """
    if kind == "cpu":
        return kind
    number = int(os.environ["LOCAL_RANK"])
    if number >= torch.cuda.device_count():
        raise UserInputError(
            f"this machine has {torch.cuda.device_count()} CUDA devices, expected one for each process that torchrun starts on "
            "it. Give it a lower --nproc-per-node."
        )
    torch.cuda.set_device(number)
    return f"cuda:{number}"


@contextlib.contextmanager
def join_ranks(prog: str) -> Iterator[Ranks]:
    """This process, among those that torchrun started, from when all are here.

    Args:
        prog: the command's name, which begins its messages.
    """
    store, number, size = next(rendezvous("env://"))
    shared = PrefixStore("s2d", store)
    with monitored_ranks(number, shared, prog) as watch:
        dist.init_process_group("gloo", store=shared, rank=number, world_size=size, timeout=_ORDER_WITHIN)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        ranks = Ranks(number, size, dist.new_group(backend=backend, timeout=_ROWS_WITHIN), watch)
        try:
            yield ranks
        finally:
            if ranks.has_stopped:
                dist.destroy_process_group()
            else:  # destroying waits for operations that may never end
                with contextlib.suppress(ImportError, RuntimeError):  # a private name: the process ends anyway
                    from torch.distributed.distributed_c10d import _abort_process_group

                    _abort_process_group()

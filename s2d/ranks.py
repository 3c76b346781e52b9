"""Processes that torchrun started together: what rank 0 tells the others, and how an error of any of them ends them all.

Rank 0 runs the program and is the only one to speak. The others follow its orders (`s2d.parallel`), and what fails there is
said by rank 0. Orders are small and go from host to host by gloo, rows stay on the devices.
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
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from perfmodel.console import EXIT_ANSWERED, EXIT_OUR_FAULT, print_err
from perfmodel.errors import S2DError, UserInputError
from perfmodel.profile import Dtype
from perfmodel.units import Tokens

PASS, HEAD, _TEXT = range(3)
"""First number of an order: a pass, whose rows follow; the head, of rows that all have; a text, whose bytes follow."""
TARGET, DRAFT = range(2)
"""Numbers of the models that the ranks may share."""
_PATIENCE = timedelta(days=1)
"""How long a follower waits for orders."""
_HEARD_WITHIN = timedelta(seconds=10)
"""How long a failed follower waits for rank 0 to speak for it; on a GPU rank 0 may hang in the sum that lacks a summand."""


class RowsOrder(NamedTuple):
    """Do your share for some rows of a text; numbers alone, as one goes before every pass."""

    what: int
    """`PASS`, or `HEAD` of what such a pass left."""
    model: int
    cache: int
    segment: int
    start: int
    """Tokens before the first row."""
    num_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOrder:
    """Read your share of a model folder."""

    model: int
    """Its number."""
    folder: str
    dtype: Dtype
    device: str
    """`cpu` or `cuda`."""
    num_threads: int
    num_tokens: Tokens | None
    """Of the vocabulary that it is to have; None for its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheOrder:
    """Make a cache of your share."""

    model: int
    number: int
    segment_ends: Sequence[int]
    max_tokens: Tokens
    kept: Sequence[int]
    """Numbers of the model's others that are still in use."""


Order = RowsOrder | LoadOrder | CacheOrder
_NAMED_ORDERS: dict[str, type[LoadOrder] | type[CacheOrder]] = {"load": LoadOrder, "cache": CacheOrder}


class Ranks:
    """This process among those that were started together.

    Args:
        number: its own; 0 leads.
        size: how many there are.
        store: what they say outside of orders.
    """

    def __init__(self, number: int, size: int, store: Store) -> None:
        self.number = number
        self.size = size
        self._store = store

    def order_pass(self, order: RowsOrder, rows: Tensor) -> None:
        """Rank 0: the others are to run a pass over these rows."""
        dist.broadcast(torch.tensor(order), 0)
        dist.broadcast(rows, 0)

    def order_head(self, order: RowsOrder) -> None:
        """Rank 0: the others are to ask their columns of the head about rows that a pass left with them."""
        dist.broadcast(torch.tensor(order), 0)

    def order(self, order: LoadOrder | CacheOrder | None) -> None:
        """Rank 0: the others are to do something else; None lets them go."""
        name = next((name for name, kind in _NAMED_ORDERS.items() if isinstance(order, kind)), "stop")
        text = json.dumps((name, asdict(order) if order else {})).encode()
        dist.broadcast(torch.tensor(RowsOrder(_TEXT, len(text), 0, 0, 0, 0)), 0)
        dist.broadcast(torch.frombuffer(bytearray(text), dtype=torch.uint8), 0)

    def next_order(self) -> Order | None:
        """Another rank: wait for what is to be done. The rows of a pass are still to be received."""
        numbers = torch.empty(len(RowsOrder._fields), dtype=torch.int64)
        dist.broadcast(numbers, 0)
        what, num_bytes, *_ = numbers.tolist()
        if what != _TEXT:
            return RowsOrder(*numbers.tolist())
        text = torch.empty(num_bytes, dtype=torch.uint8)
        dist.broadcast(text, 0)
        name, fields = json.loads(bytes(text.tolist()))
        return _NAMED_ORDERS[name](**fields) if name in _NAMED_ORDERS else None

    def receive(self, rows: Tensor) -> None:
        """Another rank: the rows of the pass."""
        dist.broadcast(rows, 0)

    def gather(self, columns: Tensor) -> Tensor:
        """Rank 0: every rank's columns beside its own, all as many: [T, columns] -> [T, R columns]."""
        parts = [torch.empty_like(columns) for _ in range(self.size)]
        dist.gather(columns, parts, dst=0)
        return torch.cat(parts, 1)

    def give(self, columns: Tensor) -> None:
        """Another rank: columns for rank 0 to gather."""
        dist.gather(columns, dst=0)

    def meet(self) -> None:
        """Wait until every rank is here."""
        dist.all_reduce(torch.zeros(1))

    @contextlib.contextmanager
    def speaking_for_all(self) -> Iterator[None]:
        """Rank 0: an error here that another rank caused is told as that rank's."""
        try:
            yield
        except S2DError:
            raise
        except Exception as err:
            if self._store.check(["failed"]):
                raise S2DError(self._store.get("failed").decode()) from err
            raise

    def lead(self, program: Callable[["Ranks"], int]) -> int:
        """Rank 0: run the program, then let the others go."""
        code = EXIT_OUR_FAULT
        try:
            code = program(self)
            if code == EXIT_ANSWERED:
                self.order(None)
        finally:
            self._store.set("ended", "")
        return code

    def follow(self, orders: Callable[["Ranks"], None]) -> int:
        """Another rank: carry out orders until there are no more. Ctrl-C is rank 0's to hear."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            orders(self)
        except Exception as err:
            return self._failed(f"rank {self.number}: {err if isinstance(err, S2DError) else f'{type(err).__name__}: {err}'}")
        return EXIT_ANSWERED

    def _failed(self, message: str) -> int:
        """Leave it to rank 0 to say so, which may have ended before: then this is a consequence, and no news."""
        try:
            if self._store.check(["ended"]):
                return EXIT_ANSWERED
            self._store.set("failed", message)
            dist.destroy_process_group()
            self._store.wait(["ended"], _HEARD_WITHIN)
        except dist.DistStoreError:
            print_err(message)
        except dist.DistError:  # the store went with rank 0
            return EXIT_ANSWERED
        return EXIT_OUR_FAULT


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
def joined() -> Iterator[Ranks]:
    """This process, among those that torchrun started, from when all are here."""
    store, number, size = next(rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    shared = PrefixStore("s2d", store)
    dist.init_process_group(backend, store=shared, rank=number, world_size=size, timeout=_PATIENCE)
    try:
        yield Ranks(number, size, shared)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()

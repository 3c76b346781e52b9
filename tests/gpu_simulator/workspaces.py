"""cuBLAS workspaces and memory pools, and the two known ways in which graphs break with them.

PyTorch keeps one workspace per stream, taken at the stream's first matrix product. A product that is captured bakes the
workspace's address into its graph. When any graph of a stream is destroyed, PyTorch (with #175276) frees the workspace of
that stream: other graphs that use it then read freed memory (pytorch#193402). Without #175276 the workspace stays, and a pool
that holds one cannot be reopened after its last graph died (INTERNAL ASSERT use_count > 0).

`torch._C._cuda_clearCublasWorkspaces()` before and after the captured computation avoids both: the workspace is then a
temporary of the graph alone.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.gpu_simulator.streams import StreamKey

if TYPE_CHECKING:
    from tests.gpu_simulator.capture import CUDAGraph

PoolId = tuple[int, int]


class Workspace:
    """One stream's workspace, with the graph in whose capture it was allocated, by number."""

    __slots__ = ("is_freed", "owner", "pool")

    def __init__(self, owner: int | None, pool: PoolId | None) -> None:
        self.owner = owner
        self.pool = pool
        self.is_freed = False

    def is_valid_for(self, graph: int) -> bool:
        """A graph's own temporary stays in its pool, whoever frees it."""
        return self.owner == graph or not self.is_freed


class Workspaces:
    """All workspaces of the machine.

    Args:
        charge: counts bytes of a device as allocated.
        nbytes: size of one workspace.
    """

    def __init__(self, charge: Callable[[int, int], None], nbytes: int) -> None:
        self._charge = charge
        self._nbytes = nbytes
        self.live: dict[StreamKey, Workspace] = {}
        self.streams_ever: set[StreamKey] = set()
        """Streams on which a product has run."""
        self.most_live = 0
        """Workspaces that were held at a time."""
        self._kept: dict[StreamKey, Workspace] = {}  # as torch before #175276 keeps them

    def use(self, stream: StreamKey, graph: CUDAGraph | None) -> Workspace:
        """The workspace of a product on a stream."""
        self.streams_ever.add(stream)
        found = self.live.get(stream)
        if found is None:
            owner, pool = (graph.number, graph.pool_id) if graph else (None, None)
            self._charge(stream[0], self._nbytes)
            found = self.live[stream] = Workspace(owner, pool)
            self.most_live = max(self.most_live, len(self.live))
        self._kept.setdefault(stream, found)
        return found

    def clear(self) -> None:
        """`torch._C._cuda_clearCublasWorkspaces()`."""
        for stream in list(self.live):
            self._free(stream)
        self._kept.clear()

    def destroyed_graph_of(self, stream: StreamKey) -> None:
        """PyTorch frees a stream's workspace with any of its graphs."""
        if stream in self.live:
            self._free(stream)

    def _free(self, stream: StreamKey) -> None:
        self.live.pop(stream).is_freed = True
        self._charge(stream[0], -self._nbytes)

    def stream_that_keeps(self, pool: PoolId) -> StreamKey | None:
        """The stream whose workspace lies in a pool, as torch before #175276 keeps it."""
        return next((stream for stream, workspace in self._kept.items() if workspace.pool == pool), None)


class Pools:
    """Private memory pools of graphs, and how many live graphs use each."""

    def __init__(self) -> None:
        self.num_graphs: Counter[PoolId] = Counter()
        self.reserved_bytes: Counter[PoolId] = Counter()
        """Largest amount of memory that one capture into a live pool took at a time."""
        self._emptied: set[PoolId] = set()
        self._numbers = itertools.count(1)

    def new(self) -> PoolId:
        """`torch.cuda.graph_pool_handle()`."""
        return (0, next(self._numbers))

    def is_reopened(self, pool: PoolId) -> bool:
        """Whether the pool's last graph has died."""
        return self.num_graphs[pool] == 0 and pool in self._emptied

    def open(self, pool: PoolId) -> None:
        """A graph is captured into a pool."""
        self.num_graphs[pool] += 1

    def close(self, pool: PoolId) -> None:
        """A graph of a pool is destroyed."""
        self.num_graphs[pool] -= 1
        if self.num_graphs[pool] == 0:
            self._emptied.add(pool)
            del self.num_graphs[pool]
            self.reserved_bytes.pop(pool, None)

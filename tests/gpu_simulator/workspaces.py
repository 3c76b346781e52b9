"""cuBLAS workspaces and memory pools, and two known ways in which they break graphs.

PyTorch keeps a workspace per stream, allocated at the first matrix product on the stream. A captured product stores the address
of the workspace in its graph. When a graph of a stream is destroyed, PyTorch (with #175276) frees the workspace of that stream,
and other graphs that use it read freed memory (pytorch#193402). Without #175276 the workspace stays, and a pool that holds one
cannot be reopened after its last graph was destroyed (INTERNAL ASSERT use_count > 0).

A call of `torch._C._cuda_clearCublasWorkspaces()` before and after the captured computation avoids both: the workspace is then
a temporary of this graph alone.
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
    """Workspace of a stream, with the number of the graph whose capture allocated it."""

    __slots__ = ("is_freed", "owner", "pool")

    def __init__(self, owner: int | None, pool: PoolId | None) -> None:
        self.owner = owner
        self.pool = pool
        self.is_freed = False

    def is_valid_for(self, graph: int) -> bool:
        """Whether a graph can use it. A temporary of the graph itself stays in its pool even if it is freed."""
        return self.owner == graph or not self.is_freed


class Workspaces:
    """All workspaces of the machine.

    Args:
        charge: counts bytes of a device as allocated.
        nbytes: size of a workspace.
    """

    def __init__(self, charge: Callable[[int, int], None], nbytes: int) -> None:
        self._charge = charge
        self._nbytes = nbytes
        self.live: dict[StreamKey, Workspace] = {}
        self.streams_with_products: set[StreamKey] = set()
        """Streams on which a matrix product has run."""
        self.max_live = 0
        """Largest number of workspaces at the same time."""
        self._kept: dict[StreamKey, Workspace] = {}  # workspaces that torch before #175276 keeps

    def use(self, stream: StreamKey, graph: CUDAGraph | None) -> Workspace:
        """The workspace of a matrix product on a stream."""
        self.streams_with_products.add(stream)
        workspace = self.live.get(stream)
        if workspace is None:
            owner, pool = (graph.number, graph.pool_id) if graph else (None, None)
            self._charge(stream[0], self._nbytes)
            workspace = self.live[stream] = Workspace(owner, pool)
            self.max_live = max(self.max_live, len(self.live))
        self._kept.setdefault(stream, workspace)
        return workspace

    def clear(self) -> None:
        """`torch._C._cuda_clearCublasWorkspaces()`."""
        for stream in list(self.live):
            self._free(stream)
        self._kept.clear()

    def free_for_destroyed_graph(self, stream: StreamKey) -> None:
        """Free the workspace of a stream, as PyTorch does when it destroys a graph of the stream."""
        if stream in self.live:
            self._free(stream)

    def _free(self, stream: StreamKey) -> None:
        self.live.pop(stream).is_freed = True
        self._charge(stream[0], -self._nbytes)

    def stream_with_workspace_in(self, pool: PoolId) -> StreamKey | None:
        """The stream whose workspace torch before #175276 keeps in a pool."""
        return next((stream for stream, workspace in self._kept.items() if workspace.pool == pool), None)


class Pools:
    """Private memory pools of graphs, and how many live graphs use each."""

    def __init__(self) -> None:
        self.num_graphs: Counter[PoolId] = Counter()
        self.reserved_bytes: Counter[PoolId] = Counter()
        """Largest memory of a single capture into a live pool."""
        self._emptied: set[PoolId] = set()
        self._numbers = itertools.count(1)

    def new(self) -> PoolId:
        """`torch.cuda.graph_pool_handle()`."""
        return (0, next(self._numbers))

    def is_reopened(self, pool: PoolId) -> bool:
        """Whether all graphs of the pool were destroyed."""
        return self.num_graphs[pool] == 0 and pool in self._emptied

    def open(self, pool: PoolId) -> None:
        """Count a graph captured into a pool."""
        self.num_graphs[pool] += 1

    def close(self, pool: PoolId) -> None:
        """Count a destroyed graph of a pool."""
        self.num_graphs[pool] -= 1
        if self.num_graphs[pool] == 0:
            self._emptied.add(pool)
            del self.num_graphs[pool]
            self.reserved_bytes.pop(pool, None)

"""A decoder dealt out to several processes: rank 0 orders every pass and decides by its result, the others add their share.

A layer takes two sums over the ranks, which hold the residual already: rank 0's share of a product is added to it, the other
ranks' are not. Whatever a pass depends on (which segment, after how many tokens, which rows) comes from rank 0 with the pass,
so that ranks cannot disagree: an exit taken, a token drafted and a block rolled back are known by the pass that comes next.
"""

from dataclasses import replace
from itertools import count
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from perfmodel.disk import PathLike
from perfmodel.errors import UserInputError
from perfmodel.geometry import ModelGeometry
from perfmodel.profile import Dtype
from s2d.cache import Cache, Segment
from s2d.config import read_geometry
from s2d.load import LoadedModel, load_model
from s2d.nested import Decoder
from s2d.ranks import CacheOrder, LoadOrder, Ranks, local_device
from s2d.shard import Share
from s2d.weights import DecoderWeights


class LeadingDecoder(Decoder):
    """Rank 0's share of a decoder, with embedding and head: to whoever uses it, the whole decoder.

    Args:
        geometry: of the share.
        weights: of the share.
        ranks: whom to order.
    """

    _sums_whole_rows = True

    def __init__(self, geometry: ModelGeometry, weights: DecoderWeights, ranks: Ranks) -> None:
        super().__init__(geometry, weights)
        self._ranks = ranks
        self._new_numbers = count()
        self._numbers: WeakKeyDictionary[Cache, int] = WeakKeyDictionary()

    @property
    def num_devices(self) -> int:
        """See `Decoder`."""
        return self._ranks.size

    def new_cache(self, segment_ends: tuple[int, ...], max_tokens: int) -> Cache:
        """See `Decoder`. The other ranks make one too, and drop those that are no longer here."""
        cache, number = super().new_cache(segment_ends, max_tokens), next(self._new_numbers)
        kept = tuple(self._numbers.values())
        self._ranks.order(CacheOrder(number=number, segment_ends=segment_ends, max_tokens=max_tokens, kept=kept))
        self._numbers[cache] = number
        return cache

    def _run_layers(self, x: Tensor, out: Tensor, segment: Segment, cache: Cache, start: int) -> None:
        self._ranks.order_pass((self._numbers[cache], segment.number, start, len(x)), x)
        super()._run_layers(x, out, segment, cache, start)

    def _add(self, mixed: Tensor, matrix: Tensor, bias: Tensor | None, residual: Tensor, out: Tensor) -> None:
        super()._add(mixed, matrix, bias, residual, out)
        dist.all_reduce(out)


class FollowingDecoder(Decoder):
    """Another rank's share: layers, and neither embedding nor head."""

    _sums_whole_rows = True

    def _add(self, mixed: Tensor, matrix: Tensor, bias: Tensor | None, residual: Tensor, out: Tensor) -> None:
        """The share alone: the residual and biases are rank 0's to add."""
        torch.mm(mixed, matrix, out=out)
        dist.all_reduce(out)


def load_shared(folder: PathLike, dtype: Dtype, device: str, ranks: Ranks) -> LoadedModel:
    """Rank 0: read a model folder, every rank its share; no rank ever holds more than one whole layer.

    Args:
        folder: the same on every machine.
        dtype: to compute in.
        device: `cpu`, or `cuda` for the GPU of every rank's own.
        ranks: who shares.

    Raises:
        UserInputError: the ranks cannot share the model evenly, or a device is named by number; else as `load_model`.
    """
    share = Share(rank=ranks.number, num_ranks=ranks.size)
    share.check(read_geometry(Path(folder)))
    if torch.device(device).index is not None:
        raise UserInputError(f"--device {device}: expected cpu or cuda, as torchrun gives each process a GPU of its own.")
    ranks.order(LoadOrder(folder=str(folder), dtype=dtype, device=device, num_threads=torch.get_num_threads()))
    model = load_model(folder, dtype, local_device(device), kept=share.layer)
    ranks.meet()
    return replace(model, decoder=LeadingDecoder(share.geometry(model.geometry), model.decoder.weights, ranks))


@torch.inference_mode()
def follow_orders(ranks: Ranks) -> None:
    """Another rank: load, make caches and run passes as rank 0 says, until it stops."""
    follower = _Follower(ranks)
    while (order := ranks.next_order()) is not None:
        match order:
            case LoadOrder():
                follower.load(order)
            case CacheOrder():
                follower.make_cache(order)
            case _:
                follower.run_pass(*order)


class _Follower:
    """What another rank holds: its share of the target, and a cache for each of rank 0's."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._caches: dict[int, Cache] = {}

    def load(self, order: LoadOrder) -> None:
        """Read the share; embedding and head are rank 0's."""
        torch.set_num_threads(order.num_threads)
        share = Share(rank=self._ranks.number, num_ranks=self._ranks.size)
        model = load_model(order.folder, order.dtype, local_device(order.device), kept=share.layer)
        whole = model.decoder.weights
        weights = replace(whole, embedding=whole.embedding[:0].clone(), head=whole.head[:, :0].clone())
        self._decoder = FollowingDecoder(share.geometry(model.geometry), weights)
        self._ranks.meet()

    def make_cache(self, order: CacheOrder) -> None:
        """Make one, having dropped those that rank 0 has no more."""
        self._caches = {number: cache for number, cache in self._caches.items() if number in order.kept}
        self._caches[order.number] = self._decoder.new_cache(tuple(order.segment_ends), order.max_tokens)

    def run_pass(self, number: int, segment: int, start: int, num_rows: int) -> None:
        """Add this share to a pass."""
        cache, decoder = self._caches[number], self._decoder
        rows = torch.empty(num_rows, cache.states[0].shape[1], dtype=decoder.dtype, device=decoder.device)
        self._ranks.receive(rows)
        cache.lengths[segment] = start
        decoder.forward_segment(rows, cache.segments[segment], cache)

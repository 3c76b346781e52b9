"""A decoder dealt out to several processes: rank 0 orders every pass and decides by its result, the others add their shard.

A layer takes two sums over the ranks, which hold the residual already: rank 0's share of a product is added to it, the other
ranks' are not. So the rows that a pass leaves are the same on all ranks: each asks its columns of the head about them, and rank
0 gathers what they say. Whatever a pass depends on (which segment, after how many tokens, which rows) comes from rank 0 with
it, so that ranks cannot disagree: an exit taken, a token drafted and a block rolled back are known by the pass that comes next.
"""

from dataclasses import replace
from itertools import count
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from perfmodel.core.disk import PathLike
from perfmodel.core.errors import UserInputError
from perfmodel.core.units import Tokens
from perfmodel.models.dtypes import Dtype
from perfmodel.models.geometry import ModelGeometry
from perfmodel.passes.kernels import STANDARD_KERNELS, Kernels, parse_kernels
from s2d.loading.load_model import LoadedModel, load_model, with_target_vocab
from s2d.loading.read_config import read_geometry
from s2d.model.cache import Cache, Segment
from s2d.model.decoder import Decoder
from s2d.model.weights import DecoderWeights
from s2d.parallel.rank_failure import Stage
from s2d.parallel.ranks import DRAFT, HEAD, PASS, TARGET, CacheRequest, LoadRequest, Ranks, RowsRequest, local_device
from s2d.parallel.shard import Shard

_OTHERWISE = {
    TARGET: "Give torchrun another --nproc-per-node",
    DRAFT: "Give torchrun another --nproc-per-node, or profile without --share-draft and plan again: the first process has a "
    "draft whole then",
}
"""What to do about a model that cannot be shared."""


class LeaderDecoder(Decoder):
    """Rank 0's share of a decoder, with the whole embedding: to whoever uses it, the whole decoder.

    Args:
        geometry: of the shard.
        weights: of the shard.
        ranks: whom to order.
        number: by which they know the model.
        num_head_tokens: tokens that the whole head can say: U.
    """

    _sums_whole_rows = True

    def __init__(
        self, geometry: ModelGeometry, weights: DecoderWeights, ranks: Ranks, *, model_id: int, num_head_tokens: Tokens
    ) -> None:
        super().__init__(geometry, weights)
        self._ranks = ranks
        self._model_id = model_id
        self._num_head_tokens = num_head_tokens
        self._stage = Stage.PREFILL
        self._new_numbers = count()
        self._numbers: WeakKeyDictionary[Cache, int] = WeakKeyDictionary()

    @property
    def num_devices(self) -> int:
        """See `Decoder`."""
        return self._ranks.num_ranks

    def new_cache(self, segment_ends: tuple[int, ...], max_tokens: int) -> Cache:
        """See `Decoder`. The other ranks make one too, and drop those that are no longer here."""
        cache, number = super().new_cache(segment_ends, max_tokens), next(self._new_numbers)
        kept = tuple(self._numbers.values())
        order = CacheRequest(
            model_id=self._model_id, number=number, segment_ends=segment_ends, max_tokens=max_tokens, kept=kept
        )
        self._ranks.request(order)
        self._numbers[cache] = number
        return cache

    def _head_logits(self, states: Tensor) -> Tensor:
        """See `Decoder`. The rows are ones that a pass left, which every rank has."""
        self._ranks.request_head(RowsRequest(HEAD, self._model_id, *self._place_of(states), len(states), self._stage))
        return self._ranks.gather_columns(super()._head_logits(states))[:, : self._num_head_tokens]

    def _place_of(self, states: Tensor) -> tuple[int, int, int]:
        """Where rows are kept: the numbers of their cache and of the segment they left, and the tokens before the first."""
        for cache, number in self._numbers.items():
            for segment, kept in enumerate(cache.states):
                start = (states.data_ptr() - kept.data_ptr()) // (kept.stride(0) * kept.element_size())
                if 0 <= start < len(kept):
                    return number, segment, start
        raise AssertionError("an exit answers after rows that a pass left in a cache: other ranks have no others")

    def _run_layers(self, x: Tensor, out: Tensor, segment: Segment, cache: Cache, start: int) -> None:
        self._stage = self._stage_of(segment, cache, start)
        order = RowsRequest(PASS, self._model_id, self._numbers[cache], segment.index, start, len(x), self._stage)
        self._ranks.request_pass(order, x)
        super()._run_layers(x, out, segment, cache, start)

    def _add(self, mixed: Tensor, matrix: Tensor, bias: Tensor | None, residual: Tensor, out: Tensor) -> None:
        super()._add(mixed, matrix, bias, residual, out)
        self._ranks.all_reduce(out)

    def _stage_of(self, segment: Segment, cache: Cache, start: int) -> Stage:
        """What a pass is for; of a target that drafts for itself all segments but the last draft."""
        if start == 0:
            return Stage.PREFILL
        drafts = self._model_id == DRAFT or segment is not cache.segments[-1]
        return Stage.DRAFTING if drafts else Stage.VERIFICATION


class WorkerDecoder(Decoder):
    """Another rank's shard: layers, no embedding, and columns of the head, whose tokens only rank 0 knows.

    Args:
        geometry: of the shard.
        weights: of the shard.
        ranks: with whom to add up rows.
    """

    _sums_whole_rows = True

    def __init__(self, geometry: ModelGeometry, weights: DecoderWeights, ranks: Ranks) -> None:
        super().__init__(geometry, weights)
        self._ranks = ranks

    def _add(self, mixed: Tensor, matrix: Tensor, bias: Tensor | None, residual: Tensor, out: Tensor) -> None:
        """The share alone: the residual and biases are rank 0's to add."""
        torch.mm(mixed, matrix, out=out)
        self._ranks.all_reduce(out)


def load_sharded(
    folder: PathLike,
    dtype: Dtype,
    device: str,
    ranks: Ranks,
    *,
    kernels: Kernels = STANDARD_KERNELS,
    model_id: int = TARGET,
    num_tokens: Tokens | None = None,
) -> LoadedModel:
    """Rank 0: read a model folder, every rank its share; none keeps more than that, and rank 0 the embedding.

    Args:
        folder: the same on every machine.
        dtype: to compute in.
        device: `cpu`, or `cuda` for the GPU of every rank's own.
        ranks: who shares.
        kernels: what all compute with.
        number: `TARGET` or `DRAFT`.
        num_tokens: of the vocabulary that it is to have; its own when None.

    Raises:
        UserInputError: the ranks cannot share the model evenly, or a device is named by number; else as `load_model`.
    """
    shard = Shard(rank=ranks.rank, num_ranks=ranks.num_ranks)
    shard.check(read_geometry(Path(folder)), otherwise=_OTHERWISE[model_id])
    if torch.device(device).index is not None:
        raise UserInputError(f"--device {device}: expected cpu or cuda, as torchrun gives each process a GPU of its own.")
    order = LoadRequest(
        model_id=model_id,
        folder=str(folder),
        dtype=dtype,
        device=device,
        kernels=kernels.label,
        num_threads=torch.get_num_threads(),
        num_tokens=num_tokens,
    )
    ranks.request(order)
    model = _load(order, shard)
    ranks.barrier()
    whole = model.decoder.weights
    weights = replace(whole, head=shard.head(whole.head))
    geometry, num_head_tokens = shard.geometry(model.geometry), whole.head.shape[1]
    return replace(model, decoder=LeaderDecoder(geometry, weights, ranks, model_id=model_id, num_head_tokens=num_head_tokens))


def _load(order: LoadRequest, shard: Shard) -> LoadedModel:
    """A model of which a rank has read its share of every layer, and for now all of the embedding and the head."""
    model = load_model(
        order.folder, order.dtype, local_device(order.device), kernels=parse_kernels(order.kernels), shard_layer=shard.layer
    )
    return model if order.num_tokens is None else with_target_vocab(model, order.num_tokens)


@torch.inference_mode()
def serve_requests(ranks: Ranks) -> None:
    """Another rank: load, make caches, run passes and ask the head as rank 0 says, until it stops."""
    models: dict[int, _WorkerModel] = {}
    while (order := ranks.next_request()) is not None:
        match order:
            case LoadRequest():
                models[order.model_id] = _WorkerModel(order, ranks)
            case CacheRequest():
                models[order.model_id].make_cache(order)
            case RowsRequest():
                models[order.model_id].add_share(order)


class _WorkerModel:
    """What another rank holds of a model: its shard, and a cache for each of rank 0's.

    Args:
        order: which model; what is kept of it is the shard, and rank 0 keeps the embedding.
        ranks: whom to follow.
    """

    def __init__(self, order: LoadRequest, ranks: Ranks) -> None:
        torch.set_num_threads(order.num_threads)
        shard = Shard(rank=ranks.rank, num_ranks=ranks.num_ranks)
        model = _load(order, shard)
        whole = model.decoder.weights
        weights = replace(whole, embedding=whole.embedding[:0].clone(), head=shard.head(whole.head), head_token_ids=None)
        self._decoder = WorkerDecoder(shard.geometry(model.geometry), weights, ranks)
        self._ranks = ranks
        self._caches: dict[int, Cache] = {}
        ranks.barrier()

    def make_cache(self, order: CacheRequest) -> None:
        """Make one, having dropped those that rank 0 has no more."""
        self._caches = {number: cache for number, cache in self._caches.items() if number in order.kept}
        self._caches[order.number] = self._decoder.new_cache(tuple(order.segment_ends), order.max_tokens)

    def add_share(self, order: RowsRequest) -> None:
        """Add this share to a pass, or to what the head says of rows that one left."""
        if order.what == PASS:
            self._run_pass(order)
        else:
            states = self._caches[order.cache].states[order.segment][order.start : order.start + order.num_rows]
            self._ranks.send_columns(self._decoder.exit_logits(states))

    def _run_pass(self, order: RowsRequest) -> None:
        cache, decoder = self._caches[order.cache], self._decoder
        rows = torch.empty(order.num_rows, cache.states[0].shape[1], dtype=decoder.dtype, device=decoder.device)
        self._ranks.receive_rows(rows)
        cache.lengths[order.segment] = order.start
        decoder.forward_segment(rows, cache.segments[order.segment], cache)

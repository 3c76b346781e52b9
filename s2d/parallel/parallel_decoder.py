"""A decoder split over several processes, with one shard on each rank.

Rank 0 requests every pass and decides by its result; the other ranks add their share. A layer takes two sums over the ranks.
They include the residual: rank 0 adds its share of a product to the residual, and the other ranks contribute the product alone.
All ranks therefore have the same output rows of a pass. Each rank applies its columns of the head to them, and rank 0 gathers
the logits. Everything that a pass depends on (its segment, the tokens before it, its rows) is sent by rank 0 with the pass.
Ranks cannot diverge: exits taken, tokens drafted and blocks rolled back are implied by the next pass.
"""

from dataclasses import replace
from itertools import count
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from perfmodel.core.errors import UserInputError
from perfmodel.core.units import Tokens
from perfmodel.models.geometry import ModelGeometry
from perfmodel.passes.kernels import parse_kernels
from s2d.loading.load_model import LoadedModel, load_model, with_target_vocab
from s2d.loading.read_config import read_geometry
from s2d.model.cache import Cache, Segment
from s2d.model.decoder import Decoder
from s2d.model.weights import DecoderWeights
from s2d.parallel.rank_failure import Stage
from s2d.parallel.ranks import DRAFT, HEAD, PASS, TARGET, CacheRequest, LoadRequest, Ranks, RowsRequest, local_device
from s2d.parallel.shard import Shard

_UNEVEN_SPLIT_FIX = {
    TARGET: "Start torchrun with another --nproc-per-node",
    DRAFT: "Start torchrun with another --nproc-per-node, or profile without --share-draft and plan again: the first process "
    "then holds the whole draft",
}
"""What to do about a model that cannot be split evenly."""


class LeaderDecoder(Decoder):
    """Rank 0's shard of a decoder, with the whole embedding. Callers use it like a whole decoder.

    Args:
        geometry: shapes of the shard.
        weights: weights of the shard.
        ranks: receive the requests.
        model_id: identifies the model in requests.
        num_head_tokens: U, tokens in the whole head.
    """

    _adds_padded_rows = True

    def __init__(
        self, geometry: ModelGeometry, weights: DecoderWeights, ranks: Ranks, *, model_id: int, num_head_tokens: Tokens
    ) -> None:
        super().__init__(geometry, weights)
        self._ranks = ranks
        self._model_id = model_id
        self._num_head_tokens = num_head_tokens
        self._stage = Stage.PREFILL
        self._new_cache_ids = count()
        self._cache_ids: WeakKeyDictionary[Cache, int] = WeakKeyDictionary()

    @property
    def num_devices(self) -> int:
        """See `Decoder`."""
        return self._ranks.num_ranks

    def new_cache(self, segment_ends: tuple[int, ...], max_tokens: int) -> Cache:
        """See `Decoder`. The other ranks make a cache too, and drop those that rank 0 no longer has."""
        cache, cache_id = super().new_cache(segment_ends, max_tokens), next(self._new_cache_ids)
        request = CacheRequest(
            model_id=self._model_id,
            cache_id=cache_id,
            segment_ends=segment_ends,
            max_tokens=max_tokens,
            kept_cache_ids=tuple(self._cache_ids.values()),
        )
        self._ranks.request(request)
        self._cache_ids[cache] = cache_id
        return cache

    def _head_logits(self, states: Tensor) -> Tensor:
        """See `Decoder`. The rows must be the output of a pass, which every rank has."""
        self._ranks.request_head(RowsRequest(HEAD, self._model_id, *self._cache_location(states), len(states), self._stage))
        return self._ranks.gather_columns(super()._head_logits(states))[:, : self._num_head_tokens]

    def _cache_location(self, states: Tensor) -> tuple[int, int, int]:
        """Where rows are cached: id of the cache, index of the segment whose output they are, tokens before the first row."""
        for cache, cache_id in self._cache_ids.items():
            for segment_index, cached in enumerate(cache.states):
                start = (states.data_ptr() - cached.data_ptr()) // (cached.stride(0) * cached.element_size())
                if 0 <= start < len(cached):
                    return cache_id, segment_index, start
        raise AssertionError("exit logits need rows that a pass left in a cache: other ranks have no other rows")

    def _run_layers(self, x: Tensor, out: Tensor, segment: Segment, cache: Cache, start: int) -> None:
        self._stage = self._pass_stage(segment, cache, start)
        request = RowsRequest(PASS, self._model_id, self._cache_ids[cache], segment.index, start, len(x), self._stage)
        self._ranks.request_pass(request, x)
        super()._run_layers(x, out, segment, cache, start)

    def _add(self, x: Tensor, matrix: Tensor, bias: Tensor | None, residual: Tensor, out: Tensor) -> None:
        super()._add(x, matrix, bias, residual, out)
        self._ranks.all_reduce(out)

    def _pass_stage(self, segment: Segment, cache: Cache, start: int) -> Stage:
        """The stage of a pass. In a target that drafts for itself, all segments but the last one draft."""
        if start == 0:
            return Stage.PREFILL
        is_drafting = self._model_id == DRAFT or segment is not cache.segments[-1]
        return Stage.DRAFTING if is_drafting else Stage.VERIFICATION


class WorkerDecoder(Decoder):
    """The shard of another rank: layers and columns of the head. Rank 0 has the embedding and the head's tokens.

    Args:
        geometry: shapes of the shard.
        weights: weights of the shard.
        ranks: sum rows over all shards.
    """

    _adds_padded_rows = True

    def __init__(self, geometry: ModelGeometry, weights: DecoderWeights, ranks: Ranks) -> None:
        super().__init__(geometry, weights)
        self._ranks = ranks

    def _add(self, x: Tensor, matrix: Tensor, bias: Tensor | None, residual: Tensor, out: Tensor) -> None:
        """Contribute the product alone: rank 0 adds the residual and the biases."""
        torch.mm(x, matrix, out=out)
        self._ranks.all_reduce(out)


def load_sharded(request: LoadRequest, ranks: Ranks) -> LoadedModel:
    """On rank 0: load a model on all ranks. Each rank keeps only its shard, and rank 0 also the embedding.

    Raises:
        UserInputError: the model cannot be split evenly, or the device has an index; otherwise as `load_model`.
    """
    shard = Shard(rank=ranks.rank, num_ranks=ranks.num_ranks)
    shard.check(read_geometry(Path(request.folder)), fix=_UNEVEN_SPLIT_FIX[request.model_id])
    if torch.device(request.device).index is not None:
        raise UserInputError(
            f"--device {request.device}: expected cpu or cuda, because torchrun assigns each process its own GPU."
        )
    ranks.request(request)
    model = _load(request, shard)
    ranks.barrier()
    whole = model.decoder.weights
    weights = replace(whole, head=shard.head(whole.head))
    geometry, num_head_tokens = shard.geometry(model.geometry), whole.head.shape[1]
    decoder = LeaderDecoder(geometry, weights, ranks, model_id=request.model_id, num_head_tokens=num_head_tokens)
    return replace(model, decoder=decoder)


def _load(request: LoadRequest, shard: Shard) -> LoadedModel:
    """A model with this rank's shard of every layer and, for now, the whole embedding and head."""
    model = load_model(
        request.folder,
        request.dtype,
        local_device(request.device),
        kernels=parse_kernels(request.kernels),
        shard_layer=shard.layer,
    )
    return model if request.num_tokens is None else with_target_vocab(model, request.num_tokens)


@torch.inference_mode()
def serve_requests(ranks: Ranks) -> None:
    """On other ranks: load models, make caches, run passes and apply the head on request, until rank 0 stops."""
    models: dict[int, _WorkerModel] = {}
    while (request := ranks.next_request()) is not None:
        match request:
            case LoadRequest():
                models[request.model_id] = _WorkerModel(request, ranks)
            case CacheRequest():
                models[request.model_id].make_cache(request)
            case RowsRequest():
                models[request.model_id].compute(request)


class _WorkerModel:
    """A model on another rank: its shard, and a cache for each cache on rank 0.

    Args:
        request: names the model. The embedding is dropped: rank 0 has it.
        ranks: the ranks of the job.
    """

    def __init__(self, request: LoadRequest, ranks: Ranks) -> None:
        torch.set_num_threads(request.num_threads)
        shard = Shard(rank=ranks.rank, num_ranks=ranks.num_ranks)
        model = _load(request, shard)
        whole = model.decoder.weights
        weights = replace(whole, embedding=whole.embedding[:0].clone(), head=shard.head(whole.head), head_token_ids=None)
        self._decoder = WorkerDecoder(shard.geometry(model.geometry), weights, ranks)
        self._ranks = ranks
        self._caches: dict[int, Cache] = {}
        ranks.barrier()

    def make_cache(self, request: CacheRequest) -> None:
        """Drop the caches that rank 0 no longer has, and make a new one."""
        self._caches = {cache_id: cache for cache_id, cache in self._caches.items() if cache_id in request.kept_cache_ids}
        self._caches[request.cache_id] = self._decoder.new_cache(tuple(request.segment_ends), request.max_tokens)

    def compute(self, request: RowsRequest) -> None:
        """Add this shard's part of a pass, or send its logits for the output of an earlier pass."""
        if request.kind == PASS:
            self._run_pass(request)
        else:
            states = self._caches[request.cache_id].states[request.segment_index]
            self._ranks.send_columns(self._decoder.exit_logits(states[request.start : request.start + request.num_rows]))

    def _run_pass(self, request: RowsRequest) -> None:
        cache, decoder = self._caches[request.cache_id], self._decoder
        rows = torch.empty(request.num_rows, cache.states[0].shape[1], dtype=decoder.dtype, device=decoder.device)
        self._ranks.receive_rows(rows)
        cache.lengths[request.segment_index] = request.start
        decoder.forward_segment(rows, cache.segments[request.segment_index], cache)

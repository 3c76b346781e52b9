"""Captured passes: CUDA graphs for a few widths and contexts, each with a single launch.

A captured pass reads its positions on the device, and is padded to the next captured width. The padding rows stand after the
rows of the text and write where the text has no tokens yet. No row reads beyond its own position, so these positions are
overwritten before a row of the text reads them. Padding cannot leak, and is rolled back like a rejected block.

Everything that a graph reads or writes must outlive it. Weights, buffers and exit checks live as long as the decoder. The
cache, its table of rotations and its passes with their buffers live and die together. A graph holds addresses, not tensors, so
every tensor needs another owner. A closure cannot be the owner: it is freed when the capture ends.

Nothing is captured without a GPU: the same pass is called again, which tests its arithmetic. The captures themselves are tested
on a simulated GPU (`tests/gpu_simulator`).

Symbols: R rows of a captured width, S positions of a context, T tokens of a pass, D hidden, V vocab.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from perfmodel.core.console import print_err
from perfmodel.core.units import Tokens
from perfmodel.models.geometry import ModelGeometry
from perfmodel.passes.device_key import LaunchMode
from perfmodel.passes.passes import GRAPH_ROW_WIDTHS, graph_width
from s2d.model.attention import ScatterTarget, VarlenLengths, attend, attend_varlen, with_scatter
from s2d.model.cache import Cache, LayerViews, Segment
from s2d.model.choose_tokens import ExitPredictor
from s2d.model.decoder import AttendFunction, Decoder, SegmentRun, Span
from s2d.model.host_copies import PendingPrediction, PredictionCopy
from s2d.model.weights import DecoderWeights

MIN_CONTEXT: Tokens = 256
"""Contexts are this times 1, 1.25, 1.5 or 1.75 times a power of two. At most a fifth of the
positions that attention reads are then unused, except in the shortest texts."""
CONTEXTS_PER_DOUBLING = 4
ALIGNED_TOKENS: Tokens = 64
"""The capacity of a cache is a multiple of this: scores of an odd length need slow kernels."""
NUM_WARM_UPS = 2
"""Calls before a capture, in which libraries choose kernels and allocate their workspace."""
CAPTURE_OPTIONS: dict[str, bool] = {}
"""Additional arguments of `torch.cuda.graph`. Tests on a GPU let it check that the tensors read by graphs are alive."""

Launch = Callable[[], None]
T = TypeVar("T")


class CapturedExtent(NamedTuple):
    """How far the rows of a captured pass attend."""

    context: Tokens
    """S, larger than every position of the text."""
    bounds: Tensor
    """Bounds of the only sequence in the batch, in rows and in the cache: int32 [2, 2], (0, R) and (0, capacity)."""


class GraphDecoder(Decoder):
    """A decoder whose short passes and exit checks are captured.

    Args:
        geometry: shapes of the model.
        weights: converted by `s2d.loading.convert_weights`.
    """

    mode: LaunchMode = "graph"

    def __init__(self, geometry: ModelGeometry, weights: DecoderWeights) -> None:
        super().__init__(geometry, weights)
        self._exit_checks: dict[ExitPredictor, _ExitCheck | None] = {}
        self._has_varlen = weights.kernels.attention == "varlen"
        if self.dtype == torch.float16 and not self._has_varlen:  # other dtypes have the range; varlen reads no padding
            self._num_padding_rows = GRAPH_ROW_WIDTHS[-1]
        is_cuda = self.device.type == "cuda"
        # A single stream for all warm-ups and captures: cuBLAS keeps a workspace for every stream with a product.
        self._side_stream = torch.cuda.Stream(self.device) if is_cuda else None
        self._exit_check_pool = torch.cuda.graph_pool_handle() if is_cuda else None
        self._pools: WeakKeyDictionary[Cache, object] = WeakKeyDictionary()

    def new_cache(self, segment_ends: tuple[int, ...], max_tokens: int) -> Cache:
        """See `Decoder`. The capacity includes the rows that pad a pass after the longest text."""
        return super().new_cache(segment_ends, padded_cache_tokens(max_tokens))

    def prepare(
        self,
        cache: Cache,
        begin_tokens: Tokens,
        end_tokens: Tokens,
        runs: Sequence[SegmentRun] | None = None,
        predictor: ExitPredictor | None = None,
        widths: Sequence[Tokens] | None = None,
    ) -> None:
        """See `Decoder`: capture what is missing. If the device runs out of memory, passes are launched kernel by kernel."""
        if predictor is not None:
            self._exit_check_for(predictor)
        contexts = self._contexts(begin_tokens, end_tokens, cache)
        runs = runs or [(segment,) for segment in cache.segments]
        num_failed = 0
        for context, run, rows in product(contexts, runs, widths or GRAPH_ROW_WIDTHS):
            key = (run[0].index, run[-1].index, rows, context)
            if key not in cache.prepared:
                cache.prepared[key] = _none_if_out_of_memory(partial(_CapturedPass, self, cache, run, rows, context))
                num_failed += cache.prepared[key] is None
        if num_failed:
            _warn_not_captured(f"{num_failed} kinds of passes over {begin_tokens} to {end_tokens} tokens")

    def split_run(self, run: SegmentRun, cache: Cache) -> Sequence[SegmentRun]:
        """See `Decoder`. Segments that have processed the same tokens are launched as one pass."""
        lengths = {cache.lengths[segment.index] for segment in run}
        return [run] if len(lengths) == 1 else super().split_run(run, cache)

    def forward_segment(self, states: Tensor, segment: Segment, cache: Cache) -> Tensor:
        """See `Decoder`."""
        return self.forward_run(states, (segment,), cache)

    def forward_run(self, states: Tensor, run: SegmentRun, cache: Cache) -> Tensor:
        """See `Decoder`. Passes that were not prepared are launched kernel by kernel."""
        rows, start = len(states), cache.lengths[run[0].index]
        end, width = start + rows, graph_width(rows)
        context = self._context(end, cache)
        prepared = None if width is None else cache.prepared.get((run[0].index, run[-1].index, width, context))
        if prepared is None:  # or a wide pass, whose kernels take longer than their launches
            for segment in run:
                states = super().forward_segment(states, segment, cache)
            return states
        prepared(states, start)
        for segment in run:
            cache.lengths[segment.index] = end
        return cache.states[run[-1].index][start:end]

    def predict(self, states: Tensor, predictor: ExitPredictor, noise: Tensor | None) -> PendingPrediction:
        """See `Decoder`."""
        check = self._exit_check_for(predictor)
        return super().predict(states, predictor, noise) if check is None else check(states, noise)

    def capture(self, compute: Launch, cache: Cache | None = None) -> Launch:
        """Capture the device work of a function; returns a function that launches it.

        The function is called a few times, captured, and launched once: the first launch of a graph uploads it.

        Args:
            compute: the function. All of its tensors must stay alive while the result is used; the function itself need not.
            cache: the capture shares the memory pool of its passes; None for an exit check.
        """
        if self._side_stream is None:
            return compute
        pool = self._exit_check_pool if cache is None else self._pools.setdefault(cache, torch.cuda.graph_pool_handle())
        current, side = torch.cuda.current_stream(self.device), self._side_stream
        with torch.cuda.device(self.device), torch.cuda.stream(current):  # restores the stream if a capture fails
            side.wait_stream(current)
            with torch.cuda.stream(side):
                for _ in range(NUM_WARM_UPS):
                    compute()
            current.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=side, **CAPTURE_OPTIONS):  # type: ignore[arg-type]
                # A cuBLAS workspace allocated here belongs to this graph alone. Otherwise it would be freed with the graph that
                # allocated it, while other graphs still use it (pytorch#193402).
                torch._C._cuda_clearCublasWorkspaces()
                compute()
                torch._C._cuda_clearCublasWorkspaces()
            graph.replay()
        return graph.replay

    def run_at_positions(
        self, positions: Tensor, states: Tensor, out: Tensor, run: SegmentRun, cache: Cache, captured: CapturedExtent
    ) -> None:
        """A pass over rows at given positions of a text. Keys, values and hidden states are written to the cache.

        Args:
            positions: int64 [R], increasing by one.
            states: [R, D + PAD]; not modified.
            out: [R, D + PAD], receives the output of the last segment.
            run: segments of the cache.
            cache: a cache of this decoder.
            captured: how far the rows attend.
        """
        attention, extent = self._attention_at(positions, captured)
        q_factors = cache.rotations.query.index_select(0, positions)
        kv_factors = cache.rotations.key_value.index_select(0, positions)
        for segment in run:
            rows = cache.rows(segment)
            keys, values = self._keys_and_values(rows, segment, cache, captured.context)
            targets, rotate = self._scatter_targets(positions, rows), with_scatter(self._rotate)
            span: Span = (targets, keys, values, q_factors, kv_factors, rotate, attention, extent)
            self._run_span(states, out, segment, span)
            cache.states[segment.index].index_copy_(0, positions, out)
            states = out

    def _attention_at(self, positions: Tensor, captured: CapturedExtent) -> tuple[AttendFunction, Tensor | VarlenLengths]:
        """The attention of rows at these positions, and its extent in the form that it takes."""
        context, bounds = captured
        if self._has_varlen:
            return attend_varlen, VarlenLengths(bounds[0], bounds[1], (positions[-1:] + 1).int(), context)
        is_later = torch.arange(context, device=self.device) > positions[:, None]
        return attend, torch.zeros(is_later.shape, dtype=self.dtype, device=self.device).masked_fill_(is_later, -torch.inf)

    def _scatter_targets(self, positions: Tensor, rows: LayerViews) -> tuple[ScatterTarget, ...]:
        """Where the layers of a segment write K and V. They share a staging buffer."""
        staging = rows[0].new_empty(len(positions), *rows[0].shape[1:])
        staging_view = torch.view_as_complex(staging.unflatten(-1, (-1, 2))) if self._is_complex else staging
        return tuple(ScatterTarget(cached, positions, staging, staging_view) for cached in rows)

    def _keys_and_values(
        self, rows: LayerViews, segment: Segment, cache: Cache, context: Tokens
    ) -> tuple[LayerViews, LayerViews]:
        """Keys and values of the layers of a segment, in the form that the attention kernel takes."""
        if self._has_varlen:
            return tuple(kv[:, 0] for kv in rows), tuple(kv[:, 1] for kv in rows)  # [S, K, H] each
        _, keys, values = cache.views(segment, 0, context)
        return keys, values

    def _exit_check_for(self, predictor: ExitPredictor) -> "_ExitCheck | None":
        if predictor not in self._exit_checks:
            self._exit_checks[predictor] = _none_if_out_of_memory(partial(_ExitCheck, self, predictor))
            if self._exit_checks[predictor] is None:
                _warn_not_captured("exit checks")
        return self._exit_checks[predictor]

    def _context(self, end: Tokens, cache: Cache) -> Tokens:
        """The context of a pass whose rows end at a position."""
        if self._has_varlen:
            return cache.max_tokens
        return min(padded_context(end), cache.max_tokens)

    def _contexts(self, begin: Tokens, end: Tokens, cache: Cache) -> list[Tokens]:
        """All contexts of a text that grows between two lengths, increasing."""
        contexts = [self._context(begin, cache)]
        while contexts[-1] < min(end, cache.max_tokens):
            contexts.append(self._context(contexts[-1] + 1, cache))
        return contexts


class _CapturedPass:
    """A run of segments at one width over one context, with the buffers that its graph reads and writes.

    Args:
        decoder: runs the pass.
        cache: the cache of a text. It owns the pass.
        run: segments of the cache.
        rows: R.
        context: S.
    """

    def __init__(self, decoder: GraphDecoder, cache: Cache, run: SegmentRun, rows: int, context: Tokens) -> None:
        # Padding rows must be finite from the first pass on.
        self._states, self._out = (decoder.embed([0] * rows).clone() for _ in range(2))  # [R, D + PAD]
        self._start = torch.zeros((), dtype=torch.int64, device=decoder.device)
        self._offsets = torch.arange(rows, device=decoder.device)
        bounds = torch.tensor(((0, rows), (0, cache.max_tokens)), dtype=torch.int32, device=decoder.device)
        self._extent = CapturedExtent(context, bounds)
        # The closure uses local names: a closure over `self` would be a cycle and keep the cache alive.
        states, out, start, offsets, extent = self._states, self._out, self._start, self._offsets, self._extent
        self._launch = decoder.capture(
            lambda: decoder.run_at_positions(start + offsets, states, out, run, cache, extent), cache
        )

    def __call__(self, states: Tensor, start: int) -> None:
        num_rows = len(states)
        self._states[:num_rows].copy_(states)
        if num_rows < len(self._states):
            # Rows left by an earlier pass would carry its overflow into this text.
            self._states[num_rows:].copy_(states[:1].expand(len(self._states) - num_rows, -1))
        self._start.fill_(start)
        self._launch()


class _ExitCheck:
    """Norm, head and prediction for one row, and the copy of the prediction to the host."""

    def __init__(self, decoder: GraphDecoder, predictor: ExitPredictor) -> None:
        self._row = decoder.embed([0]).clone()  # [1, D + PAD]
        has_noise = predictor.sampling.rule != "greedy"
        self._noise = torch.zeros(1, decoder.vocab_size, device=decoder.device) if has_noise else None
        self._prediction = torch.zeros(2, dtype=torch.float64, device=decoder.device)
        self._prediction_copy = PredictionCopy(decoder.device)
        row, noise, prediction = self._row, self._noise, self._prediction

        def compute() -> None:
            token, confidence = predictor(decoder.exit_logits(row), noise)
            prediction.copy_(torch.cat((token.double(), confidence.double())))

        self._launch = decoder.capture(compute)

    def __call__(self, states: Tensor, noise: Tensor | None) -> PendingPrediction:
        self._row.copy_(states)
        if self._noise is not None and noise is not None:
            self._noise.copy_(noise)
        self._launch()
        self._prediction_copy.send(self._prediction)
        return self._prediction_copy


def liveness_options() -> dict[str, bool]:
    """Value of `CAPTURE_OPTIONS` that makes a replay check its inputs; empty if this PyTorch cannot."""
    name = "check_input_liveness"
    return {name: True} if name in inspect.signature(torch.cuda.graph).parameters else {}


def padded_cache_tokens(max_tokens: Tokens) -> Tokens:
    """Capacity of a cache for texts of at most this length, with room for padding rows, aligned."""
    return -(-(max_tokens + GRAPH_ROW_WIDTHS[-1]) // ALIGNED_TOKENS) * ALIGNED_TOKENS


def padded_context(end: Tokens) -> Tokens:
    """The smallest context of the table that holds this many tokens."""
    power = MIN_CONTEXT
    while 2 * power <= end:
        power *= 2
    step = power // CONTEXTS_PER_DOUBLING
    return max(MIN_CONTEXT, -(-end // step) * step)


def _none_if_out_of_memory(make: Callable[[], T]) -> T | None:
    """The result of a function, or None if the device runs out of memory in it."""
    try:
        return make()
    except RuntimeError as err:  # torch.OutOfMemoryError, or the error raised after it when the broken capture ends
        if not isinstance(err, torch.OutOfMemoryError) and not isinstance(err.__context__, torch.OutOfMemoryError):
            raise
        return None


def _warn_not_captured(what: str) -> None:
    print_err(f"warning: not enough memory to capture {what}: launching them kernel by kernel, which is slower")

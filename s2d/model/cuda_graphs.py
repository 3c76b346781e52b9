"""Passes as CUDA graphs: captured once for a few widths and contexts, then launched as one, however many kernels they have.

A captured pass reads on the device where its rows stand, and is padded to the next captured width. The padding rows stand after
the text's own. What they write lies where the text has not come yet, and is written anew before a row of the text looks there,
as none looks beyond its own place. So padding cannot leak, and is rolled back as a rejected block is.

What a graph reads and writes must outlive it. Weights, buffers and exit checks live as long as the decoder; the cache, its
table of rotations and its passes with their buffers live and die together. A graph knows addresses, not tensors, so nothing
else may own them, least of all a closure: it dies when the capture ends.

Elsewhere than on a GPU nothing is captured: the same pass is called again, which is how its arithmetic is tested. The captures
themselves are tested on a simulated GPU (`tests/gpu_simulator`).

Symbols: T tokens of a pass, R rows of its width, S positions of its context, D hidden, V vocab.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from perfmodel.core.console import print_err
from perfmodel.core.units import Tokens
from perfmodel.models.geometry import ModelGeometry
from perfmodel.passes.device_key import EngineMode
from perfmodel.passes.passes import GRAPH_ROW_WIDTHS, graph_width
from s2d.model.attention import ScatterTarget, VarlenLengths, attend, attend_varlen, with_scatter
from s2d.model.cache import Cache, LayerViews, Segment
from s2d.model.choose_tokens import ExitPredictor
from s2d.model.decoder import AttendFunction, Decoder, SegmentRun, Span
from s2d.model.host_copies import PendingPrediction, PredictionCopy
from s2d.model.weights import DecoderWeights

MIN_CONTEXT: Tokens = 256
"""Contexts are this times 1, 1.25, 1.5 or 1.75 times a power of two: at most a fifth of the positions that attention reads are
not there yet, but for the shortest texts."""
CONTEXTS_PER_DOUBLING = 4
ALIGNED_TOKENS: Tokens = 64
"""A cache's room is a multiple of this: scores of an odd length take slow kernels."""
NUM_WARM_UPS = 2
"""Calls before a capture, in which libraries choose kernels and take their workspace."""
CAPTURE_OPTIONS: dict[str, bool] = {}
"""More arguments of `torch.cuda.graph`; tests on a GPU let it check that what graphs read is alive."""

Launch = Callable[[], None]
T = TypeVar("T")


class GraphDecoder(Decoder):
    """A decoder whose short passes and exit checks are captured.

    Args:
        geometry: its shapes.
        weights: folded as `s2d.loading.load_model` does.
    """

    engine: EngineMode = "graph"

    def __init__(self, geometry: ModelGeometry, weights: DecoderWeights) -> None:
        super().__init__(geometry, weights)
        self._checks: dict[ExitPredictor, _ExitCheck | None] = {}
        self._has_varlen = weights.kernels.attention == "varlen"
        if self.dtype == torch.float16 and not self._has_varlen:  # the others have room for whatever a model computes
            self._num_padding_rows = GRAPH_ROW_WIDTHS[-1]
        is_cuda = self.device.type == "cuda"
        # One for all warm-ups and captures: every stream that multiplies keeps a workspace of cuBLAS.
        self._side_stream = torch.cuda.Stream(self.device) if is_cuda else None
        self._check_pool = torch.cuda.graph_pool_handle() if is_cuda else None
        self._pools: WeakKeyDictionary[Cache, object] = WeakKeyDictionary()

    def new_cache(self, segment_ends: tuple[int, ...], max_tokens: int) -> Cache:
        """See `Decoder`. There is room after the longest text for the rows that pad a pass."""
        return super().new_cache(segment_ends, padded_cache_tokens(max_tokens))

    def prepare(
        self,
        cache: Cache,
        begin_tokens: Tokens,
        end_tokens: Tokens,
        runs: Sequence[SegmentRun] | None = None,
        choice: ExitPredictor | None = None,
        widths: Sequence[Tokens] | None = None,
    ) -> None:
        """See `Decoder`: capture what is missing. What the device has no memory for is launched kernel by kernel."""
        if choice is not None:
            self._check_for(choice)
        contexts, runs = self._contexts(begin_tokens, end_tokens, cache), runs or [(one,) for one in cache.segments]
        num_failed = 0
        for context, run, rows in product(contexts, runs, widths or GRAPH_ROW_WIDTHS):
            name = (run[0].index, run[-1].index, rows, context)
            if name not in cache.prepared:
                cache.prepared[name] = _unless_memory_runs_out(partial(_Pass, self, cache, run, rows, context))
                num_failed += cache.prepared[name] is None
        if num_failed:
            _warn_of_memory(f"{num_failed} kinds of passes over {begin_tokens} to {end_tokens} tokens")

    def split_run(self, run: SegmentRun, cache: Cache) -> Sequence[SegmentRun]:
        """See `Decoder`. Segments that have seen the same tokens are launched as one pass."""
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
        if prepared is None:  # or wide, whose kernels take longer than their launches
            for segment in run:
                states = super().forward_segment(states, segment, cache)
            return states
        prepared(states, start)
        for segment in run:
            cache.lengths[segment.index] = end
        return cache.states[run[-1].index][start:end]

    def predict(self, states: Tensor, choice: ExitPredictor, noise: Tensor | None) -> PendingPrediction:
        """See `Decoder`."""
        check = self._check_for(choice)
        return super().predict(states, choice, noise) if check is None else check(states, noise)

    def capture(self, compute: Launch, cache: Cache | None = None) -> Launch:
        """How to launch on the device what a function does.

        The function is called a few times, captured, and launched once: the first launch of a graph uploads it.

        Args:
            compute: all of its tensors stay where they are as long as the launch is used; it itself may be dropped.
            cache: whose passes share memory with it; None for an exit check.
        """
        if self._side_stream is None:
            return compute
        pool = self._check_pool if cache is None else self._pools.setdefault(cache, torch.cuda.graph_pool_handle())
        current, beside = torch.cuda.current_stream(self.device), self._side_stream
        with torch.cuda.device(self.device), torch.cuda.stream(current):  # back to it even if a capture ends in an error
            beside.wait_stream(current)
            with torch.cuda.stream(beside):
                for _ in range(NUM_WARM_UPS):
                    compute()
            current.wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=beside, **CAPTURE_OPTIONS):  # type: ignore[arg-type]
                # Workspaces of cuBLAS taken here are then memory of this graph alone: they would else be freed with the graph
                # that took them, and be used by all others (pytorch#193402).
                torch._C._cuda_clearCublasWorkspaces()
                compute()
                torch._C._cuda_clearCublasWorkspaces()
            graph.replay()
        return graph.replay

    def run_at(
        self, places: Tensor, states: Tensor, out: Tensor, run: SegmentRun, cache: Cache, context: Tokens, bounds: Tensor
    ) -> None:
        """A pass over rows that stand at places of a text, whose keys, values and states are left in the cache.

        Args:
            places: int64 [R], rising by one.
            states: [R, D + PAD], left as they are.
            out: [R, D + PAD], what leaves the last segment.
            run: segments of the cache.
            cache: of this decoder.
            context: S, beyond every place that counts.
            bounds: int32 [2, 2], see `_Pass`.
        """
        act, limit = self._limit_of(places, context, bounds)
        q_turn, kv_turn = cache.rotations.query.index_select(0, places), cache.rotations.key_value.index_select(0, places)
        for segment in run:
            rows = cache.rows(segment)
            keys, values = self._attended(rows, segment, cache, context)
            span: Span = (self._slots(places, rows), keys, values, q_turn, kv_turn, with_scatter(self._rotate), act, limit)
            self._run_span(states, out, segment, span)
            cache.states[segment.index].index_copy_(0, places, out)
            states = out

    def _limit_of(self, places: Tensor, context: Tokens, bounds: Tensor) -> tuple[AttendFunction, Tensor | VarlenLengths]:
        """How rows at these places attend, and how far."""
        if self._has_varlen:
            return attend_varlen, VarlenLengths(bounds[0], bounds[1], (places[-1:] + 1).int(), context)
        is_later = torch.arange(context, device=self.device) > places[:, None]
        return attend, torch.zeros(is_later.shape, dtype=self.dtype, device=self.device).masked_fill_(is_later, -torch.inf)

    def _slots(self, places: Tensor, rows: LayerViews) -> tuple[ScatterTarget, ...]:
        """Where the layers of a segment write, the same buffer before each."""
        fresh = rows[0].new_empty(len(places), *rows[0].shape[1:])
        written = torch.view_as_complex(fresh.unflatten(-1, (-1, 2))) if self._complex else fresh
        return tuple(ScatterTarget(cached, places, fresh, written) for cached in rows)

    def _attended(self, rows: LayerViews, segment: Segment, cache: Cache, context: Tokens) -> tuple[LayerViews, LayerViews]:
        """Keys and values of the layers of a segment, as the attention kernel takes them."""
        if self._has_varlen:
            return tuple(one[:, 0] for one in rows), tuple(one[:, 1] for one in rows)  # [S, K, H] each
        _, keys, values = cache.views(segment, 0, context)
        return keys, values

    def _check_for(self, choice: ExitPredictor) -> "_ExitCheck | None":
        if choice not in self._checks:
            self._checks[choice] = _unless_memory_runs_out(partial(_ExitCheck, self, choice))
            if self._checks[choice] is None:
                _warn_of_memory("exit checks")
        return self._checks[choice]

    def _context(self, end: Tokens, cache: Cache) -> Tokens:
        """The context that a pass of rows up to a place is launched with."""
        if self._has_varlen:
            return cache.max_tokens
        return min(padded_context(end), cache.max_tokens)

    def _contexts(self, begin: Tokens, end: Tokens, cache: Cache) -> list[Tokens]:
        """Those of a text that grows between two lengths, rising."""
        contexts = [self._context(begin, cache)]
        while contexts[-1] < min(end, cache.max_tokens):
            contexts.append(self._context(contexts[-1] + 1, cache))
        return contexts


class _Pass:
    """A run of segments at one width over one context, and the buffers that its graph reads and writes.

    Args:
        decoder: runs it.
        cache: of a text, kept by whoever keeps the pass.
        run: segments of the cache.
        rows: R.
        context: S.
    """

    def __init__(self, decoder: GraphDecoder, cache: Cache, run: SegmentRun, rows: int, context: Tokens) -> None:
        # Finite from the start, as whatever pads a pass later.
        self._states, self._out = (decoder.embed([0] * rows).clone() for _ in range(2))  # [R, D + PAD]
        self._start = torch.zeros((), dtype=torch.int64, device=decoder.device)
        self._offsets = torch.arange(rows, device=decoder.device)
        # The bounds of the only sequence of a batch, in rows and in the cache: int32 [2, 2].
        self._bounds = torch.tensor(((0, rows), (0, cache.max_tokens)), dtype=torch.int32, device=decoder.device)
        # The closure holds the buffers by local names: one over `self` would be a cycle, and keep the cache alive.
        states, out, start, offsets, bounds = self._states, self._out, self._start, self._offsets, self._bounds
        self._launch = decoder.capture(lambda: decoder.run_at(start + offsets, states, out, run, cache, context, bounds), cache)

    def __call__(self, states: Tensor, start: int) -> None:
        num_rows = len(states)
        self._states[:num_rows].copy_(states)
        if num_rows < len(self._states):
            # Not what an earlier pass left there: a text that overflowed would reach the next one.
            self._states[num_rows:].copy_(states[:1].expand(len(self._states) - num_rows, -1))
        self._start.fill_(start)
        self._launch()


class _ExitCheck:
    """Norm, head and choice after one row, and the answer's way to the host."""

    def __init__(self, decoder: GraphDecoder, choice: ExitPredictor) -> None:
        self._row = decoder.embed([0]).clone()  # [1, D + PAD]
        has_noise = choice.sampling.rule != "greedy"
        self._noise = torch.zeros(1, decoder.vocab_size, device=decoder.device) if has_noise else None
        self._answer = torch.zeros(2, dtype=torch.float64, device=decoder.device)
        self._post = PredictionCopy(decoder.device)
        row, noise, answer = self._row, self._noise, self._answer

        def compute() -> None:
            token, confidence = choice(decoder.exit_logits(row), noise)
            answer.copy_(torch.cat((token.double(), confidence.double())))

        self._launch = decoder.capture(compute)

    def __call__(self, states: Tensor, noise: Tensor | None) -> PendingPrediction:
        self._row.copy_(states)
        if self._noise is not None and noise is not None:
            self._noise.copy_(noise)
        self._launch()
        self._post.send(self._answer)
        return self._post


def liveness_options() -> dict[str, bool]:
    """What to add to `CAPTURE_OPTIONS` so that a replay checks its inputs; empty where PyTorch cannot."""
    name = "check_input_liveness"
    return {name: True} if name in inspect.signature(torch.cuda.graph).parameters else {}


def padded_cache_tokens(max_tokens: Tokens) -> Tokens:
    """The room of a cache for texts of so many tokens: with the rows that pad a pass, and aligned."""
    return -(-(max_tokens + GRAPH_ROW_WIDTHS[-1]) // ALIGNED_TOKENS) * ALIGNED_TOKENS


def padded_context(end: Tokens) -> Tokens:
    """The least context of the table that holds so many tokens."""
    doubled = MIN_CONTEXT
    while 2 * doubled <= end:
        doubled *= 2
    step = doubled // CONTEXTS_PER_DOUBLING
    return max(MIN_CONTEXT, -(-end // step) * step)


def _unless_memory_runs_out(make: Callable[[], T]) -> T | None:
    """What is made, or None where the device has no memory for it."""
    try:
        return make()
    except RuntimeError as err:  # torch.OutOfMemoryError, or what ending the spoiled capture raised after it
        if not isinstance(err, torch.OutOfMemoryError) and not isinstance(err.__context__, torch.OutOfMemoryError):
            raise
        return None


def _warn_of_memory(what: str) -> None:
    print_err(f"warning: no memory to capture {what}: they are launched kernel by kernel, which is slower")

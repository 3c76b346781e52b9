"""Passes as CUDA graphs: captured once for a few widths and contexts, then launched as one, however many kernels they have.

A captured pass learns from the device where its rows stand, and is as wide as the next bucket. The rows that pad it stand
after the text's own: what they write lies where the text has not come yet, and is written anew before a row of the text looks
there, as none looks beyond its own place. So padding cannot leak, and is rolled back as a rejected block is.

Elsewhere than on a GPU nothing is captured: the same pass is called again, which is how it is tested.

Symbols: T tokens of a pass, R rows of its bucket, S positions of its context, D hidden, V vocab.
"""

from bisect import bisect_left
from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from perfmodel.geometry import ModelGeometry
from perfmodel.passes import GRAPH_ROW_WIDTHS
from perfmodel.profile import EngineMode
from perfmodel.units import Tokens
from s2d.cache import Cache, Segment
from s2d.heads import Slots, into_slots
from s2d.nested import Decoder, Span
from s2d.sampling import Answer, Choice, Post
from s2d.weights import DecoderWeights

ROW_BUCKETS = GRAPH_ROW_WIDTHS
"""Wider passes are launched kernel by kernel: their kernels take longer than their launches."""
LEAST_CONTEXT: Tokens = 256
"""Contexts are this times a power of two: at most half of the positions that attention reads are not there yet."""
NUM_WARM_UPS = 2
"""Calls before a capture, in which libraries choose kernels and take their workspace."""

Launch = Callable[[], None]


class GraphDecoder(Decoder):
    """A decoder whose short passes and exit checks are captured.

    Args:
        geometry: its shapes.
        weights: folded as `s2d.load` does.
    """

    engine: EngineMode = "graph"

    def __init__(self, geometry: ModelGeometry, weights: DecoderWeights) -> None:
        super().__init__(geometry, weights)
        self._checks: dict[Choice, _ExitCheck] = {}
        self._pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None

    def new_cache(self, segment_ends: tuple[int, ...], max_tokens: int) -> Cache:
        """See `Decoder`. There is room after the longest text for the rows that pad a pass."""
        return super().new_cache(segment_ends, max_tokens + ROW_BUCKETS[-1])

    def prepare(self, cache: Cache, begin_tokens: Tokens, end_tokens: Tokens) -> None:
        """See `Decoder`: capture what is missing."""
        contexts = {_context(begin_tokens, cache)}
        while max(contexts) < end_tokens:
            contexts.add(_context(max(contexts) + 1, cache))
        for context, segment, rows in product(sorted(contexts), cache.segments, ROW_BUCKETS):
            if (segment.number, rows, context) not in cache.prepared:
                cache.prepared[segment.number, rows, context] = _Pass(self, cache, segment, rows, context)

    def forward_segment(self, states: Tensor, segment: Segment, cache: Cache) -> Tensor:
        """See `Decoder`. Passes that were not prepared are launched kernel by kernel."""
        rows, start = len(states), cache.lengths[segment.number]
        end = start + rows
        prepared = cache.prepared.get((segment.number, _bucket(rows), _context(end, cache)))
        if prepared is None:
            return super().forward_segment(states, segment, cache)
        prepared(states, start)
        cache.lengths[segment.number] = end
        return cache.states[segment.number][start:end]

    def ask(self, states: Tensor, choice: Choice, noise: Tensor | None) -> Answer:
        """See `Decoder`."""
        if choice not in self._checks:
            self._checks[choice] = _ExitCheck(self, choice, has_noise=noise is not None)
        return self._checks[choice](states, noise)

    def launch_of(self, compute: Launch) -> Launch:
        """How to launch on the device what a function does, all of whose tensors stay where they are."""
        if self.device.type != "cuda":
            return compute
        with torch.cuda.device(self.device):
            current, beside = torch.cuda.current_stream(), torch.cuda.Stream()
            beside.wait_stream(current)
            with torch.cuda.stream(beside):
                for _ in range(NUM_WARM_UPS):
                    compute()
            current.wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                compute()
        return graph.replay

    def run_at(self, places: Tensor, states: Tensor, out: Tensor, segment: Segment, cache: Cache, context: Tokens) -> None:
        """A pass over rows that stand at places of a text, whose keys, values and states are left in the cache.

        Args:
            places: int64 [R].
            states: [R, D + PAD], left as they are.
            out: [R, D + PAD], what leaves the segment.
            segment: one of the cache's.
            cache: of this decoder.
            context: S, beyond every place that counts.
        """
        _, keys, values = cache.views(segment, 0, context)
        rows = cache.rows(segment)
        fresh = rows[0].new_empty(len(places), *rows[0].shape[1:])
        written = torch.view_as_complex(fresh.unflatten(-1, (-1, 2))) if self._complex else fresh
        slots = tuple(Slots(cached, places, fresh, written) for cached in rows)
        is_later = torch.arange(context, device=self.device) > places[:, None]
        mask = torch.zeros(is_later.shape, dtype=self.dtype, device=self.device).masked_fill_(is_later, -torch.inf)
        turned = places.clamp(max=len(self._q_turn) - 1)  # the context ends before the padding may
        q_turn, kv_turn = self._q_turn.index_select(0, turned), self._kv_turn.index_select(0, turned)
        span: Span = (slots, keys, values, q_turn, kv_turn, mask, into_slots(self._rotate))
        self._run_span(states, out, segment, span)
        cache.states[segment.number].index_copy_(0, places, out)


class _Pass:
    """One segment at one width over one context."""

    def __init__(self, decoder: GraphDecoder, cache: Cache, segment: Segment, rows: int, context: Tokens) -> None:
        # Finite from the start, as whatever pads a pass later.
        self._states, out = decoder.embed([0] * rows).clone(), decoder.embed([0] * rows).clone()  # [R, D + PAD]
        self._start = torch.zeros((), dtype=torch.int64, device=decoder.device)
        offsets = torch.arange(rows, device=decoder.device)
        self._launch = decoder.launch_of(
            lambda: decoder.run_at(self._start + offsets, self._states, out, segment, cache, context)
        )

    def __call__(self, states: Tensor, start: int) -> None:
        self._states[: len(states)].copy_(states)
        self._start.fill_(start)
        self._launch()


class _ExitCheck:
    """Norm, head and choice after one row, and the answer's way to the host."""

    def __init__(self, decoder: GraphDecoder, choice: Choice, *, has_noise: bool) -> None:
        self._row = decoder.embed([0]).clone()  # [1, D + PAD]
        self._noise = torch.zeros(1, decoder.vocab_size, device=decoder.device) if has_noise else None
        self._answer = torch.zeros(2, dtype=torch.float64, device=decoder.device)
        self._post = Post(decoder.device)

        def compute() -> None:
            token, confidence = choice(decoder.exit_logits(self._row), self._noise)
            self._answer.copy_(torch.cat((token.double(), confidence.double())))

        self._launch = decoder.launch_of(compute)

    def __call__(self, states: Tensor, noise: Tensor | None) -> Answer:
        self._row.copy_(states)
        if self._noise is not None and noise is not None:
            self._noise.copy_(noise)
        self._launch()
        self._post.send(self._answer)
        return self._post


def _bucket(rows: int) -> int:
    """The width that a pass of so many rows is launched at; 0 for those that are wider than any."""
    place = bisect_left(ROW_BUCKETS, rows)
    return ROW_BUCKETS[place] if place < len(ROW_BUCKETS) else 0


def _context(end: Tokens, cache: Cache) -> Tokens:
    """The context that a pass of rows up to a place is launched with."""
    context = LEAST_CONTEXT
    while context < end:
        context *= 2
    return min(context, cache.max_tokens)

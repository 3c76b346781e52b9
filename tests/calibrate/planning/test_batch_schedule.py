"""Batch schedules: the batch up to which speculation pays, and the draft length at each batch."""

import pytest

from calibrate.inputs.acceptance import load_acceptance, shipped_path
from calibrate.inputs.device import resolve_device
from calibrate.inputs.published_acceptance import DRAFT
from calibrate.inputs.requests import DeviceRequest
from calibrate.planning.batch_schedule import Option, batch_schedule, batch_schedules
from calibrate.pricing.datasheet import price_by_datasheet
from calibrate.pricing.pricing import pair_weights
from perfmodel.latency.latency_model import LatencyLevel
from perfmodel.passes.passes import Line, PassKind
from perfmodel.results.plan import BatchSchedule

OPTIONS = [Option(stage=0, exit_layer=4, draft_tokens=tokens, tokens_per_round=1 + 0.8 * tokens) for tokens in (1, 2, 4)]


class RowPrices:
    """A target that takes 1 ms, and 1 ms more for every 100 rows; a draft a tenth of it."""

    level: LatencyLevel = "roofline"
    error_frac = 0.0

    def __init__(self, batch: int, scale: float) -> None:
        self.batch, self.scale = batch, scale

    def line(self, kind: PassKind, stage: int, rows: int) -> Line:
        if kind in ("round", "exit"):
            return Line(0.0, 0.0)
        return Line(self.scale * 1e-3 * (1 + self.batch * rows / 100), 0.0)

    def cold_s(self, kind: PassKind, stage: int, place: int) -> float:
        return 0.0


def at_batch(batch: int) -> tuple[RowPrices, RowPrices]:
    return RowPrices(batch, 0.1), RowPrices(batch, 1.0)


def speedup(batch: int, tokens: int) -> float:
    """By hand."""
    round_s = tokens * 0.1 * (1 + batch / 100) + 1 + batch * (tokens + 1) / 100
    return (1 + 0.8 * tokens) * (1 + batch / 100) / round_s


def test_every_point_is_the_fastest_option_and_the_schedule_ends_where_none_pays() -> None:
    free = batch_schedule(OPTIONS, at_batch, context_tokens=10, fitting_batch=None)
    for point in free.points[:-1]:
        assert point.draft_tokens == max((1, 2, 4), key=lambda tokens: speedup(point.batch, tokens))
        assert point.speedup == pytest.approx(speedup(point.batch, point.draft_tokens))
    assert free.points[-1].draft_tokens == 0
    assert free.points[-1].exit_layer is None


def test_of_equally_fast_lengths_the_shortest_is_taken() -> None:
    def lengths(tie_frac: float) -> list[int]:
        schedule = batch_schedule(OPTIONS, at_batch, context_tokens=10, fitting_batch=4, tie_frac=tie_frac)
        return [point.draft_tokens for point in schedule.points]

    def shortest(batch: int, tie_frac: float) -> int:
        best = max(speedup(batch, tokens) for tokens in (1, 2, 4))
        return min(tokens for tokens in (1, 2, 4) if speedup(batch, tokens) >= (1 - tie_frac) * best)

    assert lengths(0.0) == [4, 4, 4]
    assert lengths(0.5) == [shortest(batch, 0.5) for batch in (1, 2, 4)] != lengths(0.0)
    assert all(lengths(1.0))  # a length that does not pay is no tie


def test_the_batch_at_which_it_stops_is_the_smallest_one() -> None:
    schedule = batch_schedule(OPTIONS, at_batch, context_tokens=10, fitting_batch=None)
    assert schedule.stops_at_batch is not None
    best = [
        max(speedup(batch, tokens) for tokens in (1, 2, 4)) for batch in (schedule.stops_at_batch - 1, schedule.stops_at_batch)
    ]
    assert best[0] > 1 >= best[1]


def test_a_schedule_that_pays_at_every_batch_has_no_batch_at_which_it_stops() -> None:
    schedule = batch_schedule(OPTIONS, at_batch, context_tokens=10, fitting_batch=None, max_batch=16)
    assert schedule.stops_at_batch is None
    assert [point.batch for point in schedule.points] == [1, 2, 4, 8, 16]


@pytest.mark.parametrize(("fitting", "batches"), [(1, [1]), (2, [1, 2]), (11, [1, 2, 4, 8, 11]), (1000, [1, 2, 4, 8, 16])])
def test_a_schedule_ends_where_memory_ends(fitting: int, batches: list[int]) -> None:
    unlimited = batch_schedule(OPTIONS, at_batch, context_tokens=10, fitting_batch=None, max_batch=16)
    schedule = batch_schedule(OPTIONS, at_batch, context_tokens=10, fitting_batch=fitting, max_batch=16)
    assert [point.batch for point in schedule.points] == batches
    assert (schedule.max_batch, schedule.fitting_batch, schedule.stops_at_batch) == (batches[-1], fitting, None)
    priced = {point.batch: point for point in unlimited.points}
    assert all(point == priced[point.batch] for point in schedule.points if point.batch in priced)


def test_a_batch_beyond_memory_is_not_a_batch_at_which_speculation_stops() -> None:
    unlimited = batch_schedule(OPTIONS, at_batch, context_tokens=10, fitting_batch=None)
    assert unlimited.stops_at_batch is not None
    for fitting, expected in ((unlimited.stops_at_batch - 1, None), (unlimited.stops_at_batch, unlimited.stops_at_batch)):
        schedule = batch_schedule(OPTIONS, at_batch, context_tokens=10, fitting_batch=fitting)
        assert schedule.stops_at_batch == expected


def shipped_schedules(target: str, num_devices: int) -> tuple[BatchSchedule, ...]:
    acceptance = load_acceptance(shipped_path(DRAFT, target))
    pair, device = acceptance.trace.header, resolve_device(DeviceRequest(device="a100-80gb", num_devices=num_devices))
    weights = pair_weights(pair.draft, pair.target, device.dtype)
    pricing = price_by_datasheet(pair, device, weights, context_tokens=768)
    return batch_schedules(acceptance.trace, pricing, context_tokens=768)


def test_a_longer_context_keeps_speculation_paying_in_larger_batches() -> None:
    """Reading the caches is shared by the rows of a verification (MagicDec, arXiv 2408.11049)."""
    short, long = shipped_schedules("llama-2-70b", num_devices=8)
    assert (short.context_tokens, long.context_tokens) == (768, 4096)
    assert short.stops_at_batch is not None
    assert long.stops_at_batch is not None
    assert long.stops_at_batch > short.stops_at_batch


def test_drafts_get_shorter_as_batches_grow() -> None:
    for schedule in shipped_schedules("llama-2-70b", num_devices=8):
        lengths = [point.draft_tokens for point in schedule.points]
        assert lengths == sorted(lengths, reverse=True)

"""The measuring loop on a fake runtime with known costs."""

from itertools import pairwise

import numpy as np
import pytest

from perfmodel.passes.passes import PassKind, PassSample, PassSamples
from perfmodel.policies.policy import Policy
from profiler.latency.measure_latency import ENOUGH_SAMPLES, ProfilingRuns, Text, measure_latency, take_runs
from profiler.latency.pass_grid import PassKey, ProfilingRun
from profiler.latency.pass_log import (
    PassLog,
    keys_label,
    missing_passes,
    thinned,
    unsteady_passes,
)
from tests.profiler.fake_runtime import VERIFY_ROW_S, VERIFY_S, FakeRuntime

TEXTS = (Text(token_ids=tuple(range(100)), prompt_tokens=20), Text(token_ids=tuple(range(40)), prompt_tokens=30))


def fixed(draft_cap: int) -> Policy:
    return Policy(exits=(1,), tokens=draft_cap)


def profiling_runs(*caps: int, new_tokens: int = 32) -> list[ProfilingRun]:
    return [ProfilingRun(policy=fixed(cap), new_tokens=new_tokens, text=None) for cap in caps]


def verify_key(rows: int) -> PassKey:
    return PassKey(kind="verify", stage=0, rows=rows)


def run(
    runtime: FakeRuntime,
    grid: list[ProfilingRun],
    needed: set[PassKey],
    log: PassLog,
    *,
    budget_s: float = 1e9,
    enough_samples: int = ENOUGH_SAMPLES,
) -> list[tuple]:
    events: list[tuple] = []
    rng = np.random.default_rng(0)
    runs = take_runs(runtime.decode, grid, TEXTS, needed=needed, enough_samples=enough_samples, log=log, rng=rng)
    measure_latency(runs, budget_s, on_run=lambda *event: events.append(event), clock=runtime.clock)
    return events


def test_measuring_ends_after_all_policies_when_every_pass_has_enough_samples() -> None:
    runtime, log = FakeRuntime(), PassLog()
    needed = {verify_key(rows) for rows in (1, 2, 4, 6)}
    events = run(runtime, profiling_runs(1, 3, 5), needed, log, enough_samples=30)
    assert not missing_passes(log, needed, 30)
    assert {policy for policy, _, _ in runtime.calls} == {fixed(1), fixed(3), fixed(5), None}
    assert events[-1][1] == 0


def test_measuring_ends_when_the_budget_is_spent_even_if_a_pass_never_occurs() -> None:
    runtime, log = FakeRuntime(), PassLog()
    run(runtime, profiling_runs(2), {verify_key(9)}, log, budget_s=2.0)
    assert 2.0 <= runtime.now_s < 3.0
    assert len(log) > 0


def test_the_log_has_the_seconds_of_the_runtime() -> None:
    runtime, log = FakeRuntime(), PassLog()
    run(runtime, profiling_runs(3), {verify_key(4)}, log, enough_samples=5)
    assert set(log.seconds_by_key()[verify_key(4)]) == {VERIFY_S + 3 * VERIFY_ROW_S}


def test_each_run_decodes_from_one_position_with_and_without_a_draft_in_both_orders() -> None:
    runtime = FakeRuntime()
    run(runtime, profiling_runs(*range(1, 13)), set(), PassLog())
    runs = list(zip(runtime.calls[::2], runtime.calls[1::2], strict=True))
    assert len(runs) == 1 + 12  # the first is warm-up
    assert all(first[1:] == second[1:] for first, second in runs)
    assert {first[0] is None for first, _ in runs} == {True, False}
    assert all((first[0] is None) != (second[0] is None) for first, second in runs)


def test_a_run_starts_after_the_prompt_and_leaves_room_for_its_tokens() -> None:
    runtime = FakeRuntime()
    run(runtime, profiling_runs(*[4] * 60, new_tokens=16), set(), PassLog())
    lengths = {len(prompt) for _, prompt, _ in runtime.calls}
    assert min(lengths) >= 20
    assert max(lengths) <= 84
    assert len(lengths) >= 15


def test_a_run_with_a_fixed_text_comes_first_and_starts_at_the_end_of_its_prompt() -> None:
    runtime = FakeRuntime()
    grid = [*profiling_runs(1, 2, 3), ProfilingRun(policy=fixed(1), new_tokens=60, text=1)]
    run(runtime, grid, set(), PassLog())
    assert {prompt for _, prompt, _ in runtime.calls[2:4]} == {tuple(range(30))}
    assert {(policy is None, new_tokens) for policy, _, new_tokens in runtime.calls[2:4]} == {(True, 60), (False, 60)}


def test_after_all_runs_the_one_that_adds_most_missing_passes_is_chosen() -> None:
    runs = ProfilingRuns(profiling_runs(1, 2, 3), np.random.default_rng(0))
    rare = PassKey(kind="segment", stage=2, rows=9)
    for _ in range(3):
        index = runs.next({rare})
        runs.record(index, {rare: 4} if index == 1 else {})  # type: ignore[arg-type]
    assert runs.all_taken
    assert [runs.next({rare}) for _ in range(5)] == [1] * 5


def test_the_first_run_is_a_dropped_warm_up() -> None:
    runtime, log = FakeRuntime(), PassLog()
    run(runtime, profiling_runs(2), set(), log)
    assert len(runtime.calls) == 4
    assert sum(number for key, number in log.counts.items() if key.kind == "target_prefill") == 2


def test_thinning_keeps_both_ends_and_spreads_evenly() -> None:
    kept = thinned(range(1000), 10)
    assert (kept[0], kept[-1], len(kept)) == (0, 999, 10)
    assert {later - earlier for earlier, later in pairwise(kept)} == {111}
    assert thinned(range(7), 10) == list(range(7))


def test_a_profile_keeps_passes_in_the_order_they_ran() -> None:
    log = PassLog()
    kinds: tuple[PassKind, ...] = ("segment", "verify", "verify")
    samples = PassSamples.from_passes(PassSample(kinds[number % 3], 0, 1, number, 1, 1e-3) for number in range(50))
    log.add(samples)
    assert log.samples() == samples
    assert log.samples("draft").cached_tokens == tuple(range(0, 50, 3))
    assert len(log.samples("target")) == 50 - len(log.samples("draft"))


def test_only_a_pass_with_a_wide_interquartile_range_is_unsteady() -> None:
    log = PassLog()
    log.add(PassSamples.from_passes(PassSample("verify", 0, 1, 0, 1, 1e-3 * (1 + number % 2)) for number in range(40)))
    log.add(PassSamples.from_passes([PassSample("verify", 0, 2, 0, 1, 1e-3)] * 40))
    (unsteady,) = unsteady_passes(log)
    assert unsteady.key == verify_key(1)
    assert unsteady.iqr_frac == pytest.approx(1 / 1.5)


def test_passes_are_listed_with_consecutive_rows_joined() -> None:
    keys = [PassKey(kind="segment", stage=2, rows=rows) for rows in (3, 9, 10, 11)] + [verify_key(13)]
    assert keys_label(keys) == "segment 3 of 3 rows, segment 3 of 9 to 11 rows, verify of 13 rows"

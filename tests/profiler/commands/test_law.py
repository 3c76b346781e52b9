"""`s2d-profile law` on models that take milliseconds."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calibrate.commands.plan_cli import main_plan
from calibrate.fit.fit_latency import fit_profiles
from perfmodel.core.disk import EVIDENCE_FOLDER
from perfmodel.passes.latency_law import FIT_FILE
from perfmodel.passes.latency_profile import PROFILE_FILE
from perfmodel.passes.passes import PassSamples
from profiler.commands.profile_cli import main_profile
from profiler.latency.measure_law import LOOPED_MODELS, LawGrid, law_models, law_profiles, measure_law
from profiler.latency.pass_log import PassLog
from profiler.profiling import profile_law

pytestmark = pytest.mark.e2e

GRID = LawGrid(shapes=((1, 64), (3, 64), (2, 128)), rows=(1, 2, 5), cached_tokens=(3, 9), vocab_size=32)
SMALL = ["--depths", "1", "2", "--hidden-sizes", "64", "128", "--rows", "1", "2", "3", "--context-tokens", "4", "8"]


@pytest.fixture(scope="module")
def logs() -> list[PassLog]:
    models = law_models(GRID, "fp32", "cpu", seed=0)
    logs = [PassLog() for _ in models]
    ticks = itertools.count()
    measure_law(models, GRID, logs, 100, rng=np.random.default_rng(0), clock=lambda: next(ticks))
    return logs


def test_a_grid_has_every_model_once_smallest_first() -> None:
    names = [model.name for model in replace(GRID, shapes=((2, 128), *GRID.shapes)).geometries]
    assert names == ["law-1x64", "law-3x64", "law-2x128"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shapes": ((2, 100),)}, "hidden size 100: expected a multiple of 64"),
        ({"shapes": ((0, 64),)}, r"shapes: got \(0, 64\), expected numbers of at least 1"),
        ({"rows": ()}, r"rows: got \(\), expected numbers of at least 1"),
        ({"vocab_size": 1}, "vocab_size is 1, expected at least 2"),
    ],
)
def test_an_impossible_grid_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(GRID, **change)  # type: ignore[arg-type]


def test_every_model_runs_every_shape(logs: list[PassLog]) -> None:
    for log, (layers, _) in zip(logs, ((1, 64), (3, 64), (2, 128)), strict=True):
        shapes = {(key.kind, key.stage, key.rows) for key in log.counts if key.kind in ("segment", "verify", "exit")}
        stages = range(1 if layers == 1 else 2)
        expected = {("segment", stage, rows) for stage in stages for rows in GRID.rows}
        assert shapes == expected | {("verify", 0, rows) for rows in GRID.rows} | {("exit", 0, 1)}
        assert {cached for kind, cached in _cached(log.samples()) if kind == "verify"} == set(GRID.cached_tokens)


def test_rounds_come_from_the_decoding_loop_of_the_smallest_models(logs: list[PassLog]) -> None:
    with_rounds = [any(key.kind == "round" for key in log.counts) for log in logs]
    assert with_rounds == [True] * LOOPED_MODELS + [False]
    assert {key.rows for key in logs[0].counts if key.kind == "round"} >= {0, *GRID.rows}


def _cached(samples: PassSamples) -> list[tuple[str, int]]:
    return [(sample.kind, sample.cached_tokens) for sample in samples]


def test_a_model_has_one_profile_as_a_draft_and_one_as_a_target(logs: list[PassLog]) -> None:
    model = law_models(GRID, "fp32", "cpu", seed=0)[1]
    draft, target = law_profiles(logs[1], model).values()
    assert (draft.exit_layers, target.exit_layers) == ((1, 3), ())
    assert set(draft.samples.kind) == {"segment", "exit"}
    assert set(target.samples.kind) == {"verify", "round"}
    assert draft.beside is None


def test_the_profiles_can_be_fitted_and_the_fit_prices_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "my law"
    assert main_profile(["law", *SMALL, "--budget", "1", "-o", str(out)]) == 0
    profiles = sorted(out.iterdir())
    assert [path.name for path in profiles[:2]] == ["law-1x128.draft.latency.json", "law-1x128.target.latency.json"]
    assert len(profiles) == 8
    assert f"next: s2d-plan fit '{out}'/*.latency.json -o '{out}'/law.fit.json\n" in capsys.readouterr().out

    fit_file = tmp_path / "cpu.fit.json"
    assert main_plan(["fit", *map(str, profiles), "-o", str(fit_file)]) == 0
    shown = capsys.readouterr().out
    assert "standard error" in shown
    assert "on a model left out of the fit" in shown
    assert FIT_FILE.read(fit_file).record == fit_profiles(profiles)[0]

    device = PROFILE_FILE.read(profiles[0]).record.device.device
    assert main_plan(["--target", "llama-70b", "--fit", str(fit_file), "--explain"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert " ".join(device.split()) in shown
    assert "extrapolated: law of" in shown
    assert "beyond it: a layer of 3.42 GB (seen: " in shown
    assert "80 layers (seen: 1 to 2), 768 cached tokens (seen: 0 to 8)" in shown


def test_ctrl_c_keeps_the_passes_and_the_same_command_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["law", *SMALL, "--budget", "0.2", "-o", str(tmp_path)]

    def interrupted(*args: object, **kwargs: object) -> None:
        measure_law(*args, **kwargs)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(profile_law, "measure_law", interrupted)
    assert main_profile(argv) == 130
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert len(kept) == 8
    assert all(name.endswith(".latency.partial.json") for name in kept)
    before = sum(len(PROFILE_FILE.read(tmp_path / name).record.samples) for name in kept)
    monkeypatch.undo()
    assert main_profile(argv) == 0
    assert f"continuing with the {before} passes" in capsys.readouterr().err
    after = [PROFILE_FILE.read(path).record for path in tmp_path.iterdir()]
    assert sum(len(profile.samples) for profile in after) > before


def test_continuing_with_other_models_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["law", *SMALL, "--budget", "0", "-o", str(tmp_path)]
    assert main_profile(argv) == 0
    for path in tmp_path.iterdir():
        path.rename(path.with_name(path.name.replace(".latency.json", ".latency.partial.json")))
    assert main_profile([*argv, "--seed", "1"]) == 2
    assert "the unfinished profile" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--hidden-sizes", "100"], "hidden size 100: expected a multiple of 64"),
        (["--rows", "0"], "rows: got (0,), expected numbers of at least 1"),
        (["--device", "cuda"], "torch finds no CUDA device here"),
        (["--threads", "0"], "expected at least 1"),
    ],
)
def test_impossible_requests_are_refused_before_any_file_is_written(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_profile(["law", *flags, "-o", str(tmp_path / "law")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "law").exists()


def test_a_fit_to_kernels_only_is_refused_for_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main_plan(["--target", "llama-70b", "--fit", str(EVIDENCE_FOLDER / "a100-80gb-sxm.latency-fit.json")]) == 2
    assert "fitted to kernels without a cache" in capsys.readouterr().err

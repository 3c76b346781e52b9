"""`s2d-profile`, from its flags to its files."""

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import pytest

from perfmodel.acceptance.trace import TRACE_FILE
from perfmodel.core import cpu_contention, files
from perfmodel.core.cpu_contention import Contention
from perfmodel.core.disk import write_atomically
from perfmodel.core.errors import OutOfSpace
from perfmodel.core.units import GIB
from perfmodel.passes.latency_profile import PROFILE_FILE, LatencyProfile
from perfmodel.policies.sampling import Sampling
from profiler.acceptance.record_acceptance import ExitRecorder, PromptTrace
from profiler.commands.profile_cli import main_profile
from profiler.latency import profiling_job as job_module
from profiler.latency.latency_files import LatencyFiles
from profiler.latency.measure_latency import measure_latency
from profiler.latency.pass_log import PassLog
from profiler.profiling import profile_pair
from s2d.decoding.encode_prompts import EncodedPrompt
from s2d.decoding.generate import Session
from s2d.loading.memory import CPU_WORKSPACE_BYTES
from s2d.loading.model_folder import FAMILY_FOLDER, FAMILY_PROMPTS, family_prompts
from tests.calibrate.factories import provenance, target_profile
from tests.profiler.conftest import EXITS, Folders

pytestmark = pytest.mark.e2e


def arguments(folders: Folders, out: Path, *extra: str) -> list[str]:
    models = ["--target", str(folders.target), "--draft", str(folders.draft), "--prompts", str(folders.prompts)]
    sizes = ["--split", "all", "--num-prompts", "3", "--max-new-tokens", "24", "--draft-cap", "3", "--budget", "0.6"]
    return [*models, *sizes, "-o", str(out), *extra]


def read_profile(path: Path) -> LatencyProfile:
    return PROFILE_FILE.read(path).record


def test_caches_that_do_not_fit_are_refused_before_any_pass(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    free = iter([GIB, CPU_WORKSPACE_BYTES])  # when weights are read, and before the session
    monkeypatch.setattr("s2d.loading.memory.free_device_bytes", lambda _: next(free))
    monkeypatch.setattr(Session, "generate", lambda *_, **__: pytest.fail("a pass was run"))
    assert main_profile(arguments(folders, tmp_path / "evidence")) == 2
    refused = capsys.readouterr().err
    assert "target and draft need 135 MB of memory (libraries 134 MB, " in refused
    assert "but cpu has 134 MB free. Give fewer --max-new-tokens or shorter prompts" in refused


def test_one_command_writes_both_profiles_and_the_trace_and_prints_the_next_command(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "evidence"
    assert main_profile(arguments(folders, out)) == 0
    assert sorted(path.name for path in out.iterdir()) == ["draft.latency.json", "target.latency.json", "trace.npz"]
    draft, target = read_profile(out / "draft.latency.json"), read_profile(out / "target.latency.json")
    assert set(draft.samples.kind) == {"segment", "exit", "draft_prefill"}
    assert set(target.samples.kind) == {"verify", "round", "target_prefill"}
    assert (draft.exit_layers, draft.beside) == (EXITS, target.model.name)
    assert (target.exit_layers, target.beside) == ((), draft.model.name)
    trace = TRACE_FILE.read(out / "trace.npz").record
    assert trace.header.draft_sha256 == draft.model_sha256
    assert len(trace.header.prompts) == 3
    shown = capsys.readouterr().out
    assert shown.splitlines()[0].startswith("models   target with draft, exits 1/2/4 (s2d.json), fp32")
    assert f"next: s2d-plan --profile {out / 'draft.latency.json'}" in shown
    assert str(tmp_path.parent) not in (out / "draft.latency.json").read_text()


def test_a_busy_machine_is_warned_about_and_recorded(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_contention, "thread_waited_s", perf_counter)  # never let run
    assert main_profile(["latency", *arguments(folders, tmp_path / "evidence")]) == 0
    assert "warning: this process waited" in capsys.readouterr().err
    for name in ("draft", "target"):
        assert read_profile(tmp_path / "evidence" / f"{name}.latency.json").waited_frac == pytest.approx(1.0, abs=0.01)


def test_a_continued_measurement_records_the_largest_share_of_waiting(tmp_path: Path) -> None:
    profile = target_profile()

    def profiles_of(log: PassLog) -> dict[str, LatencyProfile]:
        return {"target": profile}

    def part(waited_s: float) -> LatencyFiles:
        """Ten seconds of measuring with some seconds of waiting."""
        waits, times = iter((0.0, waited_s)), iter((0.0, 10.0))
        watched = Contention(waited_s=lambda: next(waits), clock=lambda: next(times))
        return LatencyFiles(tmp_path, profiles_of, provenance(), watched)

    part(5.0).write_partial(PassLog())
    second = part(1.0)
    second.resumed()
    [path] = second.write(PassLog())
    assert read_profile(path).waited_frac == 0.5


def test_a_failing_power_sensor_only_leaves_out_the_energy(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing() -> float:
        raise OSError("the card fell off the bus")

    monkeypatch.setattr(profile_pair, "nvml_sensor", lambda device: failing)
    assert main_profile(["latency", *arguments(folders, tmp_path)]) == 0
    captured = capsys.readouterr()
    assert "warning: the power sensor failed (the card fell off the bus): energy is left out" in captured.err
    assert "energy" not in captured.out
    assert len(read_profile(tmp_path / "draft.latency.json").samples)


def test_a_self_draft_has_one_profile_with_all_passes(folders: Folders, tmp_path: Path) -> None:
    argv = ["latency", *arguments(folders, tmp_path)]
    argv[argv.index("--draft") + 1] = "self"
    assert main_profile(argv) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["target.latency.json"]
    profile = read_profile(tmp_path / "target.latency.json")
    assert profile.exit_layers == (1, 3)
    assert set(profile.samples.kind) == {"segment", "exit", "verify", "round", "target_prefill"}


def test_ctrl_c_keeps_the_passes_and_the_same_command_continues(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args, **settings) -> None:
        measure_latency(*args, **settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(job_module, "measure_latency", interrupted)
    assert main_profile(["latency", *arguments(folders, tmp_path)]) == 130
    kept = tmp_path / "draft.latency.partial.json"
    assert f"the partial result is in {str(kept)!r}" in capsys.readouterr().err
    num_kept = len(read_profile(kept).samples)
    assert num_kept > 0
    monkeypatch.undo()
    argv = ["latency", *arguments(folders, tmp_path)]
    argv[argv.index("--budget") + 1] = "0"
    assert main_profile(argv) == 0
    assert "continuing with the" in capsys.readouterr().err
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["draft.latency.json", "target.latency.json"]
    assert len(read_profile(tmp_path / "draft.latency.json").samples) == num_kept


def test_an_interrupted_trace_continues_without_measuring_latency_again(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    traced: list[str] = []
    trace_prompt = ExitRecorder.trace

    def second_interrupted(self: ExitRecorder, prompt: EncodedPrompt) -> PromptTrace:
        if traced.count(prompt.name) == 1 and prompt.name == "p2.txt:1":
            raise KeyboardInterrupt
        traced.append(prompt.name)
        return trace_prompt(self, prompt)

    monkeypatch.setattr(ExitRecorder, "trace", second_interrupted)
    assert main_profile(arguments(folders, tmp_path)) == 130
    kept = tmp_path / "trace.partial.npz"
    assert f"the partial result is in {str(kept)!r}" in capsys.readouterr().err
    assert len(TRACE_FILE.read(kept).record.header.prompts) == len(traced) - 3
    measured = (tmp_path / "draft.latency.json").read_bytes()
    monkeypatch.undo()
    assert main_profile(arguments(folders, tmp_path)) == 0
    assert "latency was measured before the interruption" in capsys.readouterr().err
    assert (tmp_path / "draft.latency.json").read_bytes() == measured
    assert len(TRACE_FILE.read(tmp_path / "trace.npz").record.header.prompts) == 3
    assert not kept.exists()


def test_an_unfinished_profile_of_other_settings_is_refused(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_profile(["latency", *arguments(folders, tmp_path)]) == 0
    (tmp_path / "target.latency.json").rename(tmp_path / "target.latency.partial.json")
    assert main_profile(["latency", *arguments(folders, tmp_path, "--dtype", "bf16")]) == 2
    assert ", bf16, eager" in (message := capsys.readouterr().err)
    assert "delete it, or give another folder with -o" in message


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Fills the disk for files with a word in their name."""

    def fill(word: str) -> None:
        def write(path: Path, data: bytes) -> None:
            if word in Path(path).name:
                raise OutOfSpace(path)
            write_atomically(path, data)

        monkeypatch.setattr(files, "write_atomically", write)

    return fill


@pytest.mark.parametrize(
    ("what", "full", "table", "file"),
    [
        ("latency", "latency", "IQR / median", "draft.latency.json"),
        ("acceptance", "trace", "mean confidence", "trace.npz"),
    ],
)
def test_on_a_full_disk_the_table_is_still_printed(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str], full_disk: Callable[[str], None], what: str,
    full: str, table: str, file: str,
) -> None:  # fmt: skip
    full_disk(full)
    assert main_profile([what, *arguments(folders, tmp_path)]) == 2
    shown = capsys.readouterr()
    assert table in shown.out
    assert "next:" not in shown.out
    assert f"no space left to write {str(tmp_path / file)!r}" in shown.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["latency", "acceptance"])
def test_ctrl_c_on_a_full_disk_prints_the_table_and_keeps_the_earlier_files(
    folders: Folders,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    full_disk: Callable[[str], None],
    what: str,
) -> None:
    trace_prompt = ExitRecorder.trace

    def interrupted(*args, **settings) -> None:
        measure_latency(*args, **settings)
        raise KeyboardInterrupt

    def interrupted_after_one(self: ExitRecorder, prompt: EncodedPrompt) -> PromptTrace:
        if len(traced_names) == 1:
            raise KeyboardInterrupt
        traced_names.append(prompt.name)
        return trace_prompt(self, prompt)

    monkeypatch.setattr(job_module, "measure_latency", interrupted)
    if what == "acceptance":
        monkeypatch.setattr(ExitRecorder, "trace", interrupted_after_one)
    traced_names: list[str] = []
    assert main_profile([what, *arguments(folders, tmp_path)]) == 130
    kept = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert kept
    capsys.readouterr()
    full_disk("partial")
    traced_names.clear()
    assert main_profile([what, *arguments(folders, tmp_path)]) == 2
    shown = capsys.readouterr()
    assert ("IQR / median" if what == "latency" else "mean confidence") in shown.out
    assert "no space left to write" in shown.err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == kept


def test_an_output_that_is_a_file_is_refused_before_any_model_is_loaded(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile_pair, "load_pair", lambda *_: pytest.fail("loaded"))
    (tmp_path / "file").write_text("")
    assert main_profile(arguments(folders, tmp_path / "file")) == 2
    assert "this is a file, expected a folder" in capsys.readouterr().err


def test_the_next_command_measures_the_missing_half_and_then_plans(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "acceptance"
    assert main_profile(["acceptance", *arguments(folders, out, "-v")]) == 0
    following = shlex.split(capsys.readouterr().out.splitlines()[-1].removeprefix("next: "))
    assert following == ["s2d-profile", "latency", *arguments(folders, out)]
    assert main_profile(following[1:]) == 0
    following = shlex.split(capsys.readouterr().out.splitlines()[-1].removeprefix("next: "))
    profiles = ["--profile", str(out / "draft.latency.json"), "--profile", str(out / "target.latency.json")]
    assert following == ["s2d-plan", *profiles, "--trace", str(out / "trace.npz"), "-o", str(out / "plan.json")]


def test_off_path_tokens_are_recorded_on_request(folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_profile(["acceptance", *arguments(folders, tmp_path, "--off-path", "2")]) == 0
    recorded = len(TRACE_FILE.read(tmp_path / "trace.npz").record.off_path)
    assert recorded > 0
    assert f"{recorded} tokens off the target's path" in capsys.readouterr().out


def test_every_sampling_flag_reaches_the_trace_and_the_profiles(folders: Folders, tmp_path: Path) -> None:
    flags = ["--temperature", "0.8", "--top-k", "9", "--top-p", "0.9", "--min-p", "0.05", "--seed", "3"]
    flags += ["--repetition-penalty", "1.2", "--presence-penalty", "-0.5", "--frequency-penalty", "0.25"]
    assert main_profile(arguments(folders, tmp_path, *flags)) == 0
    sampling = TRACE_FILE.read(tmp_path / "trace.npz").record.header.sampling
    assert sampling == Sampling(
        rule="shared-noise",
        temperature=0.8,
        top_k=9,
        top_p=0.9,
        seed=3,
        min_p=0.05,
        repetition_penalty=1.2,
        presence_penalty=-0.5,
        frequency_penalty=0.25,
    )
    for name in ("draft", "target"):
        assert read_profile(tmp_path / f"{name}.latency.json").processing == sampling.processing


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--temperature", "0.8", "--rule", "greedy"], "greedy and temperature 0 go together"),
        (["--top-k", "5"], "greedy decoding takes no top_k"),
        (["--temperature", "-1"], "sampling flags: temperature -1.0: expected a number of at least 0"),
        (["--min-p", "0.1"], "greedy decoding takes no top_k, top_p, min_p or seed: expected a temperature above 0"),
        (["--repetition-penalty", "0"], "repetition_penalty 0.0: expected a number above 0, where 1 is none"),
        (["--presence-penalty", "-2.5"], "presence_penalty -2.5: expected from -2 to 2, where 0 is none"),
        (["--max-new-tokens", "5000"], "--max-new-tokens 5000: expected at most 159"),
        (["--num-prompts", "0"], "--num-prompts 0: expected at least 1"),
        (["--budget", "-1"], "--budget -1: expected 0 seconds or more"),
        (["--off-path", "-1"], "--off-path -1: expected 0 mistakes or more"),
        (["--max-new-tokens", "155"], "expected 1 to 5, which with 155 new ones fill the context"),
        (["--device", "tpu"], "--device tpu: expected cpu, cuda, or cuda:N for one of several GPUs."),
        (["--device", "cuda:7"], "--device cuda:7: torch finds no CUDA device here"),
        (["--target", "ref-target-99"], "unknown model 'ref-target-99'"),
    ],
)
def test_bad_input_is_refused_with_one_message(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str], message: str
) -> None:
    assert main_profile([*arguments(folders, tmp_path / "out"), *extra]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_models_that_are_not_shipped_need_prompts(folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--target", str(folders.target), "--draft", str(folders.draft), "-o", str(tmp_path)]
    assert main_profile(argv) == 2
    assert "its prompts must be given: --prompts FILE" in capsys.readouterr().err


def test_a_shipped_target_given_by_its_folder_has_the_shipped_prompts(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(FAMILY_FOLDER / "target-16")
    for target in ("ref-target-16", str(FAMILY_FOLDER / "target-16"), str(tmp_path / "link")):
        assert family_prompts(target) == FAMILY_PROMPTS


def test_help_loads_no_torch() -> None:
    module = "import sys; from profiler.commands.profile_cli import main_profile"
    code = f"{module}; main_profile(['--help']); print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "False"
    assert "s2d-profile --target ref-target-16 --draft ref-draft" in shown

"""Plans for an engine: from its own profile, or from a datasheet."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calibrate.engines.agreement import thin_agreement
from calibrate.inputs.requests import DeviceRequest, PlanRequest
from calibrate.planning.make_plan import make_plan
from calibrate.planning.make_plan import plan as public_plan
from calibrate.planning.make_portfolio import by_category
from calibrate.planning.suggest_after_plan import next_command
from perfmodel.acceptance.trace import TRACE_FILE, Trace
from perfmodel.core.errors import Mismatch, UnknownName, UserInputError
from perfmodel.engines.engine import RoundShape
from perfmodel.engines.engine_profile import ENGINE_PROFILE_FILE, EngineProfile
from perfmodel.models.find_model import find_model
from perfmodel.policies.sampling import Sampling
from perfmodel.results.plan import PLAN_FILE, Plan
from tests.calibrate.engines.simulate_engine import SimulatedEngine
from tests.calibrate.factories import make_trace, provenance, target_profile, write_profile

LLAMA_CPP = SimulatedEngine(
    shape=RoundShape(rereads_block=True),
    verify_steps=lambda rows: float(np.interp(rows, (1, 3, 9, 13), (1.0, 1.2, 1.7, 2.1))),
    draft_pass_s=4e-5,
    draft_layer_s=3e-5,
)


def write_engine_profile(path: Path, profile: EngineProfile, **setting: object) -> Path:
    changed = replace(profile, setting=replace(profile.setting, **setting))  # type: ignore[arg-type]
    ENGINE_PROFILE_FILE.write(path, changed, provenance())
    return path


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    TRACE_FILE.write(tmp_path / "trace.npz", make_trace(), provenance())
    return tmp_path / "trace.npz"


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    return write_engine_profile(tmp_path / "llama.json", LLAMA_CPP.profile(make_trace(), (1, 6), (2, 5, 8), alone=(1, 2, 4, 6)))


@pytest.fixture
def planned(trace: Path, profile: Path) -> Plan:
    return make_plan(PlanRequest(trace=trace, profiles=(profile,)))


def test_a_profile_names_the_engine_and_its_seconds_price_the_plan(planned: Plan) -> None:
    policy = planned.policy
    assert policy is not None
    assert (planned.engine, planned.engine_setting.weights if planned.engine_setting else "") == ("llama.cpp", "f32")
    assert [(part.role, part.level) for part in planned.evidence] == [
        ("draft latency", "measured"),
        ("target latency", "measured"),
        ("acceptance", "traced"),
    ]
    assert planned.speedup.value == pytest.approx(LLAMA_CPP.speedup(make_trace(), policy.exits[0], policy.tokens), rel=0.02)
    assert planned.chosen.speedup.plain_tokens_per_s == pytest.approx(1 / LLAMA_CPP.plain_s, rel=0.01)


def test_the_chosen_length_is_within_three_percent_of_the_best_true_one(planned: Plan) -> None:
    policy = planned.policy
    assert policy is not None
    true = {
        (layer, tokens): LLAMA_CPP.speedup(make_trace(), layer, tokens) for layer in (1, 2, 4, 6) for tokens in range(1, 13)
    }
    assert true[policy.exits[0], policy.tokens] > 0.97 * max(true.values())


def test_the_text_names_engine_and_evidence_and_the_next_command_exports(planned: Plan) -> None:
    text = " ".join(str(planned).split())
    assert "engine llama.cpp b1, weights f32" in text
    assert "latency measured: 2 exits x 3 lengths run in llama.cpp b1, ± " in text
    assert "llama.cpp takes one draft length for all batch sizes" in text
    assert next_command(planned, output=Path("plan.json")) == (
        "s2d-plan export --plan plan.json --target ref-target-16 --draft ref-draft -o served"
    )


def test_a_plan_for_an_engine_is_read_as_it_was_written(planned: Plan, tmp_path: Path) -> None:
    planned.save(tmp_path / "plan.json")
    assert PLAN_FILE.read(tmp_path / "plan.json").record == planned


def test_agreement_that_the_engine_lost_is_taken_from_the_trace(trace: Path, tmp_path: Path, planned: Plan) -> None:
    lossy = LLAMA_CPP.profile(thin_agreement(make_trace(), 0.85), (1, 4), (2, 5, 8))
    profile = write_engine_profile(tmp_path / "lossy.json", lossy, weights="bf16")
    plan = make_plan(PlanRequest(trace=trace, profiles=(profile,)))
    [acceptance] = [part for part in plan.evidence if part.role == "acceptance"]
    assert "; in llama.cpp 8" in acceptance.description
    assert acceptance.description.endswith("of the agreement left")
    assert plan.speedup.value < planned.speedup.value


def test_an_engine_that_loses_by_every_draft_gets_no_draft(trace: Path, tmp_path: Path) -> None:
    slow = replace(LLAMA_CPP, verify_steps=lambda rows: 1.4 * rows if rows > 1 else 1.0)
    profile = write_engine_profile(tmp_path / "slow.json", slow.profile(make_trace(), (1, 4), (3, 8)), weights="q8_0")
    plan = make_plan(PlanRequest(trace=trace, profiles=(profile,)))
    assert plan.policy is None
    assert plan.next_command == ""
    assert "The best draft, exit" in str(plan)
    assert "The interval reaches below" not in str(plan)


def test_the_stated_error_is_that_of_the_chosen_length(trace: Path, tmp_path: Path) -> None:
    """Profiled at 3 and 8 tokens: another length adds an error, at these two the fit's own is stated."""
    profile = write_engine_profile(tmp_path / "two.json", LLAMA_CPP.profile(make_trace(), (1, 6), (3, 8), alone=(1, 2, 4, 6)))
    plan = make_plan(PlanRequest(trace=trace, profiles=(profile,)))
    assert plan.policy is not None
    [latency] = [part for part in plan.evidence if part.role == "target latency"]
    assert ("± 5.0 %" in latency.description) == (plan.policy.tokens in (3, 8))


def test_an_engine_that_was_not_run_has_a_wider_interval_than_the_bundled_runtime() -> None:
    device = DeviceRequest(device="h100")
    llama_cpp, bundled = (
        make_plan(PlanRequest(target="llama-70b", engine=name, device=device)) for name in ("llama.cpp", "s2d")
    )
    assert llama_cpp.speedup.high / llama_cpp.speedup.low > 1.3 * bundled.speedup.high / bundled.speedup.low
    [latency] = [part for part in llama_cpp.evidence if part.role == "target latency"]
    assert latency.description.startswith("not run in llama.cpp, ± 18.0 % (one sigma); H100-SXM datasheet")


def test_without_a_profile_the_datasheet_prices_the_engine_and_the_next_command_runs_it() -> None:
    plan = make_plan(PlanRequest(target="llama-70b", engine="hf", device=DeviceRequest(device="h100")))
    assert (plan.engine, plan.engine_setting, plan.device.mode) == ("transformers", None, "eager")
    assert {part.level for part in plan.evidence if part.role.endswith("latency")} == {"roofline"}
    assert plan.next_command.startswith("s2d-profile engine --engine transformers --target path/to/llama-2-70b --draft ")
    assert any("Nothing was run in transformers" in note for note in plan.notes)


def test_a_draft_that_reads_its_block_again_is_worth_less() -> None:
    device = DeviceRequest(device="h100")
    by_engine = {name: make_plan(PlanRequest(target="llama-70b", engine=name, device=device)) for name in ("vllm", "llama.cpp")}
    assert by_engine["llama.cpp"].speedup.value < by_engine["vllm"].speedup.value


def test_only_an_engine_that_takes_lengths_by_batch_gets_a_schedule_of_its_exit() -> None:
    device = DeviceRequest(device="h100")
    vllm, llama_cpp = (make_plan(PlanRequest(target="vicuna-7b", engine=name, device=device)) for name in ("vllm", "llama.cpp"))
    assert vllm.policy is not None
    exits = {point.exit_layer for schedule in vllm.batch_schedules for point in schedule.points}
    assert exits <= {vllm.policy.exits[0], None}
    assert exits
    assert llama_cpp.batch_schedules == ()


def test_the_bundled_runtime_is_the_default_and_its_name_changes_nothing() -> None:
    assert make_plan(PlanRequest(target="llama-70b", engine="s2d")) == make_plan(PlanRequest(target="llama-70b"))
    assert public_plan("llama-70b", engine="llama.cpp").engine == "llama.cpp"


def test_an_engine_that_does_not_run_on_the_device_is_refused() -> None:
    with pytest.raises(UserInputError, match=r"OpenVINO GenAI does not run on H100-SXM: expected a CPU \(--device cpu\)"):
        make_plan(PlanRequest(target="llama-70b", engine="openvino", device=DeviceRequest(device="h100")))
    with pytest.raises(UserInputError, match=r"TensorRT-LLM does not run on .*: expected a GPU"):
        make_plan(PlanRequest(target="vicuna-7b", engine="tensorrt-llm", device=DeviceRequest(device="cpu")))


def test_the_draft_is_split_as_the_target_where_the_engine_requires_it(trace: Path) -> None:
    device = DeviceRequest(device="h100", num_devices=2)
    bundled, vllm = (make_plan(PlanRequest(trace=trace, engine=name, device=device)) for name in ("s2d", "vllm"))
    assert (bundled.draft_num_devices, vllm.draft_num_devices) == (1, 2)


def test_weights_that_the_engine_does_not_load_are_refused() -> None:
    with pytest.raises(UnknownName, match="unknown weights of vLLM 'q4_k_m'"):
        make_plan(PlanRequest(target="llama-70b", engine="vllm", device=DeviceRequest(dtype="q4_k_m")))


def write_trace(path: Path, trace: Trace) -> Path:
    TRACE_FILE.write(path, trace, provenance())
    return path


def test_a_sampled_trace_is_refused_unless_the_engine_accepts_by_its_rule(tmp_path: Path) -> None:
    header = replace(make_trace().header, sampling=Sampling(rule="ratio", temperature=1.0, seed=0))
    trace = write_trace(tmp_path / "ratio.npz", replace(make_trace(), header=header))
    device = DeviceRequest(device="a100-80gb")
    assert make_plan(PlanRequest(trace=trace, engine="onnxruntime", device=device)).engine == "onnxruntime"
    for engine, rule in (
        ("llama.cpp", "llama.cpp accepts a token that equals the target's own sample at a temperature above 0"),
        ("vllm", "vLLM accepts with the target's probability of the draft's best token"),
    ):
        with pytest.raises(UserInputError, match=rf"ratio T=1, and {rule}.*expected a greedy trace. Plan for greedy decoding"):
            make_plan(PlanRequest(trace=trace, engine=engine, device=device))


def test_the_targets_own_layers_are_no_draft_for_an_engine(tmp_path: Path) -> None:
    header = make_trace().header
    own = replace(header, draft_kind="self", draft_model=header.target_model, draft_sha256=header.target_sha256)
    trace = write_trace(tmp_path / "self.npz", replace(make_trace(), header=own))
    with pytest.raises(UserInputError, match=r"serves a draft as a model of its own\. Write the layers as one"):
        make_plan(PlanRequest(trace=trace, engine="llama.cpp"))


def test_files_that_contradict_each_other_or_the_request_are_refused(trace: Path, profile: Path, tmp_path: Path) -> None:
    bundled = write_profile(tmp_path / "target.latency.json", target_profile())
    other = write_engine_profile(tmp_path / "ort.json", ENGINE_PROFILE_FILE.read(profile).record, engine="onnxruntime")
    quantised = write_engine_profile(tmp_path / "q8.json", ENGINE_PROFILE_FILE.read(profile).record, weights="q8_0")
    cases: tuple[tuple[dict[str, object], str], ...] = (
        ({"engine": "vllm", "profiles": (profile,)}, "llama.json' was made for engine llama.cpp, not for engine vllm"),
        ({"profiles": (profile, other)}, "the profiles are of llama.cpp and onnxruntime: expected one engine"),
        ({"profiles": (profile, quantised)}, "q8.json' are of llama.cpp: expected one"),
        ({"profiles": (profile, bundled)}, "expected no other latency beside it. Leave '"),
        ({"profiles": (profile,), "fit": Path("a.json")}, "expected no other latency beside it. Leave --fit out"),
        ({"engine": "vllm", "profiles": (bundled,)}, "was made for passes of the bundled runtime, not for engine vllm"),
        ({"profiles": (profile,), "device": DeviceRequest(dtype="bf16")}, "made for --dtype fp32, not for --dtype bf16"),
        ({"profiles": (profile,), "device": DeviceRequest(num_devices=2)}, "made for --num-devices 1, not for --num-devices 2"),
        ({"engine": "all"}, "--engine all: expected one engine here"),
        ({"engine": "lama.cpp"}, "unknown engine 'lama.cpp': did you mean 'llama.cpp'"),
    )
    for changes, message in cases:
        with pytest.raises(UserInputError) as error:
            make_plan(PlanRequest(trace=trace, **changes))  # type: ignore[arg-type]
        assert message in str(error.value), changes


def test_a_profile_of_other_models_is_refused(trace: Path, profile: Path, tmp_path: Path) -> None:
    record = ENGINE_PROFILE_FILE.read(profile).record
    cases = (
        (replace(record, target=find_model("ref-target-32")), "was made for target ref-target-32, not for ref-target-16"),
        (replace(record, target_sha256="f" * 64), "was made for target weights ffffffffffff, not for the traced aaaaaaaaaaaa"),
        (replace(record, draft_sha256="f" * 64), "was made for draft weights ffffffffffff, not for the traced bbbbbbbbbbbb"),
    )
    for changed, message in cases:
        ENGINE_PROFILE_FILE.write(tmp_path / "other.json", changed, provenance())
        with pytest.raises(Mismatch) as error:
            make_plan(PlanRequest(trace=trace, profiles=(tmp_path / "other.json",)))
        assert message in str(error.value)


def test_several_parts_are_planned_for_the_bundled_runtime_only(trace: Path, profile: Path) -> None:
    with pytest.raises(UserInputError, match="--by-category compares policies of several exits, expected the bundled runtime"):
        by_category(PlanRequest(trace=trace, profiles=(profile,)))

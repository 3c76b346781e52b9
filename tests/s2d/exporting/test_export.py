"""An export is checked before it is written, holds everything, and is whole or absent."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import s2d
from perfmodel.core.errors import BadFile, Mismatch, S2DError, UnknownName, UserInputError
from perfmodel.core.stats import Interval
from perfmodel.engines.find_engine import find_engine
from perfmodel.policies.policy import ConfidenceFloor, HeuristicLength, Policy
from perfmodel.policies.sampling import Sampling
from perfmodel.results.plan import BatchPoint, BatchSchedule, Candidate, Plan, Workload
from s2d.exporting.served_policy import served_policy
from s2d.exporting.smoke_prompts import SMOKE_TEST_FILE
from s2d.loading.load_model import export_exit
from s2d.prompt_files.read import read_prompts
from tests.s2d.conftest import ROUNDS, SPEEDUP
from tests.s2d.exporting.serving_factory import HOSTILE
from tests.s2d.loading.test_load_model import byte_tokenizer

ONE_EXIT = Policy(exits=(4,), tokens=4)
PROMPTS = ["the cat and the dog", "then the dog"]
PlanFile = Callable[..., Path]


def planned(plan_file: PlanFile, engine: str, policy: Policy | None = ONE_EXIT, **changes: object) -> Plan:
    plan = s2d.Plan.load(plan_file())
    chosen = Candidate(name="plan", policy=policy, rounds=ROUNDS, speedup=SPEEDUP)
    return replace(plan, engine=engine, chosen=chosen, **changes)  # type: ignore[arg-type]


def exported(plan: Plan | Path, folders: Path, name: str = "served", **options: object) -> Path:
    given = {"target": folders / "target", "draft": folders / "draft", "prompts": PROMPTS} | options
    s2d.export(plan, folders / name, **given)  # type: ignore[arg-type]
    return folders / name


def refused(plan: Plan, folders: Path, **options: object) -> str:
    """The message with which an export is refused; nothing is left behind."""
    before = sorted(folders.iterdir())
    with pytest.raises(UserInputError) as caught:
        exported(plan, folders, **options)
    assert sorted(folders.iterdir()) == before
    return str(caught.value)


def test_a_folder_for_vllm_holds_the_exit_the_commands_and_the_smoke_test(folders: Path, plan_file: PlanFile) -> None:
    out = exported(planned(plan_file, "vllm"), folders)
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    scripts = {"serve.sh", "serve-plain.sh", "serve-synthetic.sh"}
    assert names >= scripts | {"README.md", "plan.json", "prompts.json", "smoke_test.py", "draft/model.safetensors"}
    assert names >= {"smoke/serve.py", "smoke/guard.py", "smoke/vllm_worker.py"}
    assert json.loads((out / "draft" / "config.json").read_text())["num_hidden_layers"] == 4
    assert not [name for name in scripts if not (out / name).stat().st_mode & 0o100]
    assert f"TARGET={folders / 'target'}" in (out / "serve.sh").read_text()
    assert s2d.Plan.load(out / "plan.json").engine == "vllm"


def test_the_draft_of_the_bundled_runtime_keeps_all_its_exits(folders: Path, plan_file: PlanFile) -> None:
    plan = plan_file()
    out = exported(plan, folders)
    assert (out / "plan.json").read_bytes() == plan.read_bytes()
    assert (out / "draft" / "s2d.json").is_file()
    assert not (out / "smoke_test.py").exists()
    assert "./run.sh --check" in (out / "README.md").read_text()


def test_transformers_reads_the_length_from_the_draft(folders: Path, plan_file: PlanFile) -> None:
    out = exported(planned(plan_file, "transformers", Policy(exits=(4,), tokens=4, stop=ConfidenceFloor(floor=0.25))), folders)
    settings = json.loads((out / "draft" / "generation_config.json").read_text())
    assert settings["num_assistant_tokens"] == 4
    assert settings["num_assistant_tokens_schedule"] == "constant"
    assert settings["assistant_confidence_threshold"] == 0.25
    readme = (out / "README.md").read_text(encoding="utf-8")
    assert "the confidence threshold 0.25" in readme
    assert "Serve without scikit-learn" in readme


def test_a_folder_of_a_hostile_name_is_quoted_in_the_next_command(folders: Path, plan_file: PlanFile) -> None:
    plan = planned(plan_file, "sglang")
    out = folders / HOSTILE.replace("/", "")
    made = s2d.export(plan, out, target=folders / "target", draft=folders / "draft", prompts=PROMPTS)
    assert made.next_command == f"python3 {_quoted(f'{out}/smoke_test.py')} --start-server"
    assert (out / "serve.sh").is_file()


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\"'\"'") + "'"


def test_readme_states_prediction_checks_and_that_we_have_not_run_the_engine(folders: Path, plan_file: PlanFile) -> None:
    text = (exported(planned(plan_file, "sglang"), folders) / "README.md").read_text()
    assert "Generated from the documentation of SGLang" in text
    assert "and not run by us." in text
    assert "- speedup over plain decoding in the same engine: 1.25 (90 % interval 1.10 to 1.40)" in text
    assert "s2d-compare --plan plan.json --engine-metrics FILE" in text


def test_prompts_carry_the_plan_without_a_trace(folders: Path, plan_file: PlanFile) -> None:
    test = SMOKE_TEST_FILE.read(exported(planned(plan_file, "vllm"), folders) / "prompts.json").record
    assert (test.engine, test.weights, test.draft, test.draft_tokens) == ("vllm", "f32", "draft", 4)
    assert test.acceptance_length == ROUNDS.tokens_per_round
    assert [prompt.text for prompt in test.prompts] == PROMPTS
    assert test.prompts[0].max_new_tokens == 24
    assert test.prompts[0].num_rounds is None


def test_prompts_carry_the_replay_with_a_trace(folders: Path, plan_file: PlanFile) -> None:
    ids = [byte_tokenizer()(text)["input_ids"] for text in PROMPTS]
    prompts = folders / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS), encoding="utf-8")
    names = [prompt.name for prompt in read_prompts(prompts)]
    trace = s2d.Trace.from_arrays(
        [[0.5, 0.5]] * 20,
        [[0, number % 5 != 4] for number in range(20)],
        exits=(2, 4),
        prompts=[name for name in names for _ in range(10)],
        prompt_tokens=list(map(len, ids)),
    )
    plan = planned(plan_file, "vllm")
    test = SMOKE_TEST_FILE.read(exported(plan, folders, trace=trace, prompts=prompts) / "prompts.json").record
    assert test.expected_from == "the replay of these prompts"
    assert [prompt.num_rounds for prompt in test.prompts] == [2, 2]
    assert test.acceptance_length == 5.0
    assert test.prompts[1].token_ids == tuple(ids[1])
    assert len(test.prompts[1].expected_tokens or ()) == test.prompts[1].max_new_tokens == 10
    assert "it has none of these prompts" in refused(plan, folders, name="again", trace=trace, prompts=["zoo zoo zoo"])
    other = replace(trace, header=replace(trace.header, draft_sha256="0" * 64))
    assert "the trace was made for draft 000000000000" in refused(plan, folders, name="again", trace=other, prompts=prompts)


def test_what_the_engine_cannot_execute_is_refused_by_name(folders: Path, plan_file: PlanFile) -> None:
    cases = {
        r"exits: vLLM serves one exit, and the policy has 2/4: expected a single exit": planned(
            plan_file, "vllm", Policy(exits=(2, 4), thresholds=(0.3,), tokens=4)
        ),
        r"stop-rule: vLLM does not stop by the +2/-1 length": planned(
            plan_file, "vllm", Policy(exits=(4,), tokens=4, stop=HeuristicLength(start=2))
        ),
        r"stop-rule: the policy keeps the token below its floor": planned(
            plan_file,
            "llama.cpp",
            Policy(exits=(4,), tokens=4, stop=ConfidenceFloor(floor=0.3), confidence="top10-prob"),
        ),
        "the plan is plain decoding: expected one that speculates": planned(plan_file, "vllm", None),
        "draft-tokens: 17 draft tokens in ONNX Runtime GenAI": planned(plan_file, "onnxruntime", Policy(exits=(4,), tokens=17)),
    }
    wrong = [f"{message}: {refused(plan, folders)}" for message, plan in cases.items() if message not in refused(plan, folders)]
    assert not wrong


def test_what_the_models_or_the_workload_break_is_refused_by_name(folders: Path, plan_file: PlanFile) -> None:
    plan = planned(plan_file, "openvino")
    sampled = Workload(batch=1, prompt_tokens=8, output_tokens=24, sampling=Sampling(rule="ratio", temperature=0.7, seed=1))
    assert refused(replace(plan, workload=sampled), folders).startswith("greedy-only: temperature 0.7 with a draft in OpenVINO")
    long = replace(plan.workload, output_tokens=100_000)
    assert refused(replace(planned(plan_file, "vllm"), workload=long), folders).startswith("context: 100008 tokens")
    batch = replace(plan.workload, batch=4)
    assert refused(replace(planned(plan_file, "onnxruntime"), workload=batch), folders).startswith(
        "single-sequence: batch 4 with a draft"
    )
    devices = replace(plan.device, num_devices=3)
    shared = replace(planned(plan_file, "vllm"), device=devices, draft_num_devices=3)
    assert "which 3 devices (tensor parallelism) cannot share evenly" in refused(shared, folders)


def test_a_plan_for_another_engine_is_refused(folders: Path, plan_file: PlanFile) -> None:
    with pytest.raises(Mismatch, match=r"engine: the plan was made for vllm, not for llama\.cpp, whose pass times differ"):
        exported(planned(plan_file, "vllm"), folders, engine="llama.cpp")
    assert exported(planned(plan_file, "vllm"), folders, engine="VLLM").is_dir()


def test_unknown_weights_name_the_known_ones(folders: Path, plan_file: PlanFile) -> None:
    with pytest.raises(UnknownName, match="unknown weights of TensorRT-LLM 'fp32': expected 'bf16'") as caught:
        exported(planned(plan_file, "tensorrt-llm"), folders)
    assert caught.value.__notes__ == ["Choose the weights of the export with --weights."]
    out = exported(planned(plan_file, "tensorrt-llm"), folders, weights="bf16")
    assert "decoding_type: DraftTarget" in (out / "config.yaml").read_text()


def test_an_engine_whose_answers_have_no_rounds_gets_no_smoke_test(folders: Path, plan_file: PlanFile) -> None:
    out = exported(planned(plan_file, "tensorrt-llm"), folders, weights="bf16")
    assert not (out / "smoke_test.py").exists()
    assert not (out / "prompts.json").exists()
    readme = (out / "README.md").read_text()
    assert "do not report rounds, so there is no smoke test" in readme
    assert "smoke_test.py" not in readme


def test_other_models_than_the_plans_are_refused(folders: Path, plan_file: PlanFile) -> None:
    plan = planned(plan_file, "vllm")
    export_exit(folders / "target", 2, folders / "shallow")
    byte_tokenizer().save_pretrained(folders / "shallow")
    assert "was made for draft" in refused(plan, folders, draft=folders / "shallow")
    shutil.copytree(folders / "draft", folders / "other")
    byte_tokenizer(swap=True).save_pretrained(folders / "other")
    assert "was made for draft tokenizer" in refused(plan, folders, draft=folders / "other")
    with pytest.raises(UserInputError, match=r"draft 'some/draft' is a name of the hub, expected a folder"):
        exported(plan, folders, draft="some/draft")


def test_a_target_elsewhere_is_named_and_not_fetched(folders: Path, plan_file: PlanFile) -> None:
    out = exported(planned(plan_file, "vllm"), folders, target="some/target")
    assert "TARGET=some/target;" in (out / "serve.sh").read_text()
    message = refused(planned(plan_file, "llama.cpp"), folders, name="gguf", target="some/target")
    assert "target 'some/target' is not on this machine, expected a folder to convert for llama.cpp" in message


def test_a_self_draft_is_refused(folders: Path, plan_file: PlanFile) -> None:
    plan_file("self")
    plan = replace(s2d.Plan.load(folders / "plan.json"), engine="vllm")
    plan = replace(plan, chosen=replace(plan.chosen, policy=ONE_EXIT))
    assert refused(plan, folders, draft=None).startswith("draft 'self': the plan's draft shares the target's KV cache")


def test_an_existing_folder_is_refused_and_left_alone(folders: Path, plan_file: PlanFile) -> None:
    (folders / "served").mkdir()
    with pytest.raises(BadFile, match="this exists already"):
        exported(planned(plan_file, "vllm"), folders)
    assert not list((folders / "served").iterdir())


def test_a_failed_conversion_leaves_nothing(folders: Path, plan_file: PlanFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Path:
        raise S2DError("converter failed")

    monkeypatch.setattr("s2d.engines.checkpoints.make_checkpoint", fail)
    plan, before = planned(plan_file, "vllm"), sorted(folders.iterdir())
    with pytest.raises(S2DError, match="converter failed"):
        exported(plan, folders)
    assert sorted(folders.iterdir()) == before


def test_a_schedule_by_batch_ends_where_speculation_stops_to_pay(plan_file: PlanFile) -> None:
    points = tuple(
        BatchPoint(batch=batch, exit_layer=exit_layer, draft_tokens=tokens, speedup=1.2)
        for batch, exit_layer, tokens in ((1, 4, 4), (2, 4, 4), (4, 4, 2), (8, None, 0))
    )
    schedule = BatchSchedule(context_tokens=20, points=points, max_batch=64, stops_at_batch=7, fitting_batch=64)
    policy = served_policy(planned(plan_file, "vllm", batch_schedules=(schedule,)), find_engine("vllm"))
    assert [(part.first, part.last, part.draft_tokens) for part in policy.by_batch] == [
        (1, 3, 4),
        (4, 6, 2),
        (7, 64, 0),
    ]
    assert policy.acceptance_rates == (0.6, 0.3, 0.1, 0.0)
    other = replace(schedule, points=(replace(points[0], exit_layer=2), *points[1:]))
    assert not served_policy(planned(plan_file, "vllm", batch_schedules=(other,)), find_engine("vllm")).by_batch


def test_the_interval_of_a_speedup_does_not_widen_the_tolerance_on_other_prompts(folders: Path, plan_file: PlanFile) -> None:
    speedup = replace(SPEEDUP, speedup=Interval(value=2.0, low=1.0, high=3.0))
    plan = planned(plan_file, "vllm")
    plan = replace(plan, chosen=replace(plan.chosen, speedup=speedup))
    test = SMOKE_TEST_FILE.read(exported(plan, folders) / "prompts.json").record
    assert (test.tolerance_frac, test.expected_from) == (0.35, "the plan, over other prompts")


def test_the_plan_file_of_an_export_can_be_read_again(folders: Path, plan_file: PlanFile) -> None:
    assert s2d.Plan.load(exported(planned(plan_file, "vllm"), folders) / "plan.json") == planned(plan_file, "vllm")

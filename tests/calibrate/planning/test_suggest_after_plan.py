"""The command after a plan works when it is pasted: its files exist, and its devices can run it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from calibrate.inputs.requests import DeviceRequest, PlanRequest
from calibrate.planning.make_plan import make_plan
from calibrate.planning.suggest_after_plan import next_command, next_note, plan_notes
from perfmodel.models.find_model import find_draft, find_model, unpublished_note
from perfmodel.policies.sampling import GREEDY, Sampling
from perfmodel.results.plan import EvidenceLevel, Plan
from profiler.commands.profile_cli import profile_parser
from s2d.commands.run_cli import run_parser

COMMAND = ("s2d-plan", "--target", "vicuna-7b")


def plan_of(target: str, device: str = "h100", **changes: object) -> Plan:
    return make_plan(PlanRequest(target=target, device=DeviceRequest(device=device, **changes)))


def with_levels(plan: Plan, latency: EvidenceLevel, acceptance: EvidenceLevel) -> Plan:
    """The same plan with other levels of evidence."""
    levels = {"draft latency": latency, "target latency": latency, "acceptance": acceptance, "device": "assumed"}
    return replace(plan, evidence=tuple(replace(part, level=levels[part.role]) for part in plan.evidence))


def check_parses(command: str) -> None:
    """The command's own parser accepts it."""
    program, *words = command.split()
    if program == "s2d-profile":
        profile_parser().parse_args(words)
    if program == "s2d-run":
        run_parser().parse_args(words)


@pytest.fixture(scope="module")
def vicuna() -> Plan:
    return plan_of("vicuna-7b")


def test_models_that_do_not_ship_are_profiled_on_prompts_to_fill_in(vicuna: Plan) -> None:
    models = "--target path/to/vicuna-7b --draft path/to/s2d-vicuna-12 --prompts path/to/prompts.jsonl"
    assert vicuna.next_command == f"s2d-profile {models} --device cuda --dtype bf16 -o profile"
    check_parses(vicuna.next_command)
    assert next_note(vicuna) is None
    eager = replace(vicuna, device=replace(vicuna.device, mode="eager"))
    assert next_note(eager) is None
    assert next_command(eager) == f"s2d-profile {models} --device cuda --dtype bf16 --mode eager -o profile"
    check_parses(next_command(eager))


def test_a_plan_keeps_a_note_on_how_to_train_a_draft_that_is_not_public(vicuna: Plan) -> None:
    line = (
        "no S2D draft is public; train one: s2d-train draft --target path/to/vicuna-7b --exits 6,9,12 --text chats.jsonl "
        "-o path/to/s2d-vicuna-12"
    )
    assert plan_notes(vicuna) == (line,)
    assert vicuna.notes == ("other releases of vicuna-7b: vicuna-7b-v1.3", line)
    assert plan_notes(with_levels(vicuna, "roofline", "traced")) == ()
    assert unpublished_note(find_draft("ref-draft")) is None


def test_only_what_is_not_measured_yet_is_measured(vicuna: Plan) -> None:
    assert next_command(with_levels(vicuna, "measured", "published")).startswith("s2d-profile acceptance --target")
    sampled = Sampling(rule="shared-noise", temperature=0.8, top_k=None, top_p=0.95, seed=3)
    traced = with_levels(replace(vicuna, workload=replace(vicuna.workload, sampling=sampled)), "roofline", "traced")
    command = next_command(traced)
    assert command.startswith("s2d-profile latency --target")
    assert " --rule shared-noise --temperature 0.8 --top-p 0.95 --seed 3 " in command
    check_parses(command)
    penalised = replace(GREEDY, repetition_penalty=1.1, presence_penalty=-0.5)
    command = next_command(replace(traced, workload=replace(vicuna.workload, sampling=penalised)))
    assert " --repetition-penalty 1.1 --presence-penalty -0.5 " in command
    check_parses(command)


def test_for_models_that_cannot_run_only_the_latency_law_can_be_measured() -> None:
    plan = plan_of("llama-70b", "a100-80gb")
    assert plan.device.num_devices == 2
    assert plan.next_command == "s2d-profile law --device cuda --dtype bf16 -o law"
    check_parses(plan.next_command)
    assert next_note(plan) == (
        "too large for s2d-profile and s2d-run, which keep 10.0 % of the memory free. The models do not fit on "
        "2 x A100-80GB-SXM, bf16, eager, even split evenly. s2d-profile law measures the device's latency law instead, and "
        "s2d-plan --fit plans with it."
    )
    fitted = with_levels(plan, "extrapolated", "published")
    assert next_command(fitted) == ""
    assert "Only the device's latency law can be measured, and this plan uses it." in (next_note(fitted) or "")


def test_several_devices_are_measured_and_run_under_torchrun() -> None:
    plan = replace(plan_of("vicuna-7b", num_devices=2), draft_num_devices=1)
    models = "--target path/to/vicuna-7b --draft path/to/s2d-vicuna-12"
    profile = f"torchrun --nproc-per-node 2 --no-python s2d-profile {models}"
    assert next_command(plan).startswith(f"{profile} --prompts")
    shared = next_command(replace(plan, draft_num_devices=2))
    assert shared.startswith(f"{profile} --share-draft --prompts")
    check_parses(shared.partition("--no-python ")[2])
    assert "2 x H100-SXM, bf16, eager" in (next_note(plan) or "")
    measured = with_levels(replace(plan, device=replace(plan.device, mode="eager")), "measured", "traced")
    assert next_note(measured) is None
    assert next_command(measured).startswith("torchrun --nproc-per-node 2 --no-python s2d-run --plan plan.json")
    older = replace(plan, device=replace(plan.device, num_devices=3))  # a number that cannot share the target
    assert next_command(older) == "s2d-profile law --device cuda --dtype bf16 -o law"


def test_a_dtype_that_the_runtime_lacks_is_replaced_by_one_that_it_has() -> None:
    plan = plan_of("vicuna-7b", dtype="int4")
    assert " --dtype bf16 " in plan.next_command
    note = "s2d-profile and s2d-run use 1 x H100-SXM, bf16, graph: plan again from the files that s2d-profile writes."
    assert next_note(plan) == note


def test_a_cpu_is_measured_with_its_threads(vicuna: Plan) -> None:
    on_cpu = replace(vicuna, device=replace(vicuna.device, num_threads=4, dtype="int8", mode="eager"))
    assert next_command(on_cpu).endswith(" --threads 4 --dtype fp32 -o profile")


@pytest.mark.parametrize(
    ("command", "output", "expected"),
    [
        (None, None, "s2d-run --plan plan.json"),
        (COMMAND, None, "s2d-plan --target vicuna-7b -o plan.json && s2d-run --plan plan.json"),
        (COMMAND, Path("out/a.json"), "s2d-run --plan out/a.json"),
    ],
)
def test_a_plan_that_is_all_measured_is_run_from_its_file(
    vicuna: Plan, command: Sequence[str] | None, output: Path | None, expected: str
) -> None:
    report = "report.json" if output is None else "out/report.json"
    measured = with_levels(replace(vicuna, target=find_model("ref-target-16")), "measured", "traced")
    measured = replace(measured, draft=replace(measured.draft, model=find_model("ref-target-16")))
    following = next_command(measured, command=command, output=output)
    assert following == f"{expected} --check -o {report}"
    elsewhere = next_command(with_levels(vicuna, "measured", "traced"), command=command, output=output)
    folders = "--target path/to/vicuna-7b --draft path/to/s2d-vicuna-12 --prompts path/to/prompts.jsonl"
    assert elsewhere == f"{expected} {folders} --check -o {report}"
    check_parses(elsewhere.rpartition(" && ")[2])


def test_the_ratio_test_is_not_compared_by_token(vicuna: Plan) -> None:
    ratio = Sampling(rule="ratio", temperature=1.0, top_k=None, top_p=None, seed=0)
    plan = with_levels(replace(vicuna, workload=replace(vicuna.workload, sampling=ratio)), "measured", "traced")
    assert "--check" not in next_command(plan)


def test_a_draft_with_an_assumed_head_is_planned_again_with_its_whole_head(vicuna: Plan) -> None:
    model = replace(vicuna.draft.model, head_vocab_size=4000)
    reduced = replace(vicuna, draft=replace(vicuna.draft, model=model))
    command = ("s2d-plan", "--target", "vicuna-7b", "--draft-vocab", "4000", "--device", "h100")
    assert next_command(reduced, command=command) == "s2d-plan --target vicuna-7b --device h100"
    assert next_command(reduced, command=(*COMMAND, "--draft-vocab=4000")) == "s2d-plan --target vicuna-7b"
    assert "No draft with such a head exists." in (next_note(reduced) or "")

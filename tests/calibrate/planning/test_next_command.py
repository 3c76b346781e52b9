"""The command after a plan works when it is pasted: it names what is there, and asks of devices what they can do."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from calibrate.planning.make_plan import make_plan
from calibrate.planning.next_command import next_command, next_note, plan_notes
from perfmodel.models.find_model import find_draft, find_model, unpublished_note
from perfmodel.policies.sampling import GREEDY, Sampling
from perfmodel.results.plan import EvidenceLevel, Plan
from profiler.commands.profile_cli import profile_parser
from s2d.commands.run_cli import run_parser
from tests.calibrate.planning.test_make_plan import ANY_DEVICE, NOTHING_ASKED

TOLD = ("s2d-plan", "--target", "vicuna-7b")


def plan_of(target: str, device: str = "h100", **changes: object) -> Plan:
    return make_plan(replace(NOTHING_ASKED, target=target, device=replace(ANY_DEVICE, device=device, **changes)))


def resting_on(plan: Plan, latency: EvidenceLevel, acceptance: EvidenceLevel) -> Plan:
    """The same plan with other levels of evidence."""
    levels = {"draft latency": latency, "target latency": latency, "acceptance": acceptance, "device": "assumed"}
    return replace(plan, evidence=tuple(replace(part, level=levels[part.role]) for part in plan.evidence))


def understood(command: str) -> None:
    """The command's own parser takes it."""
    program, *words = command.split()
    if program == "s2d-profile":
        profile_parser().parse_args(words)
    if program == "s2d-run":
        run_parser().parse_args(words)


@pytest.fixture(scope="module")
def vicuna() -> Plan:
    return plan_of("vicuna-7b")


def test_models_outside_the_box_are_profiled_on_prompts_that_must_be_given(vicuna: Plan) -> None:
    models = "--target path/to/vicuna-7b --draft path/to/s2d-vicuna-12 --prompts path/to/prompts.jsonl"
    assert vicuna.next_command == f"s2d-profile {models} --device cuda --dtype bf16 -o profile"
    understood(vicuna.next_command)
    assert next_note(vicuna) is None
    eager = replace(vicuna, device=replace(vicuna.device, engine="eager"))
    assert next_note(eager) is None
    assert next_command(eager) == f"s2d-profile {models} --device cuda --dtype bf16 --engine eager -o profile"
    understood(next_command(eager))


def test_a_plan_keeps_a_note_on_how_to_train_a_draft_that_is_not_public(vicuna: Plan) -> None:
    line = (
        "no S2D draft is public; to make one: s2d-train draft --target path/to/vicuna-7b --exits 6,9,12 --text chats.jsonl "
        "-o path/to/s2d-vicuna-12"
    )
    assert plan_notes(vicuna) == (line,)
    assert vicuna.notes == ("other releases of vicuna-7b: --target vicuna-7b-v1.3", line)
    assert plan_notes(resting_on(vicuna, "roofline", "traced")) == ()
    assert unpublished_note(find_draft("ref-draft")) is None


def test_only_what_is_not_measured_yet_is_measured(vicuna: Plan) -> None:
    assert next_command(resting_on(vicuna, "measured", "published")).startswith("s2d-profile acceptance --target")
    sampled = Sampling(rule="shared-noise", temperature=0.8, top_k=None, top_p=0.95, seed=3)
    traced = resting_on(replace(vicuna, workload=replace(vicuna.workload, sampling=sampled)), "roofline", "traced")
    command = next_command(traced)
    assert command.startswith("s2d-profile latency --target")
    assert " --rule shared-noise --temperature 0.8 --top-p 0.95 --seed 3 " in command
    understood(command)
    penalised = replace(GREEDY, repetition_penalty=1.1, presence_penalty=-0.5)
    command = next_command(replace(traced, workload=replace(vicuna.workload, sampling=penalised)))
    assert " --repetition-penalty 1.1 --presence-penalty -0.5 " in command
    understood(command)


def test_models_that_one_device_does_not_hold_leave_its_law_to_be_measured() -> None:
    plan = plan_of("llama-70b", "a100-80gb")
    assert plan.device.num_devices == 2
    assert plan.next_command == "s2d-profile law --device cuda --dtype bf16 -o law"
    understood(plan.next_command)
    assert next_note(plan) == (
        "s2d-profile and s2d-run cannot run these models on 2 x A100-80GB-SXM, bf16, eager: they do not fit in memory, even "
        "split evenly, with 10.0 % of it kept free. s2d-profile law measures the device's latency law instead, and s2d-plan "
        "--fit plans with it."
    )
    fitted = resting_on(plan, "extrapolated", "published")
    assert next_command(fitted) == ""
    assert "Only the device's latency law can be measured, and this plan uses it." in (next_note(fitted) or "")


def test_several_devices_are_measured_and_run_under_torchrun_where_they_can_share() -> None:
    plan = replace(plan_of("vicuna-7b", num_devices=2), draft_num_devices=1)
    models = "--target path/to/vicuna-7b --draft path/to/s2d-vicuna-12"
    profile = f"torchrun --nproc-per-node 2 --no-python s2d-profile {models}"
    assert next_command(plan).startswith(f"{profile} --prompts")
    shared = next_command(replace(plan, draft_num_devices=2))
    assert shared.startswith(f"{profile} --share-draft --prompts")
    understood(shared.partition("--no-python ")[2])
    assert "2 x H100-SXM, bf16, eager" in (next_note(plan) or "")
    measured = resting_on(replace(plan, device=replace(plan.device, engine="eager")), "measured", "traced")
    assert next_note(measured) is None
    assert next_command(measured).startswith("torchrun --nproc-per-node 2 --no-python s2d-run --plan plan.json")
    older = replace(plan, device=replace(plan.device, num_devices=3))  # planned before such numbers were refused
    assert next_command(older) == "s2d-profile law --device cuda --dtype bf16 -o law"


def test_weights_that_the_runtime_does_not_compute_in_are_measured_in_those_it_does() -> None:
    plan = plan_of("vicuna-7b", dtype="int4")
    assert " --dtype bf16 " in plan.next_command
    said = "What s2d-profile measures and s2d-run runs is 1 x H100-SXM, bf16, graph: plan again from its files."
    assert next_note(plan) == said


def test_a_cpu_is_measured_with_its_threads(vicuna: Plan) -> None:
    on_cpu = replace(vicuna, device=replace(vicuna.device, num_threads=4, dtype="int8", engine="eager"))
    assert next_command(on_cpu).endswith(" --threads 4 --dtype fp32 -o profile")


@pytest.mark.parametrize(
    ("told", "output", "expected"),
    [
        (None, None, "s2d-run --plan plan.json"),
        (TOLD, None, "s2d-plan --target vicuna-7b -o plan.json && s2d-run --plan plan.json"),
        (TOLD, Path("out/a.json"), "s2d-run --plan out/a.json"),
    ],
)
def test_a_plan_that_is_all_measured_is_run_from_where_it_is(
    vicuna: Plan, told: Sequence[str] | None, output: Path | None, expected: str
) -> None:
    report = "report.json" if output is None else "out/report.json"
    measured = resting_on(replace(vicuna, target=find_model("ref-target-16")), "measured", "traced")
    measured = replace(measured, draft=replace(measured.draft, model=find_model("ref-target-16")))
    command = next_command(measured, command=told, output=output)
    assert command == f"{expected} --check -o {report}"
    elsewhere = next_command(resting_on(vicuna, "measured", "traced"), command=told, output=output)
    folders = "--target path/to/vicuna-7b --draft path/to/s2d-vicuna-12 --prompts path/to/prompts.jsonl"
    assert elsewhere == f"{expected} {folders} --check -o {report}"
    understood(elsewhere.rpartition(" && ")[2])


def test_a_ratio_test_is_not_checked_token_by_token(vicuna: Plan) -> None:
    ratio = Sampling(rule="ratio", temperature=1.0, top_k=None, top_p=None, seed=0)
    plan = resting_on(replace(vicuna, workload=replace(vicuna.workload, sampling=ratio)), "measured", "traced")
    assert "--check" not in next_command(plan)


def test_a_draft_that_cannot_say_every_token_is_planned_for_whole(vicuna: Plan) -> None:
    model = replace(vicuna.draft.model, head_vocab_size=4000)
    reduced = replace(vicuna, draft=replace(vicuna.draft, model=model))
    told = ("s2d-plan", "--target", "vicuna-7b", "--draft-vocab", "4000", "--device", "h100")
    assert next_command(reduced, command=told) == "s2d-plan --target vicuna-7b --device h100"
    assert next_command(reduced, command=(*TOLD, "--draft-vocab=4000")) == "s2d-plan --target vicuna-7b"
    assert "No draft here has such a head" in (next_note(reduced) or "")

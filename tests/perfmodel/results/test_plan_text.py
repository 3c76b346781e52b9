"""What a person reads: every line of a plan, for plans whose numbers are known."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from perfmodel.core.stats import Interval
from perfmodel.models.find_model import find_draft, find_model, other_releases, release_note, unpublished_note
from perfmodel.models.known_models import ALIASES, KNOWN_MODELS
from perfmodel.passes.device_key import DeviceKey
from perfmodel.passes.passes import PassCount, PassKind
from perfmodel.policies.policy import (
    CalibrationCurve,
    ConfidenceFloor,
    HeuristicLength,
    Policy,
    StopRule,
    SurvivalFloor,
)
from perfmodel.policies.sampling import GREEDY
from perfmodel.quantisation.weight_format import plain_format
from perfmodel.replay.estimate import RoundCost, Speedup
from perfmodel.replay.round_stats import RoundStats
from perfmodel.results.plan import (
    PLAN_FILE,
    BatchPoint,
    BatchSchedule,
    Candidate,
    Evidence,
    EvidenceLevel,
    Memory,
    Plan,
    Workload,
)
from perfmodel.results.plan_text import cautions, policy_facts
from s2d.commands.train_cli import main_train


def passes(kind: PassKind, number: int) -> PassCount:
    return PassCount(kind=kind, stage=0, rows=1, num_passes=number, cached_tokens_sum=0)


def candidate(name: str, what: Policy | None, speedup: float) -> Candidate:
    drafted = 0 if what is None else 400
    rounds = RoundStats(
        num_prompts=4,
        num_rounds=100,
        num_tokens=100 + drafted // 2,
        num_drafted=drafted,
        num_accepted=drafted / 2,
        drafted_by_position=(),
        accepted_by_position=(),
        exits_taken=(drafted, 0, 0),
        passes=(passes("segment", drafted), passes("exit", drafted), passes("verify", 100), passes("round", 100)),
        cold_passes=(),
    )
    return Candidate(
        name=name,
        policy=what,
        rounds=rounds,
        speedup=Speedup(
            tokens_per_s=20.0 * speedup,
            plain_tokens_per_s=20.0,
            speedup=Interval(value=speedup, low=0.9 * speedup, high=1.1 * speedup),
            round_cost=RoundCost(segment_s=8e-3, exit_s=2e-3, ahead_s=0.0, verify_s=39e-3, round_s=1e-3),
        ),
    )


def make_plan(chosen: Candidate, *runners_up: Candidate, level: EvidenceLevel = "traced") -> Plan:
    sheet = "a datasheet"
    return Plan(
        target=find_model("llama-2-70b"),
        target_sha256=None,
        draft=find_draft("s2d"),
        draft_name="s2d-vicuna-12",
        draft_sha256=None,
        tokenizer_sha256=None,
        target_weights=plain_format("bf16"),
        draft_weights=plain_format("bf16"),
        device=DeviceKey(device="H200-SXM", num_devices=2, num_threads=None, dtype="bf16", mode="graph"),
        draft_num_devices=2,
        workload=Workload(batch=1, prompt_tokens=512, output_tokens=256, sampling=GREEDY),
        chosen=chosen,
        runners_up=runners_up,
        frontier=(),
        batch_schedules=SCHEDULES,
        overfitting=None,
        memory=Memory(
            target_weight_bytes=138 * 10**9,
            draft_weight_bytes=5 * 10**9,
            target_kv_bytes=10**9,
            draft_kv_bytes=5 * 10**8,
            capacity_bytes=282 * 10**9,
        ),
        evidence=(
            Evidence(role="draft latency", level="roofline", description=sheet, sha256=None),
            Evidence(role="target latency", level="roofline", description=sheet, sha256=None),
            Evidence(role="acceptance", level=level, description="4 prompts", sha256=None),
        ),
        next_command="s2d-profile …",
        notes=("No engine of ours runs this. Plan again.", "no S2D draft is public; train one: s2d-train draft"),
    )


SCHEDULES = (
    BatchSchedule(
        context_tokens=768,
        points=(
            BatchPoint(batch=1, exit_layer=9, draft_tokens=5, speedup=1.8),
            BatchPoint(batch=2, exit_layer=None, draft_tokens=0, speedup=1.0),
        ),
        max_batch=1024,
        stops_at_batch=2,
        fitting_batch=40,
    ),
    BatchSchedule(
        context_tokens=4096,
        points=(BatchPoint(batch=1, exit_layer=6, draft_tokens=1, speedup=1.5),),
        max_batch=1,
        stops_at_batch=None,
        fitting_batch=None,
    ),
)
GATED = candidate("plan", Policy(exits=(6, 12), thresholds=(0.6,), tokens=6, stop=ConfidenceFloor(floor=0.3)), 2.0)
SINGLE = candidate("exit 9", Policy(exits=(9,), tokens=5), 1.8)
PLAIN = candidate("plain decoding", None, 1.0)

SUMMARY = """\
target      llama-2-70b, 80 layers, 69.0 billion weights
draft       s2d-vicuna-12, 12 layers, 2.69 billion weights, exits at 6/9/12; split over all devices
device      2 x H200-SXM, bf16, graph
workload    batch 1, 512 prompt tokens, 256 output tokens, greedy

plan        speculate: exits 6/12 at confidence .60; draft at most 6 tokens; stop after a token of
            confidence below 0.300
prediction  40.0 tokens/s, 2.00x plain decoding's 20.0 tokens/s (90 % interval 1.80x to 2.20x)
latency     roofline: a datasheet
acceptance  traced: 4 prompts
memory      144 GB of 282 GB (51.2 %)
batches     pays below batch 2 at 768 tokens of context

note        No engine of ours runs this
            no S2D draft is public; train one (--explain shows the command)

next: s2d-profile …"""

DETAILS = """\
target      llama-2-70b, 80 layers, 69.0 billion weights
draft       s2d-vicuna-12, 12 layers, 2.69 billion weights, exits at 6/9/12; split over all devices
device      2 x H200-SXM, bf16, graph
workload    batch 1, 512 prompt tokens, 256 output tokens, greedy
latency     roofline: a datasheet
acceptance  traced: 4 prompts

plan          speculate
exits         6 at confidence >= 0.600, 12 always
draft length  at most 6 tokens
stop rule     after a token of confidence below 0.300
prediction    40.0 tokens/s, 2.00x plain decoding's 20.0 tokens/s (90 % interval 1.80x to 2.20x)

One round yields 3.00 tokens: 4.00 are drafted, 50.0 % of them are accepted, and the target adds its
own.

part               time    share  passes per round
--------------  -------  -------  ----------------
draft segments  8.00 ms   16.0 %              4.00
exit checks     2.00 ms    4.0 %              4.00
verification    39.0 ms   78.0 %              1.00
host            1.00 ms    2.0 %              1.00
one round       50.0 ms  100.0 %

memory              size  of 282 GB
---------------  -------  ---------
target weights    138 GB     48.9 %
draft weights    5.00 GB      1.8 %
target KV cache  1.00 GB      0.4 %
draft KV cache    500 MB      0.2 %
total             144 GB     51.2 %

configuration   policy                              tokens/s  speedup   90 % interval  tokens/round
--------------  ----------------------------------  --------  -------  --------------  ------------
plan            exits 6/12 at .60, up to 6 tokens,      40.0    2.00x  1.80x to 2.20x          3.00
                stop below 0.30
exit 9          exit 9, 5 tokens                        36.0    1.80x  1.62x to 1.98x          3.00
plain decoding                                          20.0    1.00x                          1.00

One exit and a fixed draft length for all sequences of a batch: pays below batch 2 at 768 tokens of
context; pays at batch 1 (the largest tried) at 4096 tokens of context.

batch  at 768 tokens of context  at 4096 tokens of context
-----  ------------------------  -------------------------
    1  exit 9, 5 tokens, 1.80x   exit 6, 1 token, 1.50x
    2  do not speculate

No engine of ours runs this. Plan again.

no S2D draft is public; train one:

  s2d-train draft

next: s2d-profile …"""


def test_a_plan_prints_as_one_screen() -> None:
    assert str(make_plan(GATED, SINGLE, PLAIN)) == SUMMARY


def test_a_plan_explains_all_its_parts() -> None:
    assert make_plan(GATED, SINGLE, PLAIN).explain() == DETAILS


def test_a_plan_shows_in_a_notebook_what_it_prints() -> None:
    shown = make_plan(GATED, SINGLE, PLAIN)._repr_html_()
    assert ">memory</th>" in shown
    assert ">144 GB of 282 GB (51.2 %)</td>" in shown
    assert shown.endswith("<p>next:</p><pre>s2d-profile …</pre>")


def test_a_plan_saves_itself_with_the_hashes_of_its_inputs(tmp_path: Path) -> None:
    evidence = Evidence(role="acceptance", level="traced", description="4 prompts", sha256="a" * 64)
    plan = replace(make_plan(GATED, SINGLE, PLAIN), evidence=(evidence,))
    plan.save(tmp_path / "plan.json")
    stored = PLAN_FILE.read(tmp_path / "plan.json")
    assert stored.record == plan
    assert (stored.provenance.command, stored.provenance.inputs) == ("Plan.save", {"acceptance": "a" * 64})


@pytest.mark.parametrize(
    ("stops_at_batch", "fitting_batch", "verdict"),
    [
        (240, None, "pays below batch 240"),
        (240, 400, "pays below batch 240"),
        (240, 40, "pays up to batch 40 (all that memory holds)"),
        (240, 1, "pays at batch 1 (all that memory holds)"),
        (240, 0, "memory holds no sequence"),
        (1, 40, "does not pay at any batch size"),
        (None, None, "pays up to batch 1024 (the largest tried)"),
        (None, 40, "pays up to batch 40 (all that memory holds)"),
    ],
)
def test_the_batches_that_pay_are_those_that_fit_and_were_tried(
    stops_at_batch: int | None, fitting_batch: int | None, verdict: str
) -> None:
    schedule = replace(SCHEDULES[0], stops_at_batch=stops_at_batch, fitting_batch=fitting_batch)
    text = str(replace(make_plan(GATED), batch_schedules=(schedule,)))
    assert f"batches     {verdict} at 768 tokens of context\n" in text


@pytest.mark.parametrize(
    ("requested", "note"),
    [
        ("llama-2-70b", None),
        (
            "llama-70b",
            "'llama-70b' was read as llama-2-70b, not llama-3-70b, llama-3.1-70b or llama-3.3-70b",
        ),
        ("llama-7b", "'llama-7b' was read as llama-2-7b, not llama-1-7b"),
        ("mistral-7b", "'mistral-7b' was read as mistral-7b-v0.3, not mistral-7b-v0.1 or mistral-7b-v0.2"),
        ("vicuna-13b", "other releases of vicuna-13b: vicuna-13b-v1.3"),
        ("llama-30b", "'llama-30b' was read as llama-1-33b"),
        ("meta-llama/Llama-2-70b-chat-hf", "'meta-llama/Llama-2-70b-chat-hf' was read as llama-2-70b"),
    ],
)
def test_a_name_that_leaves_the_release_open_names_the_others(requested: str, note: str | None) -> None:
    assert release_note(requested, find_model(requested)) == note


def test_every_name_that_several_releases_share_names_the_others() -> None:
    names = {re.sub(r"-v?[0-9.]+(?=-|$)", "", model.name) for model in KNOWN_MODELS}
    shared = {name for name in names if sum(re.sub(r"-v?[0-9.]+(?=-|$)", "", model.name) == name for model in KNOWN_MODELS) > 1}
    known = {model.name for model in KNOWN_MODELS} | set(ALIASES)
    assert {"llama-70b", "mistral-7b", "gemma-2b"} <= shared & known
    for name in shared & known:
        understood = find_model(name)
        assert other_releases(name, understood), name
        assert understood.name not in other_releases(name, understood)


def test_a_target_from_a_config_has_no_other_releases() -> None:
    mine = replace(find_model("llama-2-70b"), name="llama-70b", source="config.json of llama-70b")
    assert release_note("llama-70b", mine) is None


def test_the_command_that_makes_an_unpublished_draft_is_one_that_s2d_train_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert unpublished_note(find_draft("ref-draft")) is None
    note = unpublished_note(find_draft("s2d"))
    assert note is not None
    assert main_train(shlex.split(note.partition("s2d-train ")[2])) == 2
    assert "path/to" in (error := capsys.readouterr().err)  # a folder is missing, no flag is wrong
    assert "usage:" not in error


def test_a_plan_not_to_speculate_gives_the_rate_of_plain_decoding() -> None:
    plan = make_plan(replace(PLAIN, name="plan"), SINGLE)
    line = "plan        do not speculate: no configuration is predicted to beat plain decoding (20.0 tokens/s)"
    assert line in str(plan).splitlines()
    assert "prediction" not in str(plan)
    assert "One round yields 1.00 tokens." in plan.explain().splitlines()


def test_an_interval_below_one_is_a_caution() -> None:
    near_one = replace(GATED.speedup, speedup=Interval(value=1.05, low=0.9, high=1.2))
    [caution] = cautions(make_plan(replace(GATED, speedup=near_one)))
    assert caution == "The interval reaches below 1.00x: speculation may not pay. Measure before relying on it."


def test_published_acceptance_says_how_much_rests_on_assumed_confidences() -> None:
    [caution] = cautions(make_plan(GATED, SINGLE, PLAIN, level="published"))
    assert caution == "Exit 9 alone: 1.80x from published rates; the rest depends on assumed confidences."
    assert cautions(make_plan(GATED, SINGLE, PLAIN, level="traced")) == []


@pytest.mark.parametrize(
    ("tokens", "stop", "length_text", "stop_text"),
    [
        (1, None, "1 token", "none"),
        (64, HeuristicLength(start=5), "5 at first; +2 after a round that accepts all, else -1; from 1 to 64", "none"),
        (6, ConfidenceFloor(floor=0.25), "at most 6 tokens", "after a token of confidence below 0.250"),
        (
            6,
            ConfidenceFloor(floor=0.25, keeps_token=False),
            "at most 6 tokens",
            "before a token of confidence below 0.250, which is dropped",
        ),
    ],
)
def test_every_stop_rule_is_put_in_words(tokens: int, stop: StopRule | None, length_text: str, stop_text: str) -> None:
    facts = dict(policy_facts(Policy(exits=(12,), tokens=tokens, stop=stop)))
    assert facts == {"exits": "12 alone", "draft length": length_text, "stop rule": stop_text}


def test_a_measure_of_confidence_other_than_the_largest_probability_is_named() -> None:
    floor = ConfidenceFloor(floor=0.25, keeps_token=False)
    gated = Policy(exits=(6, 12), thresholds=(0.6,), tokens=6, stop=floor, confidence="top10-prob")
    facts = dict(policy_facts(gated))
    assert facts["exits"] == "6 at top10-prob >= 0.600, 12 always"
    assert facts["stop rule"] == "before a token of top10-prob below 0.250, which is dropped"
    summary = " ".join(str(make_plan(candidate("plan", gated, 2.0), PLAIN)).split())
    assert "exits 6/12 at top10-prob .60; draft at most 6 tokens; stop before a token of top10-prob below 0.250" in summary


def test_survival_is_put_in_words() -> None:
    curve = CalibrationCurve(confidence=(0.0, 1.0), agreement=(0.1, 0.9))
    facts = dict(policy_facts(Policy(exits=(6,), tokens=8, stop=SurvivalFloor(floor=0.2, calibration=(curve,)))))
    assert facts["stop rule"] == "when the probability that the whole block is accepted falls below 0.200"

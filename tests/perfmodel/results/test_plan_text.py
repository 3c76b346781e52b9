"""What a person reads: every line of a plan, for plans whose numbers are known."""

import re
import shlex
from dataclasses import replace

import pytest

from calibrate.text.plan_text import asked_text, cautions, plan_text, policy_facts, unpublished_note
from perfmodel.core.stats import Interval
from perfmodel.models.find_model import find_draft, find_model, other_releases
from perfmodel.models.known_models import ALIASES, KNOWN_MODELS
from perfmodel.passes.device_key import DeviceKey
from perfmodel.passes.passes import PassCount, PassKind
from perfmodel.policies.policy import (
    CalibrationCurve,
    ExitPolicy,
    FixedLength,
    FloorStop,
    HeuristicLength,
    LengthRule,
    SurvivalStop,
)
from perfmodel.policies.sampling import GREEDY
from perfmodel.quantisation.weight_format import plain_format
from perfmodel.replay.estimate import RoundCost, Speedup
from perfmodel.replay.round_stats import RoundStats
from perfmodel.results.plan import BatchPoint, BatchSchedule, Candidate, Evidence, EvidenceLevel, Memory, Plan, Workload
from s2d.commands.train_cli import main_train


def policy(exits: tuple[int, ...], thresholds: tuple[float, ...], length: LengthRule) -> ExitPolicy:
    return ExitPolicy(exit_layers=exits, thresholds=thresholds, confidence="max-prob", length=length)


def passes(kind: PassKind, number: int) -> PassCount:
    return PassCount(kind=kind, stage=0, rows=1, num_passes=number, cached_tokens_sum=0)


def candidate(name: str, what: ExitPolicy | None, speedup: float) -> Candidate:
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
        device=DeviceKey(device="H200-SXM", num_devices=2, num_threads=None, dtype="bf16", engine="graph"),
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
GATED = candidate("plan", policy((6, 12), (0.6,), FloorStop(draft_cap=6, floor=0.3)), 2.0)
SINGLE = candidate("exit 9", policy((9,), (), FixedLength(draft_cap=5)), 1.8)
PLAIN = candidate("plain decoding", None, 1.0)

EXPECTED = """\
target      llama-2-70b, 80 layers, 69.0 billion weights (asked for as 'llama-70b'; other releases:
            --target llama-3-70b or llama-3.1-70b or llama-3.3-70b)
draft       s2d-vicuna-12, 12 layers, 2.69 billion weights, exits at 6/9/12; shared like the target
device      2 x H200-SXM, bf16, graph
asked       batch 1, 512 prompt tokens, 256 output tokens, greedy
latency     roofline: a datasheet
acceptance  traced: 4 prompts

plan: speculate

exits         6 at confidence >= 0.600, 12 always
draft length  at most 6 tokens
stop rule     after a token of confidence below 0.300
predicted     40.0 tokens/s, 2.00x plain decoding's 20.0 tokens/s (90 % interval 1.80x to 2.20x)

One round gives 3.00 tokens: 4.00 drafted, 50.0 % of them accepted, and the target's own.

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
in all            144 GB     51.2 %

configuration   policy                                          tokens/s  speedup   90 % interval  tokens per round
--------------  ----------------------------------------------  --------  -------  --------------  ----------------
plan            exits 6/12 at .60, up to 6 tokens, stop below 0.30      40.0    2.00x  1.80x to 2.20x              3.00
exit 9          exit 9, 5 tokens                                36.0    1.80x  1.62x to 1.98x              3.00
plain decoding                                                  20.0    1.00x                              1.00

In a batch, one exit at a fixed length: speculation stops paying at 2 sequences (memory holds 40) at
768 tokens of context; pays up to 1 sequences at least at 4096 tokens of context.

batch  at 768 tokens of context  at 4096 tokens of context
-----  ------------------------  -------------------------
    1  exit 9, 5 tokens, 1.80x   exit 6, 1 token, 1.50x
    2  do not speculate

What s2d-profile measures and s2d-run runs is 2 x H200-SXM, bf16, eager: plan again from its files.

next: s2d-profile …"""


def squeezed(text: str) -> list[str]:
    """Lines with runs of blanks and rules made one, for tables whose widths follow their cells."""
    return [" ".join("-" if set(word) == {"-"} else word for word in line.split()) for line in text.splitlines()]


def test_a_plan_reads_as_expected_line_by_line() -> None:
    shown = plan_text(make_plan(GATED, SINGLE, PLAIN), asked_target="llama-70b")
    assert squeezed(shown) == squeezed(EXPECTED)
    assert max(map(len, shown.splitlines())) <= 128


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("llama-2-70b", ""),
        ("llama-70b", " (asked for as 'llama-70b'; other releases: --target llama-3-70b or llama-3.1-70b or llama-3.3-70b)"),
        ("llama-7b", " (asked for as 'llama-7b'; other releases: --target llama-1-7b)"),
        ("mistral-7b", " (asked for as 'mistral-7b'; other releases: --target mistral-7b-v0.1 or mistral-7b-v0.2)"),
        ("vicuna-13b", " (other releases: --target vicuna-13b-v1.3)"),
        ("llama-30b", " (asked for as 'llama-30b')"),
        ("meta-llama/Llama-2-70b-chat-hf", " (asked for as 'meta-llama/Llama-2-70b-chat-hf')"),
    ],
)
def test_a_name_that_leaves_the_release_open_names_the_others(asked: str, said: str) -> None:
    assert asked_text(asked, find_model(asked)) == said


def test_every_name_that_several_releases_share_names_the_others() -> None:
    names = {re.sub(r"-v?[0-9.]+(?=-|$)", "", model.name) for model in KNOWN_MODELS}
    shared = {name for name in names if sum(re.sub(r"-v?[0-9.]+(?=-|$)", "", one.name) == name for one in KNOWN_MODELS) > 1}
    known = {model.name for model in KNOWN_MODELS} | set(ALIASES)
    assert {"llama-70b", "mistral-7b", "gemma-2b"} <= shared & known
    for name in shared & known:
        understood = find_model(name)
        assert other_releases(name, understood), name
        assert understood.name not in other_releases(name, understood)


def test_a_config_s_target_has_no_other_releases() -> None:
    mine = replace(find_model("llama-2-70b"), name="llama-70b", source="config.json of llama-70b")
    assert asked_text("llama-70b", mine) == ""


@pytest.mark.parametrize(("level", "is_noted"), [("published", True), ("traced", False)])
def test_a_plan_for_a_draft_that_nobody_published_says_in_a_line_how_to_make_one(level: EvidenceLevel, is_noted: bool) -> None:
    line = (
        "no S2D draft is public; to make one: s2d-train draft --target path/to/vicuna-7b --exits 6,9,12 --text chats.jsonl "
        "-o path/to/s2d-vicuna-12"
    )
    shown = plan_text(make_plan(GATED, SINGLE, PLAIN, level=level), asked_target="llama-2-70b").splitlines()
    assert (line in shown) == is_noted
    assert unpublished_note(find_draft("ref-draft")) is None


def test_the_command_that_makes_an_unpublished_draft_is_one_that_s2d_train_takes(capsys: pytest.CaptureFixture[str]) -> None:
    note = unpublished_note(find_draft("s2d"))
    assert note is not None
    assert main_train(shlex.split(note.partition("s2d-train ")[2])) == 2
    assert "path/to" in (said := capsys.readouterr().err)  # a folder is missing, no flag is wrong
    assert "usage:" not in said


def test_not_to_speculate_is_said_in_so_many_words() -> None:
    shown = plan_text(make_plan(replace(PLAIN, name="plan"), SINGLE), asked_target="llama-2-70b").splitlines()
    assert "plan: do not speculate. No configuration is predicted to beat plain decoding's 20.0 tokens/s." in shown
    assert "One round gives 1.00 tokens." in shown
    assert shown[0] == "target      llama-2-70b, 80 layers, 69.0 billion weights"


def test_an_interval_below_one_is_a_caution() -> None:
    near_one = replace(GATED.speedup, speedup=Interval(value=1.05, low=0.9, high=1.2))
    [caution] = cautions(make_plan(replace(GATED, speedup=near_one)))
    assert caution.startswith("The interval reaches below 1.00x: speculation may not pay here.")


def test_published_acceptance_says_how_much_rests_on_assumed_confidences() -> None:
    [caution] = cautions(make_plan(GATED, SINGLE, PLAIN, level="published"))
    assert caution.startswith("Exit 9 alone is predicted to give 1.80x. That uses published agreement rates only")
    assert cautions(make_plan(GATED, SINGLE, PLAIN, level="traced")) == []


@pytest.mark.parametrize(
    ("length", "draft_length", "stop"),
    [
        (FixedLength(draft_cap=1), "1 token", "none"),
        (HeuristicLength(start=5, draft_cap=64), "5 at first, +2 when all were accepted, else -1, from 1 to 64", "none"),
        (FloorStop(draft_cap=6, floor=0.25), "at most 6 tokens", "after a token of confidence below 0.250"),
    ],
)
def test_every_length_rule_is_put_in_words(length: LengthRule, draft_length: str, stop: str) -> None:
    facts = dict(policy_facts(policy((12,), (), length)))
    assert facts == {"exits": "12 alone", "draft length": draft_length, "stop rule": stop}


def test_survival_is_put_in_words() -> None:
    curve = CalibrationCurve(confidence=(0.0, 1.0), agreement=(0.1, 0.9))
    facts = dict(policy_facts(policy((6,), (), SurvivalStop(draft_cap=8, floor=0.2, calibration=(curve,)))))
    assert facts["stop rule"] == "when the chance that the whole block survives falls below 0.200"

"""Texts of a comparison, of draft shapes and of a run, for records whose numbers are known."""

from dataclasses import replace

from perfmodel.core.stats import Interval
from perfmodel.models.find_model import find_draft, find_model
from perfmodel.passes.device_key import DeviceKey
from perfmodel.passes.passes import PassSamples
from perfmodel.policies.policy import Policy
from perfmodel.policies.sampling import GREEDY
from perfmodel.quantisation.weight_format import plain_format
from perfmodel.replay.estimate import RoundCost, Speedup
from perfmodel.replay.round_stats import RoundStats
from perfmodel.results.draft_shapes import DraftedTarget, DraftLength, DraftLengths
from perfmodel.results.plan import Candidate
from perfmodel.results.report import Adaptation, Arm, Check, Divergence, PolicyShare, PromptRun, RunReport
from perfmodel.results.residuals import PassResidual, Residuals

CPU = DeviceKey(device="a CPU", num_devices=1, num_threads=2, dtype="fp32", mode="eager")
RESIDUALS = Residuals(
    plan_sha256="a" * 64,
    report_sha256="b" * 64,
    engine="s2d",
    device=CPU,
    pricing="plan",
    predicted_prompts=8,
    measured_prompts=4,
    predicted_speedup=2.2,
    repriced_speedup=2.1,
    measured_speedup=2.0,
    measured_interval=Interval(value=2.0, low=1.9, high=2.1),
    predicted_tokens_per_round=3.0,
    measured_tokens_per_round=2.9,
    repriced_round_s=0.01,
    measured_round_s=0.0105,
    passes=(PassResidual(arm="plain", kind="verify", num_passes=10, predicted_s=1.1, measured_s=1.0),),
    next_step="most of the error is in the acceptance: s2d-profile acceptance",
)
COMPARED = """\
device   1 x a CPU, 2 threads, fp32, eager
prompts  predicted from 8, measured on 4
priced   measured rounds, with the plan's mean seconds per pass (give its --profile files to price
         each shape)

source      error of the speedup  quantity                   predicted               measured
----------  --------------------  -------------------------  ---------  ---------------------
acceptance                +5.0 %  tokens per round               3.000                  2.900
latency                   +5.0 %  seconds per measured round   10.0 ms                10.5 ms
total                    +10.0 %  speedup                        2.20x  2.00x (1.90x to 2.10x)

next: most of the error is in the acceptance:

  s2d-profile acceptance"""


def squeezed(text: str) -> list[list[str]]:
    """Words line by line, rules as one dash: tables whose widths follow their cells."""
    return [["-" if set(word) == {"-"} else word for word in line.split()] for line in text.splitlines()]


def test_a_comparison_splits_its_error_and_names_the_next_step() -> None:
    assert squeezed(str(RESIDUALS)) == squeezed(COMPARED)
    assert "plain decoding: verification      10     1.10 s    1.00 s  +10.0 %" in RESIDUALS.explain()


def rounds(num_rounds: int, drafted: int, accepted: int) -> RoundStats:
    return RoundStats(
        num_prompts=1,
        num_rounds=num_rounds,
        num_tokens=num_rounds + accepted,
        num_drafted=drafted,
        num_accepted=accepted,
        drafted_by_position=(drafted,) if drafted else (),
        accepted_by_position=(accepted,) if drafted else (),
        exits_taken=(drafted, 0, 0),
        passes=(),
        cold_passes=(),
    )


SPEEDUP = Speedup(
    tokens_per_s=40.0,
    plain_tokens_per_s=20.0,
    speedup=Interval(value=2.0, low=1.8, high=2.2),
    round_cost=RoundCost(segment_s=0.01, exit_s=0.0, ahead_s=0.0, verify_s=0.04, round_s=0.0),
)
POLICY = Policy(exits=(6,), tokens=1)
SAMPLES = PassSamples(
    kind=("segment", "verify"), stage=(0, 0), rows=(1, 2), cached_tokens=(9, 9), place=(1, 1), seconds=(0.1, 0.4)
)
RUN = PromptRun(
    name="a",
    category="code",
    prompt_tokens=9,
    rounds=rounds(10, 10, 5),
    prefill_s=0.1,
    decode_s=0.5,
    distinct_6gram_frac=0.9,
)
REPORT = RunReport(
    plan_sha256=None,
    target=find_model("llama-2-7b"),
    target_sha256="a" * 64,
    draft=find_draft("s2d"),
    draft_sha256="b" * 64,
    device=CPU,
    sampling=GREEDY,
    max_new_tokens=15,
    plan_arm=Arm(policy=POLICY, runs=(RUN,), samples=SAMPLES),
    plain_arm=None,
    measured=replace(SPEEDUP, speedup=Interval(value=1.6, low=1.5, high=1.7), plain_tokens_per_s=18.75),
    check=Check(num_prompts=8, num_equal=1, worst_gap=0.25, divergences=()),
    adaptation=None,
    predicted=Candidate(name="plan", policy=POLICY, rounds=rounds(10, 10, 10), speedup=SPEEDUP),
)
REPORTED = """\
                        measured       predicted    error
----------------  --------------  --------------  -------
speed              30.0 tokens/s   40.0 tokens/s  +33.3 %
speedup                    1.60x           2.00x  +25.0 %
  90 % interval   1.50x to 1.70x  1.80x to 2.20x
plain decoding     18.8 tokens/s   20.0 tokens/s   +6.7 %
tokens per round            1.50            2.00  +33.3 %

50.0 % of the drafted tokens were accepted. 90.0 % of the 6-grams are distinct (repetitive text is
accepted more often).

check: 1 of 8 outputs equal the plain target's, token by token. The largest gap to the target's own
choice is 0.250."""


def test_a_report_shows_measured_beside_predicted() -> None:
    assert str(REPORT) == REPORTED


def test_a_report_without_a_prediction_shows_what_was_measured() -> None:
    text = str(replace(REPORT, predicted=None, measured=None))
    assert squeezed(text)[2] == ["speed", "30.0", "tokens/s", "-"]


def test_explain_adds_costs_positions_exits_and_policies() -> None:
    shares = tuple(PolicyShare(policy=policy, num_rounds=5, num_tokens=8, decode_s=0.25) for policy in (None, POLICY))
    text = replace(REPORT, adaptation=Adaptation(num_switches=3, shares=shares)).explain()
    lines = squeezed(text)
    assert ["draft", "segments", "10.0", "ms", "10.0", "ms"] in lines
    assert ["verification", "40.0", "ms", "40.0", "ms"] in lines
    assert ["1", "50.0", "%", "100.0", "%"] in lines
    assert ["6", "100.0", "%", "100.0", "%"] in lines
    assert ["plain", "decoding", "5", "250", "ms", "50.0", "%", "32.0", "tokens/s"] in lines
    assert "The policy changed 3 times. The predictions assume the plan's policy throughout." in text


def test_a_report_names_a_few_outputs_that_differ_and_explains_the_rest() -> None:
    divergences = tuple(Divergence(prompt=f"prompt-{number}", position=3, gap=0.25) for number in range(7))
    assert REPORT.check is not None
    report = replace(REPORT, check=replace(REPORT.check, divergences=divergences))
    assert "2 more differ; --explain shows them." in str(report)
    assert ("prompt-4" in str(report), "prompt-5" in str(report), "prompt-6" in report.explain()) == (True, False, True)


def test_draft_lengths_show_what_each_needs() -> None:
    target = DraftedTarget(
        model=find_model("llama-2-70b"), weights=plain_format("fp32"), device=CPU, context_tokens=768, plain_token_s=0.05
    )
    lengths = DraftLengths(
        target=target,
        draft=find_draft("s2d"),
        draft_weights=plain_format("fp32"),
        token_s=0.01,
        lengths=tuple(
            DraftLength(draft_tokens=tokens, round_s=0.06, break_even_tokens=needed, can_pay=needed < tokens + 1)
            for tokens, needed in ((1, 2.5), (2, 1.4))
        ),
        notes=("no S2D draft is public; train one: s2d-train draft",),
    )
    lines = squeezed(str(lengths))
    assert "note    no S2D draft is public; train one (--explain shows the command)" in str(lengths)
    assert ["1", "60.0", "ms", "impossible", "(at", "most", "2)", "2"] in lines
    assert ["2", "60.0", "ms", "1.40", "3"] in lines
    assert "Only 2 can: a round of K drafted tokens yields at most K + 1." in " ".join(str(lengths).split())
    assert "\n  s2d-train draft\n" in lengths.explain()

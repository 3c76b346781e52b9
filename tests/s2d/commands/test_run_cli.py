import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import pytest
import torch

from perfmodel.core import cpu_contention
from perfmodel.core.errors import OutOfSpace
from perfmodel.models.geometry import DraftGeometry
from perfmodel.policies.frontier import FrontierPoint
from perfmodel.policies.policy import Policy
from perfmodel.policies.sampling import GREEDY, Sampling
from perfmodel.quantisation.weight_format import uniform_format
from perfmodel.results.plan import PLAN_FILE, Evidence
from perfmodel.results.report import REPORT_FILE
from perfmodel.results.report_text import drift_text
from s2d.commands.run_cli import main_run
from s2d.commands.run_command import PromptStreams
from s2d.decoding.clock import Clock
from s2d.decoding.encode_prompts import EncodedPrompt
from s2d.decoding.pair import PairRequest, load_pair
from s2d.loading.load_model import load_model
from tests.s2d.conftest import POLICY, run
from tests.s2d.loading.test_load_model import byte_tokenizer

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("kind", ["separate", "self"])
@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        Sampling(rule="shared-noise", temperature=0.9, top_k=None, top_p=0.9, seed=4),
        replace(GREEDY, repetition_penalty=1.2, presence_penalty=0.5),
    ],
    ids=lambda s: s.label,
)
def test_a_checked_run_equals_plain_decoding_and_reports_it(folders, plan_file, capsys, kind: str, sampling: Sampling) -> None:
    report_file = folders / "report.json"
    assert run(folders, plan_file(kind, sampling), "--prompt", "the cat", "--check", "--explain", "-o", str(report_file)) == 0
    out = capsys.readouterr().out
    assert "1 of 1 outputs equal the plain target's" in out
    assert all(word in out for word in ("measured", "predicted", "speedup", "accepted at position", "left at exit"))
    assert re.search(r"^plain decoding +[\d,.]+ tokens/s +[\d,.]+ tokens/s +[+-]", out, re.MULTILINE)
    report = REPORT_FILE.read(report_file).record
    assert report.check is not None
    assert (report.check.num_equal, report.check.divergences) == (1, ())
    assert report.check.worst_gap < 1e-3
    assert report.plain_arm is not None
    assert report.plan_arm.runs[0].rounds.num_tokens == report.plain_arm.runs[0].rounds.num_tokens == 24
    assert report.measured is not None


def frontier_point(policy: Policy | None) -> FrontierPoint:
    cap = policy.tokens if policy else 0
    shares = {"kept_frac": (0.7,) * cap, "drafted_frac": (1.0,) * cap}
    return FrontierPoint(policy=policy, **shares, round_s=(0.01, *(0.011 + 0.001 * n for n in range(cap))), catch_up_s=0.0)


@pytest.mark.parametrize("kind", ["separate", "self"])
def test_an_adapting_run_equals_plain_decoding_and_reports_its_policies(folders, plan_file, capsys, kind: str) -> None:
    short = replace(POLICY, tokens=1)
    frontier = tuple(map(frontier_point, (None, short, POLICY)))
    report_file = folders / "report.json"
    plan = plan_file(kind, frontier=frontier)
    assert run(folders, plan, "--adapt", "--prompt", "the cat", "--check", "-o", str(report_file)) == 0
    printed = capsys.readouterr()
    assert "adapting, along the 3 policies of the plan's frontier" in printed.out
    assert "The policy changed" in printed.out
    assert "s2d-compare" not in printed.err  # the plan predicts one policy throughout
    report = REPORT_FILE.read(report_file).record
    assert report.check is not None
    assert report.check.num_equal == 1
    adaptation = report.adaptation
    assert adaptation is not None
    [prompt_run] = report.plan_arm.runs
    assert [share.policy for share in adaptation.shares] == [None, short, POLICY]
    assert sum(share.num_tokens for share in adaptation.shares) == prompt_run.rounds.num_tokens
    assert sum(share.num_rounds for share in adaptation.shares) == prompt_run.rounds.num_rounds
    assert sum(share.decode_s for share in adaptation.shares) == pytest.approx(prompt_run.decode_s)


def test_adapting_needs_a_frontier(folders, plan_file, capsys) -> None:
    assert run(folders, plan_file(), "--adapt", "--prompt", "the cat") == 2
    err = capsys.readouterr().err
    assert "has no frontier, expected a plan from a trace. Record a trace with" in err


def test_json_prints_only_the_report(folders, plan_file, capsys) -> None:
    assert run(folders, plan_file(), "--prompt", "the cat", "--json", "--max-new-tokens", "9") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["schema"] == REPORT_FILE.schema
    assert printed["body"]["plain_arm"] is None
    assert printed["body"]["max_new_tokens"] == 9


def test_a_plan_not_to_speculate_decodes_plainly(folders, plan_file, capsys) -> None:
    assert run(folders, plan_file(policy=None), "--prompt", "the cat") == 0
    out = capsys.readouterr().out
    assert "do not speculate" in out
    assert "Nothing was drafted" in out


def test_a_run_streams_the_chosen_prompts(folders, plan_file, capsys) -> None:
    prompts = folders / "prompts.jsonl"
    lines = [{"name": f"p{number}", "category": "c", "text": "dog and"} for number in range(3)]
    prompts.write_text("\n".join(json.dumps(line) for line in lines))
    assert run(folders, plan_file(), "--prompts", str(prompts), "--split", "all", "--num-prompts", "2") == 0
    out = capsys.readouterr().out
    assert "=== p0 (c)" in out
    assert "=== p1 (c)" in out
    assert "=== p2 (c)" not in out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_sha256": "0" * 64}, "was made for target weights 000000000000"),
        ({"draft_sha256": "0" * 64}, "was made for draft weights 000000000000"),
        ({"tokenizer_sha256": "0" * 64}, "was made for tokenizer 000000000000"),
    ],
)
def test_a_plan_for_other_weights_or_another_tokenizer_is_refused(
    folders, plan_file, capsys, changes: dict, message: str
) -> None:
    assert run(folders, plan_file(**changes), "--prompt", "the") == 2
    assert message in capsys.readouterr().err


def test_a_plan_for_another_shape_exit_device_or_dtype_is_refused(folders, plan_file, capsys) -> None:
    target, draft = (load_model(folders / name, "fp32") for name in ("target", "draft"))
    pair = load_pair(PairRequest(target=str(folders / "target"), draft=str(folders / "draft"), dtype="fp32", device="cpu"))
    deeper = replace(draft.geometry, num_layers=5)
    cases = (
        ({"target": replace(target.geometry, num_layers=7)}, "another shape"),
        (
            {"draft": DraftGeometry(kind="separate", model=deeper, exit_layers=(2, 5))},
            "exit 5 (the plan) of a draft of 4 layers",
        ),
        ({"device": replace(pair.device_key, device="Abacus")}, "was made for 1 x Abacus, "),
        ({"device": replace(pair.device_key, dtype="int4")}, "was made for dtype int4"),
        ({"device": replace(pair.device_key, num_threads=None)}, "no CUDA device"),
    )
    for changes, message in cases[: 4 if torch.cuda.is_available() else 5]:
        assert run(folders, plan_file(**changes), "--prompt", "the") == 2
        assert message in capsys.readouterr().err


def test_a_plan_for_an_assumed_head_is_refused_before_any_model_is_searched(folders, plan_file, capsys) -> None:
    draft = load_pair(
        PairRequest(target=str(folders / "target"), draft=str(folders / "draft"), dtype="fp32", device="cpu")
    ).geometry
    reduced = replace(draft, model=replace(draft.model, head_vocab_size=9))
    plan = plan_file(draft=reduced, draft_sha256=None)
    assert run(folders, plan, "--prompt", "the") == 2
    made_for = f"was made for a draft with a head of 9 of {draft.model.vocab_size} tokens, assumed"
    assert f"{made_for}, not for an existing draft. Plan again without --draft-vocab" in capsys.readouterr().err
    assert main_run(["--plan", str(plan), "--draft", "no-such-folder"]) == 2
    assert "not for an existing draft" in capsys.readouterr().err


def test_a_plan_for_another_engine_is_refused_and_the_message_names_the_export(plan_file, capsys) -> None:
    assert main_run(["--plan", str(plan_file(engine="llama.cpp")), "--target", "no-such-folder"]) == 2
    error = capsys.readouterr().err
    assert "was made for engine llama.cpp, not for s2d, the bundled runtime, whose seconds differ" in error
    assert "s2d-plan export --plan FILE -o FOLDER. Or plan again without --engine" in error


def test_a_plan_for_quantised_weights_is_refused_before_any_model_is_searched(plan_file, capsys) -> None:
    plan = plan_file(target_weights=uniform_format("AWQ int4, groups of 128", "int4", 4.16))
    assert main_run(["--plan", str(plan), "--target", "no-such-folder"]) == 2
    made_for = (
        "was made for target weights stored as AWQ int4, groups of 128, not for plain weights, the only kind that s2d runs"
    )
    assert f"{made_for}. Serve it with an engine that loads such weights" in capsys.readouterr().err


def test_the_line_of_a_text_ends_before_anything_else_is_printed(folders, plan_file, capfd) -> None:
    assert run(folders, plan_file(), "--prompt", "the cat", "-o", str(folders / "report.json")) == 0
    out, err = capfd.readouterr()
    text, _, table = out.partition("=== --prompt (given)\n")[2].partition("\n\n")
    assert table.splitlines()[0].split() == ["measured", "predicted", "error"]
    assert text
    assert err.startswith(f"wrote {folders / 'report.json'}; next, to measure the speedup: s2d-run --target ")
    assert err.endswith(" --check\n")


def test_an_incomplete_character_at_the_end_of_a_text_is_printed(capsys) -> None:
    tokenizer = byte_tokenizer()
    with PromptStreams(tokenizer) as streams:
        for name in ("a", "b"):
            add = streams.on_prompt(EncodedPrompt(name=name, category="c", token_ids=(1,)))
            add(tokenizer("so \N{CAT FACE}")["input_ids"][:-1])
        assert capsys.readouterr().out == "\n=== a (c)\nso \N{REPLACEMENT CHARACTER}\n\n=== b (c)\nso "
    assert capsys.readouterr().out == "\N{REPLACEMENT CHARACTER}\n"


def test_after_a_checked_run_the_next_command_compares(folders, plan_file, capsys, monkeypatch) -> None:
    monkeypatch.setattr(cpu_contention, "thread_waited_s", lambda: 0.0)  # else a busy machine prints a warning
    plan, report = plan_file(), folders / "report.json"
    assert run(folders, plan, "--prompt", "the cat", "--check", "-o", str(report)) == 0
    assert capsys.readouterr().err == f"wrote {report}; next: s2d-compare --plan {plan} --report {report}\n"


def test_a_busy_machine_prints_a_warning_only_if_the_run_measures(folders, plan_file, capsys, monkeypatch) -> None:
    monkeypatch.setattr(cpu_contention, "thread_waited_s", perf_counter)  # always waiting
    run(folders, plan_file(), "--prompt", "the cat", "--check", "-o", str(folders / "report.json"))
    assert REPORT_FILE.read(folders / "report.json").record.waited_frac == pytest.approx(1.0, abs=0.01)
    assert "warning: this process waited" in capsys.readouterr().err
    run(folders, plan_file(), "--prompt", "the cat")
    assert "other programs" not in capsys.readouterr().err


def test_plain_decoding_at_another_speed_than_profiled_prints_a_warning(folders, plan_file, capsys) -> None:
    measured = Evidence(role="target latency", level="measured", description="many passes", sha256="a" * 64)
    plan_path, report_path = plan_file(evidence=(measured,)), folders / "report.json"
    run(folders, plan_path, "--prompt", "the cat", "--check", "-o", str(report_path))
    assert "warning: plain decoding reaches " in capsys.readouterr().err  # the plan holds an invented 80 tokens/s
    report, plan = REPORT_FILE.read(report_path).record, PLAN_FILE.read(plan_path).record
    for factor, is_warned in ((0.5, True), (0.9, False), (1.1, False), (2.0, True)):
        then = replace(plan.chosen.speedup, plain_tokens_per_s=report.measured.plain_tokens_per_s / factor)
        drifted_frac = replace(plan, chosen=replace(plan.chosen, speedup=then))
        assert (drift_text(report, drifted_frac) is not None) == is_warned
        assert drift_text(report, replace(drifted_frac, evidence=())) is None


def test_a_full_disk_does_not_prevent_the_table(folders, plan_file, capsys, monkeypatch) -> None:
    def full(path: Path, *_: object) -> None:
        raise OutOfSpace(path)

    plan = plan_file()
    monkeypatch.setattr("perfmodel.core.files.write_atomically", full)
    assert run(folders, plan, "--prompt", "the cat", "-o", str(folders / "report.json")) == 2
    printed = capsys.readouterr()
    assert "tokens per round" in printed.out
    assert "no space left to write" in printed.err


def test_a_report_path_that_cannot_be_written_is_refused_before_decoding(folders, plan_file, capsys) -> None:
    assert run(folders, plan_file(), "--prompt", "the cat", "-o", str(folders / "none" / "report.json")) == 2
    assert capsys.readouterr().out == ""


def test_bad_requests_exit_with_2_and_state_what_was_expected(folders, plan_file, capsys) -> None:
    plan = plan_file()
    for flags, message in (
        (["--prompt", "the cat " * 200], "expected 1 to 136"),
        (
            ["--prompt", ""],
            "has 0 tokens: expected at least 1, as this tokenizer adds none of its own. Give some text, or leave",
        ),
        (
            ["--prompt", "the", "--stop", "a", "--stop", ""],
            "argument --stop: the text is empty: expected at least one character",
        ),
        (["--export-exit", "\N{SUPERSCRIPT TWO}", "new"], "expected a layer count and a folder, as in --export-exit 4 exit-4"),
        (
            ["--prompt", "the", "--max-new-tokens", "5000"],
            "--max-new-tokens 5000: expected at most 159, as the context of these models is 160",
        ),
        (["--prompts", str(folders / "none.jsonl")], "none.jsonl"),
    ):
        assert run(folders, plan, *flags) == 2
        assert message in capsys.readouterr().err
    assert main_run([]) == 2
    assert "give a plan with --plan FILE" in capsys.readouterr().err
    ratio = Sampling(rule="ratio", temperature=1.0, top_k=None, top_p=None, seed=1)
    assert run(folders, plan_file(sampling=ratio), "--prompt", "the", "--check") == 2
    assert "Leave --check out" in capsys.readouterr().err


def test_an_exit_is_exported_as_a_checkpoint(folders, plan_file, capsys) -> None:
    out = folders / "exit-2"
    assert main_run(["--draft", str(folders / "draft"), "--export-exit", "2", str(out)]) == 0
    assert load_model(out, "fp32").geometry.num_layers == 2
    assert main_run(["--draft", str(folders / "draft"), "--export-exit", "9", str(out)]) == 2
    assert "from 1 to the model's 4" in capsys.readouterr().err
    assert main_run(["--draft", str(folders / "draft"), "--export-exit", "2", str(out)]) == 2
    assert "exit-2': this exists already" in capsys.readouterr().err
    assert main_run(["--export-exit", "2", str(out)]) == 2


def test_help_lists_the_flags_without_loading_torch() -> None:
    code = (
        "import sys; from s2d.commands.run_cli import main_run; main_run(['--help']); "
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert all(flag in done.stdout for flag in ("--plan", "--prompts", "--check", "--export-exit", "--json", "--split"))
    assert done.stderr.strip() == "False"


@pytest.mark.parametrize("pause_s", [10.0, 36_000.0, 1e300])
def test_a_pause_of_the_process_is_excluded_from_the_speedup_and_reported(
    folders, plan_file, capsys, monkeypatch: pytest.MonkeyPatch, pause_s: float
) -> None:
    taken_s = {"segment": 1e-3, "exit": 1e-4, "verify": 5e-3, "round": 1e-5}
    paused: list[bool] = []

    def lap_seconds(clock: Clock) -> list[float]:
        """Constant times, except that the third verification of each text pauses after the warm-up."""
        seconds = [taken_s.get(kind, 1e-3) for kind, *_ in clock.tags]
        verifies = [place for place, (kind, *_) in enumerate(clock.tags) if kind == "verify"]
        if paused and len(verifies) > 2:
            seconds[verifies[2]] = pause_s
        return seconds

    monkeypatch.setattr(Clock, "lap_seconds", lap_seconds)
    report_file, reports = folders / "report.json", []
    for is_paused in (False, True):
        paused[:] = [True] * is_paused
        assert run(folders, plan_file(), "--prompt", "the cat", "--check", "-o", str(report_file)) == 0
        reports.append(REPORT_FILE.read(report_file).record)
        assert ("was the process stopped" in capsys.readouterr().err) == is_paused
    undisturbed, disturbed = (report.measured for report in reports)
    assert undisturbed is not None
    assert disturbed is not None
    assert disturbed.speedup.value == pytest.approx(undisturbed.speedup.value)
    assert disturbed.speedup.high == pytest.approx(undisturbed.speedup.high)
    assert disturbed.round_cost.total_s == pytest.approx(undisturbed.round_cost.total_s)
    assert max(reports[1].plan_arm.samples.seconds) == pause_s  # the report keeps the raw times

"""A plan file to a run: models and prompts loaded, texts shown and kept, and the report at the end."""

import argparse
import hashlib
import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

import torch
from transformers import PreTrainedTokenizerFast

from perfmodel.core.console import answer_options, keep_progress, print_answer, print_err, print_out, without_flag
from perfmodel.core.cpu_contention import Contention
from perfmodel.core.errors import Mismatch, UserInputError
from perfmodel.core.files import Stored
from perfmodel.core.provenance import make_provenance
from perfmodel.core.units import Tokens
from perfmodel.models.geometry import SELF_DRAFT
from perfmodel.passes.kernels import STANDARD_KERNELS
from perfmodel.passes.pauses import pauses_text
from perfmodel.policies.frontier import FrontierPoint
from perfmodel.policies.sampling import Sampling
from perfmodel.results.plan import PLAN_FILE, Plan
from perfmodel.results.report import REPORT_FILE, RunReport
from perfmodel.results.report_text import drift_text
from s2d.decoding.generate import Generation, OnTokens
from s2d.decoding.pair import EncodedPrompt, Pair, encode_prompts, load_pair
from s2d.loading.exits import exits_of_plan
from s2d.loading.load_model import export_exit
from s2d.loading.model_folder import find_model
from s2d.model.check_kernels import check_kernels
from s2d.model.torch_device import engine_for
from s2d.model.torch_dtypes import TORCH_DTYPES
from s2d.parallel.ranks import Ranks
from s2d.prompts.special_tokens import special_tokens_note
from s2d.prompts.text import ContinuationText, Stop
from s2d.running.check_plan import check_plan_fits
from s2d.running.multi_turn import MultiTurn
from s2d.running.outputs import Outputs
from s2d.running.run_inputs import RunInputs
from s2d.running.run_report import OnText, RunRequest, paused_passes, run_report
from s2d.running.run_text import understood_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """Everything a run needs."""

    plan: Stored[Plan]
    pair: Pair
    prompts: tuple[EncodedPrompt, ...]
    """Those that --outputs has no text of, a conversation at its first turn without one."""
    request: RunRequest
    turns: MultiTurn
    on_text: OnText


def run_from_flags(args: argparse.Namespace, inputs: RunInputs, command: Sequence[str], ranks: Ranks | None) -> None:
    """Do what `s2d-run` was asked, with the processes that torchrun started, if it did."""
    loaded = load_from_flags(args, inputs, ranks)
    plan = loaded.plan.record
    if not loaded.prompts:
        _say_cut_short(loaded.turns)
        no_report = ", and no report is made" if args.json or args.output is not None else ""
        print_err(f"{args.outputs} has a text of every prompt that was chosen: nothing is left to run{no_report}")
        return
    contention = Contention()
    with keep_progress(args.outputs) if args.outputs else nullcontext():
        if args.json:
            report = run_report(loaded.pair, loaded.prompts, loaded.request, on_text=loaded.on_text)
        else:
            print_out(understood_text(loaded.pair, plan, loaded.prompts, loaded.request))
            with PromptStreams(loaded.pair.tokenizer) as streams:
                on_prompt = streams.on_prompt
                report = run_report(loaded.pair, loaded.prompts, loaded.request, on_prompt=on_prompt, on_text=loaded.on_text)
    report = replace(report, waited_frac=contention.waited_frac, predicted=plan.chosen)
    _say_cut_short(loaded.turns)
    if args.check and (busy := contention.warning) is not None:
        print_err(f"warning: {busy}")
    if (paused := pauses_text(paused_passes(report))) is not None:
        print_err(f"warning: {paused}")
    provenance = partial(
        make_provenance,
        argv=command,
        device=report.device.device,
        libraries=("torch", "transformers"),
        seed=report.sampling.seed,
        inputs={"plan": loaded.plan.sha256, "target": report.target_sha256, "draft": report.draft_sha256},
    )
    print_answer(
        answer_options(args),
        report,
        REPORT_FILE,
        provenance,
        text=lambda: "\n" + (report.explain() if args.explain else str(report)),
        done=next_text(args, command, report.sampling),
    )
    if (drift := drift_text(report, plan)) is not None:
        print_err(f"warning: {drift}")
    _refuse_unequal(report)


def next_text(args: argparse.Namespace, command: Sequence[str], sampling: Sampling) -> str:
    """What to do with the report: without plain decoding in it there is nothing to compare, so run with it first."""
    if args.adapt and args.check:  # a plan tells of one policy throughout
        return ""
    if args.check:
        return f"; next: {shlex.join(['s2d-compare', '--plan', str(args.plan), '--report', str(args.output)])}"
    if sampling.rule == "ratio":  # of which --check has nothing to compare
        return ""
    # Without --outputs, as there would be nothing left to run.
    return f"; next, to measure the speedup: {shlex.join([*without_flag(command, '--outputs'), '--check'])}"


class PromptStreams:
    """Shows every prompt's name and, as it is accepted, its text; whatever ends the run, the text ends with its line."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._text: ContinuationText | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def on_prompt(self, prompt: EncodedPrompt) -> OnTokens:
        """What takes the tokens that follow a prompt."""
        self._end()
        print_out(f"\n=== {prompt.name} ({prompt.category})")
        self._text = text = ContinuationText(self._tokenizer, prompt.token_ids)
        return lambda tokens: print_out(text.add(tokens), end="")

    def _end(self) -> None:
        """Show what the last text still holds back, half a character perhaps."""
        if self._text is not None:
            print_out(self._text.rest)
            self._text = None


def export_from_flags(args: argparse.Namespace) -> None:
    """Write one exit of the draft as an ordinary checkpoint."""
    layer, folder = args.export_exit
    if not layer.isdecimal():
        raise UserInputError(f"--export-exit {layer!r}: expected a layer count and a folder, as in --export-exit 4 exit-4")
    name = args.draft or (PLAN_FILE.read(args.plan).record.draft_name if args.plan else None)
    if name is None:
        raise UserInputError("--export-exit needs a model: give --draft DIR, or a plan")
    export_exit(find_model(name), int(layer), Path(folder))
    print_out(f"wrote exit {layer} of {name} to {folder}: an ordinary checkpoint with {layer} layers")


def load_from_flags(args: argparse.Namespace, inputs: RunInputs, ranks: Ranks | None) -> Loaded:
    """Load the plan's models, encode the prompts, and refuse what was not made for each other.

    Raises:
        UserInputError: something is missing, cannot be read, or does not fit.
    """
    plan = inputs.plan
    pair = _load_pair(args, plan.record, ranks)
    check_plan_fits(args.plan, plan.record, pair)
    max_new_tokens = args.max_new_tokens or plan.record.workload.output_tokens
    if (note := special_tokens_note(pair.tokenizer, inputs.prompts, args.special_tokens)) is not None:
        print_err(note)
    prompts = encode_prompts(
        pair, inputs.prompts, max_new_tokens=max_new_tokens, is_chat=args.chat, special_tokens=args.special_tokens
    )
    request = RunRequest(
        plan_sha256=plan.sha256,
        policy=plan.record.chosen.policy,
        sampling=plan.record.workload.sampling,
        max_new_tokens=max_new_tokens,
        stop=Stop(args.stop, pair.tokenizer) if args.stop else None,
        check=args.check,
        frontier=_frontier(args.plan, plan.record) if args.adapt else (),
        special_tokens=args.special_tokens,
    )
    pair.check_memory(request.text_limits(prompts))
    turns = MultiTurn(pair, request)
    if args.outputs is None:
        return Loaded(plan=plan, pair=pair, prompts=prompts, request=request, turns=turns, on_text=turns.on_text)
    outputs = Outputs(args.outputs, _run_name(args, pair, request), pair.tokenizer, pair.geometry.exit_layers)
    missing, num_kept = outputs.missing(prompts, turns.after)
    if missing and num_kept:
        print_err(f"going on after {num_kept} texts in {args.outputs}")

    def keep(prompt: EncodedPrompt, generation: Generation) -> EncodedPrompt | None:
        outputs.add(prompt, generation, _ending(generation, max_new_tokens, pair.eos_token_id))
        return turns.on_text(prompt, generation)

    return Loaded(plan=plan, pair=pair, prompts=missing, request=request, turns=turns, on_text=keep)


def _say_cut_short(turns: MultiTurn) -> None:
    for why in turns.cut_short:
        print_err(why)


def _run_name(args: argparse.Namespace, pair: Pair, request: RunRequest) -> str:
    """Twelve digits that differ where anything does that texts or their figures depend on."""
    models = (pair.target.sha256, pair.draft.sha256, pair.target.dtype)
    asked = (tuple(args.stop), args.chat, args.special_tokens, args.adapt)
    how = (request.plan_sha256, request.sampling, request.max_new_tokens, asked)
    return hashlib.sha256(repr((models, how)).encode()).hexdigest()[:12]


def _ending(generation: Generation, max_new_tokens: Tokens, eos_token_id: int | None) -> str:
    if eos_token_id is not None and generation.tokens[-1:] == (eos_token_id,):
        return "end of text"
    return "length" if len(generation.tokens) == max_new_tokens else "stop string"


def _frontier(path: Path, plan: Plan) -> tuple[FrontierPoint, ...]:
    """What a run may move along.

    Raises:
        UserInputError: the plan has none.
    """
    if not plan.frontier:
        raise UserInputError(
            f"--adapt: plan {str(path)!r} has no frontier, expected one made from a trace by this version or a later one. "
            "Record a trace with s2d-profile and plan again with --trace, or leave --adapt out."
        )
    return plan.frontier


def _load_pair(args: argparse.Namespace, plan: Plan, ranks: Ranks | None) -> Pair:
    """The plan's models on the plan's kind of device, or those named instead."""
    if plan.device.dtype not in TORCH_DTYPES:
        made_for, given = f"dtype {plan.device.dtype}", f"this runtime, which computes in {', '.join(TORCH_DTYPES)}"
        raise Mismatch(f"plan {str(args.plan)!r}", made_for=made_for, given=given, fix="Plan again with one of these")
    is_gpu = plan.device.num_threads is None
    if is_gpu and not torch.cuda.is_available():
        made_for, given = plan.device.label, "this machine, which has no CUDA device"
        fix = "Profile this device with s2d-profile and plan again with --profile"
        raise Mismatch(f"plan {str(args.plan)!r}", made_for=made_for, given=given, fix=fix)
    if plan.device.num_threads is not None:
        torch.set_num_threads(plan.device.num_threads)
    draft = args.draft or (SELF_DRAFT if plan.draft.kind == "self" else plan.draft_name)
    target, device = args.target or plan.target.name, "cuda" if is_gpu else "cpu"
    engine, is_shared = engine_for(plan.device.engine, device, plan.device.num_devices), plan.draft_num_devices > 1
    kernels = plan.device.kernels or STANDARD_KERNELS
    fix = "Install the PyTorch that the plan's profile was taken with, or profile and plan again here."
    check_kernels(kernels, device, plan.device.dtype, engine, fix=fix)
    return load_pair(
        target,
        draft,
        plan.device.dtype,
        device,
        ranks,
        named_exits=exits_of_plan(plan),
        engine=engine,
        kernels=kernels,
        shares_draft=is_shared,
    )


def _refuse_unequal(report: RunReport) -> None:
    """In full precision another output is a fault of ours, and no figure of such a run should be believed."""
    check = report.check
    if check is not None and report.device.dtype == "fp32" and check.num_equal != check.num_prompts:
        raise RuntimeError(f"{check.num_prompts - check.num_equal} outputs differ from the plain target's in fp32")

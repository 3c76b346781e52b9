"""Carry out `s2d-run`: show the outputs while they are decoded, then the report."""

import shlex
from collections.abc import Sequence
from functools import partial
from typing import Self

from transformers import PreTrainedTokenizerFast

from perfmodel.core.blocks import Facts, as_text
from perfmodel.core.console import AnswerOptions, print_answer, print_out, without_flag
from perfmodel.core.provenance import make_provenance
from perfmodel.policies.sampling import Sampling
from perfmodel.results.plan import Plan
from perfmodel.results.plan_text import policy_label
from perfmodel.results.report import REPORT_FILE
from s2d.decoding.encode_prompts import EncodedPrompt
from s2d.decoding.generate import OnTokens
from s2d.decoding.pair import Pair
from s2d.loading.load_model import export_exit
from s2d.loading.model_folder import find_model
from s2d.parallel.ranks import Ranks
from s2d.prompts.text import ContinuationText
from s2d.running.run import load_plan_pair, prepare_run
from s2d.running.run_inputs import ExportRequest, RunInputs, RunRequest
from s2d.running.run_prompts import RunSettings


def run_and_print(
    request: RunRequest, inputs: RunInputs, options: AnswerOptions, command: Sequence[str], ranks: Ranks | None
) -> None:
    """Run a plan and print what happens.

    Args:
        request: the run.
        inputs: its plan and prompts.
        options: what to print, and where to write the report.
        command: the command line, for the report's provenance and the next command.
        ranks: the processes started by torchrun; None for one process.
    """
    run = prepare_run(request, inputs, load_plan_pair(request, inputs.plan, ranks))
    if not run.prompts:
        run.print_nothing_to_do(wants_report=options.json or options.output is not None)
        return
    if options.json:
        finished = run.execute()
    else:
        print_out(understood_text(run.pair, inputs.plan.record, run.prompts, run.settings))
        with PromptStreams(run.pair.tokenizer) as streams:
            finished = run.execute(streams.on_prompt)
    report = finished.report
    provenance = partial(
        make_provenance,
        argv=command,
        device=report.device.device,
        libraries=("torch", "transformers"),
        seed=report.sampling.seed,
        inputs={"plan": inputs.plan.sha256, "target": report.target_sha256, "draft": report.draft_sha256},
    )
    print_answer(
        options,
        report,
        REPORT_FILE,
        provenance,
        text=lambda: "\n" + (report.explain() if options.explain else str(report)),
        done=next_step(request, options, command, report.sampling),
    )
    finished.print_warnings()
    finished.check_outputs()


def next_step(request: RunRequest, options: AnswerOptions, command: Sequence[str], sampling: Sampling) -> str:
    """What to do with the report: compare it with the plan, or first measure the speedup with --check."""
    if request.adapt and request.check:  # the plan predicts one policy throughout
        return ""
    if request.check:
        return f"; next: {shlex.join(['s2d-compare', '--plan', str(request.plan), '--report', str(options.output)])}"
    if sampling.rule == "ratio":  # --check does not apply
        return ""
    # Without --outputs: the file already contains every output.
    return f"; next, to measure the speedup: {shlex.join([*without_flag(command, '--outputs'), '--check'])}"


def understood_text(pair: Pair, plan: Plan, prompts: Sequence[EncodedPrompt], settings: RunSettings) -> str:
    """The models, device, policy, sampling and prompts of a run."""
    policy = policy_label(plan.chosen.policy)
    if settings.frontier:
        policy = f"adapting, along the {len(settings.frontier)} policies of the plan's frontier"
    num_turns = sum(prompt.num_turns for prompt in prompts)
    texts = f"{len(prompts)}" + (f" in {num_turns} turns" if num_turns > len(prompts) else "")
    facts = [
        ("models", pair.label),
        ("device", pair.device_key.label),
        ("policy", policy),
        ("sampling", plan.workload.sampling.label),
        ("prompts", f"{texts}, at most {settings.max_new_tokens} new tokens each"),
    ]
    return as_text([Facts(facts)])


class PromptStreams:
    """Prints the name of each prompt and its new text as it is accepted. The last line is completed even if the run fails."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._text: ContinuationText | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_text()

    def on_prompt(self, prompt: EncodedPrompt) -> OnTokens:
        """Start a prompt; returns a function that prints its tokens."""
        self._end_text()
        print_out(f"\n=== {prompt.name} ({prompt.category})")
        self._text = text = ContinuationText(self._tokenizer, prompt.token_ids)
        return lambda tokens: print_out(text.add(tokens), end="")

    def _end_text(self) -> None:
        """Print what the last text still withholds, such as an incomplete character."""
        if self._text is not None:
            print_out(self._text.rest)
            self._text = None


def export_and_print(request: ExportRequest) -> None:
    """Write an exit as an ordinary checkpoint with fewer layers."""
    layers = request.exit_layer
    export_exit(find_model(request.model), layers, request.folder)
    print_out(f"wrote exit {layers} of {request.model} to {request.folder}: an ordinary checkpoint with {layers} layers")

"""Run a plan: load its models, decode the prompts, write the outputs, make the report."""

import hashlib
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from perfmodel.core.console import keep_progress, print_err
from perfmodel.core.cpu_contention import Contention
from perfmodel.core.disk import PathLike
from perfmodel.core.errors import Mismatch
from perfmodel.models.geometry import SELF_DRAFT
from perfmodel.passes.kernels import STANDARD_KERNELS
from perfmodel.passes.pauses import pauses_text
from perfmodel.results.plan import Plan
from perfmodel.results.report import RunReport
from perfmodel.results.report_text import drift_text
from s2d.decoding.encode_prompts import ConversationEncoder, EncodedPrompt, encode_prompts
from s2d.decoding.generate import Generation
from s2d.decoding.pair import Pair, PairRequest, load_pair
from s2d.loading.exits import exits_from_plan
from s2d.model.check_kernels import check_kernels
from s2d.model.torch_device import mode_for
from s2d.model.torch_dtypes import TORCH_DTYPES
from s2d.parallel.ranks import Ranks
from s2d.prompts.special_tokens import special_tokens_note
from s2d.prompts.text import Stop, continuation_text
from s2d.running.check_plan import check_plan_fits
from s2d.running.outputs import Outputs
from s2d.running.run_inputs import NamedPlan, RunInputs, RunRequest, lock_outputs, read_run_inputs
from s2d.running.run_prompts import OnPrompt, RunSettings, paused_passes, run_prompts


def run(plan: RunRequest | Plan | PathLike, **options: Any) -> RunReport | None:
    """Run a plan, as `s2d-run` does. Notes and warnings go to stderr.

    Args:
        plan: a plan, its file, or a complete request.
        options: fields of `RunRequest`: `prompts`, `check`, `num_prompts`, `max_new_tokens`, `outputs` and others.

    Returns:
        The report: `speedup` (None without `check`), tokens/s and acceptance beside the prediction. None if the outputs file
        already contains an output for every selected prompt.

    Raises:
        UserInputError: an input is missing, cannot be read, or does not fit the others.
        Mismatch: the plan is for other models or another device.

    Example:
        >>> report = s2d.run("plan.json", prompts=["import os", "def main("], check=True, max_new_tokens=16)
        >>> report.check.num_equal, report.speedup.value > 0
        (2, True)
    """
    request = replace(plan, **options) if isinstance(plan, RunRequest) else RunRequest(plan=plan, **options)
    inputs = read_run_inputs(request)
    with lock_outputs(request.outputs):
        return run_loaded(request, inputs, load_plan_pair(request, inputs.plan))


def run_loaded(request: RunRequest, inputs: RunInputs, pair: Pair) -> RunReport | None:
    """Run a plan on loaded models; see `run`."""
    prepared = prepare_run(request, inputs, pair)
    if not prepared.prompts:
        prepared.print_nothing_to_do()
        return None
    finished = prepared.execute()
    finished.print_warnings()
    finished.check_outputs()
    return finished.report


def load_plan_pair(request: RunRequest, plan: NamedPlan, ranks: Ranks | None = None) -> Pair:
    """Load the request's models, or the plan's, on the plan's kind of device.

    Raises:
        Mismatch: this machine or this PyTorch cannot run the plan.
        UserInputError: a model does not exist, cannot be read, or does not fit in memory.
    """
    record, key = plan.record, plan.record.device
    if key.dtype not in TORCH_DTYPES:
        made_for, given = f"dtype {key.dtype}", f"this runtime, which computes in {', '.join(TORCH_DTYPES)}"
        raise Mismatch(plan.name, made_for=made_for, given=given, fix="Plan again with one of these")
    is_gpu = key.num_threads is None
    if is_gpu and not torch.cuda.is_available():
        fix = "Profile this device with s2d-profile and plan again with --profile"
        raise Mismatch(plan.name, made_for=key.label, given="this machine, which has no CUDA device", fix=fix)
    device, kernels = "cuda" if is_gpu else "cpu", key.kernels or STANDARD_KERNELS
    mode = mode_for(key.mode, device, key.num_devices)
    fix = "Install the PyTorch of the plan's profile, or profile and plan again here."
    check_kernels(kernels, device, key.dtype, mode, fix=fix)
    pair_request = PairRequest(
        target=request.target or record.target.name,
        draft=request.draft or (SELF_DRAFT if record.draft.kind == "self" else record.draft_name),
        dtype=key.dtype,
        device=device,
        exits=exits_from_plan(record),
        mode=mode,
        kernels=kernels,
        shares_draft=record.draft_num_devices > 1,
    )
    return load_pair(pair_request, ranks)


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRun:
    """The report of a run, and warnings about disturbances."""

    report: RunReport
    warnings: tuple[str, ...]

    def print_warnings(self) -> None:
        """Print the warnings on stderr."""
        for warning in self.warnings:
            print_err(f"warning: {warning}")

    def check_outputs(self) -> None:
        """Check that in full precision all outputs equal those of plain decoding.

        Raises:
            RuntimeError: an output differs in fp32. This is a bug in s2d.
        """
        check = self.report.check
        if check is not None and self.report.device.dtype == "fp32" and check.num_equal != check.num_prompts:
            raise RuntimeError(f"{check.num_prompts - check.num_equal} outputs differ from the plain target's in fp32")


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRun:
    """A run that is ready to decode."""

    request: RunRequest
    plan: NamedPlan
    pair: Pair
    settings: RunSettings
    prompts: tuple[EncodedPrompt, ...]
    """The prompts without an output so far; of a conversation, its first turn without an output."""
    conversations: ConversationEncoder
    outputs: Outputs | None

    def execute(self, on_prompt: OnPrompt | None = None) -> FinishedRun:
        """Decode the prompts.

        Args:
            on_prompt: called before each prompt; what it returns receives the new tokens.
        """
        plan, contention = self.plan, Contention()
        with keep_progress(self.request.outputs) if self.request.outputs else nullcontext():
            report = run_prompts(self.pair, self.prompts, self.settings, on_prompt=on_prompt, on_text=self._on_text)
        report = replace(report, plan_sha256=plan.sha256, predicted=plan.record.chosen, waited_frac=contention.waited_frac)
        warnings = (
            *self.conversations.cut_short,
            contention.warning if self.request.check else None,
            pauses_text(paused_passes(report)),
            drift_text(report, plan.record),
        )
        return FinishedRun(report=report, warnings=tuple(warning for warning in warnings if warning is not None))

    def print_nothing_to_do(self, *, wants_report: bool = False) -> None:
        """Print why nothing was decoded: the outputs file already contains every output."""
        for reason in self.conversations.cut_short:
            print_err(f"warning: {reason}")
        no_report = ", and no report is made" if wants_report else ""
        print_err(f"{self.request.outputs} already contains an output for every selected prompt; nothing to do{no_report}")

    def _on_text(self, prompt: EncodedPrompt, generation: Generation) -> EncodedPrompt | None:
        """Keep an output, and encode the next turn of its conversation."""
        if self.outputs is not None:
            self.outputs.add(prompt, generation, self._ending(generation))
        answer = continuation_text(self.pair.tokenizer, prompt.token_ids, generation.tokens)
        return self.conversations.next_turn(prompt, answer)

    def _ending(self, generation: Generation) -> str:
        eos = self.pair.eos_token_id
        if eos is not None and generation.tokens[-1:] == (eos,):
            return "end of text"
        return "length" if len(generation.tokens) == self.settings.max_new_tokens else "stop string"


def prepare_run(request: RunRequest, inputs: RunInputs, pair: Pair) -> PreparedRun:
    """Check that plan, models and prompts fit each other, and encode the prompts.

    Raises:
        Mismatch: the plan is for other models or another device, or the outputs file belongs to another run.
        UserInputError: a prompt is empty or too long, or memory is too small.
    """
    plan, record = inputs.plan, inputs.plan.record
    if record.device.num_threads is not None:
        torch.set_num_threads(record.device.num_threads)
    check_plan_fits(plan.name, record, pair)
    max_new_tokens, special_tokens = request.max_new_tokens or record.workload.output_tokens, request.special_tokens
    if (note := special_tokens_note(pair.tokenizer, inputs.prompts, special_tokens)) is not None:
        print_err(note)
    prompts = encode_prompts(
        pair, inputs.prompts, max_new_tokens=max_new_tokens, is_chat=request.chat, special_tokens=special_tokens
    )
    settings = RunSettings(
        policy=record.chosen.policy,
        sampling=record.workload.sampling,
        max_new_tokens=max_new_tokens,
        stop=Stop(request.stop, pair.tokenizer) if request.stop else None,
        check=request.check,
        frontier=plan.frontier if request.adapt else (),
    )
    pair.check_memory(settings.text_limits(prompts))
    conversations = ConversationEncoder(pair, max_new_tokens=max_new_tokens, stop=settings.stop, special_tokens=special_tokens)
    outputs = None
    if request.outputs is not None:
        outputs = Outputs(request.outputs, _run_id(request, plan, pair, settings), pair.tokenizer, pair.geometry.exit_layers)
        prompts, num_kept = outputs.missing(prompts, conversations.next_turn)
        if prompts and num_kept:
            print_err(f"continuing after {num_kept} output{'s' if num_kept > 1 else ''} in {request.outputs}")
    return PreparedRun(
        request=request,
        plan=plan,
        pair=pair,
        settings=settings,
        prompts=prompts,
        conversations=conversations,
        outputs=outputs,
    )


def _run_id(request: RunRequest, plan: NamedPlan, pair: Pair, settings: RunSettings) -> str:
    """Twelve hexadecimal digits of a hash over everything that outputs and their figures depend on."""
    models = (pair.target.sha256, pair.draft.sha256, pair.target.dtype)
    flags = (tuple(request.stop), request.chat, request.special_tokens, request.adapt)
    decoding = (plan.sha256, settings.sampling, settings.max_new_tokens, flags)
    return hashlib.sha256(repr((models, decoding)).encode()).hexdigest()[:12]

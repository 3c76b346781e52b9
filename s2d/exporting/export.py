"""Write everything that is needed to serve a plan in its engine: checkpoints, commands, a smoke test and a README."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from perfmodel.core.blocks import Block, Command, Facts, Paragraph, Printable, Table
from perfmodel.core.disk import PathLike, check_new_folder
from perfmodel.core.errors import UserInputError
from perfmodel.core.provenance import make_provenance
from perfmodel.core.units import GIB, Tokens
from perfmodel.engines.check_constraints import known_bad_with
from perfmodel.engines.engine import Engine
from perfmodel.passes.flops_bytes import kv_cache_bytes
from perfmodel.results.plan import PLAN_FILE, Plan
from s2d.engines.worker_driver import find_worker
from s2d.exporting.check_export import check_export, plan_facts, planned_engine, planned_weights
from s2d.exporting.gpu_servers import sglang_files, tensorrt_llm_files, vllm_files
from s2d.exporting.local_models import ExportedModels, find_models
from s2d.exporting.local_servers import llama_cpp_files, mlx_lm_files
from s2d.exporting.python_libraries import onnxruntime_files, openvino_files, s2d_files, transformers_files
from s2d.exporting.readme import Readme, readme_text
from s2d.exporting.served_policy import served_policy
from s2d.exporting.serving import EngineFiles, Serving
from s2d.exporting.smoke_prompts import PromptRequest, expectation
from s2d.exporting.smoke_test import SERVERS
from s2d.exporting.write_export import ExportContents, write_export
from s2d.prompt_files.read_as import ReadAs
from s2d.prompts.conversation import Prompt
from s2d.running.run_inputs import load_plan

ENGINE_FILES: dict[str, Callable[[Serving], EngineFiles]] = {
    "s2d": s2d_files,
    "vllm": vllm_files,
    "sglang": sglang_files,
    "tensorrt-llm": tensorrt_llm_files,
    "llama.cpp": llama_cpp_files,
    "openvino": openvino_files,
    "onnxruntime": onnxruntime_files,
    "transformers": transformers_files,
    "mlx-lm": mlx_lm_files,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """A plan to export. The defaults are those of `s2d-plan export`."""

    plan: PathLike | Plan
    folder: PathLike
    """Folder to make; it must not exist."""
    target: PathLike | None = None
    """A folder, a name of the reference family, or `org/name`; None takes the plan's."""
    draft: PathLike | None = None
    """A folder, or a name of the reference family; None takes the plan's."""
    engine: str | None = None
    """None takes the plan's. Another engine is refused, because the plan was not priced for it."""
    weights: str | None = None
    """Storage of the weights in the engine's words; None takes those of the plan."""
    converts_target: bool = True
    """Convert the target too, where the engine needs its own format."""
    smoke: PromptRequest = field(default_factory=PromptRequest)
    """Prompts of the smoke test."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Export(Printable):
    """An exported folder."""

    folder: str
    engine: str
    """With its weights: `llama.cpp, q8_0`."""
    policy: str
    files: tuple[tuple[str, str], ...]
    """Names of files and their purposes."""
    checks: tuple[str, ...]
    """Names of the checks that the plan and its models passed."""
    warnings: tuple[str, ...]
    next_command: str

    def blocks(self, *, explain: bool = False) -> Sequence[Block]:
        """What was exported, and how to check it."""
        facts = [("exported", self.folder), ("engine", self.engine), ("policy", self.policy)]
        facts += [("checked", ", ".join(self.checks))] if explain else []
        blocks: list[Block] = [Facts(facts), Table(rows=self.files, headers=("file", "purpose"), align="ll")]
        blocks += [Paragraph(f"warning: {warning}") for warning in self.warnings]
        return [*blocks, Command(self.next_command)]


def export(
    plan: PathLike | Plan,
    folder: PathLike,
    *,
    target: PathLike | None = None,
    draft: PathLike | None = None,
    engine: str | None = None,
    weights: str | None = None,
    trace: PathLike | None = None,
    prompts: PathLike | Sequence[str | Prompt] | None = None,
    chat: bool = False,
    converts_target: bool = True,
) -> Export:
    """Write a folder with which an engine serves a plan: checkpoints, commands, a smoke test and a README.

    Args:
        plan: a plan for the engine, or its file.
        folder: the folder to make. It must not exist.
        target: a folder, a name of the reference family, or `org/name` on the hub. None takes the plan's.
        draft: a folder with the draft's weights, or a name of the reference family. None takes the plan's.
        engine: None takes the plan's; another one is refused.
        weights: how the engine stores weights, in its own words: `bf16`, `q8_0`. None takes the plan's.
        trace: the trace that the plan was made from. The smoke test then expects its rounds on its own prompts.
        prompts: of the smoke test. None takes the prompts of the reference family.
        chat: put each prompt into the tokenizer's chat template, as `s2d-profile --chat` did for the trace.
        converts_target: False leaves the target out, where the engine needs it in its own format.

    Raises:
        UserInputError: the engine would refuse the plan or its models, the folder exists, or a file cannot be read.
        Mismatch: the plan was made for another engine or for other models.

    Example:
        >>> made = s2d.export("plan.json", "served", draft="my-draft", trace="profile/trace.npz")  # doctest: +SKIP
        >>> made.next_command  # doctest: +SKIP
        'python3 served/smoke_test.py --start-server'
    """
    return make_export(
        ExportRequest(
            plan=plan,
            folder=folder,
            target=target,
            draft=draft,
            engine=engine,
            weights=weights,
            converts_target=converts_target,
            smoke=PromptRequest(prompts=prompts, read_as=ReadAs(use="prompt"), chat=chat, trace=trace),
        )
    )


def make_export(request: ExportRequest) -> Export:
    """Answer a request; see `export`."""
    check_new_folder(request.folder)
    plan = load_plan(request.plan).record
    engine = planned_engine(plan, request.engine)
    weights = planned_weights(plan, engine, request.weights)
    policy = served_policy(plan, engine)
    models = find_models(plan, request.target, request.draft)
    checks = check_export(engine, plan, models, weights)
    serving = _serving(request, plan, engine, models, weights)
    expected = expectation(request.smoke, plan, models.draft.tokenizer, weights)
    files = ENGINE_FILES[engine.name](serving)
    known_bad = known_bad_with(engine, plan_facts(plan, models, weights))
    warnings = tuple(f"{known.when}: {known.effect}. {known.instead}" for known in known_bad)
    has_smoke_test = can_be_tested(engine)
    readme = Readme(
        serving=serving,
        plan=plan,
        files=files,
        expected=expected,
        checks=checks,
        warnings=warnings,
        has_worker=find_worker(engine.name) is not None,
        has_smoke_test=has_smoke_test,
    )
    contents = ExportContents(
        serving=serving,
        plan=plan,
        plan_text=_plan_text(request.plan),
        models=models,
        files=files.files,
        readme=readme_text(readme),
        expected=expected if has_smoke_test else None,
    )
    write_export(request.folder, contents)
    return Export(
        folder=str(request.folder),
        engine=f"{engine.title}, {weights}",
        policy=plan.policy.label if engine.runs_exits and plan.policy is not None else policy.label,
        files=_purposes(files, has_smoke_test=has_smoke_test),
        checks=checks,
        warnings=warnings,
        next_command=readme.check_command(str(request.folder)),
    )


def can_be_tested(engine: Engine) -> bool:
    """Whether a smoke test can read an engine's rounds: through its Python API, or with its server's answers."""
    return not engine.runs_exits and (find_worker(engine.name) is not None or engine.name in SERVERS)


def _serving(request: ExportRequest, plan: Plan, engine: Engine, models: ExportedModels, weights: str) -> Serving:
    """What the engine's files are written from.

    Raises:
        UserInputError: the target has to be converted and is not here.
    """
    needs_conversion = engine.checkpoint != "huggingface"
    if needs_conversion and request.converts_target and models.target is None:
        raise UserInputError(
            f"target {models.target_name!r} is not on this machine, expected a folder to convert for {engine.title}. Fetch it "
            "and give --target DIR, or give --no-target and convert it yourself: s2d-engines convert --help"
        )
    is_inside = needs_conversion and request.converts_target
    if engine.checkpoint == "onnx" and not is_inside:
        raise UserInputError(
            f"--no-target: {engine.title} has one configuration for both models, expected the target too. Leave it out."
        )
    suffix = ".gguf" if engine.checkpoint == "gguf" else ""
    contexts = [model.max_context_tokens for model in (plan.target, models.draft.geometry)]
    return Serving(
        engine=engine,
        weights=weights,
        policy=served_policy(plan, engine),
        target=f"target{suffix}" if needs_conversion else models.target_name,
        is_target_inside=is_inside,
        draft=f"draft{suffix}",
        num_devices=plan.device.num_devices,
        draft_num_devices=plan.draft_num_devices,
        context_tokens=min(contexts),
        text_tokens=plan.workload.prompt_tokens + plan.workload.output_tokens,
        max_batch=_max_batch(plan, engine),
        num_threads=plan.device.num_threads,
        kv_cache_gib=_kv_cache_gib(plan, context_tokens=min(contexts), batch=_max_batch(plan, engine)),
    )


def _kv_cache_gib(plan: Plan, *, context_tokens: Tokens, batch: int) -> int:
    """KV caches of both models at a context and a batch, rounded up."""
    models = ((plan.target, plan.target_weights), (plan.draft.model, plan.draft_weights))
    return math.ceil(batch * sum(kv_cache_bytes(model, weights, context_tokens) for model, weights in models) / GIB)


def _plan_text(plan: PathLike | Plan) -> str:
    """The file of a plan, unchanged if it is one."""
    if isinstance(plan, Plan):
        return PLAN_FILE.text(plan, make_provenance(argv=("s2d.export",), inputs=plan.inputs))
    return Path(plan).read_text(encoding="utf-8")


def _max_batch(plan: Plan, engine: Engine) -> int:
    """The largest batch that the plan prices, as far as the engine decodes it."""
    largest = max([plan.workload.batch, *(schedule.max_batch for schedule in plan.batch_schedules)])
    return largest if engine.max_batch is None else min(largest, engine.max_batch)


def _purposes(files: EngineFiles, *, has_smoke_test: bool) -> tuple[tuple[str, str], ...]:
    smoke_test = [("smoke_test.py", "ten prompts: compares acceptance and text")] if has_smoke_test else []
    own = [(file.name, file.purpose) for file in files.files]
    return (*own, *smoke_test, ("README.md", "prediction, commands, checks, and what to know about the engine"))

"""Write an exported folder, whole or not at all."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from perfmodel.core.console import print_err
from perfmodel.core.disk import PathLike, atomic_folder
from perfmodel.core.provenance import make_provenance
from perfmodel.results.plan import Plan
from s2d.engines.processes.child_process import GUARD
from s2d.engines.worker_driver import WORKERS, find_worker
from s2d.exporting.local_models import ExportedModels, check_target_weights
from s2d.exporting.onnx_composite import write_composite
from s2d.exporting.serving import Serving, TextFile
from s2d.exporting.smoke_prompts import EXACT_WEIGHTS, SMOKE_TEST_FILE, Expectation, SmokeTest
from s2d.loading.load_model import export_exit

_SMOKE_TEST = Path(__file__).with_name("smoke_test.py")
_EXECUTABLE = 0o755


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportContents:
    """All that an exported folder holds."""

    serving: Serving
    plan: Plan
    plan_text: str
    """The plan as a file."""
    models: ExportedModels
    files: tuple[TextFile, ...]
    readme: str
    expected: Expectation | None
    """Of the smoke test; None without one."""


def write_export(folder: PathLike, contents: ExportContents) -> None:
    """Write all files.

    Raises:
        BadFile: the folder exists, or cannot be made.
        OutOfSpace: the disk is full.
        UserInputError: a model cannot be converted.
        Mismatch: the target's weights are not the plan's.
    """
    with atomic_folder(folder) as out:
        _write_checkpoints(out, contents)
        (out / "plan.json").write_text(contents.plan_text, encoding="utf-8")
        for file in (*contents.files, TextFile(name="README.md", text=contents.readme, purpose="")):
            _write_text(out, file)
        if contents.expected is not None:
            _write_smoke_test(out, contents.serving, contents.expected)


def _write_checkpoints(out: Path, contents: ExportContents) -> None:
    """The exit, and the target where it is converted, as the engine loads them."""
    from s2d.engines.checkpoints import make_checkpoint

    serving, models = contents.serving, contents.models
    engine, draft = serving.engine, models.draft.folder
    if engine.runs_exits:
        shutil.copytree(draft, out / serving.draft)
        return
    exit_folder = out / ".exit"
    print_err(f"exporting exit {serving.policy.exit_layer}")
    export_exit(draft, serving.policy.exit_layer, exit_folder)
    make_checkpoint(exit_folder, engine.name, serving.weights, out / serving.draft)
    shutil.rmtree(exit_folder)
    if serving.is_target_inside:
        assert models.target is not None
        print_err(f"converting the target for {engine.title}")
        check_target_weights(contents.plan, models.target)
        make_checkpoint(models.target.folder, engine.name, serving.weights, out / serving.target)
    if engine.name == "transformers":
        _write_assistant_settings(out / serving.draft / "generation_config.json", serving)
    if engine.checkpoint == "onnx":
        write_composite(out, serving)


def _write_assistant_settings(path: Path, serving: Serving) -> None:
    """The draft's own generation configuration, where transformers reads the draft length."""
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    settings |= {
        "num_assistant_tokens": serving.policy.draft_tokens,
        "num_assistant_tokens_schedule": "constant",
        "assistant_confidence_threshold": serving.policy.floor or 0.0,
    }
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_smoke_test(out: Path, serving: Serving, expected: Expectation) -> None:
    """The script, its prompts, and what runs the engine, so that the smoke test needs nothing of this project."""
    shutil.copyfile(_SMOKE_TEST, out / "smoke_test.py")
    test = SmokeTest(
        engine=serving.engine.name,
        weights=serving.weights,
        target=serving.target,
        draft=serving.draft,
        draft_tokens=serving.policy.draft_tokens,
        floor=serving.policy.floor,
        num_threads=serving.num_threads,
        context_tokens=serving.context_tokens,
        acceptance_length=expected.acceptance_length,
        tolerance_frac=expected.tolerance_frac,
        expected_from=expected.source,
        has_exact_text=serving.weights in EXACT_WEIGHTS,
        prompts=expected.prompts,
    )
    SMOKE_TEST_FILE.write(out / "prompts.json", test, make_provenance(argv=("s2d-plan", "export")))
    worker = find_worker(serving.engine.name)
    scripts = [GUARD, *([] if worker is None else [worker, WORKERS / "serve.py"])]
    scripts += [WORKERS / "xllamacpp_server.py"] if serving.engine.name == "llama.cpp" else []
    (out / "smoke").mkdir()
    for script in scripts:
        shutil.copyfile(script, out / "smoke" / script.name)


def _write_text(out: Path, file: TextFile) -> None:
    path = out / file.name
    path.write_text(file.text, encoding="utf-8")
    if file.is_command:
        path.chmod(_EXECUTABLE)

import json
from pathlib import Path

import numpy as np
import pytest

from perfmodel.acceptance.splits import prompt_half
from s2d.commands.train_cli import main_train
from s2d.decoding.encode_prompts import encode_prompts
from s2d.decoding.pair import PairRequest, load_pair
from s2d.loading.load_model import export_exit, load_model
from s2d.loading.model_folder import FAMILY_PROMPTS, find_model
from s2d.loading.sidecar import Sidecar, read_sidecar, write_sidecar
from s2d.prompt_files.choose import choose_prompts
from s2d.prompt_files.read import read_prompts
from s2d.training.calibrate_draft import ExitAgreement, calibrate_draft, exit_agreement, fit_calibration
from tests.s2d.loading.test_load_model import byte_tokenizer
from tests.stubs import TinySpec, tiny_llama

pytestmark = pytest.mark.e2e

EXITS = (2, 4)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A target, its first layers as a draft, and prompts of both halves."""
    tokenizer = byte_tokenizer()
    tiny_llama(TinySpec(vocab_size=len(tokenizer))).save_pretrained(tmp_path / "target")
    tokenizer.save_pretrained(tmp_path / "target")
    export_exit(tmp_path / "target", 4, tmp_path / "draft")
    write_sidecar(tmp_path / "draft", Sidecar(exit_layers=EXITS, norm="shared-final-norm", calibration=None))
    lines = [{"name": f"file-{number}:1", "category": "c", "text": "the cat and"} for number in range(8)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def test_the_fit_recovers_known_curves() -> None:
    rng = np.random.default_rng(1)
    confidence = rng.random((4000, 2))
    agreement = (rng.random((4000, 2)) < 0.3 + 0.6 * confidence).astype(float)
    parts = [
        ExitAgreement(confidence=c, agreement=a) for c, a in zip(np.split(confidence, 40), np.split(agreement, 40), strict=True)
    ]
    calibration = fit_calibration(parts, [number % 4 for number in range(40)], ("any",))
    for curve in calibration.curves:
        assert [curve(confidence) for confidence in (0.2, 0.5, 0.8)] == pytest.approx([0.42, 0.6, 0.78], abs=0.06)
    assert calibration.num_positions == 4000


def test_the_last_exit_of_the_target_always_agrees_with_the_target(folders: Path) -> None:
    write_sidecar(folders / "target", Sidecar(exit_layers=(2, 6), norm="shared-final-norm", calibration=None))
    pair = load_pair(PairRequest(target=str(folders / "target"), draft=str(folders / "target"), dtype="fp32", device="cpu"))
    (prompt, *_) = encode_prompts(pair, read_prompts(folders / "prompts.jsonl"), max_new_tokens=12)
    text = exit_agreement(pair, pair.session(60), prompt, 12)
    assert text.agreement[:, 1].tolist() == [1.0] * len(text.agreement)
    assert text.confidence.shape == (len(text.agreement), 2)


def test_the_command_writes_curves_into_the_sidecar_and_changes_no_weight(folders: Path, capsys) -> None:
    before = load_model(folders / "draft", "fp32")
    flags = ["--draft", str(folders / "draft"), "--target", str(folders / "target"), "--max-new-tokens", "8"]
    assert main_train(["calibrate", *flags, "--prompts", str(folders / "prompts.jsonl")]) == 0
    assert "positions of text by target" in capsys.readouterr().out
    after = load_model(folders / "draft", "fp32")
    assert before.calibration is None
    assert after.calibration is not None
    assert len(after.calibration.curves) == 2
    assert (after.sha256, after.exit_layers) == (before.sha256, before.exit_layers)


@pytest.mark.parametrize(
    ("flags", "exits", "label"), [([], (4,), "4 (full depth"), (["--exits", "1,3"], (1, 3), "1/3 (--exits)")]
)
def test_a_model_without_a_sidecar_gets_one(
    folders: Path, capsys, flags: list[str], exits: tuple[int, ...], label: str
) -> None:
    (folders / "draft" / "s2d.json").unlink()
    models = ["--draft", str(folders / "draft"), "--target", str(folders / "target"), "--max-new-tokens", "8"]
    assert main_train(["calibrate", *models, "--prompts", str(folders / "prompts.jsonl"), *flags]) == 0
    assert f"s2d.json, exits {label}" in " ".join(capsys.readouterr().out.split())
    written = read_sidecar(folders / "draft")
    assert (written.exit_layers, len(written.calibration.curves)) == (exits, len(exits))


def test_calibrating_from_python_equals_the_command_and_prints_the_same(folders: Path, capsys) -> None:
    draft, target, prompts = folders / "draft", folders / "target", folders / "prompts.jsonl"
    flags = ["--draft", str(draft), "--target", str(target), "--max-new-tokens", "8", "--prompts", str(prompts)]
    assert main_train(["calibrate", *flags]) == 0
    printed, sidecar = capsys.readouterr().out, read_sidecar(draft)
    names: list[str] = []
    calibrated = calibrate_draft(draft, targets=target, prompts=prompts, max_new_tokens=8, on_prompt=names.append)
    assert read_sidecar(draft) == sidecar
    assert f"{calibrated}\n" == printed
    assert calibrated.exits.calibration == sidecar.calibration
    assert names == [name for name in (f"file-{number}:1" for number in range(8)) if prompt_half(name) == "calibration"]


def test_prompts_must_be_given_for_models_outside_the_reference_family(folders: Path, capsys) -> None:
    assert main_train(["calibrate", "--draft", str(folders / "draft"), "--target", str(folders / "target")]) == 2
    assert "give its prompts with --prompts FILE" in capsys.readouterr().err


def test_the_calibration_of_the_shipped_draft_holds_on_prompts_outside_its_fit() -> None:
    pair = load_pair(PairRequest(target="ref-target-16", draft="ref-draft", dtype="fp32", device="cpu"))
    calibration = read_sidecar(find_model("ref-draft")).calibration
    assert calibration.targets == ("ref-target-16", "ref-target-32")
    prompts = encode_prompts(pair, choose_prompts(read_prompts(FAMILY_PROMPTS), "evaluation", 6), max_new_tokens=48)
    texts = [exit_agreement(pair, pair.session(512), prompt, 48) for prompt in prompts]
    confidence, agreement = (
        np.concatenate([getattr(text, name)[:, -1] for text in texts]) for name in ("confidence", "agreement")
    )
    predicted = np.array([calibration.curves[-1](float(value)) for value in confidence])
    assert abs(predicted.mean() - agreement.mean()) < 0.1 < abs(confidence.mean() - agreement.mean())

import json
import shutil
import signal
from pathlib import Path

import pytest
from safetensors import SafetensorError
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from s2d.commands.train_cli import main_train
from s2d.loading.load_model import load_model
from s2d.loading.sidecar import read_sidecar
from s2d.training import train_draft
from s2d.training.resume import CHECKPOINT_NAME
from s2d.training.training_record import TRAINING_FILE, TRAINING_NAME
from tests.stubs import TinySpec, tiny_llama

pytestmark = pytest.mark.e2e

RUST_NO_SPACE = "Error while serializing: I/O error: No space left on device (os error 28)"
WORDS = [*"abcdefghijklmnopqrstuv", "<end>"]
FEW_STEPS = ["--steps", "3", "--batch-sequences", "2", "--sequence-tokens", "16"]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    tiny_llama(TinySpec(vocab_size=len(WORDS))).save_pretrained(folder)
    words = Tokenizer(WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<end>"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>").save_pretrained(folder)
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("a b c d e f g h " * 40, encoding="utf-8")
    return path


def test_the_runtime_loads_a_trained_draft_with_its_exits(target, text, tmp_path, capsys):
    out = tmp_path / "draft"
    flags = ["--target", str(target), "--teacher", str(target), "--exits", "1,3", "--text", str(text), "-o", str(out)]
    assert main_train(["draft", *flags, *FEW_STEPS]) == 0
    assert "exits 1/3\n\nnext: s2d-profile" in capsys.readouterr().out
    draft = load_model(out, "fp32")
    assert (draft.geometry.num_layers, draft.exit_layers) == (3, (1, 3))
    assert not (tmp_path / "draft.partial").exists()


def test_training_from_python_gives_the_weights_and_the_text_of_the_command(target, text, tmp_path, capsys):
    assert main_train(command(target, text, tmp_path / "draft", "--teacher", str(target))) == 0
    sizes, losses = {"steps": 3, "batch_sequences": 2, "sequence_tokens": 16}, []
    trained = train_draft.train_draft(
        target,
        exits=(1, 3),
        text=text,
        output=tmp_path / "again",
        teachers=[target],
        on_step=lambda step, loss: losses.append(loss),
        **sizes,
    )
    assert f"{trained}\n" == capsys.readouterr().out.replace(str(tmp_path / "draft"), str(tmp_path / "again"))
    assert load_model(trained.folder, "fp32").sha256 == load_model(tmp_path / "draft", "fp32").sha256
    assert len(losses) == 3


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_a_draft_has_its_targets_family_even_with_a_teacher_of_other_padding(family, target, text, tmp_path):
    settings = (("use_sliding_window", True), ("sliding_window", 64), ("max_window_layers", 2))
    tiny_llama(TinySpec(family=family, vocab_size=len(WORDS), settings=settings)).save_pretrained(target)
    teacher = tmp_path / "teacher"
    shutil.copytree(target, teacher)
    tiny_llama(TinySpec(vocab_size=len(WORDS) + 5, num_layers=2)).save_pretrained(teacher)
    out = tmp_path / "draft"
    flags = ["--target", str(target), "--teacher", str(teacher), "--exits", "1,3", "--text", str(text), "-o", str(out)]
    assert main_train(["draft", *flags, *FEW_STEPS]) == 0
    draft = load_model(out, "fp32")
    assert (draft.geometry.num_layers, draft.geometry.windowed_layers, draft.exit_layers) == (3, 1, (1, 3))
    assert json.loads((out / "config.json").read_text())["model_type"] == family
    assert draft.calibration is not None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--exits", "1,9"], "a draft of 9 layers from a target of 6: give --exits up to 6"),
        (["--exits", "3,1"], "'3,1' is not a rising list of layer counts such as 6,9,12"),
        (["--exits", "1,3", "--sequence-tokens", "4000"], "give more text with --text, or a smaller --sequence-tokens"),
    ],
)
def test_impossible_trainings_are_refused_with_a_fix(target, text, tmp_path, capsys, flags, message):
    out = tmp_path / "draft"
    assert main_train(["draft", "--target", str(target), "--text", str(text), "-o", str(out), *FEW_STEPS, *flags]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_an_existing_output_is_not_overwritten(target, text, tmp_path, capsys):
    assert main_train(["draft", "--target", str(target), "--exits", "1,3", "--text", str(text), "-o", str(target)]) == 2
    assert "exists already" in capsys.readouterr().err


def command(target: Path, text: Path, out: Path, *more: str) -> list[str]:
    flags = ["--target", str(target), "--exits", "1,3", "--text", str(text), "-o", str(out)]
    return ["draft", *flags, *FEW_STEPS, *more]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def interrupted(target: Path, text: Path, tmp_path: Path, monkeypatch, capsys) -> Path:
    """A draft whose training was interrupted after its second step."""
    step_once = train_draft.train_sorted

    def press_ctrl_c(*args, on_step, **kwargs):
        def pressing(step, loss):
            if step == 1:
                signal.raise_signal(signal.SIGINT)

        step_once(*args, on_step=pressing, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(train_draft, "train_sorted", press_ctrl_c)
        assert main_train(command(target, text, tmp_path / "draft")) == 130
    assert f"the partial result is in {str(tmp_path / 'draft.partial')!r}" in capsys.readouterr().err
    return tmp_path / "draft"


def test_a_repeated_command_resumes_and_leaves_only_the_draft(interrupted, target, text, tmp_path):
    assert main_train(command(target, text, interrupted)) == 0
    assert names_in(tmp_path) == ["draft", "target", "text.txt"]
    training = TRAINING_FILE.read(interrupted / TRAINING_NAME).record
    assert (training.settings.steps, training.exit_layers) == (3, (1, 3))
    assert len((interrupted / "loss.jsonl").read_text().splitlines()) == 2


def test_the_training_of_another_command_is_not_resumed(interrupted, target, text, tmp_path, capsys):
    other = tmp_path / "other"
    tiny_llama(TinySpec(vocab_size=len(WORDS), seed=7)).save_pretrained(other)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (other / name).write_bytes((target / name).read_bytes())
    for flags, facts in (
        (command(other, text, interrupted, "--exits", "1,4", "--seed", "9"), ("start weights", "exits 1/3", "seed 0")),
        (command(target, text, interrupted, "--steps", "9"), ("steps 3",)),
        (command(target, text, interrupted, "--teacher", str(other)), ("teachers none",)),
    ):
        assert main_train(flags) == 2
        err = capsys.readouterr().err
        assert all(fact in err for fact in facts), err
        assert "Repeat its command to resume it, delete" in err
        assert not interrupted.exists()
    text.write_text("c a b " * 200)
    assert main_train(command(target, text, interrupted)) == 2
    assert "was made for text " in capsys.readouterr().err


def test_a_full_disk_at_the_end_keeps_the_training_and_leaves_no_partial_draft(target, text, tmp_path, monkeypatch, capsys):
    def no_space(*args, **kwargs):
        raise SafetensorError(RUST_NO_SPACE)

    with monkeypatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "save_pretrained", no_space)
        assert main_train(command(target, text, tmp_path / "draft")) == 2
    err = capsys.readouterr().err
    assert f"no space left to write {str(tmp_path / 'draft')!r}" in err
    assert f"The partial result is in {str(tmp_path / 'draft.partial')!r}. Free some space and repeat" in err
    assert names_in(tmp_path) == ["draft.partial", "target", "text.txt"]
    assert main_train(command(target, text, tmp_path / "draft")) == 0
    assert "3/3" not in capsys.readouterr().err  # no step was taken again


def test_a_disk_too_full_for_the_state_warns_and_the_draft_may_still_fit(target, text, tmp_path, monkeypatch, capsys):
    def no_space(*args, **kwargs):
        raise SafetensorError(RUST_NO_SPACE)

    monkeypatch.setattr("s2d.training.resume.save_file", no_space)
    with monkeypatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "save_pretrained", no_space)
        assert main_train(command(target, text, tmp_path / "draft")) == 2
    err = capsys.readouterr().err
    assert "warning: no space left to write" in err
    assert "is kept" not in err
    assert names_in(tmp_path) == ["target", "text.txt"]
    assert main_train(command(target, text, tmp_path / "draft")) == 0
    assert names_in(tmp_path) == ["draft", "target", "text.txt"]


def test_ctrl_c_on_a_full_disk_keeps_the_previous_checkpoint(interrupted, target, text, tmp_path, monkeypatch, capsys):
    before = (tmp_path / "draft.partial" / CHECKPOINT_NAME).read_bytes()

    def no_space(*args, **kwargs):
        raise SafetensorError(RUST_NO_SPACE)

    monkeypatch.setattr("s2d.training.resume.save_file", no_space)
    step_once = train_draft.train_sorted

    def press_ctrl_c(*args, on_step, **kwargs):
        step_once(*args, on_step=lambda step, loss: signal.raise_signal(signal.SIGINT), **kwargs)

    monkeypatch.setattr(train_draft, "train_sorted", press_ctrl_c)
    assert main_train(command(target, text, interrupted)) == 2
    err = capsys.readouterr().err
    assert "no space left" in err
    assert "draft.partial" in err
    assert (tmp_path / "draft.partial" / CHECKPOINT_NAME).read_bytes() == before


def test_ctrl_c_before_the_first_step_reports_that_nothing_was_kept(target, text, tmp_path, monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_draft, "load_trainable", interrupt)
    assert main_train(command(target, text, tmp_path / "draft")) == 130
    assert "there is no partial result" in capsys.readouterr().err
    assert names_in(tmp_path) == ["target", "text.txt"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--matrix-lr", "nan"], "'nan' is not a finite number above 0"),
        (["--vector-lr", "inf"], "'inf' is not a finite number above 0"),
        (["--matrix-lr", "0"], "'0' is not a finite number above 0"),
        (["--seed", "-1"], "'-1' is not a whole number from 0"),
        (
            ["--sequence-tokens", "170"],
            "--sequence-tokens 170 is longer than the target's context of 160 tokens: give at most 160",
        ),
    ],
)
def test_invalid_numbers_are_refused(target, text, tmp_path, capsys, flags, message):
    assert main_train(command(target, text, tmp_path / "draft", *flags)) == 2
    assert message in capsys.readouterr().err
    assert names_in(tmp_path) == ["target", "text.txt"]


def test_unwritable_outputs_are_refused_before_training(target, text, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "d.partial").write_text("mine")
    for out, message in (
        (tmp_path / "file", "exists already"),
        (tmp_path / "nowhere" / "draft", "its folder does not exist"),
        (tmp_path / "d", "cannot be written: File exists"),
    ):
        assert main_train(command(target, text, out)) == 2
        assert message in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == (tmp_path / "d.partial").read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


def test_a_trained_draft_has_a_curve_per_exit_fitted_to_held_out_text(target, text, tmp_path):
    assert main_train(command(target, text, tmp_path / "draft")) == 0
    sidecar = read_sidecar(tmp_path / "draft")
    assert sidecar is not None
    assert sidecar.calibration is not None
    assert (len(sidecar.calibration.curves), sidecar.calibration.targets) == (2, ("target",))
    assert sidecar.calibration.num_positions > 0
    assert load_model(tmp_path / "draft", "fp32").calibration == sidecar.calibration


@pytest.mark.parametrize("lengths", [[400], [30, 50], [7] * 45])
def test_about_a_twentieth_of_the_text_is_held_out(lengths):
    texts = [[1000 * number + place for place in range(length)] for number, length in enumerate(lengths)]
    tokens, held_out = train_draft.split_tokens(texts)
    assert sorted([*tokens.tolist(), *held_out]) == sorted(token for ids in texts for token in ids)
    assert 0.03 < len(held_out) / sum(lengths) < 0.08

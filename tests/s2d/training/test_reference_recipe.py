import contextlib
import json
from dataclasses import replace

import pytest
import torch
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerFast

from perfmodel.core.errors import BadFile, Mismatch, OutOfSpace, UserInputError
from s2d.commands.train_cli import main_train
from s2d.loading.load_model import load_model
from s2d.prompts.conversation import Prompt
from s2d.training import corpus, package_family, reference_recipe, train_reference
from s2d.training.corpus import (
    HELD_OUT_ONE_IN,
    SourceFile,
    held_out_files,
    held_out_prompts,
    standard_library,
    training_texts,
)
from s2d.training.package_family import install_family, recipe_record
from s2d.training.reference_recipe import STABLE, Stage, new_model, resize_model, train_tokenizer
from s2d.training.train_reference import run_stage, run_stages
from s2d.training.training_record import TRAINING_FILE, TRAINING_NAME

pytestmark = pytest.mark.e2e


def test_about_a_tenth_of_the_files_is_held_out_and_never_trained_on():
    held_out = held_out_files()
    assert 0.5 / HELD_OUT_ONE_IN < len(held_out) / len(standard_library()) < 1.5 / HELD_OUT_ONE_IN
    assert not {file.text for file in held_out if file.text} & set(training_texts())


def test_prompts_are_cut_from_held_out_files_and_the_categories_alternate():
    prompts = held_out_prompts(6)
    texts = {file.path: file.text for file in held_out_files()}
    assert [prompt.category for prompt in prompts[:5]] == ["module", "class", "function", "docstring", "body"]
    assert len(prompts) == 30
    for prompt in prompts:
        assert prompt.text in texts[prompt.name.rpartition(":")[0]]


def test_files_provide_further_prompts_until_they_have_no_more(monkeypatch):
    lines = ["import this\n"] * 40 + [f"def f{number}(x):\n    class C: ...\n" for number in range(10)]
    text = "".join(lines) + '"""A docstring."""\nif True:\n    pass\nfor x in y:\n    pass\n"""Another."""\n'
    monkeypatch.setattr(corpus, "held_out_files", lambda: [SourceFile(path=f"{name}.py", text=text * 2) for name in "abc"])
    once, twice = held_out_prompts(2), held_out_prompts(3)
    assert twice[: len(once)] == once
    assert len({prompt.name for prompt in twice}) == 15
    with pytest.raises(ValueError, match="the held-out files hold 3 of 'module'"):
        held_out_prompts(4)


def test_every_file_provides_a_prompt_of_a_category_before_any_provides_a_second(monkeypatch):
    text = "x = 1\n" * 200 + "".join(f"def f{number}():\n    return {number}\n" for number in range(9))
    monkeypatch.setattr(corpus, "held_out_files", lambda: [SourceFile(path=f"{name}.py", text=text) for name in "abc"])
    monkeypatch.setattr(corpus, "PROMPT_CATEGORIES", ("function",))
    names = [prompt.name for prompt in held_out_prompts(7)]
    assert len(set(names)) == 7
    assert [sorted(name[0] for name in names[turn : turn + 3]) for turn in (0, 3)] == [["a", "b", "c"]] * 2


def test_added_layers_do_not_change_the_logits():
    torch.manual_seed(1)
    model = new_model(2).eval()
    token_ids = torch.randint(0, 2048, (1, 12))
    with torch.inference_mode():
        torch.testing.assert_close(resize_model(model, 5).eval()(token_ids).logits, model(token_ids).logits)


FEW = replace(STABLE, steps=3, warmup_steps=1, batch_sequences=4, sequence_tokens=32)
STAGES = (
    Stage(name="target-16", start=None, num_layers=3, settings=FEW),
    Stage(name="target-32", start="target-16", num_layers=4, settings=replace(FEW, seed=1)),
    Stage(
        name="draft", start="target-16", num_layers=6, settings=replace(FEW, all_exits=True), teachers=reference_recipe.TARGETS
    ),
)


@pytest.fixture
def tiny_recipe(monkeypatch) -> None:
    """The recipe with stages of three steps on a page of text."""
    files = [SourceFile(path=f"{number}.py", text=f"def f{number}(x):\n    return x + {number}\n" * 20) for number in range(40)]
    monkeypatch.setattr(corpus, "standard_library", lambda: files)
    for module in (reference_recipe, train_reference, package_family):
        monkeypatch.setattr(module, "STAGES", STAGES)
    monkeypatch.setattr(train_reference, "TEXT_NEW_TOKENS", 4)
    monkeypatch.setattr(train_reference, "TEXT_BATCHES", 1)
    monkeypatch.setattr(package_family, "CALIBRATION_NEW_TOKENS", 4)
    monkeypatch.setattr(package_family, "STABLE", FEW)
    prompts = [Prompt(name=f"{number}.py:1", category="module", text="def f(") for number in range(4)]
    monkeypatch.setattr(package_family, "held_out_prompts", lambda number: prompts)


def quiet(name, steps):
    return contextlib.nullcontext(lambda step, loss: None)


def no_space(*args, **kwargs):
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.usefixtures("tiny_recipe")
def test_the_record_of_a_family_has_the_actual_steps(tmp_path, capsys):
    family, work = tmp_path / "family", tmp_path / "family.work"
    assert main_train(["reference", "-o", str(family), "--max-steps", "2"]) == 0
    recorded = json.loads((family / "recipe.json").read_text())["stages"]
    assert {name: stage["steps"] for name, stage in recorded.items()} == {"target-16": 2, "target-32": 2, "draft": 2}
    assert TRAINING_FILE.read(work / "draft" / TRAINING_NAME).record.settings.steps == 2
    draft = load_model(family / "draft", "fp32")
    assert draft.exit_layers == (1, 2, 4, 6)
    assert draft.calibration.targets == ("target-16", "target-32")
    assert not list(work.glob("*.partial"))
    assert main_train(["reference", "-o", str(family), "--max-steps", "2"]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.usefixtures("tiny_recipe")
def test_a_shortened_stage_is_not_reused_for_a_whole_one(tmp_path):
    (work := tmp_path / "work").mkdir()
    run_stage(work, "target-16", max_steps=2, progress=quiet)
    run_stage(work, "target-16", max_steps=2, progress=quiet)  # nothing to do
    for run in (
        lambda: run_stages(work, max_steps=None, progress=quiet),
        lambda: run_stage(work, "target-32", max_steps=None, progress=quiet),
    ):
        with pytest.raises(Mismatch, match=r"the finished stage .*target-16' was made for steps 2, not for steps 3. Delete"):
            run()
    with pytest.raises(UserInputError, match="stage 'draft' needs stage 'target-32'"):
        run_stage(work, "draft", max_steps=2, progress=quiet)


@pytest.mark.usefixtures("tiny_recipe")
def test_a_stage_from_other_weights_is_refused(tmp_path):
    (work := tmp_path / "work").mkdir()
    for name in ("target-16", "target-32"):
        run_stage(work, name, max_steps=2, progress=quiet)
    new_model(2).save_pretrained(work / "target-16")
    with pytest.raises(Mismatch, match=r"target-32' was made for start weights"):
        run_stage(work, "target-32", max_steps=2, progress=quiet)


@pytest.mark.usefixtures("tiny_recipe")
def test_a_full_disk_leaves_no_partial_stage_tokenizer_or_family(tmp_path, monkeypatch):
    (work := tmp_path / "work").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedTokenizerFast, "save_pretrained", no_space)
        with pytest.raises(OutOfSpace, match="tokenizer"):
            train_tokenizer(work / "tokenizer")
    assert not list(work.iterdir())
    train_tokenizer(work / "tokenizer")
    model = type(new_model(1))
    with monkeypatch.context() as patch:
        patch.setattr(model, "save_pretrained", no_space)
        with pytest.raises(OutOfSpace, match="target-16"):
            run_stages(work, max_steps=2, progress=quiet)
    assert sorted(path.name for path in work.iterdir()) == ["target-16.partial", "tokenizer"]
    run_stages(work, max_steps=2, progress=quiet)
    with monkeypatch.context() as patch:
        patch.setattr(model, "save_pretrained", no_space)
        with pytest.raises(OutOfSpace, match="family"):
            install_family(work, tmp_path / "family")
    assert [path.name for path in tmp_path.iterdir()] == ["work"]
    with pytest.raises(BadFile, match="exists already"):
        install_family(work, work)
    assert recipe_record(work)["stages"]["draft"]["steps"] == 2


def test_unwritable_folders_are_refused_before_training(tmp_path, capsys):
    for flags, message in (
        (["-o", str(tmp_path)], "exists already"),
        (["-o", str(tmp_path / "nowhere" / "family")], "its folder does not exist"),
        (["-o", str(tmp_path / "nowhere" / "family"), "--stage", "base-8"], "its folder does not exist"),
        (["-o", str(tmp_path / "family"), "--work", str(tmp_path / "family")], "give two folders"),
    ):
        assert main_train(["reference", *flags]) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_ctrl_c_before_the_first_stage_reports_that_nothing_was_kept(tmp_path, monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_reference, "run_stages", interrupt)
    assert main_train(["reference", "-o", str(tmp_path / "family")]) == 130
    assert "there is no partial result" in capsys.readouterr().err

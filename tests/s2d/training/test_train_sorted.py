import itertools
import json
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from perfmodel.core.errors import BadFile, Mismatch, UserInputError
from s2d.training.resume import CHECKPOINT_NAME, LOSS_NAME
from s2d.training.train_draft import first_layers
from s2d.training.train_sorted import Batch, exit_logits, exit_losses, random_windows, train_sorted
from s2d.training.training_record import TrainingRecord, TrainSettings
from tests.stubs import TinySpec, tiny_llama

pytestmark = pytest.mark.e2e

SETTINGS = TrainSettings(
    steps=12,
    warmup_steps=2,
    cooldown_steps=4,
    batch_sequences=4,
    sequence_tokens=16,
    matrix_lr=0.02,
    vector_lr=1e-2,
    distill_frac=0.5,
    all_exits=True,
    seed=3,
)
EXITS = (1, 2, 4)
TRAINING = TrainingRecord(start_sha256="a" * 64, exit_layers=EXITS, text_sha256="b" * 64, teacher_sha256s=(), settings=SETTINGS)


def tiny_model(num_layers=4, seed=0):
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=48,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=num_layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=True,
        )
    )


def counting_batches(settings=SETTINGS, teacher=None):
    tokens = np.arange(4096, dtype=np.int32) % 40
    return (Batch(token_ids=ids, teacher=teacher) for ids in random_windows(tokens, settings, 1))


def test_the_logits_of_an_exit_are_those_of_the_model_cut_there():
    model = tiny_model().eval()
    token_ids = torch.randint(0, 48, (2, 9))
    with torch.inference_mode():
        for layers, logits in zip(EXITS, exit_logits(model, token_ids, EXITS), strict=True):
            torch.testing.assert_close(logits, first_layers(model, layers).eval()(token_ids).logits)


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
def test_first_layers_keep_their_family_and_store_their_depth(family):
    model = tiny_llama(TinySpec(family=family, settings=(("sliding_window", None),)))
    shallow, token_ids = first_layers(model, 4).eval(), torch.randint(0, 23, (2, 9))
    assert type(shallow) is type(model)
    assert len(getattr(shallow.config, "layer_types", None) or range(4)) == shallow.config.num_hidden_layers == 4
    with torch.inference_mode():
        torch.testing.assert_close(exit_logits(model, token_ids, (4, 6))[0], shallow(token_ids).logits)


def test_distillation_uses_the_tokens_that_both_models_have():
    logits, labels = torch.randn(2, 5, 8), torch.randint(0, 6, (2, 5))
    never = torch.full((2, 5, 3), -40.0)

    def divergence(exit_logit, teacher):
        return exit_losses([exit_logit], labels, teacher, 1.0)[0]

    padded = torch.cat((logits, never), -1)
    for exit_logit, teacher in ((padded, logits), (logits, padded)):
        torch.testing.assert_close(divergence(exit_logit, teacher), torch.tensor(0.0), atol=1e-5, rtol=0)
        expected = divergence(logits.roll(1, 0), logits)
        torch.testing.assert_close(divergence(exit_logit.roll(1, 0), teacher), expected, atol=1e-5, rtol=1e-5)


def test_the_loss_of_every_exit_falls(tmp_path):
    model = tiny_model()
    batch = next(counting_batches())

    def losses():
        with torch.inference_mode():
            return exit_losses(exit_logits(model, batch.token_ids[:, :-1], EXITS), batch.token_ids[:, 1:], None, 0.0)

    before = losses()
    train_sorted(model, counting_batches(), TRAINING, folder=tmp_path)
    assert all(after < 0.7 * start for after, start in zip(losses(), before, strict=True))


def test_distillation_alone_is_zero_at_the_teacher():
    logits = torch.randn(2, 5, 48)
    labels = torch.randint(0, 48, (2, 5))
    (loss,) = exit_losses([logits], labels, logits, 1.0)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("all_exits", [True, False])
def test_an_interrupted_training_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, all_exits):
    settings = replace(SETTINGS, all_exits=all_exits)
    training = replace(TRAINING, settings=settings)
    teacher = tiny_model(seed=9).eval()
    whole, stopped = tiny_model(), tiny_model()
    (tmp_path / "whole").mkdir()
    folder = tmp_path / "stopped"
    folder.mkdir()
    train_sorted(whole, counting_batches(settings, 0), training, teachers=[teacher], folder=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_sorted(stopped, counting_batches(settings, 0), training, teachers=[teacher], folder=folder, on_step=ctrl_c_at(6))
    resumed = tiny_model(seed=5)
    train_sorted(resumed, counting_batches(settings, 0), training, teachers=[teacher], folder=folder)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def ctrl_c_at(last_step):
    def on_step(step, loss):
        if step == last_step:
            signal.raise_signal(signal.SIGINT)

    return on_step


def interrupted_training(folder):
    with pytest.raises(KeyboardInterrupt):
        train_sorted(tiny_model(), counting_batches(), TRAINING, folder=folder, on_step=ctrl_c_at(3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start_sha256": "c" * 64}, "was made for start weights aaaaaaaaaaaa, not for start weights cccccccccccc"),
        ({"exit_layers": (1, 4)}, "was made for exits 1/2/4, not for exits 1/4"),
        ({"text_sha256": "d" * 64}, "was made for text bbbbbbbbbbbb, not for text dddddddddddd"),
        ({"teacher_sha256s": ("e" * 64,)}, "was made for teachers none, not for teachers eeeeeeeeeeee"),
        ({"settings": replace(SETTINGS, steps=20, seed=9)}, "was made for steps 12, seed 3, not for steps 20, seed 9"),
    ],
)
def test_the_checkpoint_of_another_training_is_refused_with_the_differences(tmp_path, change, message):
    interrupted_training(tmp_path)
    with pytest.raises(Mismatch, match=message) as caught:
        train_sorted(tiny_model(), counting_batches(), replace(TRAINING, **change), folder=tmp_path)
    assert "Repeat its command to resume it, delete" in str(caught.value)
    assert (tmp_path / CHECKPOINT_NAME).exists()


def test_a_damaged_checkpoint_is_named(tmp_path):
    interrupted_training(tmp_path)
    path = tmp_path / CHECKPOINT_NAME
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadFile, match="this checkpoint is damaged"):
        train_sorted(tiny_model(), counting_batches(), TRAINING, folder=tmp_path)


def test_a_killed_training_resumes_from_its_last_save_and_logs_no_step_twice(tmp_path, monkeypatch):
    """An unhandled error leaves the same files as a kill."""
    seconds = itertools.count(step=40.0)

    def killed(step, loss):
        if step == 8:
            raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("s2d.training.train_sorted.perf_counter", lambda: next(seconds))
        with pytest.raises(MemoryError):
            train_sorted(tiny_model(), counting_batches(), TRAINING, folder=tmp_path, on_step=killed)
    (tmp_path / LOSS_NAME).write_text('{"step": 0}\n{"step": 7}\n{"st', encoding="utf-8")
    steps = []
    resumed, whole = tiny_model(seed=5), tiny_model()
    train_sorted(resumed, counting_batches(), TRAINING, folder=tmp_path, on_step=lambda step, loss: steps.append(step))
    assert 0 < steps[0] < 8
    assert [json.loads(line)["step"] for line in (tmp_path / LOSS_NAME).read_text().splitlines()] in ([0, 11], [0, 7, 11])
    (tmp_path / "whole").mkdir()
    train_sorted(whole, counting_batches(), TRAINING, folder=tmp_path / "whole")
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_a_finished_training_keeps_its_state_until_the_caller_removes_it(tmp_path):
    train_sorted(tiny_model(), counting_batches(), TRAINING, folder=tmp_path)
    steps = []
    train_sorted(tiny_model(), counting_batches(), TRAINING, folder=tmp_path, on_step=lambda step, loss: steps.append(step))
    assert steps == []


def test_a_loss_that_is_no_number_says_what_to_change(tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("inf"))
    with pytest.raises(UserInputError, match="give lower learning rates"):
        train_sorted(model, counting_batches(), TRAINING, folder=tmp_path)


def test_the_learning_rate_warms_up_stays_and_falls_to_zero():
    rates = [SETTINGS.lr_frac(step) for step in range(SETTINGS.steps)]
    assert rates == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_windows_repeat_for_the_same_seed_and_differ_between_streams():
    tokens = np.arange(500, dtype=np.int32)
    first, again, other = (list(itertools.islice(random_windows(tokens, SETTINGS, stream), 2)) for stream in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])

import itertools
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from s2d.train import Batch, TrainSettings, exit_logits, exit_losses, train_sorted, windows
from s2d.train_draft import first_layers

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
    return (Batch(token_ids=ids, teacher=teacher) for ids in windows(tokens, settings, 1))


def test_an_exit_says_what_the_model_cut_off_there_says():
    model = tiny_model().eval()
    token_ids = torch.randint(0, 48, (2, 9))
    with torch.inference_mode():
        for layers, logits in zip(EXITS, exit_logits(model, token_ids, EXITS), strict=True):
            torch.testing.assert_close(logits, first_layers(model, layers).eval()(token_ids).logits)


def test_the_loss_of_every_exit_falls(tmp_path):
    model = tiny_model()
    batch = next(counting_batches())

    def losses():
        with torch.inference_mode():
            return exit_losses(exit_logits(model, batch.token_ids[:, :-1], EXITS), batch.token_ids[:, 1:], None, 0.0)

    before = losses()
    train_sorted(model, EXITS, counting_batches(), SETTINGS, folder=tmp_path)
    assert all(after < 0.7 * start for after, start in zip(losses(), before, strict=True))


def test_distillation_alone_is_zero_at_the_teacher():
    logits = torch.randn(2, 5, 48)
    labels = torch.randint(0, 48, (2, 5))
    (loss,) = exit_losses([logits], labels, logits, 1.0)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("all_exits", [True, False])
def test_an_interrupted_training_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, all_exits):
    settings = replace(SETTINGS, all_exits=all_exits)
    teacher = tiny_model(seed=9).eval()
    whole, stopped = tiny_model(), tiny_model()
    (tmp_path / "whole").mkdir()
    (tmp_path / "stopped").mkdir()
    train_sorted(whole, EXITS, counting_batches(settings, 0), settings, teachers=[teacher], folder=tmp_path / "whole")

    def press_ctrl_c(step, loss):
        if step == 6:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_sorted(
            stopped,
            EXITS,
            counting_batches(settings, 0),
            settings,
            teachers=[teacher],
            folder=tmp_path / "stopped",
            on_step=press_ctrl_c,
        )
    resumed = tiny_model(seed=5)
    train_sorted(resumed, EXITS, counting_batches(settings, 0), settings, teachers=[teacher], folder=tmp_path / "stopped")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert not (tmp_path / "stopped" / "checkpoint.safetensors").exists()


def test_the_learning_rate_warms_up_stays_and_falls_to_zero():
    rates = [SETTINGS.lr_frac(step) for step in range(SETTINGS.steps)]
    assert rates == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_windows_repeat_for_the_same_seed_and_differ_between_streams():
    tokens = np.arange(500, dtype=np.int32)
    first, again, other = (list(itertools.islice(windows(tokens, SETTINGS, stream), 2)) for stream in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])

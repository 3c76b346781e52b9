"""Drafts with a head for the most frequent tokens: their logits, their folders, and output equal to plain decoding."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from perfmodel.core.errors import BadPolicy, UserInputError
from perfmodel.policies.policy import Policy, SurvivalFloor
from perfmodel.policies.sampling import GREEDY, Sampling
from s2d.commands.train_cli import main_train
from s2d.loading.convert_weights import with_reduced_head, with_vocab_size
from s2d.loading.load_model import LoadedModel, load_model, save_draft
from s2d.loading.sidecar import Calibration, CalibrationCurve, Sidecar, read_sidecar
from s2d.model.decoder import Decoder
from s2d.training.reduce_vocab import ReducedDraft, frequent_tokens, reduce_head, reduce_vocab, token_counts
from s2d.training.requests import ReduceVocabRequest
from tests.stubs import EOS, VOCAB_SIZE, TinySpec, generate, tiny_llama, tiny_model

pytestmark = pytest.mark.e2e

WORDS = [*"abcdefghijklmnopqrstuv", "<end>"]
END = WORDS.index("<end>")
TEXT = "b " * 9 + "d " * 5 + "a " * 3 + "c " * 3 + "v "
CURVE = CalibrationCurve(confidence=(0.0, 1.0), agreement=(0.2, 0.9))
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture
def draft(tmp_path: Path) -> Path:
    source = tmp_path / "model"
    tiny_llama(TinySpec(num_layers=4, vocab_size=len(WORDS))).save_pretrained(source)
    words = Tokenizer(WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<end>"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>").save_pretrained(source)
    curves = Calibration(confidence="max-prob", curves=(CURVE, CURVE), targets=(), num_positions=1)
    save_draft(source, tmp_path / "draft", Sidecar(exit_layers=(2, 4), norm="shared-final-norm", calibration=curves))
    return tmp_path / "draft"


def reduced(draft: Path, out: Path, exits: tuple[int, ...] | None = None) -> ReducedDraft:
    """A copy of the draft with a head of four tokens."""
    return reduce_head(ReduceVocabRequest(draft=str(draft), num_tokens=4, text=(), output=out, exits=exits), [TEXT])


def exit_logits(model: LoadedModel) -> torch.Tensor:
    return model.decoder.all_exit_logits(TOKENS, (2, 4))[1]


def test_the_most_frequent_tokens_and_the_end_token_are_kept(draft: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(draft)
    counts = token_counts(tokenizer, [TEXT, "b d"], len(WORDS))
    assert (counts.sum(), counts[1], counts[3], counts[END]) == (23, 10, 6, 0)
    assert frequent_tokens(counts, [END], 3) == (1, 3, END)
    assert frequent_tokens(counts, [END], 4) == (0, 1, 3, END)  # a and c are equally frequent: the lower id
    assert frequent_tokens(counts, [END], len(WORDS)) == tuple(range(len(WORDS)))


def test_a_reduced_draft_keeps_the_logits_of_its_tokens_and_has_none_for_others(draft: Path, tmp_path: Path) -> None:
    result = reduced(draft, tmp_path / "trimmed")
    sidecar = read_sidecar(tmp_path / "trimmed")
    assert sidecar is not None
    assert (sidecar.head_token_ids, sidecar.calibration, sidecar.exit_layers) == ((0, 1, 3, END), None, (2, 4))
    assert (result.num_tokens, result.covered_frac) == (4, pytest.approx(17 / 21))
    whole, trimmed = load_model(draft, "fp32"), load_model(tmp_path / "trimmed", "fp32")
    kept = torch.tensor(sidecar.head_token_ids)
    torch.testing.assert_close(exit_logits(trimmed)[:, kept], exit_logits(whole)[:, kept])
    others = torch.ones(len(WORDS), dtype=torch.bool).index_fill(0, kept, False)
    assert exit_logits(trimmed)[:, others].isneginf().all()
    assert trimmed.decoder.weights.head.shape == (32, 4)
    assert (trimmed.geometry.head_vocab_size, trimmed.geometry.vocab_size) == (4, len(WORDS))
    assert trimmed.sha256 != whole.sha256


@pytest.mark.parametrize(
    "sampling",
    [GREEDY, Sampling(rule="shared-noise", temperature=0.9, top_k=12, top_p=0.95, seed=3)],
    ids=["greedy", "shared noise"],
)
def test_a_reduced_draft_leaves_the_text_of_plain_decoding(sampling: Sampling) -> None:
    """Also where the text has tokens that the draft lacks."""
    target, whole = tiny_model(TinySpec()), tiny_model(TinySpec(num_layers=4), (1, 2, 4))
    head_tokens = tuple(range(0, VOCAB_SIZE, 2))
    decoder = Decoder(whole.geometry, with_reduced_head(whole.decoder.weights, head_tokens))
    draft = LoadedModel(**{name: getattr(whole, name) for name in whole.__slots__} | {"decoder": decoder})
    stop = SurvivalFloor(floor=0.2, calibration=(CURVE, CURVE))
    policy = Policy(exits=(1, 4), thresholds=(0.3,), tokens=5, stop=stop)
    common = {"sampling": sampling, "max_new_tokens": 60, "eos_token_id": EOS}
    for prompt in ([1], [2, 8, 3], TOKENS):
        plain = generate(target, None, prompt, policy=None, **common)
        speculative = generate(target, draft, prompt, policy=policy, **common)
        assert speculative.tokens == plain.tokens
        assert set(plain.tokens) - set(head_tokens) or len(plain.tokens) < 10
        assert speculative.rounds.num_accepted > 0 or len(plain.tokens) < 10


def test_other_padding_keeps_the_reduced_head() -> None:
    weights = with_reduced_head(tiny_model(TinySpec()).decoder.weights, (1, 5, 20))
    for num_tokens, kept in ((30, [1, 5, 20]), (20, [1, 5])):
        padded = with_vocab_size(weights, num_tokens)
        assert padded.head_token_ids is not None
        assert (padded.head_token_ids.tolist(), len(padded.embedding), padded.head.shape[1]) == (kept, num_tokens, len(kept))


def test_a_target_with_a_reduced_head_is_refused(draft: Path, tmp_path: Path) -> None:
    reduced(draft, tmp_path / "trimmed")
    trimmed = load_model(tmp_path / "trimmed", "fp32")
    with pytest.raises(
        UserInputError, match="target trimmed has a head of 4 of 23 tokens, expected one for the whole vocabulary"
    ):
        generate(trimmed, None, [1], policy=None, sampling=GREEDY, max_new_tokens=2, eos_token_id=None)


def test_a_head_with_unknown_tokens_is_refused(draft: Path, tmp_path: Path) -> None:
    sidecar = Sidecar(exit_layers=(2, 4), norm="shared-final-norm", calibration=None, head_token_ids=(1, len(WORDS)))
    save_draft(draft, tmp_path / "wrong", sidecar)
    with pytest.raises(BadPolicy, match=f"token {len(WORDS)} for the reduced head of wrong"):
        load_model(tmp_path / "wrong", "fp32")
    with pytest.raises(BadPolicy, match="rising token ids"):
        Sidecar(exit_layers=(2, 4), norm="shared-final-norm", calibration=None, head_token_ids=(2, 1))


def test_the_command_equals_the_function_and_prints_the_covered_part_of_the_text(draft: Path, tmp_path: Path, capsys) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    flags = ["trim", "--draft", str(draft), "--text", str(text), "-o", str(tmp_path / "trimmed")]
    assert main_train([*flags, "--tokens", "4"]) == 0
    out = capsys.readouterr().out
    assert "its head has 4 tokens, 81.0 % of the text" in " ".join(out.split())
    assert load_model(tmp_path / "trimmed", "fp32").geometry.num_head_tokens == 4
    result = reduce_vocab(draft, num_tokens=4, text=text, output=tmp_path / "again")
    assert str(result).split() == out.replace("trimmed", "again").split(), "lines are folded by the length of the path"
    assert read_sidecar(tmp_path / "again") == read_sidecar(tmp_path / "trimmed")
    assert main_train([*flags, "--tokens", "4"]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("tokens", [0, len(WORDS) + 1])
def test_invalid_numbers_of_tokens_are_refused_and_nothing_is_written(draft, tmp_path, capsys, tokens: int) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    flags = ["trim", "--draft", str(draft), "--text", str(text), "-o", str(tmp_path / "trimmed"), "--tokens", str(tokens)]
    assert main_train(flags) == 2
    assert (
        "is not a whole number of at least 1" in (err := capsys.readouterr().err)
        or "expected from 1 (the special tokens) to 23" in err
    )
    assert not (tmp_path / "trimmed").exists()


def test_texts_without_tokens_are_refused(draft: Path, tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="no tokens to count"):
        reduce_head(ReduceVocabRequest(draft=str(draft), num_tokens=4, text=(), output=tmp_path / "trimmed"), [""])
    assert np.array_equal(sorted(path.name for path in tmp_path.iterdir()), ["draft", "model"])


def test_a_model_without_a_sidecar_keeps_its_full_depth_or_the_requested_exits(draft: Path, tmp_path: Path) -> None:
    for out, exits, expected in (("whole", None, (4,)), ("requested", (1, 3), (1, 3))):
        reduced(tmp_path / "model", tmp_path / out, exits)
        assert load_model(tmp_path / out, "fp32").exit_layers == expected

"""Tokenizers in llama.cpp's terms: those it reproduces, and the others refused by the part that it does not know."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, WordLevel

from perfmodel.core.errors import BadFile
from perfmodel.models.geometry import ModelGeometry
from s2d.engines.gguf_tokenizer import GgufTokenizer, read_gguf_tokenizer

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace("{1,3}", "")
BYTES = {f"<0x{byte:02X}>": byte + 3 for byte in range(256)}
PIECES = ["▁", "a", "b", "c", "▁a", "ab", "▁ab", "abc", "▁abc"]
"""In SentencePiece, a piece is a better merge the earlier it stands."""


def geometry(vocab_size: int) -> ModelGeometry:
    return ModelGeometry(
        name="tiny",
        num_layers=1,
        hidden_size=32,
        intermediate_size=32,
        num_heads=2,
        num_kv_heads=2,
        head_dim=16,
        vocab_size=vocab_size,
        tied_embeddings=True,
        max_context_tokens=32,
        source="a test",
    )


def byte_level(*steps: Any, use_regex: bool = True, ignore_merges: bool = False) -> Tokenizer:
    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=[("a", "b")], ignore_merges=ignore_merges))
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, last]) if steps else last
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def split(regex: str) -> Any:
    return pre_tokenizers.Split(Regex(regex), "isolated")


def sentencepiece(merges: list[tuple[str, str]] | None = None) -> Tokenizer:
    """A tokenizer as transformers makes of a SentencePiece file."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | BYTES | {piece: 259 + rank for rank, piece in enumerate(PIECES)}
    pairs = [(piece[:end], piece[end:]) for piece in PIECES for end in range(1, len(piece))]
    listed = [pair for pair in pairs if pair[0] in vocab and pair[1] in vocab]
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=listed if merges is None else merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def read(folder: Path, tokenizer: Tokenizer, *, extra_ids: int = 0, **settings: object) -> GgufTokenizer:
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens | settings))
    return read_gguf_tokenizer(folder, geometry(tokenizer.get_vocab_size() + extra_ids))


@pytest.mark.parametrize(
    ("tokenizer", "rule"),
    [
        (byte_level(), "gpt-2"),
        (byte_level(pre_tokenizers.Digits(individual_digits=True)), "smollm"),
        (byte_level(split(LLAMA3), use_regex=False, ignore_merges=True), "llama-bpe"),
        (byte_level(split(LLAMA3), use_regex=False), "smaug-bpe"),
        (byte_level(split(QWEN2), use_regex=False), "qwen2"),
    ],
)
def test_the_splitting_rule_is_named_as_llama_cpp_names_it(tmp_path: Path, tokenizer: Tokenizer, rule: str) -> None:
    written = read(tmp_path, tokenizer)
    assert (written.model, written.pre, written.merges) == ("gpt2", rule, ("a b",))
    assert (written.bos_id, written.eos_id, written.adds_bos) == (0, 1, False)
    assert written.scores == ()


def test_ids_without_a_token_are_unused_and_special_tokens_are_control_tokens(tmp_path: Path) -> None:
    written = read(tmp_path, byte_level(), extra_ids=2, chat_template="{{ messages }}")
    assert written.tokens[-2:] == ("[PAD259]", "[PAD260]")
    assert (written.kinds[0], written.kinds[2], written.kinds[-1]) == (3, 1, 5)
    assert written.chat_template == "{{ messages }}"


def test_sentencepiece_merges_become_scores(tmp_path: Path) -> None:
    written = read(tmp_path, sentencepiece())
    assert (written.model, written.pre, written.merges) == ("llama", "default", ())
    assert (written.adds_bos, written.bos_id, written.adds_space) == (True, 1, True)
    scores = dict(zip(written.tokens, written.scores, strict=True))
    assert [scores[piece] for piece in ("▁a", "ab", "▁ab", "abc", "▁abc")] == [0.0, -1.0, -2.0, -3.0, -4.0]
    assert (written.kinds[0], written.kinds[1], written.kinds[3]) == (2, 3, 6)


@pytest.mark.parametrize(
    ("tokenizer", "problem"),
    [
        (Tokenizer(WordLevel({"<s>": 0, "</s>": 1}, "<s>")), "tokenizer model 'WordLevel', expected 'BPE'"),
        (byte_level(split(r"\w+"), use_regex=False), "cannot reproduce its pre_tokenizer"),
        (byte_level(split(LLAMA3)), "cannot reproduce its pre_tokenizer"),
        (sentencepiece([("▁", "a")]), "cannot reproduce its merges '1 merges'|expected all pairs"),
        (sentencepiece([("▁", "a"), ("a", "b"), ("▁a", "b"), ("ab", "c"), ("▁ab", "c"), ("▁", "ab")]), "together"),
    ],
)
def test_a_tokenizer_that_llama_cpp_would_apply_otherwise_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, problem: str
) -> None:
    with pytest.raises(BadFile, match=problem):
        read(tmp_path, tokenizer)


def test_a_lowercasing_tokenizer_and_one_with_too_many_tokens_are_refused(tmp_path: Path) -> None:
    tokenizer = byte_level()
    with pytest.raises(BadFile, match="it has the token id 258, and the model's vocabulary has 100 ids"):
        read(tmp_path, tokenizer, extra_ids=100 - tokenizer.get_vocab_size())
    tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(BadFile, match="cannot reproduce its normalizer"):
        read(tmp_path, tokenizer)

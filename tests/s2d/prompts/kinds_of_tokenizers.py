"""Small tokenizers of every kind that the runtime's families use, trained on a few lines."""

import json
from collections.abc import Callable
from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from s2d.loading.model_folder import FAMILY_FOLDER

TEXTS = [
    "def f(x):\n    return x + 1\n\nclass A:\n    pass\n",
    "Lily and Tom were playing in the park . They didn't see , it 's there ! We 've seen they 're here ?",
    "the naïve café costs 5 € and the 猫 sleeps",
] * 3
BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]
LLAMA_DECODER = [
    decoders.Replace("▁", " "),
    decoders.ByteFallback(),
    decoders.Fuse(),
    decoders.Strip(" ", 1, 0),
]


def byte_level() -> PreTrainedTokenizerFast:
    """GPT-2, Llama 3, Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def _trained_bpe() -> tuple[list[str], list[tuple[str, str]]]:
    """Pieces and merges over texts whose spaces are `▁`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trainer = trainers.BpeTrainer(vocab_size=130, show_progress=False)
    tokenizer.train_from_iterator([text.replace("猫", "").replace("€", "") for text in TEXTS], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"] if "\n" not in "".join(pair)]
    pieces = dict.fromkeys([*(piece for piece in model["vocab"] if len(piece) == 1), *("".join(pair) for pair in merges)])
    return [piece for piece in pieces if piece != "\n"], merges


def _llama(decoder: decoders.Decoder) -> Tokenizer:
    pieces, merges = _trained_bpe()
    vocab = {piece: index for index, piece in enumerate(["<unk>", "<s>", "</s>", *BYTE_PIECES, *pieces])}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def llama_2() -> PreTrainedTokenizerFast:
    """Llama 1 and 2, Vicuna, TinyLlama: every text gets a first space, which a decode strips."""
    tokenizer = _llama(decoders.Sequence(LLAMA_DECODER))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def mistral() -> PreTrainedTokenizerFast:
    """Mistral's newer files: Metaspace before the first word alone."""
    tokenizer = _llama(decoders.Sequence(LLAMA_DECODER))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def gemma() -> PreTrainedTokenizerFast:
    """Byte fallback without a first space."""
    tokenizer = _llama(decoders.Sequence(LLAMA_DECODER[:3]))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def unigram() -> PreTrainedTokenizerFast:
    """T5 and its kin: Metaspace around a Unigram model with byte fallback."""
    pieces, _ = _trained_bpe()
    scored = [(name, 0.0) for name in ("<unk>", "</s>")]
    scored += [(piece, -10.0) for piece in BYTE_PIECES] + [(piece, -5.0 + len(piece)) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in ("<unk>", "</s>")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def word_piece() -> PreTrainedTokenizerFast:
    """BERT and its kin."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=130, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="[SEP]", unk_token="[UNK]")


def family() -> PreTrainedTokenizerFast:
    """The one in the package."""
    return PreTrainedTokenizerFast.from_pretrained(FAMILY_FOLDER / "target-16", local_files_only=True)


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    one.__name__: one for one in (byte_level, llama_2, mistral, gemma, unigram, word_piece, family)
}


@cache
def tokenizer_of(kind: str, *, cleans_up: bool = False) -> PreTrainedTokenizerFast:
    """One of a kind, made once; with clean-up of spaces even where transformers leaves it out."""
    tokenizer = KINDS[kind]()
    tokenizer.clean_up_tokenization_spaces = cleans_up
    tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = cleans_up
    return tokenizer

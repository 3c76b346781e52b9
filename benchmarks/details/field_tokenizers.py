"""Tokenizers for field.py of the four common kinds, trained on a few lines."""

from collections.abc import Mapping

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = (
    "def f(x):\n    return x + 1\n\nclass A:\n    def g(self):\n        return f(self.x)\n",
    "Lily and Tom were playing in the park. It's a sunny day , isn't it ?",
    "Où est la gare ? Réponds en une phrase. Ça va ?",
    "naïve café, 東京タワー, Ελλάδα, привет, 🙂👩‍🚀 and ﬁne ligatures",
)
"""Training and test texts: code, punctuation that clean-up changes, accents, scripts and emoji."""

_SPECIAL = ("<unk>", "<s>", "</s>")


def tokenizers(*, clean_up: bool) -> Mapping[str, PreTrainedTokenizerFast]:
    """One tokenizer of each kind.

    Args:
        clean_up: whether decoding removes spaces before punctuation, as some tokenizer_config.json files request.
    """
    made = {
        "byte-level BPE": _byte_level(),
        "byte fallback, word starts (Llama 2)": _byte_fallback(),
        "Unigram, word starts (T5)": _unigram(),
        "WordPiece (BERT)": _word_piece(),
    }
    return {
        name: PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            unk_token="<unk>",
            bos_token="<s>",
            eos_token="</s>",
            clean_up_tokenization_spaces=clean_up,
            clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output=clean_up,
        )
        for name, tokenizer in made.items()
    }


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=list(_SPECIAL), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _byte_fallback() -> Tokenizer:
    """Like Llama 2: a space before the text, spaces as ▁, bytes for letters without a merge; decoding drops the first space."""
    vocabulary = {token: number for number, token in enumerate((*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))))}
    learned = Tokenizer(models.BPE(unk_token="<unk>"))
    learned.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    learned.train_from_iterator(CORPUS[:3], trainers.BpeTrainer(vocab_size=300, show_progress=False))
    for token in learned.get_vocab():
        vocabulary.setdefault(token, len(vocabulary))
    merges = [tuple(merge) for merge in _merges(learned)]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = learned.normalizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _with_special(tokenizer)


def _merges(tokenizer: Tokenizer) -> list[list[str]]:
    import json

    return [
        merge.split(" ") if isinstance(merge, str) else merge for merge in json.loads(tokenizer.to_str())["model"]["merges"]
    ]


def _unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=list(_SPECIAL), unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=list(_SPECIAL), show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _with_special(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in _SPECIAL])
    bos = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[bos])
    return tokenizer

"""The tokenizer of a GGUF file, from a model folder's tokenizer.json.

llama.cpp has its own tokenizers. Two kinds are written here, each only if llama.cpp's rules give the same token ids:
byte-level BPE (its model `gpt2`), whose splitting of text llama.cpp knows by name, and SentencePiece BPE with bytes for unknown
characters (its model `llama`), which merges by scores instead of a list of merges. Every other tokenizer is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfmodel.core.disk import read_bytes
from perfmodel.core.errors import BadFile, quoted
from perfmodel.models.geometry import ModelGeometry

_FIX = "Serve this model in an engine that reads Hugging Face folders, or convert it with llama.cpp's own script"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BY_REGEX: dict[tuple[str, bool], str] = {
    (rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}", True): "llama-bpe",
    (rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}", False): "smaug-bpe",
    (rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}", False): "qwen2",
    (_TEKKEN, True): "tekken",
}
"""llama.cpp's name of a splitting rule, by its regex and by whether whole words skip the merges (src/llama-vocab.cpp)."""
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
"""Kinds of tokens, as in `gguf.TokenType`."""
_SPACE = "▁"


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTokenizer:
    """A tokenizer in llama.cpp's terms. Tokens, kinds and scores are in the order of the ids."""

    model: str
    """`gpt2` or `llama`."""
    pre: str
    """Name of the rule that splits text before the merges."""
    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    merges: tuple[str, ...]
    """Empty for the model `llama`."""
    scores: tuple[float, ...]
    """Empty for the model `gpt2`."""
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    adds_bos: bool
    """Whether a text begins with the token `bos_id`."""
    adds_space: bool
    """Whether a text begins with a space. Always false for the model `gpt2`."""
    chat_template: str | None


def read_gguf_tokenizer(folder: Path, geometry: ModelGeometry) -> GgufTokenizer:
    """The tokenizer of a model folder.

    Raises:
        BadFile: there is no tokenizer.json, or llama.cpp would give other token ids; the message names the part.
    """
    path = folder / "tokenizer.json"
    raw = _read_json(path)
    settings = _read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    model = raw.get("model") or {}
    if model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise BadFile(path, f"tokenizer model {quoted(model.get('type'))}, expected 'BPE'", _FIX)
    parts = _Parts(path=path, raw=raw, model=model, vocab_size=geometry.vocab_size)
    tokens, kinds = parts.tokens()
    is_sentencepiece = bool(model.get("byte_fallback"))
    ids = _SpecialIds(folder=folder, settings=settings, tokens={text: token for token, text in enumerate(tokens)})
    bos_id = ids.find("bos")
    return GgufTokenizer(
        model="llama" if is_sentencepiece else "gpt2",
        pre="default" if is_sentencepiece else parts.splitting_rule(),
        tokens=tokens,
        kinds=kinds,
        merges=() if is_sentencepiece else tuple(" ".join(pair) for pair in parts.merges()),
        scores=parts.scores(tokens) if is_sentencepiece else (),
        bos_id=bos_id,
        eos_id=ids.find("eos"),
        pad_id=ids.find("pad"),
        adds_bos=bos_id is not None and parts.first_special_id() == bos_id,
        adds_space=is_sentencepiece and parts.adds_space(),
        chat_template=_chat_template(folder, settings),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """The parts of a tokenizer.json."""

    path: Path
    raw: Mapping[str, Any]
    model: Mapping[str, Any]
    vocab_size: int

    def tokens(self) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Texts and kinds of all tokens; ids without a token get a text of their own, which no input contains."""
        texts: dict[int, str] = {token: text for text, token in self.model["vocab"].items()}
        kinds = {token: self._kind(text) for token, text in texts.items()}
        for added in self.raw.get("added_tokens") or ():
            texts[added["id"]] = added["content"]
            kinds[added["id"]] = _CONTROL if added.get("special") else _USER_DEFINED
        if self.model.get("unk_token") in self.model["vocab"]:
            kinds[self.model["vocab"][self.model["unk_token"]]] = _UNKNOWN
        if max(texts, default=-1) >= self.vocab_size:
            problem = f"it has the token id {max(texts)}, and the model's vocabulary has {self.vocab_size} ids"
            raise BadFile(self.path, problem, "Fetch the model again")
        ids = range(self.vocab_size)
        return tuple(texts.get(token, f"[PAD{token}]") for token in ids), tuple(kinds.get(token, _UNUSED) for token in ids)

    def _kind(self, text: str) -> int:
        is_byte = self.model.get("byte_fallback") and len(text) == 6 and text.startswith("<0x") and text.endswith(">")
        return _BYTE if is_byte else _NORMAL

    def merges(self) -> Iterator[tuple[str, str]]:
        """The pairs of tokens that are merged, the first first."""
        for merge in self.model.get("merges") or ():
            left, _, right = merge.partition(" ") if isinstance(merge, str) else (merge[0], "", merge[1])
            yield left, right

    def splitting_rule(self) -> str:
        """llama.cpp's name of the rule that splits text before byte-level merges.

        Raises:
            BadFile: it has none.
        """
        normalizer = self.raw.get("normalizer")
        if normalizer is not None and normalizer.get("type") != "NFC":  # llama.cpp leaves out NFC; most text is in this form
            raise self._refuse("normalizer", normalizer, "null or NFC")
        steps = _sequence(self.raw.get("pre_tokenizer"), "pretokenizers")
        names = tuple(step.get("type") for step in steps)
        if not names or names[-1] != "ByteLevel" or steps[-1].get("add_prefix_space"):
            raise self._refuse("pre_tokenizer", self.raw.get("pre_tokenizer"), "ByteLevel without a space before the text")
        skips_merges = bool(self.model.get("ignore_merges"))
        splits_itself = steps[-1].get("use_regex", True)
        if names == ("ByteLevel",) and splits_itself and not skips_merges:
            return "gpt-2"
        if names == ("Digits", "ByteLevel") and steps[0].get("individual_digits") and splits_itself and not skips_merges:
            return "smollm"
        if names == ("Split", "ByteLevel") and not splits_itself:
            rule = _BY_REGEX.get((steps[0].get("pattern", {}).get("Regex"), skips_merges))
            if rule is not None and steps[0].get("behavior") == "Isolated" and not steps[0].get("invert"):
                return rule
        known = ", ".join(("gpt-2", "smollm", *_BY_REGEX.values()))
        raise self._refuse("pre_tokenizer", self.raw.get("pre_tokenizer"), f"one of llama.cpp's rules {known}")

    def scores(self, tokens: tuple[str, ...]) -> tuple[float, ...]:
        """Scores with which merging by the highest score does what the list of merges does.

        SentencePiece merges any two neighbours whose text is a token, the token with the highest score first. A list of merges
        does the same if it holds every such pair, and all pairs of one token stand together.

        Raises:
            BadFile: the list is another one.
        """
        vocab, rank = self.model["vocab"], dict[str, int]()
        previous, num_pairs = None, 0
        for left, right in self.merges():
            text = left + right
            if text != previous and text in rank:
                raise self._refuse("merges", text, "all pairs of a token together, as SentencePiece has them")
            rank.setdefault(text, len(rank))
            previous, num_pairs = text, num_pairs + 1
        special = {added["content"] for added in self.raw.get("added_tokens") or ()}
        merged = rank.keys() | {text for text in vocab if self._kind(text) == _NORMAL and text not in special}
        if num_pairs != sum(left in vocab and right in vocab for text in merged for left, right in _pairs(text)):
            raise self._refuse(
                "merges", f"{num_pairs} merges", "every pair of tokens whose text is a token, as SentencePiece has"
            )
        return tuple(-float(rank[text]) if text in rank else 0.0 for text in tokens)

    def adds_space(self) -> bool:
        """Whether a text begins with a space: its spaces become `▁` before the merges, and it is not split at them.

        Raises:
            BadFile: spaces are treated in another way.
        """
        normalizers = _sequence(self.raw.get("normalizer"), "normalizers")
        splitters = _sequence(self.raw.get("pre_tokenizer"), "pretokenizers")
        kinds = tuple(step.get("type") for step in (*normalizers, *splitters))
        if kinds == ("Prepend", "Replace") and normalizers[0].get("prepend") == _SPACE:
            return True
        if kinds == ("Replace",) and not splitters:
            return False
        if kinds == ("Metaspace",) and splitters and splitters[0].get("split") is False:
            return splitters[0].get("prepend_scheme", "always") != "never"
        raise self._refuse("normalizer", self.raw.get("normalizer"), "spaces replaced by '▁', as SentencePiece does")

    def first_special_id(self) -> int | None:
        """The special token that the tokenizer puts before a text; None if it puts none."""
        for step in _sequence(self.raw.get("post_processor"), "processors"):
            first = (step.get("single") or [{}])[0] if step.get("type") == "TemplateProcessing" else {}
            if "SpecialToken" in first:
                token = step["special_tokens"][first["SpecialToken"]["id"]]["ids"][0]
                return int(token)
        return None

    def _refuse(self, part: str, given: object, expected: str) -> BadFile:
        return BadFile(self.path, f"llama.cpp cannot reproduce its {part} {quoted(given)}, expected {expected}", _FIX)


@dataclass(frozen=True, slots=True, kw_only=True)
class _SpecialIds:
    """Finds the ids of special tokens in the files of a model folder."""

    folder: Path
    settings: Mapping[str, Any]
    tokens: Mapping[str, int]

    def find(self, role: str) -> int | None:
        """The id of a role: the tokenizer's own token, else the first one of the generation settings or the config."""
        token = self.settings.get(f"{role}_token")
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str) and text in self.tokens:
            return self.tokens[text]
        for name in ("generation_config.json", "config.json"):
            path = self.folder / name
            given = _read_json(path).get(f"{role}_token_id") if path.is_file() else None
            token_id = given[0] if isinstance(given, list) and given else given
            if isinstance(token_id, int) and 0 <= token_id < len(self.tokens):
                return token_id
        return None


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    """All ways to split a text into two parts."""
    for end in range(1, len(text)):
        yield text[:end], text[end:]


def _sequence(part: Mapping[str, Any] | None, key: str) -> tuple[Mapping[str, Any], ...]:
    """The steps of a part: its own list, or itself alone."""
    if part is None:
        return ()
    return tuple(part[key]) if part.get("type") == "Sequence" else (part,)


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text("utf-8")
    template = settings.get("chat_template")
    return template if isinstance(template, str) else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_bytes(path))
    except ValueError as err:
        raise BadFile(path, f"not readable JSON ({err})", "Fetch the model again") from err
    if not isinstance(value, dict):
        raise BadFile(path, "expected a JSON object", "Fetch the model again")
    return value

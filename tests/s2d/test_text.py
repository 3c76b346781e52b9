import pytest

from perfmodel.errors import UserInputError
from perfmodel.policy import ExitPolicy, FixedLength
from perfmodel.repetition import distinct_ngram_frac
from perfmodel.sampling import GREEDY
from s2d.generate import generate
from s2d.text import Stop, TextStream
from tests.s2d.test_load import byte_tokenizer
from tests.stubs import TinySpec, tiny_model

TOKENIZER = byte_tokenizer()


def ids(text: str) -> list[int]:
    return TOKENIZER(text)["input_ids"]


def test_a_stop_string_ends_the_text_at_the_token_that_completes_it() -> None:
    emitted = ids("xyzxyz")
    assert Stop(["yzx"], TOKENIZER).kept([], emitted) == 4
    assert Stop(["q"], TOKENIZER).kept([], emitted) is None


def test_a_stop_string_is_found_across_rounds_but_not_in_what_came_before() -> None:
    stop = Stop(["zx"], TOKENIZER)
    assert stop.kept(ids("xyz"), ids("xyz")) == 1
    assert Stop(["xyz"], TOKENIZER).kept(ids("y"), ids("xyzq")) == 3


def test_empty_stop_strings_are_refused() -> None:
    for strings in ([], ["a", ""]):
        with pytest.raises(UserInputError, match="expected at least one, none of them empty"):
            Stop(strings, TOKENIZER)


def test_streamed_pieces_make_the_text_and_never_half_a_character() -> None:
    text = "the näive 猫 then"
    pieces: list[str] = []
    stream = TextStream(TOKENIZER, pieces.append)
    for token in ids(text):
        stream.add([token])
    assert "".join(pieces) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    stream.add(ids("猫")[:1])
    stream.flush()
    assert "".join(pieces) == text + "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("cap", [1, 2, 5, 8])
def test_a_stop_string_inside_a_block_cuts_the_block(cap: int) -> None:
    target = tiny_model(TinySpec(vocab_size=len(TOKENIZER)))
    draft = tiny_model(TinySpec(vocab_size=len(TOKENIZER)), (6,))
    policy = ExitPolicy(exit_layers=(6,), thresholds=(), confidence="max-prob", length=FixedLength(draft_cap=cap))
    common = {"sampling": GREEDY, "max_new_tokens": 30, "eos_token_id": None}
    whole = generate(target, None, [70, 71], policy=None, **common).tokens
    stop = Stop([TOKENIZER.decode(whole[8:10])], TOKENIZER)
    plain = generate(target, None, [70, 71], policy=None, stop=stop, **common)
    found = generate(target, draft, [70, 71], policy=policy, stop=stop, **common)
    assert found.tokens == plain.tokens == whole[: len(plain.tokens)]
    assert len(plain.tokens) <= 10
    # Every token is an accepted one or a bonus; the stop string's end takes the last bonus, or tokens before it.
    assert found.rounds.num_accepted + found.rounds.num_rounds - len(found.tokens) in (0, 1)
    assert all(accepted <= drafted for drafted, accepted in found.blocks)


def test_the_distinct_ngram_ratio_falls_when_a_text_loops() -> None:
    assert distinct_ngram_frac([1, 2, 3]) == 1.0
    assert distinct_ngram_frac(list(range(20))) == 1.0
    assert distinct_ngram_frac([1, 2] * 10) == pytest.approx(2 / 15)

"""Records survive their JSON, and every error names its position."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmodel.core.codec import DecodeError, decode_record, encode_record, kind_tag
from perfmodel.core.errors import BadPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedLength:
    draft_cap: int

    def __post_init__(self) -> None:
        if self.draft_cap < 0:
            raise BadPolicy(f"draft_cap {self.draft_cap}", "at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class KVFloorStop:
    floor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Everything:
    name: str
    count: int
    cost_s: float
    traced: bool
    dtype: Literal["bf16", "fp32"]
    rule: FixedLength | KVFloorStop
    spare: FixedLength | KVFloorStop | None
    parent: FixedLength | None
    seed: int | None
    exits: tuple[int, ...]
    span: tuple[int, str]
    rounds: tuple[KVFloorStop, ...]
    weights: dict[str, float]
    parts: Mapping[str, FixedLength]
    peaks: Mapping[Literal["bf16", "fp32"], float]


finite = st.floats(allow_nan=False, allow_infinity=False)
fixed = st.builds(FixedLength, draft_cap=st.integers(min_value=0))
floors = st.builds(KVFloorStop, floor=finite)
everything = st.builds(
    Everything,
    name=st.text(),
    count=st.integers(),
    cost_s=finite,
    traced=st.booleans(),
    dtype=st.sampled_from(["bf16", "fp32"]),
    rule=fixed | floors,
    spare=fixed | floors | st.none(),
    parent=fixed | st.none(),
    seed=st.integers() | st.none(),
    exits=st.lists(st.integers()).map(tuple),
    span=st.tuples(st.integers(), st.text()),
    rounds=st.lists(floors, max_size=3).map(tuple),
    weights=st.dictionaries(st.text(), finite, max_size=3),
    parts=st.dictionaries(st.text(), fixed, max_size=3),
    peaks=st.dictionaries(st.sampled_from(["bf16", "fp32"]), finite),
)

EXAMPLE = Everything(
    name="a",
    count=1,
    cost_s=0.5,
    traced=True,
    dtype="bf16",
    rule=FixedLength(draft_cap=4),
    spare=None,
    parent=None,
    seed=None,
    exits=(2, 4),
    span=(1, "b"),
    rounds=(KVFloorStop(floor=0.25),),
    weights={"w": 1.0},
    parts={"p": FixedLength(draft_cap=1)},
    peaks={"bf16": 2.0},
)


def changed(**values: Any) -> dict[str, Any]:
    return encode_record(EXAMPLE) | values


@given(everything)
def test_a_record_is_decoded_as_it_was_encoded(record: Everything) -> None:
    assert decode_record(encode_record(record), Everything) == record


def test_a_member_of_a_union_is_tagged_with_its_name_in_kebab_case() -> None:
    encoded = encode_record(EXAMPLE)
    assert encoded["rule"] == {"kind": "fixed-length", "draft_cap": 4}
    assert encoded["rounds"] == [{"floor": 0.25}]
    assert kind_tag(KVFloorStop) == "kv-floor-stop"


def test_a_whole_number_in_a_float_field_is_written_as_a_float() -> None:
    assert repr(encode_record(KVFloorStop(floor=1))["floor"]) == "1.0"
    assert repr(decode_record({"floor": 1}, KVFloorStop).floor) == "1.0"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"zzz": 1}, "body: unknown key 'zzz'"),
        ({"cost": 1.0}, "body: unknown key 'cost' (did you mean 'cost_s'?)"),
        ({"name": 3}, "body.name: expected a string, got 3"),
        ({"count": True}, "body.count: expected a whole number, got true"),
        ({"count": 1.0}, "body.count: expected a whole number, got 1.0"),
        ({"cost_s": True}, "body.cost_s: expected a number, got true"),
        ({"cost_s": "x" * 200}, f"body.cost_s: expected a number, got '{'x' * 37}...{'x' * 38}'"),
        ({"cost_s": math.nan}, "body.cost_s: expected a finite number, got nan"),
        ({"weights": {"w": -math.inf}}, "body.weights['w']: expected a finite number, got -inf"),
        ({"cost_s": 10**400}, f"body.cost_s: expected a finite number, got 1{'0' * 37}...{'0' * 39}"),
        ({"traced": 1}, "body.traced: expected true or false, got 1"),
        ({"traced": None}, "body.traced: expected true or false, got null"),
        ({"dtype": "fp8"}, "body.dtype: expected one of 'bf16', 'fp32', got 'fp8'"),
        ({"exits": 3}, "body.exits: expected a list, got 3"),
        ({"exits": [2, "4"]}, "body.exits[1]: expected a whole number, got '4'"),
        ({"span": [1]}, "body.span: expected 2 items, got 1"),
        ({"rounds": [{"floor": 1.0}, {}]}, "body.rounds[1]: missing key 'floor'"),
        ({"rule": {"draft_cap": 4}}, "body.rule: missing key 'kind'"),
        ({"rule": {"kind": "other"}}, "body.rule.kind: expected one of 'fixed-length', 'kv-floor-stop', got 'other'"),
        ({"rule": None}, "body.rule: expected an object, got null"),
        ({"parent": {"draft_cap": -1}}, "body.parent: bad policy: draft_cap -1: expected at least 0"),
        ({"peaks": {"fp8": 1.0}}, "body.peaks key: expected one of 'bf16', 'fp32', got 'fp8'"),
        ({"parts": {"p": []}}, "body.parts['p']: expected an object, got []"),
    ],
)
def test_a_wrong_value_is_refused_with_its_position(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_record(changed(**values), Everything)
    assert str(caught.value) == message


def test_a_long_list_of_choices_is_not_printed() -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Stored:
        dtype: Literal["fp32", "bf16", "fp16", "fp8", "int8", "int4", "gguf"]

    for dtype, examples in (("x", "'fp32', 'bf16', 'fp16'"), ("bf-16", "'bf16'")):
        with pytest.raises(DecodeError) as caught:
            decode_record({"dtype": dtype}, Stored)
        assert str(caught.value) == f"body.dtype: expected one of 7 values such as {examples}, got {dtype!r}"


def test_a_missing_key_is_refused() -> None:
    encoded = encode_record(EXAMPLE)
    del encoded["seed"]
    with pytest.raises(DecodeError, match=r"^body: missing key 'seed'$"):
        decode_record(encoded, Everything)


def test_a_record_that_would_change_in_its_file_is_not_encoded() -> None:
    with pytest.raises(ValueError, match=r"^body\.floor: expected a finite number, got nan$"):
        encode_record(KVFloorStop(floor=math.nan))
    with pytest.raises(ValueError, match=r"^body\.draft_cap: expected a whole number, got 1\.5$"):
        encode_record(FixedLength(draft_cap=1.5))  # type: ignore[arg-type]


def test_a_list_in_place_of_a_tuple_is_not_encoded() -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Exits:
        layers: tuple[int, ...]

    with pytest.raises(ValueError, match="would change in its file"):
        encode_record(Exits(layers=[2, 4]))  # type: ignore[arg-type]


def test_a_type_hint_without_a_json_form_is_a_type_error() -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Bad:
        value: int | str

    with pytest.raises(TypeError, match="expected a union of records, or of one type and None"):
        encode_record(Bad(value=1))

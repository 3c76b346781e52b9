"""Sampling settings that contradict themselves are refused in a few words, never with the whole record."""

import pytest

from perfmodel.sampling import Sampling


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -1.0}, "temperature -1.0: expected a number of at least 0"),
        ({"temperature": float("nan")}, "temperature nan: expected a number of at least 0"),
        ({"temperature": float("inf")}, "temperature inf: expected a number of at least 0"),
        ({"temperature": 0.0}, "rule 'shared-noise' with temperature 0.0: greedy is temperature 0, and only it"),
        ({"top_k": 0}, "top_k 0: expected at least 1 token"),
        ({"top_p": 1.5}, "top_p 1.5: expected above 0 and at most 1"),
        ({"seed": None}, "rule 'shared-noise' needs a seed, so that a run can be repeated"),
    ],
)
def test_what_is_wrong_is_said_of_the_setting_that_is(changes: dict[str, object], message: str) -> None:
    settings = {"rule": "shared-noise", "temperature": 0.8, "top_k": None, "top_p": None, "seed": 1} | changes
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Sampling(**settings)  # type: ignore[arg-type]
    assert str(caught.value) == message

"""Sampling settings: contradictions are refused with a short message, and labels name the active settings."""

from dataclasses import replace

import pytest

from perfmodel.policies.sampling import GREEDY, Sampling


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -1.0}, "temperature -1.0: expected a number of at least 0"),
        ({"temperature": float("nan")}, "temperature nan: expected a number of at least 0"),
        ({"temperature": float("inf")}, "temperature inf: expected a number of at least 0"),
        ({"temperature": 0.0}, "rule 'shared-noise' with temperature 0.0: greedy and temperature 0 go together"),
        ({"top_k": 0}, "top_k 0: expected at least 1 token"),
        ({"top_p": 1.5}, "top_p 1.5: expected above 0 and at most 1"),
        ({"min_p": -0.1}, "min_p -0.1: expected from 0 to 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty 0.0: expected a number above 0, where 1 is none"),
        ({"presence_penalty": 2.5}, "presence_penalty 2.5: expected from -2 to 2, where 0 is none"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty nan: expected from -2 to 2, where 0 is none"),
        (
            {"rule": "greedy", "temperature": 0.0, "seed": None, "min_p": 0.1},
            "greedy decoding takes no top_k, top_p, min_p or seed: expected a temperature above 0 with them",
        ),
        ({"seed": None}, "rule 'shared-noise' needs a seed, which makes the run repeatable"),
    ],
)
def test_a_contradiction_is_refused_and_the_message_names_the_setting(changes: dict[str, object], message: str) -> None:
    settings = {"rule": "shared-noise", "temperature": 0.8, "top_k": None, "top_p": None, "seed": 1} | changes
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Sampling(**settings)  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_a_label_names_the_active_settings_in_order() -> None:
    noisy = Sampling(rule="ratio", temperature=0.8, top_k=40, top_p=1.0, min_p=0.05, seed=1, presence_penalty=0.5)
    assert noisy.label == "ratio T=0.8 presence 0.5 top-k 40 min-p 0.05"
    assert noisy.processing == ("presence", "top-k", "min-p")
    neutral = replace(GREEDY, repetition_penalty=1.0, presence_penalty=0.0)
    assert (neutral.label, neutral.has_penalties) == ("greedy", False)
    assert replace(GREEDY, repetition_penalty=1.1).label == "greedy repetition 1.1"

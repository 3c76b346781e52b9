"""Training from Python: the functions, their requests and the flags of s2d-train agree."""

import argparse
import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from perfmodel.core.console import make_parser
from perfmodel.core.errors import BadFile, BadPolicy, UnknownName, UserInputError
from s2d.commands.train_cli import _VERBS
from s2d.training.calibrate_draft import calibrate_draft
from s2d.training.reduce_vocab import reduce_vocab
from s2d.training.requests import (
    CalibrateDraftRequest,
    ReduceVocabRequest,
    TrainDraftRequest,
    TrainReferenceRequest,
)
from s2d.training.train_draft import train_draft
from s2d.training.train_reference import train_reference

FLAG_OF_FIELD = {"teachers": "teacher", "targets": "target", "num_tokens": "tokens"}
VERBS: dict[str, tuple[type, Callable[..., object]]] = {
    "draft": (TrainDraftRequest, train_draft),
    "calibrate": (CalibrateDraftRequest, calibrate_draft),
    "trim": (ReduceVocabRequest, reduce_vocab),
    "reference": (TrainReferenceRequest, train_reference),
}


def flag_defaults(verb: str) -> dict[str, object]:
    parser: argparse.ArgumentParser = make_parser(verb, "", "")
    _VERBS[verb][2](parser)
    actions = [action for action in parser._actions if action.dest not in ("help", "verbose")]
    return {action.dest: MISSING if action.required else action.default for action in actions}


@pytest.mark.parametrize("verb", VERBS)
def test_defaults_of_flags_requests_and_functions_are_the_same(verb: str) -> None:
    request, function = VERBS[verb]
    names = {field.name: FLAG_OF_FIELD.get(field.name, field.name) for field in fields(request)}
    of_request = {names[field.name]: field.default for field in fields(request)}
    parameters = inspect.signature(function).parameters.values()
    of_function = {
        names[parameter.name]: MISSING if parameter.default is inspect.Parameter.empty else parameter.default
        for parameter in parameters
        if parameter.name in names
    }
    of_flags = {name: tuple(default) if isinstance(default, list) else default for name, default in flag_defaults(verb).items()}
    assert of_function == of_request == of_flags


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"steps": 0}, UserInputError, "steps 0: expected a finite number from 1."),
        ({"distill_frac": 1.5}, UserInputError, "distill_frac 1.5: expected a finite number from 0 to 1."),
        ({"matrix_lr": float("nan")}, UserInputError, "matrix_lr nan: expected a finite number above 0."),
        ({"vector_lr": 0.0}, UserInputError, "vector_lr 0.0: expected a finite number above 0."),
        ({"seed": -1}, UserInputError, "seed -1: expected a finite number from 0 to"),
        ({"exits": (3, 1)}, BadPolicy, "rising layer counts"),
        ({"teachers": ("nothing",)}, UnknownName, "unknown model 'nothing'"),
        ({"output": Path(__file__)}, BadFile, "exists already"),
    ],
)
def test_a_request_that_cannot_be_trained_is_refused_when_it_is_made(tmp_path: Path, change, error, message: str) -> None:
    fields_ = {"target": "ref-target-16", "exits": (1, 2), "text": (), "output": tmp_path / "draft"}
    with pytest.raises(error) as caught:
        TrainDraftRequest(**fields_ | change)
    assert message in str(caught.value)

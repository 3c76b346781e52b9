"""Are real-world model and data files read correctly, or refused with a good message?

    configs     synthetic model folders of many kinds, also quantised: shapes and bytes against the models of transformers
    prompts     prompt files in the formats of public data sets: the users' texts in them
    text        tokenizers of four kinds: the text of a continuation against a decode of the whole text by transformers
    real        config.json files that are not shipped, if `--data` has a folder configs: also against transformers

A folder or file is *right* if every answer equals the oracle's. It is *refused well* if the command ends with exit code 2 and
one message that names the reason in the file. Anything else is *wrong*. A real file that transformers cannot build is *not
checked*. Published speeds of plain decoding are counted separately, without those used for a fit: one in ten of their 90 %
intervals may miss.

Example: python benchmarks/field.py --quick --data ../shared/data
"""

import argparse
import contextlib
import io
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from calibrate.commands.plan_cli import main_plan
from calibrate.fit.validate import validate
from calibrate.inputs.target import resolve_target
from details.field_configs import READ as READ_CONFIGS
from details.field_configs import REFUSED as REFUSED_CONFIGS
from details.field_configs import ConfigCase, Storage
from details.field_oracle import Counted, count
from details.field_prompts import READ as READ_PROMPTS
from details.field_prompts import REFUSED as REFUSED_PROMPTS
from details.field_prompts import PromptCase
from details.field_tokenizers import CORPUS, tokenizers
from perfmodel.core.console import print_out, table
from perfmodel.core.errors import UserInputError
from perfmodel.core.provenance import make_provenance
from perfmodel.models.dtypes import Dtype
from perfmodel.quantisation.dtype_format import dtype_format
from perfmodel.quantisation.weight_format import model_weight_bytes
from s2d.prompt_files.read import PROMPTS, read_prompt_file
from s2d.prompts.text import ContinuationText
from shared.common import SHARED_DATA, finish, make_parser

NAME = "field"
BYTES_TOLERANCE = 0.002
"""Effect of the scales of partly filled groups, and of the packing of zero points."""
MAX_MESSAGE_CHARS = 600
TEXT_TOLERANCE = 0.005
"""The text shows three digits."""
WEIGHTS_TOLERANCE = 1e-5
"""Biases of the last norm and of the LM head are not counted (docs/reference/models.md)."""
SMALL_DRAFT = ("--params", "20e6", "--device", "h100")
REAL_DRAFT = ("--params", "300e6", "--device", "h200")
"""Eight of these devices hold the largest model."""

Verdict = Literal["right", "refused well", "wrong", "not checked"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The outcome for one file."""

    part: str
    name: str
    verdict: Verdict
    why: str = ""
    """The reason for the verdict."""


def main() -> None:
    args = _arguments()
    outcomes = [*config_outcomes(), *prompt_outcomes(), *text_outcomes(every=5 if args.quick else 1)]
    real = list(real_outcomes(args.data / "configs"))
    parts = list(dict.fromkeys(outcome.part for outcome in [*outcomes, *real]))
    rows = [_row(part, [outcome for outcome in [*outcomes, *real] if outcome.part == part]) for part in parts]
    print_out(table(rows, headers=["part", "files", "right", "refused well", "wrong", "not checked"]))
    for outcome in [*outcomes, *real]:
        if outcome.verdict == "wrong":
            print_out(f"wrong: {outcome.part} {outcome.name}: {outcome.why}")
    finish(
        NAME,
        quick=args.quick,
        result=count_verdicts(outcomes, real) | speeds(),
        provenance=make_provenance(libraries=("transformers", "tokenizers", "torch")),
    )


def _arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--data", type=Path, default=SHARED_DATA, metavar="DIR", help="public data, not shipped")
    return parser.parse_args()


def count_verdicts(outcomes: Sequence[Outcome], real: Sequence[Outcome]) -> dict[str, int]:
    """Counts of verdicts: of the synthetic files, then of the real ones."""

    def count_of(group: Sequence[Outcome], verdict: Verdict) -> int:
        return sum(outcome.verdict == verdict for outcome in group)

    return {
        "num_files": len(outcomes),
        "num_right": count_of(outcomes, "right"),
        "num_refused_well": count_of(outcomes, "refused well"),
        "num_wrong": count_of(outcomes, "wrong"),
        "num_real_files": len(real),
        "num_real_right": count_of(real, "right"),
        "num_real_refused_well": count_of(real, "refused well"),
        "num_real_wrong": count_of(real, "wrong"),
        "num_real_not_checked": count_of(real, "not checked"),
    }


def _row(part: str, outcomes: Sequence[Outcome]) -> list[str]:
    verdicts: tuple[Verdict, ...] = ("right", "refused well", "wrong", "not checked")
    return [part, str(len(outcomes)), *(str(sum(outcome.verdict == verdict for outcome in outcomes)) for verdict in verdicts)]


def config_outcomes() -> Iterator[Outcome]:
    """Outcomes of all synthetic model folders."""
    with tempfile.TemporaryDirectory() as folder:
        for case in (*READ_CONFIGS, *REFUSED_CONFIGS):
            path = Path(folder) / case.name / case.subfolder
            path.mkdir(parents=True)
            for name, content in case.files.items():
                (path / name).write_text(json.dumps(content), encoding="utf-8")
            flags = SMALL_DRAFT if case.dtype is None else (*SMALL_DRAFT, "--dtype", case.dtype)
            code, text, message = design(path, flags)
            if case.refused:
                yield refusal_outcome("configs", case.name, code, message, case.refused)
            else:
                counted = count(case.files["config.json"])
                problems = [message] if code else [*config_problems(case, path, counted), *text_problems(case, text, counted)]
                yield answer_outcome("configs", case.name, problems)


def design(path: Path, flags: Sequence[str]) -> tuple[int, str, str]:
    """Exit code, text and messages of `s2d-plan design` for the target at a path."""
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.redirect_stderr(io.StringIO()) as messages:
        code = main_plan(["design", "--target", str(path), *flags])
    return code, text.getvalue(), messages.getvalue()


def text_problems(case: ConfigCase, text: str, counted: Counted) -> list[str]:
    """Errors in the printed name, number of weights and quantisation of a folder."""
    shown = re.search(r"^target +(\S+), \d+ layers, ([\d.]+) (b|m)illion weights", text)
    problems = []
    if shown is None or shown[1] != (case.named or case.name):
        problems.append(f"no line of the target's name in {text[:80]!r}")
    elif abs(float(shown[2]) * (1e9 if shown[3] == "b" else 1e6) / counted.num_params - 1) > TEXT_TOLERANCE:
        problems.append(f"{shown[2]} {shown[3]}illion weights shown, expected {counted.num_params}")
    is_named = re.search(r"^weights +\S", text, re.MULTILINE) is not None
    if is_named != (case.storage is not None):
        problems.append("quantised weights are not named" if case.storage else "plain weights are called quantised")
    return problems


def config_problems(case: ConfigCase, path: Path, counted: Counted) -> list[str]:
    """Differences between our answer for a folder and the oracle's."""
    target = resolve_target(str(path), reads_format=not case.dtype)
    geometry, dtype = target.geometry, cast(Dtype, case.dtype or "bf16")
    weights = target.stored or dtype_format(dtype, geometry)
    answer = model_weight_bytes(geometry, weights)
    expected = stored_bytes(counted, case.storage or Storage(linear_bits=16.0))
    bytes_differ = abs(answer / expected - 1) > BYTES_TOLERANCE
    problems = [f"{answer} bytes of weights, expected {expected:.0f}"] if bytes_differ else []
    if not is_close(geometry.num_params, counted.num_params):
        problems.append(f"{geometry.num_params} weights, expected {counted.num_params}")
    if geometry.kv_values_per_token != counted.kv_values_per_token:
        problems.append(f"{geometry.kv_values_per_token} KV values per token, expected {counted.kv_values_per_token}")
    if geometry.name != (case.named or case.name):
        problems.append(f"called {geometry.name!r}, expected {case.named or case.name!r}")
    return problems


def is_close(num_weights: int, expected: int) -> bool:
    """Whether a number of weights is right, within the tolerance."""
    return abs(num_weights / expected - 1) <= WEIGHTS_TOLERANCE


def stored_bytes(counted: Counted, storage: Storage) -> float:
    """Bytes of all weights, parameter by parameter."""
    return sum(number * _bits(name, is_matrix, storage) for name, (number, is_matrix) in counted.params_by_name.items()) / 8


def _bits(name: str, is_matrix: bool, storage: Storage) -> float:
    if "lm_head" in name:
        return storage.head_bits
    if "embed_tokens" in name:
        return storage.embedding_bits
    if not is_matrix:
        return 16.0
    return next((bits for part, bits in storage.own_bits.items() if part in name), storage.linear_bits)


def refusal_outcome(part: str, name: str, code: int, message: str, words: Sequence[str]) -> Outcome:
    """The outcome of a refusal: exit code 2, and one short message with all the given words."""
    problems = [f"exit code {code}, expected 2"] if code != 2 else []
    problems += [f"{word!r} is not in the message" for word in words if word.casefold() not in message.casefold()]
    problems += [f"a message of {len(message)} characters"] if len(message) > MAX_MESSAGE_CHARS else []
    verdict: Verdict = "wrong" if problems else "refused well"
    return Outcome(part=part, name=name, verdict=verdict, why="; ".join([*problems, message.strip()]))


def answer_outcome(part: str, name: str, problems: Sequence[str]) -> Outcome:
    """The outcome of an answer: right without problems."""
    return Outcome(part=part, name=name, verdict="wrong" if problems else "right", why="; ".join(problems))


def prompt_outcomes() -> Iterator[Outcome]:
    """Outcomes of all prompt files."""
    with tempfile.TemporaryDirectory() as folder:
        for case in (*READ_PROMPTS, *REFUSED_PROMPTS):
            path = Path(folder) / case.name
            path.write_bytes(case.data)
            yield _prompt_outcome(case, path)


def _prompt_outcome(case: PromptCase, path: Path) -> Outcome:
    try:
        prompts = read_prompt_file(path, replace(PROMPTS, column=case.column)).prompts
    except UserInputError as err:
        return refusal_outcome("prompts", case.name, err.exit_code, str(err), case.refused or ("no refusal was expected",))
    texts = tuple(prompt.text for prompt in prompts)
    return answer_outcome("prompts", case.name, [] if texts == case.prompts else [f"read {texts!r}"])


def text_outcomes(*, every: int) -> Iterator[Outcome]:
    """Outcomes of all kinds of tokenizers, with and without clean-up.

    Args:
        every: texts are cut at multiples of this number of tokens and continued token by token.
    """
    for clean_up in (False, True):
        for kind, tokenizer in tokenizers(clean_up=clean_up).items():
            problems = []
            for text in CORPUS:
                ids = tokenizer(text)["input_ids"]
                for cut in range(1, len(ids), every):
                    stream = ContinuationText(tokenizer, ids[:cut])
                    pieces = [stream.add([token]) for token in ids[cut:]]
                    answer = "".join(pieces) + stream.rest
                    before, whole = (tokenizer.decode(part, skip_special_tokens=True) for part in (ids[:cut], ids))
                    expected = _difference(before, whole)
                    problems += [f"{answer!r}, expected {expected!r}"] if answer != expected else []
            yield answer_outcome("text", f"{kind}, clean-up {'on' if clean_up else 'off'}", problems[:1])


def _difference(prompt: str, whole: str) -> str:
    """The part of a whole text after what it has in common with the prompt."""
    shared = next((index for index, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), None)
    return whole[min(len(prompt), len(whole)) if shared is None else shared :]


def speeds() -> dict[str, int]:
    """The number of published speeds not used for a fit, and how many lie in their intervals."""
    held_out = [point for point in validate().points if point.role == "held-out"]
    return {"num_speeds": len(held_out), "num_speeds_in_interval": sum(point.is_covered for point in held_out)}


def real_outcomes(folder: Path) -> Iterator[Outcome]:
    """Outcomes of real config.json files, compared with transformers where both can read them."""
    for path in sorted(folder.glob("*.json")):
        code, _, message = design(path, REAL_DRAFT)
        blames_file = "config.json" in message and "Correct " in message  # real files are correct
        if code == 2 and len(message) <= MAX_MESSAGE_CHARS and not blames_file and names_a_reason(message, path):
            yield Outcome(part="real", name=path.stem, verdict="refused well")
        elif code:
            yield Outcome(part="real", name=path.stem, verdict="wrong", why=f"exit code {code}: {message.strip()}")
        else:
            yield _real_answer(path)


def names_a_reason(message: str, path: Path) -> bool:
    """Whether a refusal names something in the file: a key with its value, a class or a type, or the name of the model."""
    config = json.loads(path.read_text(encoding="utf-8"))
    parts = [config, *(value for value in config.values() if isinstance(value, dict))]
    names = {str(name) for part in parts for name in [*(part.get("architectures") or []), part.get("model_type")] if name}
    by_key = any(f"{key} = " in message for part in parts for key in part)
    return by_key or any(name in message for name in names) or (path.stem in message and "by its name" in message)


def _real_answer(path: Path) -> Outcome:
    geometry = resolve_target(str(path), reads_format=False).geometry
    try:
        counted = count(json.loads(path.read_text(encoding="utf-8")))
    except Exception:  # transformers raises various errors for models it does not know
        return Outcome(part="real", name=path.stem, verdict="not checked")
    answer, expected = (geometry.num_params, geometry.kv_values_per_token), (counted.num_params, counted.kv_values_per_token)
    is_right = is_close(answer[0], expected[0]) and answer[1] == expected[1]
    return answer_outcome("real", path.stem, [] if is_right else [f"{answer}, expected {expected}"])


if __name__ == "__main__":
    main()

"""Are the files that people have read right, or refused well?

    configs     model folders of many kinds, quantised ones among them: shapes and bytes against what transformers builds
    prompts     prompt files in the formats of public data sets: the texts that users say in them
    text        tokenizers of four kinds: the text of a continuation against transformers' decode of the whole
    real        config.json files that are not shipped, where `--data` has a folder configs: against transformers too

A folder or file is *right* when every answer equals the oracle's. It is *refused well* when the command ends with exit code 2
and one message that names what was found. Anything else is *wrong*. A real file that transformers cannot build is *not
checked*. Published speeds of plain decoding are counted apart, without those that a coefficient was fitted to: one in ten of
their 90 % intervals may miss.

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
from perfmodel.models.dtypes import Dtype
from perfmodel.quantisation.dtype_format import dtype_format
from perfmodel.quantisation.weight_format import model_weight_bytes
from s2d.prompt_files.read import PROMPTS, read_prompt_file
from s2d.prompts.text import ContinuationText
from shared.common import SHARED_DATA, finish, make_parser

NAME = "field"
BYTES_TOLERANCE = 0.002
"""Scales of partly filled groups, and whether zero points are packed, make so much difference."""
MAX_MESSAGE_CHARS = 600
TEXT_TOLERANCE = 0.005
"""Three digits are shown."""
WEIGHTS_TOLERANCE = 1e-5
"""Biases of the last norm and of the LM head are not counted (docs/reference/models.md)."""
SMALL_DRAFT = ("--params", "20e6", "--device", "h100")
REAL_DRAFT = ("--params", "300e6", "--device", "h200")
"""Eight of which hold the largest."""

Verdict = Literal["right", "refused well", "wrong", "not checked"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one file."""

    part: str
    name: str
    verdict: Verdict
    why: str = ""
    """Of a wrong one."""


def main() -> None:
    args = _arguments()
    outcomes = [*config_outcomes(), *prompt_outcomes(), *text_outcomes(every=5 if args.quick else 1)]
    real = list(real_outcomes(args.data / "configs"))
    parts = list(dict.fromkeys(one.part for one in [*outcomes, *real]))
    rows = [_row(part, [one for one in [*outcomes, *real] if one.part == part]) for part in parts]
    print_out(table(rows, headers=["part", "files", "right", "refused well", "wrong", "not checked"]))
    for one in [*outcomes, *real]:
        if one.verdict == "wrong":
            print_out(f"wrong: {one.part} {one.name}: {one.why}")
    finish(
        NAME, quick=args.quick, result=summed_up(outcomes, real) | speeds(), libraries=("transformers", "tokenizers", "torch")
    )


def _arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--data", type=Path, default=SHARED_DATA, metavar="DIR", help="public data, not shipped")
    return parser.parse_args()


def summed_up(outcomes: Sequence[Outcome], real: Sequence[Outcome]) -> dict[str, int]:
    """The last line: counts of the synthetic files, then of the real ones."""

    def number(among: Sequence[Outcome], verdict: Verdict) -> int:
        return sum(one.verdict == verdict for one in among)

    return {
        "num_files": len(outcomes),
        "num_right": number(outcomes, "right"),
        "num_refused_well": number(outcomes, "refused well"),
        "num_wrong": number(outcomes, "wrong"),
        "num_real_files": len(real),
        "num_real_right": number(real, "right"),
        "num_real_refused_well": number(real, "refused well"),
        "num_real_wrong": number(real, "wrong"),
        "num_real_not_checked": number(real, "not checked"),
    }


def _row(part: str, outcomes: Sequence[Outcome]) -> list[str]:
    verdicts: tuple[Verdict, ...] = ("right", "refused well", "wrong", "not checked")
    return [part, str(len(outcomes)), *(str(sum(one.verdict == verdict for one in outcomes)) for verdict in verdicts)]


def config_outcomes() -> Iterator[Outcome]:
    """Every synthetic model folder."""
    with tempfile.TemporaryDirectory() as folder:
        for case in (*READ_CONFIGS, *REFUSED_CONFIGS):
            path = Path(folder) / case.name / case.place
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
    """What a person reads about a folder that is not the oracle's: its name and weights, and that it is quantised."""
    shown = re.search(r"^target +(\S+), \d+ layers, ([\d.]+) (b|m)illion weights", text)
    problems = []
    if shown is None or shown[1] != (case.named or case.name):
        problems.append(f"no line of the target's name in {text[:80]!r}")
    elif abs(float(shown[2]) * (1e9 if shown[3] == "b" else 1e6) / counted.num_params - 1) > TEXT_TOLERANCE:
        problems.append(f"{shown[2]} {shown[3]}illion weights shown, expected {counted.num_params}")
    is_told = re.search(r"^weights +\S", text, re.MULTILINE) is not None
    if is_told != (case.storage is not None):
        problems.append("quantised weights are not named" if case.storage else "plain weights are called quantised")
    return problems


def config_problems(case: ConfigCase, path: Path, counted: Counted) -> list[str]:
    """How the answer for a folder differs from the oracle's."""
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
        problems.append(f"{geometry.kv_values_per_token} cached numbers a token, expected {counted.kv_values_per_token}")
    if geometry.name != (case.named or case.name):
        problems.append(f"called {geometry.name!r}, expected {case.named or case.name!r}")
    return problems


def is_close(num_weights: int, expected: int) -> bool:
    """Whether a number of weights is right."""
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
    """Whether a refusal is one message that has all of some words."""
    problems = [f"exit code {code}, expected 2"] if code != 2 else []
    problems += [f"{word!r} is not in the message" for word in words if word.casefold() not in message.casefold()]
    problems += [f"a message of {len(message)} characters"] if len(message) > MAX_MESSAGE_CHARS else []
    verdict: Verdict = "wrong" if problems else "refused well"
    return Outcome(part=part, name=name, verdict=verdict, why="; ".join([*problems, message.strip()]))


def answer_outcome(part: str, name: str, problems: Sequence[str]) -> Outcome:
    """Right where there is no problem."""
    return Outcome(part=part, name=name, verdict="wrong" if problems else "right", why="; ".join(problems))


def prompt_outcomes() -> Iterator[Outcome]:
    """Every prompt file."""
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
    """Every kind of tokenizer, with and without clean-up.

    Args:
        every: texts are cut after so many tokens, twice as many …, and continued token by token.
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
    """What a whole text has beyond what it shares with its beginning."""
    shared = next((place for place, (one, other) in enumerate(zip(prompt, whole, strict=False)) if one != other), None)
    return whole[min(len(prompt), len(whole)) if shared is None else shared :]


def speeds() -> dict[str, int]:
    """How many published speeds nothing was fitted to, and how many of them lie within their interval."""
    held_out = [point for point in validate().points if point.role == "held-out"]
    return {"num_speeds": len(held_out), "num_speeds_in_interval": sum(point.is_covered for point in held_out)}


def real_outcomes(folder: Path) -> Iterator[Outcome]:
    """Real config.json files, each held against transformers where both read it."""
    for path in sorted(folder.glob("*.json")):
        code, _, message = design(path, REAL_DRAFT)
        blames_file = "config.json" in message and "Correct " in message  # every real file is right as it is
        if code == 2 and len(message) <= MAX_MESSAGE_CHARS and not blames_file and says_why(message, path):
            yield Outcome(part="real", name=path.stem, verdict="refused well")
        elif code:
            yield Outcome(part="real", name=path.stem, verdict="wrong", why=f"exit code {code}: {message.strip()}")
        else:
            yield _real_answer(path)


def says_why(message: str, path: Path) -> bool:
    """Whether a refusal names what stands in the file: a key with its value, a class or a type; or the model's own name."""
    config = json.loads(path.read_text(encoding="utf-8"))
    parts = [config, *(value for value in config.values() if isinstance(value, dict))]
    names = {str(name) for part in parts for name in [*(part.get("architectures") or []), part.get("model_type")] if name}
    by_key = any(f"{key} = " in message for part in parts for key in part)
    return by_key or any(name in message for name in names) or (path.stem in message and "by its name" in message)


def _real_answer(path: Path) -> Outcome:
    geometry = resolve_target(str(path), reads_format=False).geometry
    try:
        counted = count(json.loads(path.read_text(encoding="utf-8")))
    except Exception:  # whatever transformers raises of a model that it does not know
        return Outcome(part="real", name=path.stem, verdict="not checked")
    answer, expected = (geometry.num_params, geometry.kv_values_per_token), (counted.num_params, counted.kv_values_per_token)
    is_right = is_close(answer[0], expected[0]) and answer[1] == expected[1]
    return answer_outcome("real", path.stem, [] if is_right else [f"{answer}, expected {expected}"])


if __name__ == "__main__":
    main()

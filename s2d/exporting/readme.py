"""The README of an exported folder."""

import shlex
from dataclasses import dataclass

from perfmodel.core.provenance import TOOL_VERSION
from perfmodel.core.units import format_frac
from perfmodel.results.plan import Plan
from s2d.exporting.serving import EngineFiles, Serving
from s2d.exporting.smoke_prompts import Expectation

_FENCE = "```"


@dataclass(frozen=True, slots=True, kw_only=True)
class Readme:
    """What the README is written from."""

    serving: Serving
    plan: Plan
    files: EngineFiles
    expected: Expectation
    checks: tuple[str, ...]
    warnings: tuple[str, ...]
    has_worker: bool
    """Whether the smoke test starts the engine itself."""
    has_smoke_test: bool

    @property
    def check_steps(self) -> tuple[str, ...]:
        """Commands that check the export, run in its folder."""
        if self.serving.engine.runs_exits:
            return ("./run.sh --check",)
        if not self.has_smoke_test:
            return ()
        return ("PYTHON smoke_test.py",) if self.has_own_python else ("python3 smoke_test.py --start-server",)

    @property
    def has_own_python(self) -> bool:
        """Whether the smoke test runs in the engine's own Python."""
        return self.has_worker or self.serving.engine.name == "llama.cpp"

    def check_command(self, folder: str) -> str:
        """The first command after the export, run where the folder was made."""
        name = self.serving.engine.name
        if self.serving.engine.runs_exits:
            return shlex.join([f"{folder}/run.sh", "--check"])
        if not self.has_smoke_test:
            return shlex.join([f"{folder}/serve.sh"])
        if self.has_own_python:
            return f"{_python(name)} {shlex.quote(f'{folder}/smoke_test.py')}"
        return shlex.join(["python3", f"{folder}/smoke_test.py", "--start-server"])


def readme_text(readme: Readme) -> str:
    """The README as Markdown."""
    parts = (_heading(readme), _prediction(readme), _commands(readme), _check(readme), _facts(readme), _back(readme))
    return "\n\n".join(parts) + "\n"


def _heading(readme: Readme) -> str:
    serving, plan = readme.serving, readme.plan
    engine = serving.engine
    status = (
        f"This project has run {engine.title} with exports like this one: {engine.run_here}."
        if engine.run_here is not None
        else f"Generated from the documentation of {engine.title} {engine.versions}, and not run by us."
    )
    return (
        f"# {plan.target.name} with {plan.draft_name}, {serving.policy.label}, in {engine.title}\n\n"
        f"Exported by s2d {TOOL_VERSION} for {engine.title} {engine.versions}, {serving.weights} weights, {plan.device.label}. "
        f"{status}\n\nThe folder can be moved: all paths in it are relative, but for a target outside of it."
    )


def _prediction(readme: Readme) -> str:
    plan, policy = readme.plan, readme.serving.policy
    speedup, rounds = plan.speedup, plan.chosen.rounds
    accepted = "" if rounds.accepted_frac is None else f"; {format_frac(rounds.accepted_frac)} of the drafted tokens accepted"
    lines = [
        "## Prediction",
        f"- speedup over plain decoding in the same engine: {speedup.value:.2f} "
        f"(90 % interval {speedup.low:.2f} to {speedup.high:.2f})",
        f"- {plan.tokens_per_s:.4g} tokens per second at batch {plan.workload.batch}, {plan.workload.sampling.label}",
        f"- acceptance length {rounds.tokens_per_round:.2f} (tokens per round, the bonus included){accepted}",
        f"- accepted by position: {', '.join(f'{rate:.3f}' for rate in policy.acceptance_rates)}",
    ]
    if policy.by_batch:
        ranges = (f"{part.draft_tokens} for {part.first} to {part.last}" for part in policy.by_batch)
        lines.append(f"- draft length by batch size: {', '.join(ranges)}")
    if plan.engine_setting is None and not readme.serving.engine.runs_exits:
        lines.append("- seconds are not measured in this engine: s2d-profile engine measures them")
    return "\n".join(lines)


def _commands(readme: Readme) -> str:
    rows = "\n".join(f"| `{file.name}` | {file.purpose} |" for file in readme.files.files)
    address = (
        "\n\nServers listen on 127.0.0.1 only. Options after a script's name are passed on: `./serve.sh --host 0.0.0.0` opens "
        "the server to the network."
        if readme.files.default_port is not None
        else ""
    )
    return f"## Commands\n\n| file | purpose |\n|---|---|\n{rows}{address}\n\n{_target(readme.serving)}"


def _target(serving: Serving) -> str:
    if serving.is_target_inside:
        return f"The target is here: `{serving.target}`. {_elsewhere(serving)}".rstrip()
    if serving.engine.checkpoint == "huggingface":
        return (
            f"The target is not copied: `{_inline(serving.target)}`. {_elsewhere(serving)} Nothing is downloaded: "
            "`HF_HUB_OFFLINE=0` before a command lets the engine fetch a target by its name."
        )
    convert = f"s2d-engines convert --engine {serving.engine.name} --weights {serving.weights} DIR {serving.target}"
    return f"The target is missing, as requested. Make `{serving.target}` in this folder: `{convert}`"


def _elsewhere(serving: Serving) -> str:
    """How to take a target from another place; empty where one configuration holds both models."""
    if serving.engine.checkpoint == "onnx":
        return ""
    is_script = serving.engine.name in ("openvino", "transformers")
    return "`--target PATH` takes another one." if is_script else "`TARGET=PATH` before a script takes another one."


def _check(readme: Readme) -> str:
    if readme.serving.engine.runs_exits:
        return f"## Check\n\n{_code(*readme.check_steps)}\n\nCompares text, acceptance and speed with plain decoding."
    if not readme.has_smoke_test:
        return (
            "## Check\n\nThe server's answers do not report rounds, so there is no smoke test. Compare the metrics of its "
            "own benchmark with the plan, as below."
        )
    expected = readme.expected
    steps = _code(*readme.check_steps)
    python = (
        f"\n\nPYTHON is the interpreter that has the engine, such as `{_python(readme.serving.engine.name)}`."
        if readme.has_own_python
        else ""
    )
    return (
        f"## Check\n\n{steps}{python}\n\n{len(expected.prompts)} prompts: acceptance length {expected.acceptance_length:.2f} "
        f"from {expected.source}, at most {format_frac(expected.tolerance_frac)} fewer accepted tokens. Exit code 0 if the "
        "engine keeps it and writes the text of plain decoding, 1 otherwise. An engine that rejects nearly every token without "
        "an error is found here."
    )


def _facts(readme: Readme) -> str:
    lines = [f"- checked before it was written: {', '.join(readme.checks)}"]
    lines += [f"- {note}" for note in readme.files.notes]
    lines += [f"- {constraint.check}: {constraint.text}" for constraint in readme.serving.engine.constraints]
    lines += [f"- **warning**: {warning}" for warning in readme.warnings]
    return "\n".join(["## What to know", *lines])


def _back(readme: Readme) -> str:
    """How to compare the served figures with the prediction, and how to serve without the draft."""
    names = {file.name for file in readme.files.files}
    plain = "`./serve-plain.sh`" if "serve-plain.sh" in names else "`--plain`" if "generate.py" in names else "`policy: null`"
    compare = _code("s2d-compare --plan plan.json --engine-metrics FILE")
    without = f"Without the draft: {plain}." if plain != "`policy: null`" else "Without the draft: s2d-run compares with it."
    return (
        f"## Compare with the plan\n\n{compare}\n\nFILE is what the engine reported while it served. The command splits an "
        f"error into acceptance and seconds. {without}"
    )


def _python(engine: str) -> str:
    """An interpreter installed by s2d-engines."""
    return f'"${{S2D_ENGINES:-$HOME/.cache/s2d/engines}}"/{engine}/bin/python'


def _code(*commands: str) -> str:
    return "\n".join([f"{_FENCE}sh", *commands, _FENCE])


def _inline(text: str) -> str:
    """Text that stays inside one pair of backquotes."""
    return text.replace("`", "'").replace("\n", " ")

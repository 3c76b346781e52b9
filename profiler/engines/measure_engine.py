"""Runs the configurations of one or more profiles in an engine, interleaved, and records every call.

Every process of the engine holds one pair of models, so that several are loaded together. For each prompt, all configurations
run in random order, and in the next repeat backwards (A B B A). If not all processes fit in memory, they run in groups, one
after another in every repeat. Plain decoding runs in every group of at least two. Profiles that are measured together, each
with prompts and configurations of its own, take turns over the whole time, and share processes.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from perfmodel.core.cpu_contention import TreeContention
from perfmodel.core.units import GIB, MIB, Bytes, Frac
from perfmodel.engines.engine_profile import EngineCall, EngineRun
from profiler.engines.engine_models import EngineModels, EnginePrompt
from profiler.engines.engine_request import PLAIN, Arm, EngineProfileRequest, processes_of
from s2d.engines.session import EngineSession
from s2d.engines.session_request import CallResult, EngineFacts, Json, SessionRequest, can_change_length

_PROCESS_BYTES: Mapping[str, Bytes] = {
    "vllm": 9 * GIB // 4,
    "sglang": 4 * GIB,
    "transformers": GIB,
    "s2d": GIB,
    "llama.cpp": 128 * MIB,
}
"""Memory of a process of an engine beside its models' files; others need `_OTHER_PROCESS_BYTES`."""
_OTHER_PROCESS_BYTES = 512 * MIB
_CONVERTED_FACTOR = 2
"""Files may be stored in half of the bytes that they take in memory."""
_USED_MEMORY_FRAC: Frac = 0.8

Process = tuple[Arm, ...]
"""Configurations that run in one process."""
Calls = dict[Arm, list[EngineCall]]
"""Recorded calls, in the order in which they ran."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """One of the profiles that are measured together."""

    request: EngineProfileRequest
    models: EngineModels
    arms: tuple[Arm, ...]
    """Its configurations, plain decoding first."""
    calls: Calls
    """Recorded so far: those before an interruption, and then all."""

    @property
    def runs(self) -> tuple[EngineRun, ...]:
        """The recorded calls by configuration. Those without calls are left out."""
        return tuple(
            EngineRun(
                exit_layer=arm.exit_layer,
                draft_tokens=arm.draft_tokens,
                floor=arm.floor,
                is_draft_alone=arm.is_draft_alone,
                calls=tuple(self.calls[arm]),
            )
            for arm in self.arms
            if self.calls.get(arm)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One call to make."""

    part: int
    """Index of the profile that it is for."""
    arm: Arm
    prompt: EnginePrompt
    visit: int
    """Number of the visit to the prompt: its calls run one after another."""


class EngineMeasurement:
    """The calls of profiles that are measured together, recorded so far and still to make.

    Args:
        parts: the profiles. They agree in everything but prompts, configurations and files.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._request = parts[0].request
        arms = tuple(dict.fromkeys(arm for part in parts for arm in part.arms))
        self._models_of = {arm: part.models for part in parts for arm in part.arms}
        self._processes = processes_of(arms, self._request.row.name, self._request.interface)
        self.facts: EngineFacts | None = None
        """As the engine reports them; None before a process has started."""

    def groups(self, free_bytes: Bytes) -> tuple[tuple[Process, ...], ...]:
        """Processes to load together: as many as fit in a share of the free memory; on a GPU, one."""
        plain, *others = self._processes
        most = _USED_MEMORY_FRAC * free_bytes if self._request.threads is not None else 0.0
        groups: list[list[Process]] = [[plain]]
        for process in others:
            if self._bytes([*groups[-1], process]) <= most:
                groups[-1].append(process)
            else:
                groups.append([plain, process] if self._bytes([plain, process]) <= most else [process])
        return tuple(map(tuple, groups))

    def steps(self, groups: Sequence[Sequence[Process]]) -> list[tuple[Sequence[Process], list[Step]]]:
        """The calls that are left, by the processes that make them. Processes without any are left out."""
        recorded = Counter(
            (number, arm, call.prompt)
            for number, part in enumerate(self._parts)
            for arm, calls in part.calls.items()
            for call in calls
        )
        planned: list[tuple[Sequence[Process], list[Step]]] = []
        visits = itertools.count()
        for repeat in range(self._request.repeats):
            for position, group in enumerate(groups if repeat % 2 == 0 else reversed(groups)):
                left = []
                for step in self._interleaved(groups, group, repeat, visits):
                    key = step.part, step.arm, step.prompt.name
                    recorded[key] -= 1
                    left += [step] if recorded[key] < 0 else []
                starts_anew = position == 0 and self._starts_anew(repeat)
                if left and planned and planned[-1][0] is group and not starts_anew:
                    planned[-1][1].extend(left)  # the processes run on
                elif left:
                    planned.append((group, left))
        return planned

    def _starts_anew(self, repeat: int) -> bool:
        """Whether processes are restarted before a repeat. The restarts are spread evenly over the repeats."""
        spans = self._request.num_restarts + 1
        return repeat > 0 and repeat * spans // self._request.repeats != (repeat - 1) * spans // self._request.repeats

    def _interleaved(
        self, groups: Sequence[Sequence[Process]], group: Sequence[Process], repeat: int, visits: Iterator[int]
    ) -> Iterator[Step]:
        """All calls of a group in one repeat: per prompt, every configuration in random order, backwards in odd repeats."""
        arms_of_part = [_arms_to_run(part, groups, group) for part in self._parts]
        num_prompts = [len(part.models.prompts) if arms else 0 for part, arms in zip(self._parts, arms_of_part, strict=True)]
        for number, index in take_turns(num_prompts):
            part, arms = self._parts[number], arms_of_part[number]
            order = random.Random(f"{part.request.seed} {index}").sample(arms, len(arms))
            visit = next(visits)
            for arm in order if repeat % 2 == 0 else reversed(order):
                yield Step(part=number, arm=arm, prompt=part.models.prompts[index], visit=visit)

    def measure(
        self,
        group: Sequence[Process],
        steps: Sequence[Step],
        *,
        on_start: Callable[[EngineFacts], None],
        on_call: Callable[[Step, bool], None],
    ) -> None:
        """Start the processes of a group, make some calls, and end the processes.

        Args:
            group: the processes.
            steps: the calls.
            on_start: receives what the engine reports of itself when a process has started.
            on_call: receives each call that has been recorded, and whether it is the last of its visit.

        Raises:
            EngineFailure: the engine fails.
        """
        with ExitStack() as stack:
            sessions: dict[Arm, EngineSession] = {}
            for process in group:
                session = stack.enter_context(EngineSession(self._session_request(process)))
                on_start(session.facts)
                self.facts = session.facts
                sessions |= dict.fromkeys(process, session)
            for step, following in zip(steps, [*steps[1:], None], strict=True):
                call = self._call(sessions[step.arm], step)
                self._parts[step.part].calls.setdefault(step.arm, []).append(call)
                on_call(step, following is None or following.visit != step.visit)

    def _call(self, session: EngineSession, step: Step) -> EngineCall:
        request, ids, arm = self._parts[step.part].request, step.prompt.token_ids, step.arm
        if request.warm_up_tokens > 1:
            session.call(ids, request.warm_up_tokens, arm.draft_tokens, arm.floor)
        contention = TreeContention(session.pid)
        result = session.call(ids, request.max_new_tokens, arm.draft_tokens, arm.floor)
        return replace(recorded_call(step.prompt, result, contention.waited_frac), visit=step.visit)

    def _session_request(self, process: Process) -> SessionRequest:
        request, arm = self._request, process[-1]
        target, draft = self._models_of[arm].paths(arm)
        name = arm.label.replace(",", "").replace(" ", "-")
        return SessionRequest(
            engine=request.row.name,
            target=target,
            draft=draft,
            weights=request.stored_weights,
            num_threads=request.threads,
            context_tokens=max(part.models.context_tokens for part in self._parts),
            draft_tokens=max(member.draft_tokens for member in process),
            floor=None if can_change_length(request.row.name, request.interface) else arm.floor,
            log=log_folder(request) / f"{request.row.name}-{name}.log",
            interface=request.interface,
            cache_gib=max(part.models.cache_gib for part in self._parts),
        )

    def _bytes(self, processes: Sequence[Process]) -> Bytes:
        """Memory of some processes, estimated from the sizes of files."""
        own = _PROCESS_BYTES.get(self._request.row.name, _OTHER_PROCESS_BYTES)
        return sum(own + _CONVERTED_FACTOR * self._models_of[process[0]].file_bytes(process[0]) for process in processes)


def recorded_call(prompt: EnginePrompt, result: CallResult, waited_frac: Frac | None) -> EngineCall:
    """A call as it is stored."""
    text = ",".join(map(str, result.tokens))
    return EngineCall(
        prompt=prompt.name,
        prompt_tokens=len(prompt.token_ids),
        num_tokens=len(result.tokens),
        decode_s=result.decode_s,
        output_sha256=hashlib.sha256(text.encode()).hexdigest(),
        num_rounds=result.num_rounds,
        num_drafted=result.num_drafted,
        num_accepted=result.num_accepted,
        draft_s=result.draft_s,
        verify_s=result.verify_s,
        waited_frac=waited_frac,
        estimated_tokens_per_round=_number(result.raw.get("expected_tokens_per_round")),
        untimed_tokens=result.untimed_tokens,
    )


def _number(value: Json) -> float | None:
    """A positive number; None for anything else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None


def log_folder(request: EngineProfileRequest) -> Path:
    """Where the engine's output is kept."""
    return request.models_folder / "logs"


def take_turns(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """All items of some lists, each spread evenly over the whole: pairs of list and index within it.

    Args:
        numbers: items of each list.
    """
    items = [((index + 0.5) / number, part, index) for part, number in enumerate(numbers) for index in range(number)]
    return [(part, index) for _, part, index in sorted(items)]


def _arms_to_run(part: Part, groups: Sequence[Sequence[Process]], group: Sequence[Process]) -> list[Arm]:
    """The configurations of a profile in a group, plain decoding as often as requested.

    None if only plain decoding is left, and another group compares it with other configurations of the profile.
    """
    own = set(part.arms)
    by_group = [[arm for process in processes for arm in process if arm in own] for processes in groups]
    arms = [arm for process in group for arm in process if arm in own]
    if arms == [PLAIN] and any(PLAIN in others and len(others) > 1 for others in by_group):
        return []
    return [*arms, *[PLAIN] * (part.request.plain_calls - 1 if PLAIN in arms else 0)]

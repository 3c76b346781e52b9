"""Runs the configurations of a profile in an engine, interleaved, and records every call.

Every process of the engine holds one pair of models, so that several are loaded together. For each prompt, all configurations
run in random order, and in the next repeat backwards (A B B A). If not all processes fit in memory, they run in groups, one
after another in every repeat. Plain decoding runs in every group of at least two.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from perfmodel.core.cpu_contention import TreeContention
from perfmodel.core.units import GIB, MIB, Bytes, Frac
from perfmodel.engines.engine_profile import EngineCall, EngineRun
from profiler.engines.engine_models import EngineModels, EnginePrompt
from profiler.engines.engine_request import Arm, EngineProfileRequest, processes_of
from s2d.engines.session import EngineSession, SessionRequest
from s2d.engines.session_request import CallResult, EngineFacts, Json, can_change_length

_PROCESS_BYTES: Mapping[str, Bytes] = {"vllm": 9 * GIB // 4, "sglang": 4 * GIB, "transformers": GIB, "s2d": GIB}
"""Memory of a process of an engine beside its models' files; others need `_OTHER_PROCESS_BYTES`."""
_OTHER_PROCESS_BYTES = 512 * MIB
_CONVERTED_FACTOR = 2
"""Files may be stored in half of the bytes that they take in memory."""
_USED_MEMORY_FRAC: Frac = 0.8

Process = tuple[Arm, ...]
"""Configurations that run in one process."""
Calls = dict[Arm, list[EngineCall]]
"""Recorded calls, in the order in which they ran."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One call to make."""

    arm: Arm
    prompt: EnginePrompt


class EngineMeasurement:
    """The calls of a profile, recorded so far and still to make.

    Args:
        request: what to measure.
        models: in the engine's format.
        arms: the configurations.
        calls: those recorded before an interruption.
    """

    def __init__(self, request: EngineProfileRequest, models: EngineModels, arms: Sequence[Arm], calls: Calls) -> None:
        self._request = request
        self._models = models
        self._processes = processes_of(arms, request.row.name, request.interface)
        self._calls: Calls = {arm: list(calls.get(arm, ())) for arm in arms}
        self.facts: EngineFacts | None = None
        """As the engine reports them; None before a process has started."""

    @property
    def runs(self) -> tuple[EngineRun, ...]:
        """The recorded calls by configuration. Those without calls are left out."""
        return tuple(
            EngineRun(
                exit_layer=arm.exit_layer,
                draft_tokens=arm.draft_tokens,
                floor=arm.floor,
                is_draft_alone=arm.is_draft_alone,
                calls=tuple(calls),
            )
            for arm, calls in self._calls.items()
            if calls
        )

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
        """The calls that are left, by group and repeat. Groups without any are left out."""
        recorded = Counter((arm, call.prompt) for arm, calls in self._calls.items() for call in calls)
        planned: list[tuple[Sequence[Process], list[Step]]] = []
        for repeat in range(self._request.repeats):
            for group in groups if repeat % 2 == 0 else reversed(groups):
                steps = list(_interleaved(group, self._models.prompts, repeat, self._request.seed))
                left = []
                for step in steps:
                    recorded[step.arm, step.prompt.name] -= 1
                    left += [step] if recorded[step.arm, step.prompt.name] < 0 else []
                if left and planned and planned[-1][0] is group:
                    planned[-1][1].extend(left)  # the processes run on
                elif left:
                    planned.append((group, left))
        return planned

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
            on_call: receives each call that has been recorded, and whether it is the last of its prompt.

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
                self._calls[step.arm].append(self._call(sessions[step.arm], step))
                on_call(step, following is None or following.prompt != step.prompt)

    def _call(self, session: EngineSession, step: Step) -> EngineCall:
        request, ids, arm = self._request, step.prompt.token_ids, step.arm
        if request.warm_up_tokens > 1:
            session.call(ids, request.warm_up_tokens, arm.draft_tokens, arm.floor)
        contention = TreeContention(session.pid)
        result = session.call(ids, request.max_new_tokens, arm.draft_tokens, arm.floor)
        return recorded_call(step.prompt, result, contention.waited_frac)

    def _session_request(self, process: Process) -> SessionRequest:
        request, arm = self._request, process[-1]
        target, draft = self._models.paths(arm)
        name = arm.label.replace(",", "").replace(" ", "-")
        return SessionRequest(
            engine=request.row.name,
            target=target,
            draft=draft,
            weights=request.stored_weights,
            num_threads=request.threads,
            context_tokens=self._models.context_tokens,
            draft_tokens=max(member.draft_tokens for member in process),
            floor=None if can_change_length(request.row.name, request.interface) else arm.floor,
            log=log_folder(request) / f"{request.row.name}-{name}.log",
            interface=request.interface,
            cache_gib=self._models.cache_gib,
        )

    def _bytes(self, processes: Sequence[Process]) -> Bytes:
        """Memory of some processes, estimated from the sizes of files."""
        own = _PROCESS_BYTES.get(self._request.row.name, _OTHER_PROCESS_BYTES)
        return sum(own + _CONVERTED_FACTOR * self._models.file_bytes(process[0]) for process in processes)


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


def _interleaved(group: Sequence[Process], prompts: Sequence[EnginePrompt], repeat: int, seed: int) -> Iterator[Step]:
    """All calls of a group in one repeat: per prompt, every configuration in random order, backwards in odd repeats."""
    arms = [arm for process in group for arm in process]
    for index, prompt in enumerate(prompts):
        order = random.Random(f"{seed} {index}").sample(arms, len(arms))
        for arm in order if repeat % 2 == 0 else reversed(order):
            yield Step(arm=arm, prompt=prompt)

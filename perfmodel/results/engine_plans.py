"""Plans for several engines, side by side: the same target and draft, and what they are worth in each."""

from collections.abc import Sequence
from dataclasses import dataclass

from perfmodel.core.blocks import Block, Printable
from perfmodel.core.disk import PathLike
from perfmodel.core.files import FileFormat
from perfmodel.core.provenance import make_provenance
from perfmodel.results.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePlan:
    """The plan for one engine, or why there is none."""

    engine: str
    plan: Plan | None
    problem: str | None
    """Why there is no plan; None with a plan."""

    def __post_init__(self) -> None:
        if (self.plan is None) == (self.problem is None):
            raise ValueError(f"{self.engine}: either a plan or a problem")


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePlans(Printable):
    """Plans of one pair of models for several engines."""

    engines: tuple[EnginePlan, ...]
    """By predicted tokens per second, then those without a plan."""
    next_command: str
    """The command that plans for the fastest engine alone; empty if unknown."""

    def __post_init__(self) -> None:
        if not self.planned:
            raise ValueError("at least one engine has a plan")

    @property
    def planned(self) -> tuple[EnginePlan, ...]:
        """The engines that have a plan."""
        return tuple(entry for entry in self.engines if entry.plan is not None)

    @property
    def fastest(self) -> EnginePlan:
        """The engine with the most predicted tokens per second."""
        return self.planned[0]

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plans, in the order of the engines."""
        return tuple(entry.plan for entry in self.engines if entry.plan is not None)

    @property
    def inputs(self) -> dict[str, str]:
        """SHA-256 of the files that the plans were made from, by role and engine, with the setting of profiled engines."""
        names = [plan.engine if plan.engine_setting is None else plan.engine_setting.label for plan in self.plans]
        by_name = zip(names, self.plans, strict=True)
        return {f"{role} of {name}": sha256 for name, plan in by_name for role, sha256 in plan.inputs.items()}

    def blocks(self, *, explain: bool = False) -> Sequence[Block]:
        """The answer of `s2d-plan --engine all` as blocks of text."""
        from perfmodel.results.engine_plans_text import engine_plans_blocks

        return engine_plans_blocks(self, explain=explain)

    @staticmethod
    def load(path: PathLike) -> "EnginePlans":
        """Read plans from a file by `save` or `s2d-plan --engine all -o`.

        Raises:
            BadFile: the file does not hold them.
        """
        return ENGINE_PLANS_FILE.read(path).record

    def save(self, path: PathLike) -> None:
        """Write the plans as a file, whole or not at all.

        Raises:
            UserInputError: the file cannot be written.
        """
        ENGINE_PLANS_FILE.write(path, self, make_provenance(argv=(f"{type(self).__name__}.save",), inputs=self.inputs))


ENGINE_PLANS_FILE = FileFormat(record=EnginePlans, schema="s2d/engine-plans", made_with="s2d-plan --engine all -o FILE")

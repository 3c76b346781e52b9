"""Plan, run and prove speculative decoding.

The public Python API. Everything that a command does, these names do in a few lines:

>>> import s2d
>>> plan = s2d.plan("llama-70b", device="h100")
>>> print(plan)                     # the text that s2d-plan prints; plan.explain() is the long one
>>> plan.save("plan.json")
>>> s2d.latency("llama-2-70b", device="a100-80gb").verify(rows=6, context=768)  # seconds

`plan`, `latency`, `replay` and `compare` need neither a GPU nor torch. `profile`, `load`, `run` and the training functions
import torch when they are called. Results print as the commands print and show as HTML in a notebook.
"""

from importlib import import_module
from types import FunctionType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from calibrate.engine_metrics.read_engine_metrics import read_engine_metrics
    from calibrate.planning.compare import compare
    from calibrate.planning.draft_shapes import draft_lengths, draft_shapes
    from calibrate.planning.make_plan import plan
    from calibrate.planning.plan_engines import plan_engines
    from perfmodel.acceptance.trace import Trace
    from perfmodel.core.errors import S2DError, UserInputError
    from perfmodel.core.provenance import TOOL_VERSION as __version__  # noqa: N811
    from perfmodel.engines.engine import Engine
    from perfmodel.engines.find_engine import find_engine
    from perfmodel.latency.model_latency import ModelLatency, latency
    from perfmodel.policies.policy import CalibrationCurve, ConfidenceFloor, HeuristicLength, Policy, SurvivalFloor
    from perfmodel.policies.sampling import Sampling
    from perfmodel.replay.replay import replay, replay_prompts
    from perfmodel.replay.round_stats import RoundStats
    from perfmodel.results.engine_report import EngineReport
    from perfmodel.results.plan import Plan
    from perfmodel.results.report import RunReport
    from perfmodel.results.residuals import Residuals
    from profiler.engines.profile_engine import profile_engine
    from profiler.profiling.profile_law import profile_law
    from profiler.profiling.profile_pair import Profile, profile
    from s2d.exporting.export import Export, export
    from s2d.loading.exits import write_exits
    from s2d.running.run import run
    from s2d.running.run_inputs import RunRequest
    from s2d.running.speculative_model import Completion, SpeculativeModel, load
    from s2d.training.calibrate_draft import calibrate_draft
    from s2d.training.reduce_vocab import reduce_vocab
    from s2d.training.train_draft import train_draft

_MODULES = {
    "calibrate.engine_metrics.read_engine_metrics": ("read_engine_metrics",),
    "calibrate.planning.make_plan": ("plan",),
    "calibrate.planning.plan_engines": ("plan_engines",),
    "calibrate.planning.compare": ("compare",),
    "calibrate.planning.draft_shapes": ("draft_shapes", "draft_lengths"),
    "perfmodel.acceptance.trace": ("Trace",),
    "perfmodel.core.errors": ("S2DError", "UserInputError"),
    "perfmodel.engines.engine": ("Engine",),
    "perfmodel.engines.find_engine": ("find_engine",),
    "perfmodel.latency.model_latency": ("latency", "ModelLatency"),
    "perfmodel.policies.policy": ("Policy", "ConfidenceFloor", "SurvivalFloor", "HeuristicLength", "CalibrationCurve"),
    "perfmodel.policies.sampling": ("Sampling",),
    "perfmodel.replay.replay": ("replay", "replay_prompts"),
    "perfmodel.replay.round_stats": ("RoundStats",),
    "perfmodel.results.engine_report": ("EngineReport",),
    "perfmodel.results.plan": ("Plan",),
    "perfmodel.results.report": ("RunReport",),
    "perfmodel.results.residuals": ("Residuals",),
    "profiler.engines.profile_engine": ("profile_engine",),
    "profiler.profiling.profile_law": ("profile_law",),
    "profiler.profiling.profile_pair": ("profile", "Profile"),
    "s2d.exporting.export": ("export", "Export"),
    "s2d.loading.exits": ("write_exits",),
    "s2d.running.run": ("run",),
    "s2d.running.run_inputs": ("RunRequest",),
    "s2d.running.speculative_model": ("load", "SpeculativeModel", "Completion"),
    "s2d.training.calibrate_draft": ("calibrate_draft",),
    "s2d.training.reduce_vocab": ("reduce_vocab",),
    "s2d.training.train_draft": ("train_draft",),
}
"""Where each public name is defined. A module is imported when one of its names is first used."""
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "CalibrationCurve",
    "Completion",
    "ConfidenceFloor",
    "Engine",
    "EngineReport",
    "Export",
    "HeuristicLength",
    "ModelLatency",
    "Plan",
    "Policy",
    "Profile",
    "Residuals",
    "RoundStats",
    "RunReport",
    "RunRequest",
    "S2DError",
    "Sampling",
    "SpeculativeModel",
    "SurvivalFloor",
    "Trace",
    "UserInputError",
    "__version__",
    "calibrate_draft",
    "compare",
    "draft_lengths",
    "draft_shapes",
    "export",
    "find_engine",
    "latency",
    "load",
    "plan",
    "plan_engines",
    "profile",
    "profile_engine",
    "profile_law",
    "read_engine_metrics",
    "reduce_vocab",
    "replay",
    "replay_prompts",
    "run",
    "train_draft",
    "write_exits",
]


def __getattr__(name: str) -> object:
    """Import a public name from its module (PEP 562)."""
    if name == "__version__":
        value = import_module("perfmodel.core.provenance").TOOL_VERSION
    elif name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
        if isinstance(value, FunctionType):
            value = import_module("perfmodel.core.errors").with_python_errors(value)
    else:
        raise AttributeError(f"module 's2d' has no public name {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)

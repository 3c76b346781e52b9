"""What engines.py runs: engines with the storage of their weights, and the exits and draft lengths in each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from perfmodel.core.errors import UserInputError
from perfmodel.core.units import Tokens
from perfmodel.engines.find_engine import engine_weights, find_engine
from profiler.engines.engine_request import DEFAULT_LENGTHS, Arm, arms_of
from shared import common  # noqa: F401 makes the checkout importable


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One engine with one storage of the weights, and what is measured in it."""

    engine: str
    weights: str
    """In the engine's words."""
    profile_lengths: tuple[Tokens, ...] = DEFAULT_LENGTHS
    """Draft lengths of the profile, with the first and the last exit."""
    first_exit_lengths: tuple[Tokens, ...] = ()
    """More draft lengths of the profile, with the first exit only: where seconds of a verification are no line in its rows."""
    held_out: tuple[tuple[int, Tokens], ...]
    """Exits and draft lengths to predict. The profile has none of these pairs."""
    num_prompts: int
    """Evaluation prompts."""
    profile_prompts: int
    """Calibration prompts that the engine decodes."""
    restarts: int | None = None
    """How often its processes start anew between repeats; None: as the profiler does by default."""
    minutes: float
    """Of a measurement on one thread of a quiet shared AMD EPYC, estimated from earlier runs: for the time left."""

    @property
    def label(self) -> str:
        """`llama.cpp q8_0`."""
        return f"{self.engine} {self.weights}"

    def profiled(self, exits: Sequence[int]) -> tuple[Arm, ...]:
        """The configurations of the profile, by the exits of the draft."""
        product = arms_of((exits[0], exits[-1]), self.profile_lengths)
        return tuple(dict.fromkeys((*product, *(drafting(exits[0], length) for length in self.first_exit_lengths))))


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSize:
    """Amount of measurement."""

    settings: tuple[Setting, ...]
    traced_prompts: int
    """Calibration prompts in the trace that plans are made from."""
    max_new_tokens: Tokens
    num_repeats: int
    plain_calls: int
    """Calls of plain decoding in a visit to a prompt. All speedups of a setting share its noise, so it is measured more often
    than the others: by the square root of their number, if calls are equally noisy (Dunnett 1955)."""


FAMILY_CONFIGS = ((1, 3), (1, 6), (2, 3), (2, 5), (2, 8), (4, 2), (4, 3), (4, 5), (4, 8), (4, 11), (6, 3), (6, 6))
"""Of `ref-draft`: two exits that no profile drafts with, and other lengths of the two that it does."""
SLOW_CONFIGS = ((1, 4), (2, 3), (4, 3), (4, 5), (4, 8), (6, 4))
UNEVEN_LENGTHS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12)
"""llama.cpp multiplies by tiles of rows: with f32 weights, 5 rows take 0.8 of the seconds of 4 (docs/log.md)."""
UNEVEN_CONFIGS = ((2, 2), (2, 3), (2, 5), (2, 8), (4, 2), (4, 3), (4, 4), (4, 5), (4, 8), (4, 11), (6, 3), (6, 6))
_SLOW_PROMPTS, _SLOW_PROFILE_PROMPTS = 10, 5
_PROMPTS, _PROFILE_PROMPTS = 18, 10
_NUM_REPEATS = 3
_RESTARTED_LENGTHS = (2, 7)
_RESTARTED_CONFIGS = ((2, 3), (4, 3), (4, 5), (4, 10))
"""For engines that take a minute to start, once for every draft length."""


def _fast(engine: str, weights: str, minutes: float) -> Setting:
    return Setting(
        engine=engine,
        weights=weights,
        held_out=FAMILY_CONFIGS,
        num_prompts=_PROMPTS,
        profile_prompts=_PROFILE_PROMPTS,
        restarts=_NUM_REPEATS - 1,
        minutes=minutes,
    )


def _uneven(engine: str, weights: str, minutes: float) -> Setting:
    return replace(_fast(engine, weights, minutes), first_exit_lengths=UNEVEN_LENGTHS, held_out=UNEVEN_CONFIGS)


def _slow(engine: str, weights: str, minutes: float) -> Setting:
    return Setting(
        engine=engine,
        weights=weights,
        held_out=SLOW_CONFIGS,
        num_prompts=_SLOW_PROMPTS,
        profile_prompts=_SLOW_PROFILE_PROMPTS,
        minutes=minutes,
    )


def _restarted(engine: str, weights: str, minutes: float) -> Setting:
    return replace(_slow(engine, weights, minutes), profile_lengths=_RESTARTED_LENGTHS, held_out=_RESTARTED_CONFIGS)


FULL = EngineSize(
    settings=(
        _fast("onnxruntime", "f32", 3.5),
        _fast("onnxruntime", "int4", 2.5),
        _uneven("llama.cpp", "f32", 5),
        _uneven("llama.cpp", "bf16", 3.5),
        _uneven("llama.cpp", "q8_0", 4),
        _fast("openvino", "f32", 5),
        _fast("openvino", "bf16", 5),
        _fast("s2d", "fp32", 5),
        _slow("transformers", "f32", 5.5),
        _slow("mlx-lm", "f32", 9),
        _restarted("vllm", "f32", 25),
    ),
    traced_prompts=60,
    max_new_tokens=64,
    num_repeats=_NUM_REPEATS,
    plain_calls=3,
)
_BIG_CONFIGS = ((4, 1), (4, 3), (4, 4), (2, 7))


def _big(engine: str, weights: str, first_exit_lengths: tuple[Tokens, ...] = ()) -> Setting:
    return Setting(
        engine=engine,
        weights=weights,
        profile_lengths=(2, 6),
        first_exit_lengths=first_exit_lengths,
        held_out=_BIG_CONFIGS,
        num_prompts=3,
        profile_prompts=2,
        minutes=8,
    )


BIG = EngineSize(
    settings=(
        _big("llama.cpp", "bf16", (1, 3, 4)),
        _big("llama.cpp", "q8_0", (1, 3, 4)),
        _big("llama.cpp", "q4_0", (1, 3, 4)),
        _big("onnxruntime", "f32"),
        _big("onnxruntime", "int4"),
        _big("openvino", "bf16"),
        _big("openvino", "int8"),
        _big("transformers", "bf16"),
        _big("s2d", "bf16"),
    ),
    traced_prompts=12,
    max_new_tokens=32,
    num_repeats=2,
    plain_calls=2,
)
_QUICK_CONFIGS = ((2, 3), (4, 3), (4, 6))
QUICK = EngineSize(
    settings=tuple(
        Setting(
            engine=engine,
            weights="f32",
            profile_lengths=(2, 5),
            held_out=_QUICK_CONFIGS,
            num_prompts=4,
            profile_prompts=3,
            restarts=0,
            minutes=0.3,
        )
        for engine in ("onnxruntime", "llama.cpp")
    ),
    traced_prompts=6,
    max_new_tokens=32,
    num_repeats=2,
    plain_calls=1,
)


def chosen_settings(size: EngineSize, engines: Sequence[str] | None, weights: Sequence[str] | None) -> EngineSize:
    """The size with the settings of some engines and weights only.

    Raises:
        UserInputError: an engine or a storage is unknown, or no setting is left.
    """
    names = None if engines is None else {find_engine(engine).name for engine in engines}
    kept = [
        setting
        for setting in size.settings
        if (names is None or setting.engine in names) and (weights is None or setting.weights in weights)
    ]
    if not kept:
        known = ", ".join(setting.label for setting in size.settings)
        raise UserInputError(f"no setting is left: expected --engines and --weights to keep some of {known}.")
    return replace(size, settings=tuple(kept))


def unsupported(setting: Setting) -> str | None:
    """Why an engine does not load such weights; None if it does."""
    try:
        engine_weights(find_engine(setting.engine), setting.weights)
    except UserInputError as err:
        return str(err)
    return None


def drafting(exit_layer: int, draft_tokens: Tokens, floor: float | None = None) -> Arm:
    """The configuration of an exit that drafts."""
    return Arm(exit_layer=exit_layer, draft_tokens=draft_tokens, is_draft_alone=False, floor=floor)

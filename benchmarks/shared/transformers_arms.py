"""transformers as arms of a benchmark: `generate`, and assisted generation over a grid of settings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel

from perfmodel.core.errors import UserInputError
from perfmodel.policies.sampling import Sampling
from profiler.latency.profiling_job import ProfilingJob
from s2d.decoding.encode_prompts import EncodedPrompt
from s2d.decoding.pair import Pair
from s2d.loading.load_model import export_exit
from s2d.training.train_sorted import load_trainable
from shared import common  # noqa: F401 makes the checkout importable

HF_GENERATE, HF_ASSISTED = "hf generate", "hf assisted"
CONSTANT_LENGTHS = (3, 5, 8)
HEURISTIC_START = 5

Write = Callable[[EncodedPrompt], list[int]]
"""An arm: returns the new tokens after a prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AssistedSetting:
    """Settings for the generation_config of an assistant. None keeps the default of transformers."""

    name: str
    num_assistant_tokens: int | None
    schedule: str | None
    threshold: float | None


CONSTANT_SETTINGS = tuple(
    AssistedSetting(name=f"constant {length}", num_assistant_tokens=length, schedule="constant", threshold=0.0)
    for length in CONSTANT_LENGTHS
)
ASSISTED_SETTINGS = (
    *CONSTANT_SETTINGS,
    AssistedSetting(name="defaults", num_assistant_tokens=None, schedule=None, threshold=None),
    AssistedSetting(name="heuristic", num_assistant_tokens=HEURISTIC_START, schedule="heuristic", threshold=0.0),
)


def transformers_arms(job: ProfilingJob, exits_folder: Path) -> dict[str, Write]:
    """`generate`, and assisted generation over a grid of exits and settings."""
    target = load_trainable(job.pair.target.folder)
    arms = {HF_GENERATE: transformers_arm(job, target)}
    for layer in job.pair.geometry.exit_layers:
        folder = exits_folder / str(layer)
        export_exit(job.pair.draft.folder, layer, folder)
        assistant = load_trainable(str(folder))
        for setting in ASSISTED_SETTINGS:
            write = transformers_arm(job, target, assistant=assistant, setting=setting)
            arms[f"{HF_ASSISTED}, exit {layer}, {setting.name}"] = write
    return arms


def transformers_arm(
    job: ProfilingJob,
    target: PreTrainedModel,
    *,
    assistant: PreTrainedModel | None = None,
    setting: AssistedSetting | None = None,
) -> Write:
    """One way to call `generate`.

    An assistant reads its settings from its own generation_config, and a call changes some of them. They are therefore set
    again before each call.
    """
    options = {"max_new_tokens": job.max_new_tokens, **special_tokens(job.pair), **sampling_options(job.sampling)}
    options |= {"assistant_model": assistant} if assistant is not None else {}

    def write(prompt: EncodedPrompt) -> list[int]:
        if assistant is not None and setting is not None:
            assistant.generation_config = assistant_config(special_tokens(job.pair), setting)
        if job.sampling.seed is not None:
            torch.manual_seed(job.sampling.seed)
        ids = torch.tensor([prompt.token_ids])
        written = target.generate(ids, attention_mask=torch.ones_like(ids), **options)
        return written[0, len(prompt.token_ids) :].tolist()

    return write


def sampling_options(sampling: Sampling) -> dict[str, bool | float | None]:
    """Options for `generate`, with its own defaults for top-k and top-p switched off.

    Raises:
        UserInputError: a penalty that transformers does not have.
    """
    if sampling.presence_penalty or sampling.frequency_penalty:
        raise UserInputError(
            f"{sampling.label}: transformers has only a repetition penalty. Give a plan without the other penalties."
        )
    penalty = sampling.repetition_penalty
    if sampling.rule == "greedy":
        return {"do_sample": False, "repetition_penalty": penalty}
    return {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k or 0,
        "top_p": 1.0 if sampling.top_p is None else sampling.top_p,
        "min_p": sampling.min_p,
        "repetition_penalty": penalty,
    }


def special_tokens(pair: Pair) -> dict[str, int | None]:
    return {"eos_token_id": pair.eos_token_id, "pad_token_id": pair.eos_token_id}


def assistant_config(special: Mapping[str, int | None], setting: AssistedSetting) -> GenerationConfig:
    given = {
        "num_assistant_tokens": setting.num_assistant_tokens,
        "num_assistant_tokens_schedule": setting.schedule,
        "assistant_confidence_threshold": setting.threshold,
    }
    return GenerationConfig(**special, **{name: value for name, value in given.items() if value is not None})

"""Compare captured passes with passes launched kernel by kernel: logits for every choice of kernels, and texts."""

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest import mock

import numpy as np
import torch
from device_check import MAX_BF16_OVER_TRANSFORMERS, MAX_FP32_ERROR_FRAC, RANDOM_TARGET, error_frac
from lossless import random_policy
from torch import Tensor

import s2d.model.cuda_graphs
from perfmodel.core.console import print_err
from perfmodel.core.units import Frac
from perfmodel.models.dtypes import Dtype
from perfmodel.passes.device_key import LaunchMode
from perfmodel.passes.kernels import STANDARD_KERNELS, Kernels
from perfmodel.policies.sampling import GREEDY
from s2d.decoding.generate import Session, Settings
from s2d.loading.convert_weights import random_weights, with_kernels
from s2d.loading.load_model import DECODERS, LoadedModel
from s2d.model.check_kernels import runnable_kernels
from s2d.model.cuda_graphs import GraphDecoder
from s2d.model.decoder import Decoder
from s2d.model.torch_dtypes import torch_dtype

SEED = 20261124
BLOCKS = (1, 2, 3, 5, 9, 1, 16, 7)
"""Rows of the compared passes: all captured widths except 32. Some are padded."""


@contextmanager
def checked_capture_inputs() -> Iterator[None]:
    """Let captures check that their inputs are still alive, if PyTorch supports it."""
    with mock.patch.dict(s2d.model.cuda_graphs.CAPTURE_OPTIONS, s2d.model.cuda_graphs.liveness_options()):
        yield


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstCapture:
    """The kernels with the largest error of captured logits."""

    kernels: Kernels
    error_frac: Frac
    limit_frac: Frac


@torch.inference_mode()
def captured_error(device: torch.device, dtype: Dtype, *, is_quick: bool) -> WorstCapture:
    """Compare all kernels on the same random weights with these weights in fp32, launched kernel by kernel."""
    geometry = replace(RANDOM_TARGET, num_layers=2 if is_quick else RANDOM_TARGET.num_layers)
    weights = random_weights(geometry, torch_dtype(dtype), str(device), seed=SEED)
    ids = np.random.default_rng(SEED).integers(geometry.vocab_size, size=sum(BLOCKS)).tolist()
    reference = block_logits(Decoder(geometry, with_kernels(weights, STANDARD_KERNELS, torch.float32)), ids)
    limit = MAX_FP32_ERROR_FRAC
    if dtype != "fp32":
        limit = MAX_BF16_OVER_TRANSFORMERS * error_frac(block_logits(Decoder(geometry, weights), ids), reference)
    errors: dict[Kernels, Frac] = {}
    with checked_capture_inputs():
        for kernels in runnable_kernels(device, dtype, "graph"):
            decoder = GraphDecoder(geometry, with_kernels(weights, kernels))
            try:
                errors[kernels] = error_frac(block_logits(decoder, ids), reference)
            except RuntimeError as err:  # report the other kernels too
                print_err(f"kernels {kernels.label} in {dtype}: {err}")
                errors[kernels] = math.inf
    worst = max(errors, key=lambda kernels: math.inf if math.isnan(errors[kernels]) else errors[kernels])
    return WorstCapture(kernels=worst, error_frac=errors[worst], limit_frac=limit)


def block_logits(decoder: Decoder, ids: Sequence[int]) -> Tensor:
    """Logits after every token of a text that passes through two segments in `BLOCKS`: float32 [T, V], on the CPU."""
    depth = decoder.geometry.num_layers
    cache = decoder.new_cache((depth // 2, depth), len(ids))
    decoder.prepare(cache, 0, len(ids))
    assert all(cache.prepared.values()), "the device has no memory for a captured pass"
    logits, start = [], 0
    for rows in BLOCKS:
        states = decoder.embed(list(ids[start : start + rows]))
        for segment in cache.segments:
            states = decoder.forward_segment(states, segment, cache)
        logits.append(decoder.exit_logits(states).cpu())
        start += rows
    return torch.cat(logits)


def captured_texts(device: torch.device, *, num_texts: int) -> tuple[int, int]:
    """The number of texts in fp32 under random policies, and how many differ from plain decoding kernel by kernel."""
    weights = random_weights(RANDOM_TARGET, torch.float32, str(device), seed=SEED)
    rng, num_different = random.Random(SEED), 0

    def session(mode: LaunchMode) -> Session:
        model = LoadedModel(
            decoder=DECODERS[mode](RANDOM_TARGET, weights),
            geometry=RANDOM_TARGET,
            exit_layers=(4, 6),
            calibration=None,
            sha256="",
            folder="",
            dtype="fp32",
        )
        return Session(model, None, 64)

    with checked_capture_inputs():
        eager, graph = session("eager"), session("graph")
        for _ in range(num_texts):
            prompt = [rng.randrange(RANDOM_TARGET.vocab_size) for _ in range(24)]
            settings = Settings(policy=None, sampling=GREEDY, max_new_tokens=32, eos_token_id=None)
            expected = eager.generate(prompt, settings).tokens
            for policy in (None, random_policy(graph.exit_layers, rng)):
                num_different += graph.generate(prompt, replace(settings, policy=policy)).tokens != expected
    return 2 * num_texts, num_different

"""Compute the device memory of a pair from its shapes, and check it before loading.

Every figure is an upper bound of the runtime's allocations for weights, caches, tables, buffers and graphs. Weights, caches
and tables are exact element counts. Buffers and graphs are counted for the widest passes.

Symbols: T rows of a pass, S positions of a cache, D hidden, F mlp, N heads, K kv heads, H head dim, V vocab, U tokens of the
head, E exits, R ranks.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from perfmodel.core.errors import UserInputError
from perfmodel.core.units import MIB, Bytes, Tokens, format_bytes
from perfmodel.hardware.cpu import read_cpu
from perfmodel.models.dtypes import DTYPE_BYTES, Dtype
from perfmodel.models.geometry import DraftGeometry, ModelGeometry
from perfmodel.passes.device_key import LaunchMode
from perfmodel.passes.passes import GRAPH_ROW_WIDTHS
from s2d.loading.convert_weights import CONVERT_BYTES
from s2d.model.attention import MIN_FUSED_ROWS
from s2d.model.cuda_graphs import CONTEXTS_PER_DOUBLING, MIN_CONTEXT, padded_cache_tokens
from s2d.model.finite import Role
from s2d.model.weights import PAD, head_stride, row_stride

FreeBytes = Callable[[torch.device], Bytes]
"""Free memory of a device."""
GPU_WORKSPACE_BYTES = 512 * MIB
"""GPU memory of kernels loaded at first use, library handles and the allocator's rounding."""
CPU_WORKSPACE_BYTES = 128 * MIB
"""CPU memory of libraries for packed matrices and threads."""
CUBLAS_STREAMS = 3
"""Streams with their own cuBLAS workspace: the current stream and one side stream of each decoder."""
CUBLAS_BYTES, OLD_CUBLAS_BYTES = 32 * MIB, 8519680
"""A cuBLAS workspace in PyTorch from compute capability 9.0 on, and on older GPUs (4096 KiB x 2 + 16 KiB x 8)."""
_LOGIT_BYTES = 24
"""Bytes per logit that sampling needs at a time: float32 scores, probabilities and noise, sorted values and indices."""
_ANGLES, _FACTORS_FP32, _FACTORS_HALF = 4, 8, 12
"""Bytes of rotary tables per position and component of a head: complex angles, and the factors computed from them."""
_MEMORY_INFO = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True, kw_only=True)
class PairPlacement:
    """The models of a pair and the devices that hold them."""

    target: ModelGeometry
    draft: DraftGeometry
    dtype: Dtype
    device: torch.device
    mode: LaunchMode
    target_ranks: int = 1
    """Processes that share the target evenly. The first one's share is counted."""
    draft_ranks: int = 1
    """The same for a draft with its own weights."""

    @property
    def has_own_draft(self) -> bool:
        """Whether the draft has its own weights."""
        return self.draft.kind == "separate"

    @property
    def number_bytes(self) -> int:
        """Bytes per element of weights and caches."""
        return round(DTYPE_BYTES[self.dtype])

    @property
    def label(self) -> str:
        """`llama-2-70b and s2d-vicuna-12`."""
        return f"{self.target.name} and {self.draft.model.name}" if self.has_own_draft else self.target.name


@dataclass(frozen=True, slots=True, kw_only=True)
class TextLimits:
    """The longest text of a session, and the other contents of its memory."""

    max_tokens: Tokens
    """Prompt included."""
    prompt_tokens: Tokens
    num_noise_tables: int
    """Tables of shared noise, [max_tokens, V] in float32; 0 for other acceptance rules."""
    teacher_forced: tuple[Role, ...] = ()
    """Models whose logits for all positions of the text are held at once, as in traces and checks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """Bytes on one device, by use."""

    weight_bytes: Bytes
    loading_bytes: Bytes
    """Temporary memory during loading."""
    workspace_bytes: Bytes
    """Memory of libraries."""
    cache_bytes: Bytes = 0
    rotary_bytes: Bytes = 0
    mask_bytes: Bytes = 0
    buffer_bytes: Bytes = 0
    """Buffers of passes with few rows, which are reused."""
    prompt_bytes: Bytes = 0
    """Buffers of the pass over the longest prompt."""
    logit_bytes: Bytes = 0
    noise_bytes: Bytes = 0
    trace_bytes: Bytes = 0
    """Caches and logits of passes over a whole text."""
    graph_bytes: Bytes = 0

    @property
    def parts(self) -> dict[str, Bytes]:
        """Bytes by name, largest first. Loading memory and session memory never exist at the same time."""
        session = {
            "caches": self.cache_bytes,
            "rotary tables": self.rotary_bytes,
            "attention masks": self.mask_bytes,
            "buffers of short passes": self.buffer_bytes,
            "buffers of the prompt": self.prompt_bytes,
            "logits": self.logit_bytes,
            "shared noise": self.noise_bytes,
            "logits of whole texts": self.trace_bytes,
            "CUDA graphs": self.graph_bytes,
        }
        peak = session if sum(session.values()) >= self.loading_bytes else {"reading the weights": self.loading_bytes}
        both = {"weights": self.weight_bytes, "libraries": self.workspace_bytes, **peak}
        return dict(sorted(both.items(), key=lambda part: -part[1]))

    @property
    def total_bytes(self) -> Bytes:
        """Peak memory."""
        return sum(self.parts.values())

    @property
    def without_weights(self) -> "MemoryNeed":
        """The need of a session whose weights are already loaded."""
        return replace(self, weight_bytes=0, loading_bytes=0)


def memory_need(models: PairPlacement, text: TextLimits | None, *, reads_files: bool) -> MemoryNeed:
    """Memory of a pair for plain and speculative decoding. The target of a self-draft has a cache for each of the two.

    Args:
        models: the pair.
        text: the longest text; None counts the models alone.
        reads_files: whether the weights come from checkpoints. Random weights need no memory for loading.
    """
    roles: tuple[Role, ...] = ("target", "draft") if models.has_own_draft else ("target",)
    shares = [_ModelShare(models, role) for role in roles]
    need = MemoryNeed(
        weight_bytes=sum(share.weight_bytes for share in shares),
        loading_bytes=max(share.loading_bytes for share in shares) if reads_files else 0,
        workspace_bytes=_workspace_bytes(models.device),
    )
    if text is None:
        return need
    positions = _cache_positions(models, text.max_tokens)
    caches = [(share, ends) for share in shares for ends in share.cache_ends]
    forced = [_ModelShare(models, role) for role in text.teacher_forced]
    prompt_rows = text.max_tokens if forced else text.prompt_tokens
    return replace(
        need,
        cache_bytes=sum(share.cache_bytes(ends, positions) for share, ends in caches),
        rotary_bytes=sum(share.rotary_bytes(positions) for share, _ in caches),
        mask_bytes=sum(share.mask_bytes(positions) for share in shares),
        buffer_bytes=sum(share.buffer_bytes(min(positions, MIN_FUSED_ROWS - 1)) for share in shares),
        prompt_bytes=max(share.prompt_bytes(prompt_rows, positions) for share in shares),
        logit_bytes=(models.number_bytes + _LOGIT_BYTES) * models.target.vocab_size * min(MIN_FUSED_ROWS, positions),
        noise_bytes=4 * text.num_noise_tables * text.max_tokens * models.target.vocab_size,
        trace_bytes=sum(share.trace_bytes(text.max_tokens) for share in forced),
        graph_bytes=sum(share.graph_bytes(ends, positions) for share, ends in caches) if models.mode == "graph" else 0,
    )


def check_memory(need: MemoryNeed, models: PairPlacement, free_bytes: FreeBytes | None, *, fix: str) -> None:
    """Refuse a pair that does not fit, before its memory is allocated.

    Args:
        need: the memory it needs.
        models: the pair and its device.
        free_bytes: free memory of a device; `free_device_bytes` when None.
        fix: advice at the end of the message.

    Raises:
        UserInputError: with the needed memory, its largest parts and the free memory.
    """
    free = (free_bytes or free_device_bytes)(models.device)
    if need.total_bytes <= free:
        return
    largest = ", ".join(f"{name} {format_bytes(count)}" for name, count in list(need.parts.items())[:3] if count)
    each = " on each device" if models.target_ranks > 1 else ""
    raise UserInputError(
        f"{models.label} need {format_bytes(need.total_bytes)} of memory{each} ({largest}), but {models.device} has "
        f"{format_bytes(free)} free. {fix}"
    )


def free_device_bytes(device: torch.device) -> Bytes:
    """Free memory of a device.

    On a GPU: what the driver reports and what PyTorch holds for reuse. On a CPU: what the system can provide without swapping,
    or all memory if the system does not report that.
    """
    if device.type == "cuda":
        free: Bytes = torch.cuda.mem_get_info(device)[0]
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if not _MEMORY_INFO.exists():
        return read_cpu().memory_bytes
    lines = dict(line.split(":", 1) for line in _MEMORY_INFO.read_text(encoding="ascii").splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024  # the unit is printed as kB, but it is KiB


class _ModelShare:
    """The first rank's share of one model of a pair, in bytes.

    Args:
        models: the pair.
        role: the model of the pair. A self-draft uses the target's weights.
    """

    def __init__(self, models: PairPlacement, role: Role) -> None:
        is_own_draft = role == "draft" and models.has_own_draft
        self._models = models
        self._model = model = models.draft.model if is_own_draft else models.target
        self._ranks = ranks = models.draft_ranks if is_own_draft else models.target_ranks
        self._bytes = models.number_bytes
        self._heads, self._kv_heads = -(-model.num_heads // ranks), -(-model.num_kv_heads // ranks)
        self._mlp = -(-model.intermediate_size // ranks)
        exits, depth = models.draft.exit_layers, model.num_layers
        self._trace_ends = exits if role == "draft" else (depth,)
        self.cache_ends = ((exits,) if is_own_draft else ((depth,),)) if models.has_own_draft else ((depth,), (*exits, depth))
        """The last layers of the segments, for every cache of a session."""

    @property
    def weight_bytes(self) -> Bytes:
        """Layers, head, and an embedding for the target's vocabulary."""
        model, num_tokens = self._model, self._models.target.vocab_size
        head = model.hidden_size * head_stride(-(-model.num_head_tokens // self._ranks))
        numbers = model.num_layers * self._layer_numbers(self._ranks) + head + num_tokens * (model.hidden_size + PAD)
        token_table = 0 if model.num_head_tokens == num_tokens else 8 * model.num_head_tokens
        return numbers * self._bytes + token_table

    @property
    def loading_bytes(self) -> Bytes:
        """Temporary memory while a checkpoint is read.

        A slice in float32; several ranks also need a whole layer and head to cut their shares from, a reduced head the whole
        head, and another vocabulary its tables.
        """
        model = self._model
        head, embedding = (model.hidden_size * stride for stride in (head_stride(model.vocab_size), model.vocab_size))
        numbers = self._layer_numbers(1) + head if self._ranks > 1 else head if model.has_reduced_head else 0
        if model.vocab_size != self._models.target.vocab_size:
            numbers = max(numbers, head + embedding + PAD * model.vocab_size)
        return CONVERT_BYTES + numbers * self._bytes

    def cache_bytes(self, ends: tuple[int, ...], positions: Tokens) -> Bytes:
        """KV of all layers, and a residual row per position and segment."""
        kv = 2 * ends[-1] * self._kv_heads * self._model.head_dim
        return positions * (kv + len(ends) * (self._model.hidden_size + PAD)) * self._bytes

    def rotary_bytes(self, positions: Tokens) -> Bytes:
        """Rotary tables of a cache: angles, and the factors for Q, K and V."""
        factors = _FACTORS_FP32 if self._models.dtype == "fp32" else _FACTORS_HALF
        return positions * self._model.head_dim * (_ANGLES + factors)

    def mask_bytes(self, positions: Tokens) -> Bytes:
        """The mask shared by eager passes with few rows: [MIN_FUSED_ROWS, S + MIN_FUSED_ROWS]."""
        return MIN_FUSED_ROWS * (positions + MIN_FUSED_ROWS) * self._bytes

    def buffer_bytes(self, widest: int) -> Bytes:
        """Buffers of all widths up to the widest."""
        return widest * (widest + 1) // 2 * self._row_bytes

    def prompt_bytes(self, rows: int, positions: Tokens) -> Bytes:
        """A pass with many rows: its states, buffers and mask, and the outputs of a layer's rotation and attention."""
        model, width = self._model, self._heads * self._model.head_dim
        states = 2 * rows * (model.hidden_size + PAD)
        rotated = 2 * rows * (self._heads + 2 * self._kv_heads) * model.head_dim
        is_grouped = self._heads != self._kv_heads
        attention = 2 * rows * width + (2 * positions * width if is_grouped else 0)
        # One byte per element, for a prompt after cached tokens.
        mask = 0 if self._models.device.type == "cuda" else rows * positions
        return rows * self._row_bytes + (states + rotated + attention) * self._bytes + mask

    def trace_bytes(self, tokens: Tokens) -> Bytes:
        """A pass over a whole text with its own cache: logits as computed, in float32, and as probabilities."""
        positions, ends = _cache_positions(self._models, tokens), self._trace_ends
        logits = len(ends) * tokens * self._models.target.vocab_size * (self._bytes + 8)
        return self.cache_bytes(ends, positions) + self.rotary_bytes(positions) + logits

    def graph_bytes(self, ends: tuple[int, ...], positions: Tokens) -> Bytes:
        """Inputs and outputs of captured passes, for every width, context and run of segments; on a GPU also their scores."""
        num_runs = len(ends) * (len(ends) + 1) // 2
        rows = num_runs * sum(GRAPH_ROW_WIDTHS)
        num_contexts = 1 + CONTEXTS_PER_DOUBLING * max(0, math.ceil(math.log2(positions / MIN_CONTEXT)))
        row_bytes = 2 * rows * num_contexts * ((self._model.hidden_size + PAD) * self._bytes + 8)
        if self._models.device.type != "cuda":
            return row_bytes
        heads = (self._heads + 2 * self._kv_heads) * self._model.head_dim
        # Scores before and after the softmax, the mask and its inputs; rows before and after the rotation.
        pooled = rows * (positions * (2 * self._heads * self._bytes + self._bytes + 9) + 2 * heads * self._bytes)
        # The graph pool of a cache holds a cuBLAS workspace, and the pool of the exit checks another one.
        return row_bytes + pooled + 2 * _cublas_stream_bytes(self._models.device)

    @property
    def _row_bytes(self) -> Bytes:
        """Buffers of a pass per row: see `s2d.model.buffers`."""
        attn, heads = self._heads * self._model.head_dim, self._heads + 2 * self._kv_heads
        numbers = self._model.hidden_size + heads * self._model.head_dim + 2 * self._mlp + 2 * attn
        return numbers * self._bytes + 4 * (1 + self._heads + self._kv_heads)

    def _layer_numbers(self, ranks: int) -> int:
        """Elements of a rank's share of a layer, including the gaps between rows."""
        model, is_whole = self._model, ranks == 1
        heads, kv_heads, mlp = (
            (model.num_heads, model.num_kv_heads, model.intermediate_size)
            if is_whole
            else (self._heads, self._kv_heads, self._mlp)
        )
        width = model.hidden_size + (0 if is_whole else PAD)
        attn = heads * model.head_dim
        matrices = (
            (model.hidden_size, attn + 2 * kv_heads * model.head_dim),
            (attn, width),
            (model.hidden_size, 2 * mlp),
            (mlp, width),
        )
        # The decoder stores Q and K gains for every head; a checkpoint has one for all heads.
        extras = model.extra_layer_params + (heads + kv_heads) * model.head_dim + 2 * PAD if model.extra_layer_params else 0
        return sum(inputs * row_stride(outputs) for inputs, outputs in matrices) + extras


def _cache_positions(models: PairPlacement, max_tokens: Tokens) -> Tokens:
    """Positions of a cache for texts up to this length."""
    return padded_cache_tokens(max_tokens) if models.mode == "graph" else max_tokens


def _workspace_bytes(device: torch.device) -> Bytes:
    if device.type != "cuda":
        return CPU_WORKSPACE_BYTES
    return GPU_WORKSPACE_BYTES + cublas_workspace_bytes(device)


def cublas_workspace_bytes(device: torch.device) -> Bytes:
    """Workspaces of cuBLAS on a GPU, for all streams of a pair."""
    return CUBLAS_STREAMS * _cublas_stream_bytes(device)


def _cublas_stream_bytes(device: torch.device) -> Bytes:
    is_new = not torch.cuda.is_available() or torch.cuda.get_device_capability(device)[0] >= 9
    return CUBLAS_BYTES if is_new else OLD_CUBLAS_BYTES

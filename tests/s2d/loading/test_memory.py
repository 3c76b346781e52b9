"""Computed memory against real allocations, and the refusal of pairs that do not fit."""

import gc
import re
import types
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from perfmodel.core.errors import UserInputError
from perfmodel.core.units import MIB
from perfmodel.models.dtypes import Dtype
from perfmodel.models.find_model import find_draft, find_model
from perfmodel.models.geometry import DraftGeometry, ModelGeometry
from perfmodel.passes.device_key import LaunchMode
from perfmodel.policies.policy import Policy
from perfmodel.policies.sampling import Sampling
from s2d.decoding.generate import Session, Settings
from s2d.decoding.pair import ModelPair, PairRequest, load_pair
from s2d.decoding.random_pair import random_pair
from s2d.loading.convert_weights import Checkpoint, convert_weights
from s2d.loading.load_model import load_model
from s2d.loading.memory import CPU_WORKSPACE_BYTES, MemoryNeed, PairPlacement, TextLimits, free_device_bytes, memory_need
from s2d.loading.read_config import config_geometry
from s2d.model.weights import DecoderWeights, LayerWeights
from s2d.parallel.shard import Shard
from tests.s2d.conftest import run
from tests.s2d.loading.test_families import SPECS
from tests.stubs import TinySpec, tiny_llama

CPU = torch.device("cpu")
MAX_TOKENS, PROMPT_TOKENS = 256, 200
NOISE = Sampling(rule="shared-noise", temperature=1.0, top_k=None, top_p=0.9, seed=3)
TARGET = ModelGeometry(
    name="target",
    num_layers=8,
    hidden_size=64,
    intermediate_size=160,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=300,
    tied_embeddings=False,
    max_context_tokens=MAX_TOKENS,
    source="made for a test",
)
EXITS = (2, 4)
DRAFTS = {
    "separate": DraftGeometry(kind="separate", model=replace(TARGET, name="draft", num_layers=4), exit_layers=EXITS),
    "self": DraftGeometry(kind="self", model=TARGET, exit_layers=EXITS),
}
POLICY = Policy(exits=EXITS, thresholds=(0.5,), tokens=4)


def need_of(draft: DraftGeometry, dtype: Dtype, mode: LaunchMode = "eager") -> MemoryNeed:
    models = PairPlacement(target=TARGET, draft=draft, dtype=dtype, device=CPU, mode=mode)
    text = TextLimits(max_tokens=MAX_TOKENS, prompt_tokens=PROMPT_TOKENS, num_noise_tables=1)
    return memory_need(models, text, reads_files=False)


def decoded(draft: DraftGeometry, dtype: Dtype, mode: LaunchMode) -> tuple[ModelPair, Session]:
    """A pair after plain and speculative decoding of a long and a short prompt."""
    models = PairPlacement(target=TARGET, draft=draft, dtype=dtype, device=CPU, mode=mode)
    text = TextLimits(max_tokens=MAX_TOKENS, prompt_tokens=MAX_TOKENS, num_noise_tables=0)
    pair = random_pair(models, text, seed=0)
    session = pair.session(MAX_TOKENS)
    for policy in (None, POLICY):
        for num_tokens in (PROMPT_TOKENS, 5):
            settings = Settings(policy=policy, sampling=NOISE, max_new_tokens=8, eos_token_id=None)
            session.generate([token % 300 for token in range(num_tokens)], settings)
    return pair, session


def reachable_tensors(*roots: object) -> Iterator[Tensor]:
    """All tensors in the attributes, containers and closures of objects."""
    waiting, seen = list(roots), set()
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, type | types.ModuleType | types.CodeType | str | int | float):
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, types.FunctionType):
            waiting += [cell.cell_contents for cell in item.__closure__ or ()]
        else:
            waiting += gc.get_referents(item)


def num_bytes(tensors: Iterator[Tensor]) -> int:
    """Bytes of the storages of some tensors, each counted once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def matrices_of(weights: DecoderWeights) -> Iterator[Tensor]:
    layers = (getattr(layer, field.name) for layer in weights.layers for field in fields(LayerWeights))
    tensors = (weights.embedding, weights.head, weights.head_token_ids, *layers)
    yield from (tensor for tensor in tensors if tensor is not None)


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", DRAFTS)
def test_the_memory_kept_after_decoding_is_within_the_count(kind: str, dtype: Dtype, mode: LaunchMode) -> None:
    pair, session = decoded(DRAFTS[kind], dtype, mode)
    need = need_of(DRAFTS[kind], dtype, mode)
    models = {id(model): model for model in (pair.target, pair.draft)}.values()
    assert num_bytes(matrix for model in models for matrix in matrices_of(model.decoder.weights)) == need.weight_bytes
    kept = num_bytes(reachable_tensors(session, pair))
    assert kept <= need.total_bytes - need.workspace_bytes - need.prompt_bytes
    # Buffers are counted for every possible width. The large parts are exact.
    assert need.weight_bytes + need.cache_bytes + need.rotary_bytes <= 1.05 * (kept - need.noise_bytes)


class LivePeak(TorchDispatchMode):
    """Peak bytes of the tensors that are created in its scope."""

    def __init__(self) -> None:
        super().__init__()
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self._upper_bytes = 0
        self.peak_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
                self._upper_bytes += storage.nbytes()
        if self._upper_bytes > self.peak_bytes:  # includes freed storages: count again
            self._storages = {key: entry for key, entry in self._storages.items() if not entry[0].expired()}
            self._upper_bytes = sum(count for _, count in self._storages.values())
            self.peak_bytes = max(self.peak_bytes, self._upper_bytes)
        return result


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", DRAFTS)
def test_peak_memory_is_within_the_count(kind: str, dtype: Dtype) -> None:
    need = need_of(DRAFTS[kind], dtype)
    with LivePeak() as live:
        decoded(DRAFTS[kind], dtype, "eager")
    large = need.weight_bytes + need.cache_bytes + need.rotary_bytes + need.noise_bytes
    assert large + need.prompt_bytes / 3 < live.peak_bytes <= need.total_bytes - need.workspace_bytes


@pytest.mark.parametrize("spec", [*SPECS.values(), TinySpec(vocab_size=37, intermediate_size=44)])
def test_weights_of_every_family_are_counted_from_its_config(spec: TinySpec, tmp_path: Path) -> None:
    tiny_llama(spec).save_pretrained(tmp_path)
    model = load_model(tmp_path, "bf16")
    draft = DraftGeometry(kind="self", model=model.geometry, exit_layers=(2,))
    models = PairPlacement(target=model.geometry, draft=draft, dtype="bf16", device=CPU, mode="eager")
    actual, counted = num_bytes(matrices_of(model.decoder.weights)), memory_need(models, None, reads_files=True).weight_bytes
    assert actual <= counted <= 1.02 * actual


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_the_share_of_the_first_rank_is_counted(num_ranks: int) -> None:
    spec = TinySpec(num_heads=8, num_kv_heads=4, head_dim=8, vocab_size=38)
    config, state = tiny_llama(spec).config, tiny_llama(spec).state_dict()
    geometry, shard = config_geometry(config, Path("tiny")), Shard(rank=0, num_ranks=num_ranks)
    checkpoint = Checkpoint(read=state.__getitem__, config=config, geometry=geometry)
    whole = convert_weights(checkpoint, torch.float32, "cpu", shard.layer)
    draft = DraftGeometry(kind="self", model=geometry, exit_layers=(2,))
    models = PairPlacement(
        target=geometry, draft=draft, dtype="fp32", device=CPU, mode="eager", target_ranks=num_ranks, draft_ranks=num_ranks
    )
    actual = num_bytes(matrices_of(replace(whole, head=shard.head(whole.head))))
    text = TextLimits(max_tokens=64, prompt_tokens=32, num_noise_tables=0)
    need, alone = (
        memory_need(models, text, reads_files=True),
        memory_need(replace(models, target_ranks=1), text, reads_files=True),
    )
    assert actual == need.weight_bytes < alone.weight_bytes
    assert need.cache_bytes < alone.cache_bytes
    assert need.loading_bytes > alone.loading_bytes  # whole layers and a whole head are read to cut the share


def test_tables_graphs_and_workspaces_are_counted_on_a_gpu() -> None:
    target = find_model("llama-2-7b")
    models = PairPlacement(
        target=target, draft=find_draft("s2d-vicuna-12"), dtype="bf16", device=torch.device("cuda"), mode="graph"
    )
    text = TextLimits(max_tokens=4000, prompt_tokens=3000, num_noise_tables=1)
    need = memory_need(models, text, reads_files=False)
    positions = 4032 + 32
    assert need.workspace_bytes == 512 * MIB + 3 * 32 * MIB
    assert need.noise_bytes == 4000 * 32000 * 4
    assert need.cache_bytes > positions * 2 * 2 * (32 + 12) * 4096
    scores_of_32_rows = 32 * positions * 32 * 2
    assert need.graph_bytes > 2 * scores_of_32_rows
    assert need.prompt_bytes > 3000 * (2 * 11008 + 3 * 4096 + 4096 + positions) * 2
    grouped = replace(models, target=find_model("llama-3.1-8b"), dtype="fp32")
    # Attention is fused in fp32 too, and stores no scores.
    assert memory_need(grouped, text, reads_files=False).prompt_bytes < 32 * 3000 * positions * 4
    assert next(iter(need.parts)) == "weights"
    assert need.total_bytes == sum(need.parts.values())


def test_traces_and_checks_need_the_logits_of_whole_texts() -> None:
    models = PairPlacement(target=TARGET, draft=DRAFTS["separate"], dtype="fp32", device=CPU, mode="eager")
    text = TextLimits(max_tokens=MAX_TOKENS, prompt_tokens=PROMPT_TOKENS, num_noise_tables=0)
    draft, both = (
        memory_need(models, replace(text, teacher_forced=roles), reads_files=False).trace_bytes
        for roles in (("draft",), ("draft", "target"))
    )
    logits = MAX_TOKENS * TARGET.vocab_size * (4 + 4 + 4)
    assert draft > 2 * logits
    assert both - draft > logits
    with LivePeak() as live:
        pair = random_pair(models, text, seed=0)
        built = live.peak_bytes
        logits_by_exit = pair.draft.decoder.all_exit_logits([1] * MAX_TOKENS, EXITS)
        probs = [exit_logits.softmax(-1) for exit_logits in logits_by_exit]
    need = memory_need(models, replace(text, teacher_forced=("draft",)), reads_files=False)
    assert len(probs) == 2
    assert built <= live.peak_bytes <= need.total_bytes - need.workspace_bytes


def test_free_memory_of_the_cpu_is_positive() -> None:
    assert free_device_bytes(CPU) > 0


def weights_need(folders: Path) -> MemoryNeed:
    pair = load_pair(PairRequest(target=str(folders / "target"), draft=str(folders / "draft"), dtype="fp32", device="cpu"))
    models = PairPlacement(target=pair.target.geometry, draft=pair.geometry, dtype="fp32", device=CPU, mode="eager")
    return memory_need(models, None, reads_files=True)


def test_a_pair_that_does_not_fit_is_refused_before_any_weight_is_read(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = weights_need(folders).total_bytes
    request = PairRequest(target=str(folders / "target"), draft=str(folders / "draft"), dtype="fp32", device="cpu")
    assert load_pair(request, free_bytes=lambda _: needed).device == CPU
    monkeypatch.setattr("s2d.loading.load_model.open_weights", lambda _: pytest.fail("weights were read"))
    expected = (
        r"target and draft need 202 MB of memory \(libraries 134 MB, reading the weights 67.1 MB, weights [\d.]+ kB\), but cpu "
        r"has 202 MB free. Use a device with more memory, --dtype bf16, a smaller model, or more processes that share the "
        r"target \(torchrun\)\."
    )
    with pytest.raises(UserInputError, match=expected):
        load_pair(request, free_bytes=lambda _: needed - 1)
    half = needed - 600_000
    with pytest.raises(UserInputError, match="Use a device with more memory, a smaller model"):
        load_pair(replace(request, dtype="bf16"), free_bytes=lambda _: half)


def test_a_run_whose_caches_do_not_fit_is_refused_before_any_pass(
    folders: Path, plan_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, needed = plan_file(sampling=NOISE), weights_need(folders).total_bytes
    monkeypatch.setattr(Session, "generate", lambda *_, **__: pytest.fail("a pass was run"))
    free = iter([needed, CPU_WORKSPACE_BYTES])  # before the weights are read, and before the session
    monkeypatch.setattr("s2d.loading.memory.free_device_bytes", lambda _: next(free))
    assert run(folders, plan, "--prompt", "the cat", "--max-new-tokens", "100") == 2
    err = capsys.readouterr().err
    assert re.search(r"target and draft need \d+ MB of memory \(libraries 134 MB, \w", err)
    assert "Give fewer --max-new-tokens or shorter prompts, or use a device with more memory." in err

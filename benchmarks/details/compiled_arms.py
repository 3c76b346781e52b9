"""Arms of compiled.py: the lean decoder, its layers compiled with some settings, or the module of transformers."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch._inductor import config as inductor_config
from transformers import DynamicCache, PreTrainedModel, StaticCache

from details.compiled_layers import CompiledLeanDecoder, PlainDecoder
from perfmodel.core.units import Seconds, Tokens
from s2d.model.decoder import Decoder
from s2d.training.train_sorted import load_trainable
from shared import common  # noqa: F401 makes the checkout importable

Shape = tuple[int, Tokens]
"""Rows of a pass, and cached tokens before it."""
TEXT_TOKENS = 256
"""Length of the longest text and of every static cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The module that runs the layers, and how it is compiled."""

    name: str
    layers: Literal["lean", "plain", "sums", "transformers"]
    is_compiled: bool
    dynamic: bool = False
    """Whether lengths are symbolic; otherwise every pass attends to the whole static cache."""
    mode: str | None = None
    config: Mapping[str, object] = field(default_factory=dict)
    """Further options of inductor."""
    rows: tuple[int, ...] = (1, 5)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function compiled by `torch.compile`, or unchanged."""
        return torch.compile(function, dynamic=self.dynamic, mode=self.mode) if self.is_compiled else function


LEAN = Setting(name="lean", layers="lean", is_compiled=False)
LEAN_AGAIN = replace(LEAN, name="lean, a second time")
PLAIN_EAGER = Setting(name="plain operations, eager", layers="plain", is_compiled=False, dynamic=True)
STATIC = Setting(name="plain operations, static", layers="plain", is_compiled=True)
SUMS = replace(STATIC, name="sums, static", layers="sums", rows=(1,))
TRANSFORMERS = Setting(name="transformers, eager", layers="transformers", is_compiled=False, dynamic=True)
SETTINGS = (
    LEAN,
    LEAN_AGAIN,
    Setting(name="lean, compiled as it is", layers="lean", is_compiled=True, dynamic=True),
    PLAIN_EAGER,
    Setting(name="plain operations, dynamic", layers="plain", is_compiled=True, dynamic=True),
    STATIC,
    replace(
        STATIC,
        name="plain operations, static, max-autotune, weights frozen",
        mode="max-autotune-no-cudagraphs",
        config={"freezing": True},
    ),
    replace(STATIC, name="plain operations, static, C++ wrapper", config={"cpp_wrapper": True}),
    SUMS,
    replace(SUMS, name="sums, static, C++ wrapper", config={"cpp_wrapper": True}),
    TRANSFORMERS,
    replace(TRANSFORMERS, name="transformers, compiled, static", is_compiled=True, dynamic=False),
)


class Passes(Protocol):
    """Passes of one arm along a text, at any position."""

    def begin(self, rows: int, context_tokens: Tokens) -> None:
        """Prepare for passes of `rows` rows after `context_tokens` tokens."""

    def run(self) -> Tensor:
        """One pass: the timed part."""

    def rewind(self) -> None:
        """Restore the state before the pass."""

    def logits(self, states: Tensor) -> Tensor:
        """Logits after the rows of a pass: [T, V]."""


class DecoderPasses:
    """Passes of all layers of our decoder, from hidden states to hidden states."""

    def __init__(self, decoder: Decoder, text: Sequence[int]) -> None:
        self._decoder = decoder
        self._text = list(text)
        self._cache = decoder.new_cache((decoder.geometry.num_layers,), len(text))
        self.begin(len(text), 0)
        self.run()

    def begin(self, rows: int, context_tokens: Tokens) -> None:
        """See `Passes`."""
        self._start = context_tokens
        self._states = self._decoder.embed(self._text[context_tokens : context_tokens + rows])
        self.rewind()

    def run(self) -> Tensor:
        """See `Passes`."""
        return self._decoder.forward_segment(self._states, self._cache.segments[0], self._cache)

    def rewind(self) -> None:
        """See `Passes`."""
        self._cache.lengths[0] = self._start

    def logits(self, states: Tensor) -> Tensor:
        """See `Passes`."""
        return self._decoder.exit_logits(states)


class TransformersPasses:
    """Passes of the module of transformers, including its embedding and final norm."""

    def __init__(self, model: PreTrainedModel, text: Sequence[int], setting: Setting) -> None:
        self._model = model
        self._ids = torch.tensor([list(text)])
        self._run = setting.compiled(model.model)
        self._static = None if setting.dynamic else StaticCache(model.config, TEXT_TOKENS)
        if self._static is not None:
            model.model(input_ids=self._ids, past_key_values=self._static, use_cache=True)

    def begin(self, rows: int, context_tokens: Tokens) -> None:
        """See `Passes`."""
        self._start, self._rows = context_tokens, self._ids[:, context_tokens : context_tokens + rows]
        if self._static is not None:
            self.rewind()
            return
        self._grown = DynamicCache(config=self._model.config)
        self._model.model(input_ids=self._ids[:, :context_tokens], past_key_values=self._grown, use_cache=True)

    def run(self) -> Tensor:
        """See `Passes`."""
        cache = self._grown if self._static is None else self._static
        return self._run(input_ids=self._rows, past_key_values=cache, use_cache=True).last_hidden_state[0]

    def rewind(self) -> None:
        """See `Passes`."""
        if self._static is None:
            self._grown.crop(-self._rows.shape[1])
            return
        for layer in self._static.layers:
            layer.cumulative_length.fill_(self._start)

    def logits(self, states: Tensor) -> Tensor:
        """See `Passes`."""
        return self._model.lm_head(states)


@dataclass(slots=True, kw_only=True)
class Arm:
    """A setting for one target."""

    setting: Setting
    decoder: Decoder | None
    """None for the module of transformers."""
    passes: Passes | None = None
    compile_s: Seconds = 0.0
    """Total time of the first pass of every shape."""
    num_graphs: int = 0
    failure: str | None = None
    """The error message of the compiler; None if it succeeded."""

    def runs(self, rows: int) -> bool:
        """Whether the arm supports passes of this width."""
        return self.failure is None and rows in self.setting.rows

    @torch.inference_mode()
    def warm_up(self, target: str, text: Sequence[int], shapes: Sequence[Shape]) -> None:
        """Run a pass of every shape, which compiles it."""
        graphs = counters["stats"]["unique_graphs"]
        try:
            with inductor_config.patch(dict(self.setting.config)):
                if self.decoder is None:
                    self.passes = TransformersPasses(load_trainable(target), text, self.setting)
                else:
                    self.passes = DecoderPasses(self.decoder, text)
                for rows, context in shapes:
                    if self.runs(rows):
                        self._first_pass(rows, context)
        except Exception as err:  # any exception of the compiler is a result
            if not self.setting.is_compiled:
                raise
            self.failure = " ".join(f"{type(err).__name__}: {err}".splitlines()[:2])
        self.num_graphs = counters["stats"]["unique_graphs"] - graphs

    def _first_pass(self, rows: int, context_tokens: Tokens) -> None:
        assert self.passes is not None
        self.passes.begin(rows, context_tokens)
        start_s = time.perf_counter()
        self.passes.run()
        self.compile_s += time.perf_counter() - start_s
        self.passes.rewind()


def arm_of(lean: Decoder, setting: Setting) -> Arm:
    """An arm for a decoder's weights, not compiled yet."""
    if setting.layers == "transformers":
        return Arm(setting=setting, decoder=None)
    if setting.layers == "lean":
        return Arm(setting=setting, decoder=CompiledLeanDecoder(lean, setting.compiled) if setting.is_compiled else lean)
    plain = PlainDecoder(
        lean, TEXT_TOKENS, by_sums=setting.layers == "sums", compiled=setting.compiled, is_static=not setting.dynamic
    )
    return Arm(setting=setting, decoder=plain)

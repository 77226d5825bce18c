"""Runs decode steps on a GPU as CUDA graphs: what a step launches is recorded once, and replayed in one call.

Shapes and addresses of a graph are fixed. So tokens attend, absorbed, to a window of the cache's buffers that is wider
than what is filled, through a mask, and the columns to write and to see are a tensor. The modules of ``modeling`` do
the work; a recording that fails leaves them to it.

No GPU has been at hand: this is tested on the CPU, without the recording, and on tensors without data, which refuse
whatever would wait for a value. Nothing is measured.

Shapes: B rows, T new tokens, S cached columns with these, W columns of the window.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from axk1.kernels.build import are_wanted
from axk1.modeling.attention import absorbing_pays
from axk1.modeling.cache import LatentCache, LatentLayer
from axk1.modeling.conditions import is_hooked
from axk1.modeling.moe import BY_PROCESSOR, AXK1Experts, AXK1MoE
from axk1.modeling.runners import Step

if TYPE_CHECKING:
    from axk1.modeling.causal_lm import AXK1ForCausalLM

MOST_TOKENS = 16
"""Tokens a row of a recorded step: one, or a few to verify."""
NARROWEST = 256
"""Columns of the smallest window; others are powers of two, or as wide as the buffers."""
PLAIN_STEPS = 3
"""Steps of a shape that pass before one is recorded, which takes as long as several of them."""
Record = Callable[[Callable[[], Step]], Callable[[], Step]]
"""Makes a replay of a computation on fixed tensors; what one replay returns lasts until the next."""
logger = logging.getLogger(__name__)


def record_graph(compute: Callable[[], Step]) -> Callable[[], Step]:
    """``compute`` as a CUDA graph on the current device.

    Raises:
        RuntimeError: it does what a graph cannot, for example wait for a result.
    """
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        compute()  # libraries allocate their workspaces at the first call
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        found = compute()

    def replay() -> Step:
        graph.replay()
        return found

    return replay


class CUDARunner:
    """:class:`axk1.modeling.runners.Runner` of GPUs: whole steps of a generation only."""

    def __init__(self, record: Record = record_graph) -> None:
        self._record = record

    def layers(self, *args: Any, **kwargs: Any) -> None:
        """Declines."""

    def linear(self, *args: Any, **kwargs: Any) -> None:
        """Declines."""

    def pack(self, *args: Any, **kwargs: Any) -> None:
        """Declines."""

    def decoder(self, model: AXK1ForCausalLM, cache: LatentCache) -> CUDADecoder | None:
        """Recorded steps of ``model`` behind ``cache``; None: it waits for the GPU, or lies on several devices."""
        return CUDADecoder(model, cache, self._record) if are_wanted() and can_record(model) else None


def can_record(model: AXK1ForCausalLM) -> bool:
    """Whether its steps are launched alike whatever the tokens are, all on one device."""
    trunk = model.model
    if trunk.rotary_emb.changes_with_length:
        return False
    layers = trunk.decoder_layers
    experts = [module.experts for layer in layers for module in layer.modules() if isinstance(module, AXK1MoE)]
    grouped = model.config._experts_implementation in (
        BY_PROCESSOR,
        "grouped_mm",
        "batched_mm",
    )  # others ask for counts
    if experts and not (grouped and all(type(module) is AXK1Experts for module in experts)):
        return False
    devices = {weight.device for weight in model.parameters()}
    return len(devices) == 1 and not any(is_hooked(module) for layer in layers for module in layer.modules())


class CUDADecoder:
    """:class:`axk1.modeling.runners.Decoder` of GPUs. Shapes that have come up a few times are recorded, the others
    declined."""

    exact = False

    def __init__(self, model: AXK1ForCausalLM, cache: LatentCache, record: Record) -> None:
        self._model, self._cache, self._record = model, cache, record
        self._recorded: dict[tuple[int, int, int, bool], Recorded] = {}
        self._passed: Counter[tuple[int, int, int, bool]] = Counter()
        self._fails = False

    def step(self, ids: Tensor, positions: Tensor, mask: Tensor | None, keep: int, whole: bool = True) -> Step | None:
        """The trunk over ids ``[B, T]``, with the logits of the last ``keep`` columns."""
        batch, tokens = ids.shape
        layers = self._cache.layers[: self._model.config.num_hidden_layers]
        buffer, cached = layers[0].buffer, layers[0].length + tokens
        if self._fails or tokens > MOST_TOKENS or buffer is None or cached > buffer.shape[2]:
            return None
        if buffer.shape[0] != batch or not absorbing_pays(self._model.config, tokens, cached):
            return None
        shape = batch, tokens, keep, whole
        recorded = self._recorded.get(shape)
        if recorded is not None and (recorded.buffer is not buffer or recorded.width < cached):
            recorded = None
            del self._recorded[shape]  # its memory, before another is recorded
        if recorded is None:
            self._passed[shape] += 1
            if self._passed[shape] <= PLAIN_STEPS:
                return None
            recorded = self._new(layers, ids, positions, mask, keep, whole)
            if recorded is None:
                return None
            self._recorded[shape], self._passed[shape] = recorded, 0
        recorded.inputs.set(ids, positions, mask, cached - tokens)
        for layer in layers:
            layer.length += tokens
        return Step(*(part.clone() for part in recorded.replay()))

    def draft(self, *args: Any, **kwargs: Any) -> None:
        """Declines."""

    def speculate(self, *args: Any, **kwargs: Any) -> None:
        """Declines."""

    def _new(
        self,
        layers: list[LatentLayer],
        ids: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        keep: int,
        whole: bool,
    ) -> Recorded | None:
        """A recorded step of this shape, with room for as many columns again; None where it fails."""
        first, buffer = layers[0].length, cast(Tensor, layers[0].buffer)
        width = min(max(NARROWEST, 1 << (first + ids.shape[1]).bit_length()), buffer.shape[2])
        for layer in layers:
            cast(Tensor, layer.buffer)[:, :, first:width] = 0  # masked, yet multiplied by zero: it must not be NaN
        inputs = Inputs(
            torch.empty_like(ids),
            torch.empty_like(positions.expand_as(ids), memory_format=torch.contiguous_format),
            torch.empty(ids.shape[1], dtype=torch.int64, device=ids.device),
            torch.ones(len(ids), width, dtype=torch.bool, device=ids.device),
        )
        windows = Cache(layers=[Window(layer, inputs.columns, width) for layer in layers])
        inputs.set(ids, positions, mask, first)
        try:
            with torch.cuda.device_of(ids):
                replay = self._record(lambda: compute(self._model, inputs, windows, keep, whole))
        except RuntimeError as error:
            logger.warning("Steps could not be recorded as CUDA graphs, and run one operator at a time: %s", error)
            self._fails = True
            return None
        return Recorded(replay, inputs, buffer, width)


class Inputs(NamedTuple):
    """What a recorded step reads; written before each replay."""

    ids: Tensor
    """``[B, T]``"""
    positions: Tensor
    """``[B, T]``"""
    columns: Tensor
    """``[T]`` of the window, to which the tokens are written."""
    kept: Tensor
    """``[B, W]`` bool: False at padding and holes."""

    def set(self, ids: Tensor, positions: Tensor, mask: Tensor | None, first: int) -> None:
        """The next tokens, the first of them in column ``first``; mask ``[B, S]``."""
        self.ids.copy_(ids)
        self.positions.copy_(positions)
        torch.arange(first, first + ids.shape[1], out=self.columns)
        if mask is None:
            self.kept.fill_(True)
        else:
            self.kept[:, : mask.shape[1]] = mask.bool()  # later columns are hidden as the future is


class Recorded(NamedTuple):
    """A step of one shape."""

    replay: Callable[[], Step]
    inputs: Inputs
    buffer: Tensor
    """The first layer's, whose memory it was recorded on."""
    width: int


class Window(LatentLayer):
    """The first ``width`` columns of a layer's buffer. All count as cached; new tokens go to ``columns`` ``[T]``."""

    def __init__(self, layer: LatentLayer, columns: Tensor, width: int) -> None:
        super().__init__(layer.latent_size, layer.rope_size)
        self.buffer, self.length = cast(Tensor, layer.buffer)[:, :, :width], width
        self._columns = columns

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes latents ``[B, 1, T, C]`` and rotated keys ``[B, 1, T, R]``; returns the whole window of both."""
        cast(Tensor, self.buffer).index_copy_(2, self._columns, torch.cat([key_states, value_states], dim=-1))
        return cast(Tensor, self.keys), cast(Tensor, self.values)


def compute(model: AXK1ForCausalLM, inputs: Inputs, windows: Cache, keep: int, whole: bool) -> Step:
    """The trunk over ``inputs``, on fixed shapes and without a look at any value."""
    trunk = model.model
    embedded = trunk.embed_tokens(inputs.ids)
    columns = torch.arange(inputs.kept.shape[1], device=embedded.device)
    visible = (columns <= inputs.columns[:, None]) & inputs.kept[:, None]
    context = {
        "absorb": True,
        "attention_mask": visible[:, None],
        "position_embeddings": trunk.rotary_emb(embedded, inputs.positions),
        "position_ids": inputs.positions,
    }
    states = trunk.norm(trunk._run_layers(trunk.decoder_layers, embedded, context, windows))
    logits = model.lm_head(states[:, -keep:]).float()
    return Step(states if whole else states[:, -keep:], logits, logits.argmax(-1))

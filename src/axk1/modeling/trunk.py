"""The trunk: embedding, decoder layers, final norm; and the MTP modules, which read its states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel, initialization
from transformers.cache_utils import Cache, DynamicCache
from transformers.utils import logging
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from axk1.config import AXK1Config
from axk1.modeling.attention import AXK1Attention
from axk1.modeling.cache import LatentCache, check_fits
from axk1.modeling.compat import CACHE, accepts_both_cache_names
from axk1.modeling.context import attention_context, check_shapes, next_positions, repeated_context
from axk1.modeling.layer import AXK1DecoderLayer
from axk1.modeling.moe import AXK1Experts, AXK1Router
from axk1.modeling.mtp import AXK1MTPLayer
from axk1.modeling.norm import AXK1RMSNorm
from axk1.modeling.objectives import attached
from axk1.modeling.outputs import AXK1ModelOutput, AXK1MTPOutput
from axk1.modeling.rope import AXK1RotaryEmbedding

logger = logging.get_logger(__name__)


class AXK1PreTrainedModel(PreTrainedModel):
    """What all A.X K1 models share: capabilities, recorded outputs, initialisation."""

    config: AXK1Config  # pyright: ignore[reportIncompatibleVariableOverride]
    config_class = AXK1Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["AXK1DecoderLayer", "AXK1MTPLayer"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # transformers infers this from the source file of the class; our experts live in a file of their own
    _can_set_experts_implementation_cached_value = True
    _can_set_attn_implementation_cached_value = True
    _can_record_outputs = {
        "hidden_states": AXK1DecoderLayer,
        "attentions": AXK1Attention,
        "router_logits": OutputRecorder(AXK1Router, index=0),
        "router_indices": OutputRecorder(AXK1Router, index=2),
    }
    _keep_in_fp32_modules_strict = ["e_score_correction_bias"]
    # Released: no bias, which means zero. Some exports lack the unused norm of the dense layers; DeepSeek-style files
    # repeat the embedding and the head in each MTP layer.
    _keys_to_ignore_on_load_missing = [r"e_score_correction_bias", r"layers\.0\.post_mlp_layernorm\.weight"]
    _keys_to_ignore_on_load_unexpected = [
        r"layers\.\d+\.embed_tokens\.weight",
        r"layers\.\d+\.shared_head\.head\.weight",
    ]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, AXK1Router):
            initialization.normal_(module.weight, mean=0.0, std=std)
            initialization.zeros_(module.e_score_correction_bias)
            initialization.zeros_(module.tokens_per_expert)
        elif isinstance(module, AXK1Experts):
            initialization.normal_(cast(torch.Tensor, module.gate_up_proj), mean=0.0, std=std)
            initialization.normal_(cast(torch.Tensor, module.down_proj), mean=0.0, std=std)


class AXK1Model(AXK1PreTrainedModel):
    """The trunk: embedding, decoder layers, final norm; the MTP modules, last in ``layers``, are run by ForCausalLM."""

    def __init__(self, config: AXK1Config) -> None:
        super().__init__(config)
        depth = config.num_hidden_layers
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(
            [AXK1DecoderLayer(config, i) for i in range(depth)]
            + [AXK1MTPLayer(config, depth + k) for k in range(config.num_nextn_predict_layers)]
        )
        self.norm = AXK1RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = AXK1RotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    @property
    def decoder_layers(self) -> list[AXK1DecoderLayer]:
        """The trunk's own layers."""
        return cast(list, list(self.layers)[: self.config.num_hidden_layers])

    @property
    def mtp_layers(self) -> list[AXK1MTPLayer]:
        """The MTP modules, depth 1 first."""
        return cast(list, list(self.layers)[self.config.num_hidden_layers :])

    @accepts_both_cache_names
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        objectives: bool = False,
        **kwargs: Any,
    ) -> AXK1ModelOutput:
        """Runs the trunk over ``input_ids`` or ``inputs_embeds`` ``[batch, tokens]``.

        Packed documents: no ``attention_mask``, no ``cache``, and ``position_ids`` that restart at 0 in each
        document.

        Args:
            objectives: the caller sees to the MTP and balance losses itself; otherwise a training step names what it
                lacks, once.

        Raises:
            ValueError: both or neither of ``input_ids`` and ``inputs_embeds`` given, shapes that do not fit, or another
                model's cache.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        check_fits(cache, self.config)
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        inputs = cast(torch.Tensor, inputs_embeds)
        position_ids = next_positions(inputs, cache) if position_ids is None else position_ids  # pyright: ignore
        check_shapes(inputs, cast(torch.Tensor, position_ids), self.config.hidden_size)
        layers = self.decoder_layers
        states = self.whole_step(layers, self.norm, inputs, attention_mask, cast(Any, position_ids), cache, **kwargs)
        if states is None:
            context = self._context(inputs, attention_mask, position_ids, cache)
            # after the mask: transformers takes restarting positions for packed documents only where there is no cache
            if use_cache and cache is None:
                # a training step has no use for the latents in one piece, and nn.DataParallel gathers plain caches only
                cache = DynamicCache(config=self.config) if self.training else LatentCache(self.config)
            states = self.norm(self._run_layers(layers, inputs, context, cache, **kwargs))
        if self.training and torch.is_grad_enabled() and not objectives:
            self.warn_of_missing_objectives(counted=False)
            states = attached(states, self.trained_mtp())
        return AXK1ModelOutput(last_hidden_state=states, **{CACHE: cache})  # pyright: ignore[reportArgumentType]

    def trained_mtp(self) -> list[nn.Parameter]:
        """What learns in the MTP modules, adapters included."""
        return [p for layer in self.mtp_layers for p in layer.parameters() if p.requires_grad]

    def warn_of_missing_objectives(self, counted: bool) -> None:
        """Says once which objectives a training step lacks whose loss is computed elsewhere, from logits or states.

        Args:
            counted: the experts' choices were counted, and ``aux_loss`` is in the output.
        """
        config, names = self.config, []
        if config.mtp_loss_weight and self.trained_mtp():
            names.append(f"the MTP loss (mtp_loss_weight={config.mtp_loss_weight})")
        if config.router_aux_loss_coef and not config.output_router_logits:
            names.append(f"the balance loss (router_aux_loss_coef={config.router_aux_loss_coef})")
        if config.router_bias_update_rate and not counted:
            names.append(f"the counts of chosen experts (router_bias_update_rate={config.router_bias_update_rate})")
        if names and not torch.compiler.is_compiling():
            logger.warning_once(
                f"A training step's loss is computed outside of the model, without {' and '.join(names)}. "
                "Pass labels to AXK1ForCausalLM to train with it, or set it to 0 to do without."
            )

    def whole_step(
        self,
        layers: Sequence[AXK1DecoderLayer],
        norm: AXK1RMSNorm,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor,
        cache: Cache | None,
        **kwargs: Any,
    ) -> torch.Tensor | None:
        """Runs ``layers`` and ``norm`` in one call, or declines with None: then the modules run. It declines, always.

        This is where a faster way takes its place: ``axk1.kernels.dispatch`` does, which has the conditions.

        Args:
            layers: each to run as :class:`AXK1DecoderLayer` does (of an MTP module: its block alone). Their caches are
                ``cache.layers[layer.self_attn.layer_idx]``, all S - T tokens long; each gains T.
            norm: what follows the last of them.
            hidden_states: ``[B, T, hidden]``, not to be written.
            attention_mask: as given to ``forward``.
            position_ids: ``[1 or B, T]`` int64, for the rotation; a token attends by column, to all before it.
            kwargs: as given to ``forward``; those that record outputs are among them.

        Returns:
            ``[B, T, hidden]`` states, what the modules give up to rounding; or None, the cache untouched.
        """
        return None

    def _context(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return attention_context(self.config, self.rotary_emb, *args, training=self.training, **kwargs)

    def _run_layers(
        self,
        layers: Sequence[nn.Module],
        hidden_states: torch.Tensor,
        context: dict[str, Any],
        cache: Cache | None,
        *also: torch.Tensor | None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """``[batch, tokens, hidden]`` through ``layers``, which append to ``cache``.

        Args:
            also: what else has a gradient. By position: reentrant checkpointing sees no gradient of a keyword.
        """
        for layer in layers:
            hidden_states = layer(hidden_states, *also, **{CACHE: cache}, **context, **kwargs)
        return hidden_states

    @merge_with_config_defaults
    @capture_outputs
    def forward_mtp(
        self,
        hidden_states: torch.Tensor,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        drafts: int = 0,
        packed: bool = True,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> AXK1MTPOutput:
        """Runs the MTP modules over whole sequences (contract: ``mtp.py``).

        Args:
            hidden_states: ``[batch, tokens, hidden]`` trunk states after the final norm.
            inputs_embeds: ``[batch, tokens, hidden]`` embeddings of the same tokens.
            attention_mask, position_ids: as given to ``forward``.
            drafts: tokens to predict behind the next one. Beyond the number of modules, the only one is applied to its
                own states and the tokens after them as it is to draft, every position at once.
            packed: whether positions that restart separate documents, as they do where ``forward`` was given no cache.
            use_cache: set by transformers' decorator; nothing is cached.

        Raises:
            ValueError: ``drafts`` that several modules, checkpointed ones, or this attention cannot make.
        """
        modules, states, own = self.mtp_layers, [], None
        position_ids = next_positions(inputs_embeds, None) if position_ids is None else position_ids
        shared = self._context(
            inputs_embeds, attention_mask, position_ids, None if packed else LatentCache(self.config)
        )
        if drafts > len(modules):
            self._check_repeats(shared["attention_mask"])
            own = DynamicCache()  # keys of the passes before
        for depth in range(1, max(drafts, len(modules)) + 1):
            ahead = F.pad(inputs_embeds[:, depth:], (0, 0, 0, min(depth, inputs_embeds.shape[1])))
            context, repeats = shared, depth - len(modules)
            if repeats > 0:
                context = repeated_context(context, hidden_states, self.rotary_emb, repeats)
            layer = modules[min(depth, len(modules)) - 1]
            hidden_states = self._run_layers([layer], hidden_states, context, own, ahead, **kwargs)
            states.append(hidden_states)
        return AXK1MTPOutput(mtp_states=tuple(states))

    def _check_repeats(self, mask: Any) -> None:
        if len(self.mtp_layers) != 1:
            raise ValueError(f"More drafts than MTP modules need one that repeats; there are {len(self.mtp_layers)}.")
        if self.gradient_checkpointing and self.training:
            raise ValueError("More drafts than MTP modules cannot be trained with gradient checkpointing: turn it off.")
        if mask is not None and not (isinstance(mask, torch.Tensor) and mask.dim() == 4):
            name = self.config._attn_implementation
            raise ValueError(f'More drafts than MTP modules need attention "sdpa" or "eager", not "{name}".')

    def draft(
        self,
        hidden_states: torch.Tensor,
        input_ids: torch.Tensor,
        past_key_values: LatentCache,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        depth: int = 1,
    ) -> torch.Tensor:
        """Runs one MTP module behind its own cache: what ``forward_mtp`` computes, step by step.

        Calling it again on its own output and the token drafted from it gives the next draft.

        Args:
            hidden_states: ``[batch, tokens, hidden]`` post-norm states, of the trunk or of an earlier draft.
            input_ids: ``[batch, tokens]``, for each state the ``depth``-th token after it.
            past_key_values: the trunk's cache; the module's layer of it grows by ``tokens``, the trunk's stay.
            attention_mask: ``[batch, columns]`` over the module's own columns, these tokens included; 0 at padding.
            position_ids: ``[1 or batch, tokens]``, of the states; counted on from the module's cache if not given.
            depth: which module, from 1.

        Returns:
            ``[batch, tokens, hidden]`` states after the module's norm: ``lm_head`` makes logits of them, for the
            token after ``input_ids``.

        Raises:
            ValueError: there is no module of this depth.
        """
        if not 1 <= depth <= len(self.mtp_layers):
            raise ValueError(f"depth={depth}: the model has {len(self.mtp_layers)} MTP modules.")
        layer, index = self.mtp_layers[depth - 1], self.config.num_hidden_layers + depth - 1
        embeddings = self.embed_tokens(input_ids)
        if position_ids is None:
            position_ids = next_positions(embeddings, past_key_values, index)
        combined = layer.combine(hidden_states, embeddings)
        norm = layer.shared_head.norm
        states = self.whole_step([layer], norm, combined, attention_mask, position_ids, past_key_values)
        if states is not None:
            return states
        context = self._context(combined, attention_mask, position_ids, past_key_values, layer_idx=index)
        return self._run_layers([layer], combined, context, past_key_values, None)

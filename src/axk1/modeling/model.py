"""The trunk and its heads, in the form transformers expects (Auto classes, ``generate``, Trainer, PEFT)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, initialization
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation.utils import GenerationMixin
from transformers.modeling_layers import GenericForSequenceClassification, GenericForTokenClassification
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.utils.generic import ModelOutput, can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from axk1.config import AXK1Config
from axk1.modeling.attention import AXK1Attention, is_standard
from axk1.modeling.cache import LatentCache
from axk1.modeling.conditions import is_hooked
from axk1.modeling.context import attention_context, next_positions, repeated_context
from axk1.modeling.layer import AXK1DecoderLayer
from axk1.modeling.losses import sequence_balance_loss, shifted_labels, token_loss, tokens_per_expert
from axk1.modeling.moe import AXK1Experts, AXK1Router
from axk1.modeling.mtp import AXK1MTPLayer
from axk1.modeling.norm import AXK1RMSNorm
from axk1.modeling.rope import AXK1RotaryEmbedding
from axk1.modeling.runners import Decoder, decoder_for, project, run_compiled


@dataclass
class AXK1ModelOutput(MoeModelOutputWithPast):
    """The trunk's output, plus what the MTP modules and the training objectives need."""

    router_indices: tuple[torch.Tensor, ...] | None = None
    """One ``[batch * tokens, K]`` a MoE layer, beside ``router_logits`` ``[batch * tokens, E]``."""
    attention_context: dict[str, Any] | None = None
    """Mask and rotary angles of this call, so that the MTP layers attend exactly as the trunk did."""


@dataclass
class AXK1MTPOutput(ModelOutput):
    """Post-norm states ``[batch, tokens, hidden]`` of every MTP depth, and their routers' decisions."""

    mtp_states: tuple[torch.Tensor, ...] | None = None
    router_logits: tuple[torch.Tensor, ...] | None = None
    router_indices: tuple[torch.Tensor, ...] | None = None


@dataclass
class AXK1CausalLMOutput(MoeCausalLMOutputWithPast):
    """``loss`` is ``lm_loss + mtp_loss_weight * mtp_loss + router_aux_loss_coef * aux_loss``."""

    lm_loss: torch.Tensor | None = None
    mtp_loss: torch.Tensor | None = None
    mtp_logits: tuple[torch.Tensor, ...] | None = None
    """One ``[batch, tokens, vocab]`` a depth k: at position i the logits of token i + k + 1 (``output_mtp_logits``)."""
    router_indices: tuple[torch.Tensor, ...] | None = None


class AXK1PreTrainedModel(PreTrainedModel):
    """What all A.X K1 models share: capabilities, recorded outputs, initialisation."""

    config: AXK1Config  # pyright: ignore[reportIncompatibleVariableOverride]
    config_class = AXK1Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["AXK1DecoderLayer", "AXK1MTPLayer"]
    _skip_keys_device_placement = ["past_key_values"]
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


RECORDED = tuple(f"output_{name}" for name in AXK1PreTrainedModel._can_record_outputs or {})
"""Arguments, and configuration fields, that ask for outputs recorded inside the layers."""


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

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> AXK1ModelOutput:
        """Runs the trunk over ``input_ids`` or ``inputs_embeds`` ``[batch, tokens]``.

        Packed documents: no ``attention_mask``, no ``past_key_values``, and ``position_ids`` that restart at 0 in each
        document.

        Raises:
            ValueError: both or neither of ``input_ids`` and ``inputs_embeds`` given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        inputs = cast(torch.Tensor, inputs_embeds)
        position_ids = next_positions(inputs, past_key_values) if position_ids is None else position_ids  # pyright: ignore
        context, layers = None, self.decoder_layers
        states = self._run_compiled(layers, self.norm, inputs, attention_mask, position_ids, past_key_values, **kwargs)
        if states is None:
            context = self._context(inputs, attention_mask, position_ids, past_key_values)
            # after the mask: transformers takes restarting positions for packed documents only where there is no cache
            if use_cache and past_key_values is None:
                # a training step has no use for the latents in one piece, and nn.DataParallel gathers plain caches only
                past_key_values = DynamicCache(config=self.config) if self.training else LatentCache(self.config)
            states = self.norm(self._run_layers(layers, inputs, context, past_key_values, **kwargs))
        return AXK1ModelOutput(last_hidden_state=states, past_key_values=past_key_values, attention_context=context)

    def _context(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return attention_context(self.config, self.rotary_emb, *args, training=self.training, **kwargs)

    def _run_layers(
        self,
        layers: Sequence[nn.Module],
        hidden_states: torch.Tensor,
        context: dict[str, Any],
        past_key_values: Cache | None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """``[batch, tokens, hidden]`` through ``layers``, which append to ``past_key_values``."""
        for layer in layers:
            hidden_states = layer(hidden_states, past_key_values=past_key_values, **context, **kwargs)
        return hidden_states

    def _run_compiled(
        self,
        layers: Sequence[nn.Module],
        norm: AXK1RMSNorm,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        past_key_values: Cache | None,
        **kwargs: Any,
    ) -> torch.Tensor | None:
        """The same and ``norm`` by the device's runner (``runners.py``), or None where the modules have to run: no
        runner, or outputs to record, or an attention that was chosen for itself (``eager``, the reference, or
        someone's own)."""
        if not self._may_be_compiled(**kwargs):
            return None
        positions = cast(torch.Tensor, position_ids)
        return run_compiled(self, cast(Any, layers), norm, hidden_states, positions, attention_mask, past_key_values)

    def _may_be_compiled(self, **kwargs: Any) -> bool:
        """Whether a call with these arguments asks for nothing but states, by an attention that may take any form."""
        config = self.config
        recorded = (kwargs.get(key, getattr(config, key, False)) for key in RECORDED)
        chosen = config._attn_implementation == "eager" or not is_standard(config)
        return not (chosen or kwargs.get("is_causal", True) is False or any(recorded))

    @capture_outputs
    def forward_mtp(
        self,
        hidden_states: torch.Tensor,
        inputs_embeds: torch.Tensor,
        attention_context: dict[str, Any],
        drafts: int = 0,
        **kwargs: Any,
    ) -> AXK1MTPOutput:
        """Runs the MTP modules over whole sequences (contract: ``mtp.py``).

        Args:
            hidden_states: ``[batch, tokens, hidden]`` trunk states after the final norm.
            inputs_embeds: ``[batch, tokens, hidden]`` embeddings of the same tokens.
            attention_context: as returned by ``forward``.
            drafts: tokens to predict behind the next one. Beyond the number of modules, the only one is applied to its
                own states and the tokens after them as it is to draft, every position at once.

        Raises:
            ValueError: ``drafts`` that several modules, checkpointed ones, or this attention cannot make.
        """
        modules, states, own = self.mtp_layers, [], None
        if drafts > len(modules):
            self._check_repeats(attention_context["attention_mask"])
            own = DynamicCache()  # keys of the passes before
        for depth in range(1, max(drafts, len(modules)) + 1):
            ahead = F.pad(inputs_embeds[:, depth:], (0, 0, 0, min(depth, inputs_embeds.shape[1])))
            context, repeats = attention_context, depth - len(modules)
            if repeats > 0:
                context = repeated_context(context, hidden_states, self.rotary_emb, repeats)
            layer = modules[min(depth, len(modules)) - 1]
            hidden_states = self._run_layers([layer], hidden_states, {**context, "embeddings": ahead}, own, **kwargs)
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
        states = self._run_compiled([layer], norm, combined, attention_mask, position_ids, past_key_values)
        if states is not None:
            return states
        context = self._context(combined, attention_mask, position_ids, past_key_values, layer_idx=index)
        return self._run_layers([layer], combined, {**context, "embeddings": None}, past_key_values)


class AXK1ForCausalLM(AXK1PreTrainedModel, GenerationMixin):
    """Trunk + untied head, MTP modules where the configuration has them, and all training objectives."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: AXK1Config) -> None:
        super().__init__(config)
        self.model = AXK1Model(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        output_mtp_logits: bool = False,
        output_router_logits: bool | None = None,
        skip_logits: bool = False,
        mtp_drafts: int = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> AXK1CausalLMOutput:
        """Logits, and with ``labels`` the losses.

        Args:
            labels: ``[batch, tokens]``, -100 where nothing is learned; shifted inside, never across packed documents.
            output_mtp_logits: add the MTP modules' logits over the whole sequence (needs an empty cache).
            output_router_logits: add ``router_logits`` and ``router_indices`` of every MoE layer, MTP modules last.
            skip_logits: with ``labels``, run the head on labelled positions only and return no logits: what training
                needs at a fraction of the cost.
            mtp_drafts: tokens behind the next one that the MTP modules predict, if more than there are modules: the
                only one then runs on its own states, which is what drafting several tokens asks of it.
            num_items_in_batch: divisor of the summed losses, as transformers' Trainer passes it.

        Raises:
            ValueError: MTP modules are to run behind a filled cache, or both or neither kind of input is given.
        """
        runs_mtp = self._runs_mtp(labels is not None or output_mtp_logits, past_key_values)
        balances = labels is not None and self._balances()
        record = self._record_routers(output_router_logits, balances)
        inputs = {"input_ids": input_ids, "inputs_embeds": inputs_embeds}
        where = {"attention_mask": attention_mask, "position_ids": position_ids}
        outputs: AXK1ModelOutput = self.model(
            **inputs, **where, past_key_values=past_key_values, use_cache=use_cache, **record, **kwargs
        )
        hidden = cast(torch.Tensor, outputs.last_hidden_state)
        result = AXK1CausalLMOutput(
            past_key_values=outputs.past_key_values, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
        if labels is None or not skip_logits:
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            result.logits = self.logits(hidden[:, keep, :], outputs.past_key_values)
        drafts: dict[str, Any] = {"drafts": mtp_drafts, **record}
        mtp = self._run_mtp(outputs, **inputs, **where, **drafts, **kwargs) if runs_mtp else AXK1MTPOutput()
        if output_mtp_logits:
            result.mtp_logits = tuple(self.lm_head(state) for state in mtp.mtp_states or ())
        if record["output_router_logits"]:
            result.router_logits = (outputs.router_logits or ()) + (mtp.router_logits or ())  # pyright: ignore
            result.router_indices = (outputs.router_indices or ()) + (mtp.router_indices or ())
        if labels is not None:
            self._add_token_losses(result, hidden, mtp.mtp_states or (), labels, position_ids, num_items_in_batch)
        if balances:
            mask = hidden.new_ones(hidden.shape[:2]) if attention_mask is None else attention_mask
            self._add_router_losses(result, mask)
        return AXK1CausalLMOutput(**result)  # in the order of its fields, so that a tuple begins with the loss

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """Where ``generate`` would make itself a plain ``DynamicCache``, it gets a :class:`LatentCache`."""
        given = model_kwargs.get("past_key_values")
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)  # pyright: ignore
        made = model_kwargs.get("past_key_values")
        if given is None and type(made) is DynamicCache and not made.offloading:
            model_kwargs["past_key_values"] = LatentCache(self.config)

    def _runs_mtp(self, asked: bool, past_key_values: Cache | None) -> bool:
        """``asked``, where the MTP modules can do it."""
        if asked and self.model.mtp_layers and past_key_values is not None and past_key_values.get_seq_length() > 0:
            raise ValueError(
                "labels and output_mtp_logits run the MTP modules, which need the whole sequence: "
                "pass all tokens and no filled past_key_values."
            )
        return asked

    def logits(self, states: torch.Tensor, cache: Cache | None) -> torch.Tensor:
        """``[..., vocab]`` of post-norm states; in a decode step by the device's runner, if there is one."""
        return project(self.lm_head, states) if isinstance(cache, LatentCache) else self.lm_head(states)

    def decoder(self, cache: LatentCache) -> Decoder | None:
        """The device's compiled steps from token ids to logits behind ``cache``, for one generation: weights and hooks
        are looked at now. None where the modules have to run."""
        trunk = self.model
        if any(is_hooked(module) for module in (self, trunk, trunk.embed_tokens, self.lm_head)):
            return None
        return decoder_for(self, cache) if trunk._may_be_compiled() else None

    def _balances(self) -> bool:
        """Whether a step with labels evens out the use of experts, for which the routers' decisions are needed."""
        config = self.config
        return self.training and config.router_aux_loss_coef + config.router_bias_update_rate > 0

    def _record_routers(self, asked: bool | None, balances: bool) -> dict[str, bool]:
        """Arguments by which trunk and MTP modules record the routers' decisions, or do not."""
        wanted = bool((self.config.output_router_logits if asked is None else asked) or balances)
        return {"output_router_logits": wanted, "output_router_indices": wanted}

    def _run_mtp(
        self,
        outputs: AXK1ModelOutput,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        **kwargs: Any,
    ) -> AXK1MTPOutput:
        """The MTP modules behind the trunk's ``outputs``; what they record are the routers' decisions only."""
        hidden = cast(torch.Tensor, outputs.last_hidden_state)
        embeddings = self.model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        context = outputs.attention_context
        if context is None:  # the trunk ran without a mask
            position_ids = next_positions(hidden, None) if position_ids is None else position_ids
            context = self.model._context(embeddings, attention_mask, position_ids, None)
        quiet = {"output_hidden_states": False, "output_attentions": False}
        return self.model.forward_mtp(hidden, embeddings, context, **{**kwargs, **quiet})

    def _add_token_losses(
        self,
        result: AXK1CausalLMOutput,
        hidden: torch.Tensor,
        mtp_states: tuple[torch.Tensor, ...],
        labels: torch.Tensor,
        position_ids: torch.Tensor | None,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> None:
        losses = [
            token_loss(state, self.lm_head, shifted_labels(labels, position_ids, depth + 1), num_items_in_batch)
            for depth, state in enumerate((hidden, *mtp_states))
        ]
        result.loss = result.lm_loss = losses[0]
        if mtp_states:
            result.mtp_loss = torch.stack(losses[1:]).mean()
            result.loss = result.lm_loss + self.config.mtp_loss_weight * result.mtp_loss

    def _add_router_losses(self, result: AXK1CausalLMOutput, mask: torch.Tensor) -> None:
        """Balance loss over all MoE layers, and the counts that ``update_router_biases`` works from."""
        config = self.config
        logits, indices = cast(tuple, result.router_logits), cast(tuple, result.router_indices)
        routers = [m for m in self.modules() if isinstance(m, AXK1Router)]
        routers += routers[-1:] * (len(indices) - len(routers))  # of a module that ran on its own states
        for router, chosen in zip(routers, indices, strict=True):
            router.tokens_per_expert += tokens_per_expert(chosen, mask, config.n_routed_experts)
        if config.router_aux_loss_coef:
            result.aux_loss = torch.stack(
                [
                    sequence_balance_loss(
                        router.scores(layer_logits).view(*mask.shape, -1), chosen.view(*mask.shape, -1), mask, config
                    )
                    for router, layer_logits, chosen in zip(routers, logits, indices, strict=True)
                ]
            ).mean()
            if self.model.gradient_checkpointing and torch.is_grad_enabled() and not result.aux_loss.requires_grad:
                raise ValueError(
                    "router_aux_loss_coef has no effect under reentrant gradient checkpointing, which hides the "
                    "routers from the loss: pass gradient_checkpointing_kwargs={'use_reentrant': False}."
                )
            result.loss = cast(torch.Tensor, result.loss) + config.router_aux_loss_coef * result.aux_loss

    @torch.no_grad()
    def update_router_biases(self, rate: float | None = None) -> None:
        """Auxiliary-loss-free balancing (arXiv 2408.15664), to be called after an optimizer step.

        Moves each expert's bias by ``rate`` (default ``router_bias_update_rate``), up if it was chosen less often than
        the mean and down if more, and clears the counts. Routers whose weights are frozen keep their biases.
        """
        rate = self.config.router_bias_update_rate if rate is None else rate
        for router in self.modules():
            if isinstance(router, AXK1Router):
                router.update_bias(rate if router.weight.requires_grad else 0.0)


class AXK1ForSequenceClassification(GenericForSequenceClassification, AXK1PreTrainedModel):
    """A score a sequence, read at its last token (transformers' generic head)."""


class AXK1ForTokenClassification(GenericForTokenClassification, AXK1PreTrainedModel):
    """A score a token (transformers' generic head)."""

"""The language model: trunk, head and objectives, in the form transformers expects (``generate``, Trainer, PEFT)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from transformers import GenerationConfig, LogitsProcessorList
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation.utils import GenerationMixin
from transformers.utils.generic import can_return_tuple

from axk1.config import AXK1Config
from axk1.modeling.cache import LatentCache, check_fits
from axk1.modeling.compat import CACHE, accepts_both_cache_names
from axk1.modeling.finite import FiniteScores
from axk1.modeling.moe import AXK1Router
from axk1.modeling.objectives import (
    attached,
    balance_loss,
    label_shares,
    targets_at,
    token_loss,
    tokens_per_expert,
    update_biases,
)
from axk1.modeling.outputs import AXK1CausalLMOutput, AXK1ModelOutput, AXK1MTPOutput
from axk1.modeling.trunk import AXK1Model, AXK1PreTrainedModel


class AXK1ForCausalLM(AXK1PreTrainedModel, GenerationMixin):
    """Trunk + untied head, MTP modules where the configuration has them, and all training objectives."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    # as transformers' own class declares them
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}  # pyright: ignore[reportAssignmentType]
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: AXK1Config) -> None:
        super().__init__(config)
        self.model = AXK1Model(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @accepts_both_cache_names
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
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
        """Logits, and with ``labels`` or ``shift_labels`` the losses.

        Args:
            labels: ``[batch, tokens]``, -100 where nothing is learned; shifted inside, never across packed documents.
            output_mtp_logits: add the MTP modules' logits over the whole sequence (needs an empty cache).
            output_router_logits: add ``router_logits`` and ``router_indices`` of every MoE layer, MTP modules last.
            skip_logits: with ``labels``, run the head on labelled positions only and return no logits: what training
                needs at a fraction of the cost.
            mtp_drafts: tokens behind the next one that the MTP modules predict, if more than there are modules: the
                only one then runs on its own states, which is what drafting several tokens asks of it.
            num_items_in_batch: labels of the whole step, over micro-batches and ranks, as transformers' Trainer passes
                it: divisor of the summed losses, and what the balance loss of each sequence is weighed by.
            kwargs: for the trunk. Or ``shift_labels`` ``[batch, tokens]``, what each position predicts, in place of
                ``labels``: for sequences that are cut over ranks.

        Raises:
            ValueError: MTP modules are to run behind a filled cache, or both or neither kind of input is given.
        """
        shift_labels = kwargs.pop("shift_labels", None)  # a parameter of this name would tell Trainer to wait for it
        labelled = labels is not None or shift_labels is not None
        runs_mtp = self._runs_mtp(labelled or output_mtp_logits, cache)
        balances = self._balances(labelled)
        record = self._record_routers(output_router_logits, balances)
        inputs = {"input_ids": input_ids, "inputs_embeds": inputs_embeds}
        where = {"attention_mask": attention_mask, "position_ids": position_ids}
        outputs: AXK1ModelOutput = self.model(
            **inputs, **where, cache=cache, use_cache=use_cache, objectives=True, **record, **kwargs
        )
        hidden = cast(torch.Tensor, outputs.last_hidden_state)
        if self.training and torch.is_grad_enabled() and not labelled:
            self.model.warn_of_missing_objectives(counted=True)
            hidden = hidden if runs_mtp else attached(hidden, self.model.trained_mtp())
        result = AXK1CausalLMOutput(
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE: outputs.get(CACHE)},  # pyright: ignore[reportArgumentType]
        )
        if not labelled or not skip_logits:
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            result.logits = self.logits(hidden[:, keep, :], outputs.get(CACHE))
        mtp = AXK1MTPOutput()
        if runs_mtp:
            drafts: dict[str, Any] = {"drafts": mtp_drafts, "packed": cache is None, **record}
            mtp = self._run_mtp(hidden, **inputs, **where, **drafts, **kwargs)
        if output_mtp_logits:
            result.mtp_logits = tuple(self.lm_head(state) for state in mtp.mtp_states or ())
        if record["output_router_logits"]:
            result.router_logits = (outputs.router_logits or ()) + (mtp.router_logits or ())  # pyright: ignore
            result.router_indices = (outputs.router_indices or ()) + (mtp.router_indices or ())
        if labelled:
            states = (hidden, *(mtp.mtp_states or ()))
            targets = [targets_at(depth, labels, shift_labels, position_ids) for depth in range(len(states))]
            self._add_token_losses(result, states, targets, num_items_in_batch)
        if balances:
            mask = hidden.new_ones(hidden.shape[:2]) if attention_mask is None else attention_mask
            shares = None
            if labelled and num_items_in_batch is not None:
                own = labels if shift_labels is None else shift_labels
                shares = label_shares(cast(torch.Tensor, own), shift_labels is not None, num_items_in_batch)
            self._add_router_losses(result, mask, shares)
        return AXK1CausalLMOutput(**result)  # in the order of its fields, so that a tuple begins with the loss

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """Where ``generate`` would make itself a plain ``DynamicCache``, it gets a :class:`LatentCache`."""
        given = model_kwargs.get(CACHE)
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)  # pyright: ignore
        made = model_kwargs.get(CACHE)
        if given is None and type(made) is DynamicCache and not made.offloading:
            model_kwargs[CACHE] = LatentCache(self.config)

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> LogitsProcessorList:
        """transformers' own, and after them :class:`FiniteScores`."""
        processors = super()._get_logits_processor(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        return LogitsProcessorList([*processors, FiniteScores()])

    def _runs_mtp(self, asked: bool, cache: Cache | None) -> bool:
        """``asked``, where the MTP modules can do it."""
        if asked and self.model.mtp_layers and cache is not None and cache.get_seq_length() > 0:
            check_fits(cache, self.config)
            raise ValueError(
                "labels and output_mtp_logits run the MTP modules, which need the whole sequence: "
                "pass all tokens and no filled past_key_values."
            )
        return asked

    def logits(self, states: torch.Tensor, cache: Cache | None) -> torch.Tensor:
        """``[..., vocab]`` of post-norm ``states`` ``[..., hidden]``, which were made after what ``cache`` holds."""
        return self.lm_head(states)

    def _balances(self, labelled: bool) -> bool:
        """Whether a step evens out the use of experts, for which the routers' decisions are needed."""
        config = self.config
        trains = self.training and (labelled or torch.is_grad_enabled())
        return trains and config.router_aux_loss_coef + config.router_bias_update_rate > 0

    def _record_routers(self, asked: bool | None, balances: bool) -> dict[str, bool]:
        """Arguments by which trunk and MTP modules record the routers' decisions, or do not."""
        wanted = bool((self.config.output_router_logits if asked is None else asked) or balances)
        return {"output_router_logits": wanted, "output_router_indices": wanted}

    def _run_mtp(
        self,
        hidden: torch.Tensor,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        **kwargs: Any,
    ) -> AXK1MTPOutput:
        """The MTP modules over the trunk's ``hidden`` states; what they record are the routers' decisions only."""
        embeddings = self.model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        quiet = {"output_hidden_states": False, "output_attentions": False}
        return self.model.forward_mtp(hidden, embeddings, attention_mask, position_ids, **{**kwargs, **quiet})

    def _add_token_losses(
        self,
        result: AXK1CausalLMOutput,
        states: Sequence[torch.Tensor],
        targets: Sequence[torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None,
    ) -> None:
        losses = [token_loss(s, self.lm_head, t, num_items_in_batch) for s, t in zip(states, targets, strict=True)]
        result.loss = result.lm_loss = losses[0]
        if len(losses) > 1:
            result.mtp_loss = torch.stack(losses[1:]).mean()
            result.loss = result.lm_loss + self.config.mtp_loss_weight * result.mtp_loss

    def _add_router_losses(
        self, result: AXK1CausalLMOutput, mask: torch.Tensor, shares: torch.Tensor | None = None
    ) -> None:
        """Counts for ``update_router_biases``, and the balance loss over all MoE layers that ran."""
        config = self.config
        logits, indices = cast(tuple, result.router_logits), cast(tuple, result.router_indices)
        routers = self._routers()
        routers += routers[-1:] * (len(indices) - len(routers))  # of a module that ran on its own states
        routers = routers[: len(indices)]  # without labels the MTP modules did not run
        for router, chosen in zip(routers, indices, strict=True):
            router.tokens_per_expert += tokens_per_expert(chosen, mask, config.n_routed_experts)
        if not config.router_aux_loss_coef:
            return
        result.aux_loss = balance_loss(routers, logits, indices, mask, config, shares)
        if self.model.gradient_checkpointing and torch.is_grad_enabled() and not result.aux_loss.requires_grad:
            raise ValueError(
                "router_aux_loss_coef has no effect under reentrant gradient checkpointing, which hides the "
                "routers from the loss: pass gradient_checkpointing_kwargs={'use_reentrant': False}."
            )
        if result.loss is not None:
            result.loss = result.loss + config.router_aux_loss_coef * result.aux_loss

    def _routers(self) -> list[AXK1Router]:
        return [module for module in self.modules() if isinstance(module, AXK1Router)]

    def update_router_biases(self, rate: float | None = None) -> None:
        """Auxiliary-loss-free balancing (arXiv 2408.15664), to be called after an optimizer step, on every rank.

        Moves each expert's bias by ``rate`` (default ``router_bias_update_rate``), up if it was chosen less often than
        the mean and down if more, and clears the counts, which are summed over all ranks of ``torch.distributed``.
        Routers whose weights are frozen keep their biases.
        """
        rate = self.config.router_bias_update_rate if rate is None else rate
        update_biases(self._routers(), rate, self.summed_over_ranks)

    @staticmethod
    def summed_over_ranks(counts: torch.Tensor) -> torch.Tensor:
        """Counts of all processes; here of the only one. :class:`axk1.AXK1ForCausalLM` knows of others."""
        return counts

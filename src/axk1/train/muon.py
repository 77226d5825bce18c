"""Muon (Jordan et al., 2024) for matrices, stacked experts included, and AdamW for everything else, in one optimizer.

torch's own ``Muon`` takes 2-D parameters only; most of this architecture's weights are experts in 3-D tensors. The step
is scaled to AdamW's usual size (Liu et al., 2025, arXiv 2502.16982), so that one weight decay serves both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.optim.adamw import adamw

from axk1.kernels.instructions import multiplies_bfloat16

_QUINTIC = (3.4445, -4.7750, 2.0315)  # maps singular values towards 1 in five rounds


class MuonAdamW(torch.optim.Optimizer):
    """Every parameter group names its rule: ``muon`` true or false (see :func:`parameter_groups`)."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        eps: float = 1e-8,
    ) -> None:
        defaults = {"lr": 1e-3, "momentum": momentum, "betas": betas, "weight_decay": weight_decay, "eps": eps}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            (self._muon if group["muon"] else self._adamw)(group, parameters)
        return loss

    def _muon(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        for parameter in parameters:
            gradient, state = cast(torch.Tensor, parameter.grad), self.state[parameter]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(gradient, 1 - group["momentum"])
            update = orthogonalize(gradient.lerp(state["momentum"], group["momentum"]))
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update.to(parameter.dtype), alpha=-group["lr"] * 0.2 * max(parameter.shape[-2:]) ** 0.5)

    def _adamw(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if "exp_avg" not in state:
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                state["step"] = torch.zeros(())
        states = [self.state[p] for p in parameters]
        adamw(
            parameters,
            [p.grad for p in parameters],  # pyright: ignore[reportArgumentType]
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonalize(matrix: torch.Tensor, rounds: int = 5) -> torch.Tensor:
    """Nearest semi-orthogonal matrix of each ``[..., rows, columns]``, roughly: singular values end near 0.7 to 1.2.

    Newton-Schulz iteration over the shorter side, in bf16 where that is fast, else in fp32: on a Zen 3, whose bf16
    products PyTorch emulates, fp32 takes a ninth of the time.
    """
    a, b, c = _QUINTIC
    x = matrix.bfloat16() if matrix.is_cuda or multiplies_bfloat16() else matrix.float()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def parameter_groups(model: nn.Module, *, muon_lr: float, lr: float) -> list[dict[str, Any]]:
    """Muon for the matrices inside the layers; AdamW for embedding, head and router, and without decay for norms."""
    muon, adamw_decayed, adamw_plain = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2:
            adamw_plain.append(parameter)
        elif any(part in name for part in ("embed_tokens", "lm_head", "mlp.gate.weight")):
            adamw_decayed.append(parameter)
        else:
            muon.append(parameter)
    return [
        {"params": muon, "lr": muon_lr, "muon": True},
        {"params": adamw_decayed, "lr": lr, "muon": False},
        {"params": adamw_plain, "lr": lr, "muon": False, "weight_decay": 0.0},
    ]

"""Linear layers that compute in bfloat16 of weights in float32, in less time than autocast takes for it.

autocast casts each weight anew in each forward pass, and gives its gradient in bfloat16, which is widened and then
added to that of the micro-batches before: six times through memory of the weights' size, and as many kernels. Here the
narrow weights stay until the weights change, and the product itself adds a gradient to what is there, in float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook


class NarrowLinear(nn.Linear):
    """A linear layer whose weight is trained, under autocast; otherwise the layer that it was."""

    _narrow: Tensor | None = None
    _of: tuple[int, int] | None = None

    def forward(self, input: Tensor) -> Tensor:
        kind = input.device.type
        if not torch.is_autocast_enabled(kind) or not self.weight.requires_grad:
            return super().forward(input)
        return _Product.apply(input, self.weight, self.narrow(torch.get_autocast_dtype(kind)), self.bias)

    def narrow(self, dtype: torch.dtype) -> Tensor:
        """The weight as it is now, in ``dtype``; always in the same place. What changes ``weight.data`` goes unseen."""
        now = (self.weight.data_ptr(), self.weight._version)
        if self._narrow is None or self._narrow.dtype != dtype:
            self._narrow = torch.empty_like(self.weight, dtype=dtype, requires_grad=False)
            self._of = None
        if self._of != now:
            self._narrow.copy_(self.weight.detach())
            self._of = now
        return self._narrow


def narrow(modules: Iterable[nn.Module]) -> list[NarrowLinear]:
    """Make the linear layers within ``modules`` narrow ones; not those that are of a kind of their own.

    A weight's later gradients come past autograd: past its hooks, which data parallelism would need, and past
    ``torch.autograd.grad`` where there is a ``.grad`` already.
    """
    _tell_of_updates()
    made = [part for module in modules for part in module.modules() if type(part) in (nn.Linear, NarrowLinear)]
    for linear in made:
        linear.__class__ = NarrowLinear
    return made  # type: ignore[return-value]


@cache
def _tell_of_updates() -> None:
    """Whatever optimizer changes weights, they are known to be others: torch's fused kernels leave their version."""

    def changed(optimizer: Optimizer, *_: object) -> None:
        torch.autograd.graph.increment_version([p for group in optimizer.param_groups for p in group["params"]])

    register_optimizer_step_post_hook(changed)


class _Product(torch.autograd.Function):
    """x W' + b. The first gradient of W is autograd's to keep; each later one is added to it where it lies."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, narrow: Tensor, bias: Tensor | None) -> Tensor:
        x = x.to(narrow.dtype)
        ctx.save_for_backward(x, narrow)
        ctx.weight = weight
        return F.linear(x, narrow, None if bias is None else bias.to(narrow.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, narrow = ctx.saved_tensors
        d_x = upstream @ narrow if ctx.needs_input_grad[0] else None
        rows, x = (part.reshape(-1, part.shape[-1]) for part in (upstream, x))
        d_weight, d_bias = None, rows.sum(0, dtype=torch.float32) if ctx.needs_input_grad[3] else None
        if ctx.needs_input_grad[1]:
            if ctx.weight.grad is None:
                d_weight = _product(rows.T, x)
            else:
                _add_product(ctx.weight.grad, rows.T, x)
        return d_x, d_weight, None, d_bias


# In float32, of what is narrower; torch has such products for GPUs only.


def _product(a: Tensor, b: Tensor) -> Tensor:
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()


def _add_product(to: Tensor, a: Tensor, b: Tensor) -> None:
    if a.is_cuda:
        torch.addmm(to, a, b, out_dtype=torch.float32, out=to)
    else:
        to.addmm_(a.float(), b.float())

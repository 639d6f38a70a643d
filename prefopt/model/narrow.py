"""Linear layers that compute in bfloat16 of weights in float32, in less time than autocast takes for it.

autocast casts each weight anew in each forward pass, and gives its gradient in bfloat16, which is widened and then
added to that of the micro-batches before: six times through memory of the weights' size, and as many kernels. Here the
narrow weights stay until the weights change, and the product itself adds a gradient to what is there, in float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, cast
from weakref import WeakValueDictionary

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
        dtype = torch.get_autocast_dtype(kind)
        # Compiled code can't tell whether a weight has changed; it reads what was made ready before.
        weight = self._narrow if torch.compiler.is_compiling() else self.narrow(dtype)
        return _product(input.to(dtype), weight, self.weight, self.bias)

    def narrow(self, dtype: torch.dtype) -> Tensor:
        """The weight as it is now, in ``dtype``; always in the same place. What changes ``weight.data`` goes unseen."""
        now = (self.weight.data_ptr(), self.weight._version)
        if self._narrow is None or self._narrow.dtype != dtype:
            self._narrow = torch.empty_like(self.weight, dtype=dtype, requires_grad=False)
            self._of = None
        if self._of != now:
            self._narrow.copy_(self.weight.detach())
            self._of = now
            _wide[self._narrow.data_ptr()] = cast(nn.Parameter, self.weight)
        return self._narrow


def narrow(modules: Iterable[nn.Module]) -> list[NarrowLinear]:
    """Make the linear layers within ``modules`` narrow ones; not those that are of a kind of their own.

    A weight's gradient goes to its ``.grad`` past autograd: past hooks, which data parallelism would need, and past
    ``torch.autograd.grad``.
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


_wide: WeakValueDictionary[int, nn.Parameter] = WeakValueDictionary()
"""the weight whose narrow one lies at an address: what is compiled hands on tensors, not who they are"""


# An operation of its own, which torch.compile leaves as it is, and so leaves alone what it does to gradients.


@torch.library.custom_op("prefopt::product", mutates_args=())
def _product(x: Tensor, narrow: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W' + b [..., out] of ``narrow`` [out, in]; ``weight``, of which that is a copy, is told its gradient."""
    return F.linear(x, narrow, None if bias is None else bias.to(narrow.dtype))


@torch.library.custom_op("prefopt::product_backward", mutates_args=())
def _product_backward(upstream: Tensor, x: Tensor, narrow: Tensor) -> Tensor:
    """The gradient of x; that of the weight is added to what is there, in float32."""
    weight = _wide[narrow.data_ptr()]
    rows, x = upstream.reshape(-1, upstream.shape[-1]).T, x.reshape(-1, x.shape[-1])
    if weight.grad is None:
        weight.grad = _wide_product(rows, x)
    else:
        _add_wide_product(weight.grad, rows, x)
    return upstream @ narrow


@_product.register_fake
def _(x: Tensor, narrow: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], narrow.shape[0])


@_product_backward.register_fake
def _(upstream: Tensor, x: Tensor, narrow: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    x, narrow, _, bias = inputs
    ctx.save_for_backward(x, narrow)
    ctx.biased = bias is not None


def _backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, Tensor | None]:
    d_bias = upstream.flatten(0, -2).sum(0, dtype=torch.float32) if ctx.biased else None
    return _product_backward(upstream, *ctx.saved_tensors), None, None, d_bias


_product.register_autograd(_backward, setup_context=_keep)


# In float32, of what is narrower; torch has such products for GPUs only.


def _wide_product(a: Tensor, b: Tensor) -> Tensor:
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()


def _add_wide_product(to: Tensor, a: Tensor, b: Tensor) -> None:
    if a.is_cuda:
        torch.addmm(to, a, b, out_dtype=torch.float32, out=to)
    else:
        to.addmm_(a.float(), b.float())

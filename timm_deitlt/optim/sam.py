"""Sharpness-aware minimisation around any optimizer. Importing this registers `samsgd` and `samadamw` with timm.

Papers: Sharpness-Aware Minimization, https://arxiv.org/abs/2010.01412; ASAM, https://arxiv.org/abs/2102.11600
"""
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from timm.optim import OptimInfo
from timm.optim._optim_factory import default_registry
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from ..utils.precision import widest_float

__all__ = ['SAM', 'SAMSGD', 'SAMAdamW']

_OWN_OPTIONS = ('rho', 'adaptive')


class SAM(Optimizer):
    """Optimizer that descends along the gradient found at the worst weights nearby.

    `step(closure)` calls the closure twice: at the weights w, and at w + e, where e has the length `rho` and the
    direction of the gradient. It then restores w, and the base optimizer steps with the second gradient. The closure
    zeroes the gradients, computes the loss, backpropagates (over all micro-batches of an update, and across ranks) and
    returns the loss. During its second call `perturbed` is True. With `rho=0` SAM is the base optimizer, in one pass.

    Groups, state and defaults are the objects of the base optimizer, so schedulers reach it. `rho` and `adaptive` are
    stored in the groups: each group may have its own values, and `state_dict` keeps them.

    Args:
        params: Parameters or groups of them, as for any optimizer.
        base_optimizer_class: Creates the base optimizer by `base_optimizer_class(params, **base_kwargs)`.
        rho: Radius, the L2 length of e over all parameters together. ASAM needs about ten times the radius of SAM.
        adaptive: Whether to use ASAM, which measures e relative to the absolute value of each weight.

    Raises:
        ValueError: If rho is negative or not finite, the base is not an optimizer, or the base has options of these
            names.

    Source: e = rho g / |g| (SAM, equation 2 with p = 2); e = rho T^2 g / |T g| with T = diag(|w|) (ASAM).

    Example:
        >>> model, images = torch.nn.Linear(3, 1), torch.randn(8, 3)
        >>> optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.05, lr=0.1, momentum=0.9)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = model(images).pow(2).mean()
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
    """

    _perturbed = False  # private: a deep copy must have all public attributes

    def __init__(
            self,
            params: Iterable[Any],
            base_optimizer_class: Callable[..., Optimizer],
            rho: float = 0.05,
            adaptive: bool = False,
            **base_kwargs: Any,
    ) -> None:
        # Optimizer.__init__ is not called on purpose: it would make groups and a state of its own.
        base = base_optimizer_class(params, **base_kwargs) if callable(base_optimizer_class) else None
        if not isinstance(base, Optimizer):
            raise ValueError(
                f'The base of SAM must be a torch.optim.Optimizer class, but {base_optimizer_class!r} does not create '
                'an optimizer: pass for example torch.optim.SGD, and its options by name.'
            )
        if clash := [name for name in _OWN_OPTIONS if name in base.defaults]:
            raise ValueError(
                f'SAM keeps {" and ".join(clash)} in the parameter groups, where {type(base).__name__} has its own '
                'option of that name: choose a base optimizer without it.'
            )
        base.defaults.update(rho=rho, adaptive=adaptive)
        self.base_optimizer = base
        self._share_base()
        for value in (rho, *(group['rho'] for group in self.param_groups)):
            if not 0 <= value < math.inf:
                raise ValueError(f'rho is {value}, but the radius of SAM must be 0 or a positive finite number.')

    def _share_base(self) -> None:
        base = self.base_optimizer
        for group in base.param_groups:
            for name in _OWN_OPTIONS:
                group.setdefault(name, base.defaults[name])
        self.__setstate__({'defaults': base.defaults, 'state': base.state, 'param_groups': base.param_groups})

    @property
    def perturbed(self) -> bool:
        """Whether the second pass is running. The weights are then perturbed, and no state may change."""
        return self._perturbed

    @property
    def single_pass(self) -> bool:
        """Whether rho is 0 in every group, so that the next step is that of the base optimizer."""
        return all(group['rho'] == 0 for group in self.param_groups)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one update from two passes of the closure.

        Returns:
            The loss at the unperturbed weights. If the gradient of one of two passes is not finite, weights and state
            stay as they were, and the loss that is returned is not finite. With a rho of 0 the base optimizer decides.

        Raises:
            ValueError: If there is no closure, unless rho is 0.
        """
        if self.single_pass:
            return self.base_optimizer.step(closure)
        if closure is None:
            raise ValueError(
                'SAM needs two forward and backward passes per step, but step() was called without a closure. Call '
                'step(closure) with a closure that zeroes the gradients, computes the loss, backpropagates and '
                'returns it, or train with train.py of timm_deitlt, which does this (timm\'s own train.py does not). '
                'fp16 gradient scaling (GradScaler, timm\'s NativeScaler) calls step() without a closure and cannot '
                'be used with SAM: train in bf16 or fp32.'
            )
        closure = torch.enable_grad()(closure)
        loss = closure()
        params, ascent, norm = self._ascent()
        weights = [p.detach().clone() for p in params]
        try:
            self._perturbed = True
            if params:
                torch._foreach_add_(params, ascent)
            del ascent  # it is as large as the weights, and the second pass needs the memory
            closure()
        finally:
            self._perturbed = False
            if params:
                # copied, not subtracted, because (w + e) - e is not exactly w
                torch._foreach_copy_(params, weights)
        gradients = [p.grad for group in self.param_groups for p in group['params'] if p.grad is not None]
        return self._descend(loss, norm.isfinite() & _global_norm(gradients).isfinite())

    def _ascent(self) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Parameters that have a gradient, their steps e, and the norm of the gradient (of T g for ASAM)."""
        groups: list[tuple[float, list[Tensor]]] = []
        params: list[Tensor] = []
        scaled: list[Tensor] = []
        for group in self.param_groups:
            group_params = [p for p in group['params'] if p.grad is not None]
            ascent = [p.grad for p in group_params]
            params += group_params
            if group['adaptive'] and group_params:
                lengths = torch._foreach_abs(group_params)
                ascent = list(torch._foreach_mul(ascent, lengths))
                scaled += ascent
                ascent = list(torch._foreach_mul(ascent, lengths))
            else:
                scaled += ascent
            if group_params:
                groups.append((group['rho'], ascent))
        norm = _global_norm(scaled)
        steps: list[Tensor] = []
        for rho, ascent in groups:
            # a gradient of 0 has no direction: then e is 0, and the second pass repeats the first
            length = torch.where(norm > 0, torch.full_like(norm, rho, dtype=widest_float(norm.device)) / norm, 0.)
            steps += torch._foreach_mul(ascent, length.to(_at_least_float32(ascent[0])))
        return params, steps, norm

    def _descend(self, loss: Any, finite: Tensor) -> Any:
        """Let the base optimizer step if both gradients were finite, and return the loss, NaN if they were not.

        A fused base asks on the device, so that nothing waits for it. Before its first step it could not: it would
        keep a momentum that was never written.
        """
        base: Any = self.base_optimizer
        stepped = all(p in self.state for group in self.param_groups for p in group['params'] if p.grad is not None)
        if isinstance(loss, Tensor) and stepped and all(group.get('fused') for group in self.param_groups):
            base.found_inf = (~finite).float()
            try:
                base.step()
            finally:
                del base.found_inf
            return torch.where(finite, loss, math.nan)
        if not finite:
            return _not_finite(loss)
        base.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.base_optimizer.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.base_optimizer.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """State of the base optimizer, with `rho` and `adaptive` in its groups."""
        return self.base_optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state of SAM, or from one of the base optimizer with the current `rho` and `adaptive`."""
        self.base_optimizer.load_state_dict(state_dict)
        self._share_base()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), 'base_optimizer': self.base_optimizer}

    def __repr__(self) -> str:
        return f'{type(self).__name__} of {self.base_optimizer!r}'


def _at_least_float32(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _global_norm(tensors: list[Tensor]) -> Tensor:
    # in half precision the squares would overflow, and the sum would lose digits
    return get_total_norm([t.to(_at_least_float32(t)) for t in tensors])


def _not_finite(loss: Any) -> Any:
    # a finite loss would hide that no update was made
    return loss.detach() * math.nan if isinstance(loss, Tensor) else math.nan


class SAMSGD(SAM):
    """SAM around torch's SGD.

    Args:
        params, rho, adaptive: See `SAM`.
        lr, momentum, dampening, weight_decay, nesterov, maximize, foreach, differentiable, fused: As for SGD.

    Example:
        >>> optimizer = SAMSGD(torch.nn.Linear(3, 1).parameters(), rho=0.1, lr=0.1, momentum=0.9)
    """

    # all arguments are written out, because timm's own tests read from the signature what an optimizer takes
    def __init__(
            self,
            params: Iterable[Any],
            rho: float = 0.05,
            adaptive: bool = False,
            *,
            lr: float | Tensor = 1e-3,
            momentum: float = 0,
            dampening: float = 0,
            weight_decay: float | Tensor = 0,
            nesterov: bool = False,
            maximize: bool = False,
            foreach: bool | None = None,
            differentiable: bool = False,
            fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            torch.optim.SGD,
            rho=rho,
            adaptive=adaptive,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            maximize=maximize,
            foreach=foreach,
            differentiable=differentiable,
            fused=fused,
        )


class SAMAdamW(SAM):
    """SAM around torch's AdamW.

    Args:
        params, rho, adaptive: See `SAM`.
        lr, betas, eps, weight_decay, amsgrad, maximize, foreach, capturable, differentiable, fused: As for AdamW.

    Example:
        >>> optimizer = SAMAdamW(torch.nn.Linear(3, 1).parameters(), rho=0.1, lr=1e-3, betas=(0.9, 0.95))
    """

    def __init__(
            self,
            params: Iterable[Any],
            rho: float = 0.05,
            adaptive: bool = False,
            *,
            lr: float | Tensor = 1e-3,
            betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
            eps: float = 1e-8,
            weight_decay: float = 1e-2,
            amsgrad: bool = False,
            maximize: bool = False,
            foreach: bool | None = None,
            capturable: bool = False,
            differentiable: bool = False,
            fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            torch.optim.AdamW,
            rho=rho,
            adaptive=adaptive,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )


# the names have no underscore, because timm takes what precedes one for a wrapper: `sam_sgd` would silently be SGD
default_registry.register(OptimInfo(
    name='samsgd',
    opt_class=SAMSGD,
    description='Sharpness-aware minimisation around torch.optim.SGD with classical momentum',
    has_eps=False,
    has_momentum=True,
    defaults={'nesterov': False},
))
default_registry.register(OptimInfo(
    name='samadamw',
    opt_class=SAMAdamW,
    description='Sharpness-aware minimisation around torch.optim.AdamW',
    has_betas=True,
))

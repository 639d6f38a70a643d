"""PPO on language, as equations: pure functions of tensors, without a model.

R responses have N tokens together; a [N] tensor holds those of the first response, then those of the second and so
on, end tokens included, and ``length`` [R] says how many each has. A token is an action a_t, what stands before it
the state s_t, and V(s_t) the value model's forecast of the reward from there on. Nats throughout.

Sources: Schulman et al. 2017 (PPO), 1707.06347; Schulman et al. 2016 (GAE), 1506.02438; Ziegler et al. 2019 (on
language, with the KL penalty), 1909.08593, and the code of the last.
"""

from __future__ import annotations

import torch
from torch import Tensor


def last_of(length: Tensor) -> Tensor:
    """[R] where each response's last token stands.

    >>> last_of(torch.tensor([2, 1])).tolist()
    [1, 2]
    """
    return length.cumsum(0) - 1


def token_rewards(scores: Tensor, logps: Tensor, reference: Tensor, length: Tensor, kl_coef: float) -> Tensor:
    """−β (log π(a_t|s_t) − log π_ref(a_t|s_t)) for every token, and at the last one the response's score too. [N].

    Ziegler et al. 2019, eq. 2, by tokens as in their code. ``logps`` and ``reference`` [N], ``scores`` [R].

    >>> logps, reference = torch.tensor([-1.0, -1.0, -2.0]), torch.tensor([-2.0, -1.0, -1.0])
    >>> token_rewards(torch.tensor([5.0, 7.0]), logps, reference, torch.tensor([2, 1]), kl_coef=0.5).tolist()
    [-0.5, 5.0, 7.5]
    """
    return (-kl_coef * (logps - reference)).index_add(0, last_of(length), scores)


def penalise_unended(scores: Tensor, ended: Tensor, penalty: float) -> Tensor:
    """The scores [R], less ``penalty`` where a response did not end itself (``ended`` [R] bool) but was cut off.

    A penalty in the place of the fixed low score that Ziegler et al. 2019 gave to samples without an end.

    >>> penalise_unended(torch.tensor([2.0, 2.0]), torch.tensor([True, False]), 1.0).tolist()
    [2.0, 1.0]
    """
    return scores - penalty * (~ended).to(scores.dtype)


def gae(rewards: Tensor, values: Tensor, length: Tensor, gamma: float = 1.0, lam: float = 0.95) -> Tensor:
    """Advantages Â_t = δ_t + γλ Â_{t+1} with δ_t = r_t + γ V(s_{t+1}) − V(s_t); nothing follows a last token. [N].

    Schulman et al. 2016, eq. 16. Returns, which the value model learns, are Â_t + V(s_t).

    >>> gae(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.25]), torch.tensor([2]), gamma=1.0, lam=0.5).tolist()
    [0.125, 0.75]
    """
    advantages = torch.zeros_like(values)
    last = last_of(length)
    following, next_value = rewards.new_zeros(len(length)), values.new_zeros(len(length))
    for back in range(int(length.max())):  # all responses at once, from their ends
        r = torch.nonzero(length > back)[:, 0]
        at = last[r] - back
        delta = rewards[at] + gamma * next_value[r] - values[at]
        following[r] = delta + gamma * lam * following[r]
        next_value[r] = values[at]
        advantages[at] = following[r]
    return advantages


def whiten(x: Tensor) -> Tensor:
    """(x − mean)/sd over all tokens, so that no scale of rewards changes the step. Ziegler et al. 2019, their code.

    >>> whiten(torch.tensor([1.0, 3.0])).tolist()
    [-1.0, 1.0]
    """
    return (x - x.mean()) * (x.var(correction=0) + 1e-8).rsqrt()


def policy_loss(logps: Tensor, old: Tensor, advantages: Tensor, clip: float = 0.2) -> Tensor:
    """−min(ρ Â, clip(ρ, 1 − ε, 1 + ε) Â) with ρ = π(a_t|s_t)/π_old(a_t|s_t). [N], unreduced.

    Schulman et al. 2017, eq. 7. ``logps``, ``old`` [N] log-probabilities now and at the rollout; ``clip`` is ε.

    >>> logps = torch.tensor([1.5, 1.5, 0.5]).log()
    >>> policy_loss(logps, torch.zeros(3), torch.tensor([1.0, -1.0, -1.0])).tolist()
    [-1.2000000476837158, 1.5, 0.800000011920929]
    """
    ratio = (logps - old).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def value_loss(values: Tensor, old: Tensor, returns: Tensor, clip: float = 0.2) -> Tensor:
    """½ max((V − R)², (V_old + clip(V − V_old, −c, c) − R)²). [N], unreduced.

    Not in the paper but in its code (openai/baselines, ppo2) and in that of Ziegler et al. 2019. ``clip`` is c, in
    units of the reward.

    >>> value_loss(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 0.9]), torch.tensor([1.0, 2.0])).tolist()
    [0.320000022649765, 0.5]
    """
    clipped = old + (values - old).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)


def approx_kl(logps: Tensor, old: Tensor) -> Tensor:
    """(ρ − 1) − log ρ: how far the policy has gone from the one that wrote the rollouts. [N], each at least 0.

    Its mean estimates KL(π_old ‖ π) without bias (Schulman 2020, "Approximating KL divergence", k3).

    >>> round(float(approx_kl(torch.tensor([0.5]).log(), torch.zeros(1))), 4)  # log 2 − ½
    0.1931
    """
    log_ratio = logps - old
    return log_ratio.expm1() - log_ratio


def clipped(logps: Tensor, old: Tensor, clip: float = 0.2) -> Tensor:
    """1 where |ρ − 1| > ε, else 0. [N]; the mean is ``clipfrac``, as openai/baselines counts it.

    >>> clipped(torch.tensor([1.5, 1.1]).log(), torch.zeros(2)).tolist()
    [1.0, 0.0]
    """
    return (((logps - old).exp() - 1).abs() > clip).to(logps.dtype)


def explained_variance(values: Tensor, returns: Tensor) -> Tensor:
    """1 − Var(R − V)/Var(R): 1 for perfect forecasts, 0 for a constant, less for worse. Scalar; nan if all R are equal.

    >>> explained_variance(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])).item()
    0.75
    """
    return 1 - (returns - values).var(correction=0) / returns.var(correction=0)


def entropy(logps: Tensor) -> Tensor:
    """−log π(a_t|s_t) of tokens that π itself drew. [N]; the mean estimates the policy's entropy without bias."""
    return -logps


def adapted(kl_coef: float, kl: float, responses: int, target: float, horizon: int) -> float:
    """β (1 + clip(KL/target − 1, ±0.2) · n/horizon), so that the KL comes to ``target``, nats a response.

    Ziegler et al. 2019, section 2.2, with n/horizon for K_β as in their code; n ``responses`` have been drawn since the
    last time. At horizon 10,000 and 256 responses β changes by half a percent a step at most.

    >>> adapted(0.2, kl=12.0, responses=100, target=6.0, horizon=1000)  # the error is clipped to 0.2
    0.20400000000000001
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * responses / horizon)

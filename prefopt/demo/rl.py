"""PPO in the world, with the true reward: the method that DPO replaces, given what nobody has outside of a demo.

It learns by the same step as ``prefopt ppo``, from its own samples; the policies that it comes by are enumerated. What
was tried to find these settings is in docs/ppo.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from prefopt.data.encode import Encoder
from prefopt.demo.methods import Method
from prefopt.demo.tune import Snapshot, Start
from prefopt.demo.world import World, the_world
from prefopt.generate import Prompt
from prefopt.model.load import load_model
from prefopt.rl.loop import PPO, PPOState, ppo_step
from prefopt.rl.rollout import Cast
from prefopt.rl.value import ValueModel
from prefopt.train import optimizer
from prefopt.train.guard import Guard
from prefopt.train.loop import Hooks, Schedule, fit
from prefopt.types import Encoded

TOKENS = 16384
"""computed at once: nearly all of what a batch holds is shared by its responses"""


@dataclass(frozen=True)
class TrueReward:
    """The world's reward of a review; of anything that is no review, less than of the worst one."""

    world: World

    def __call__(self, pairs: Sequence[tuple[Prompt, str]]) -> list[float]:
        reward, nonsense = self.world.reward, float(self.world.reward.min()) - 1
        found = [(self._prompts[prompt], self._reviews.get(text)) for prompt, text in pairs]
        return [nonsense if y is None else float(reward[x, y]) for x, y in found]

    @cached_property
    def _prompts(self) -> dict[Prompt, int]:
        return {prompt: x for x, prompt in enumerate(self.world.prompts)}

    @cached_property
    def _reviews(self) -> dict[str, int]:
        return {text: y for y, text in enumerate(self.world.texts)}


def ppo(
    start: Start, method: PPO, rate: float, steps: int, prompts: int = 64, out: Path | None = None
) -> list[Snapshot]:
    """Tune on the true reward; the last policy is the end. ``prompts`` a step, of which there are four."""
    world = the_world()
    policy, reference = (load_model(str(start.model), device="cpu") for _ in range(2))
    method = replace(method, max_new_tokens=world.responses.shape[1] + 1)
    asked = [
        Encoded(world.encoded(x, (0,)).prompt, (), (), (), prompt, prompt, prompt)
        for x, prompt in enumerate(world.prompts)
    ]
    texts = {prompt: prompt for prompt in world.prompts}
    cast = Cast(policy, reference, ValueModel.of_policy(policy), TrueReward(world), texts, TOKENS)
    models = policy.module, cast.value.lm.module
    ours, values = (optimizer.build("adamw", module.named_parameters()) for module in models)
    state = PPOState(cast, Encoder(world.tokenizer), ours, values, method.kl_coef, Guard())
    schedule = Schedule(
        steps=steps, batch_size=prompts, peak=rate, warmup=steps // 10, decay="linear", clip=1.0,
        seed=start.seed, eval_every=-(-steps // start.looks), save_every=steps,
    )  # fmt: skip
    snapshots: list[Snapshot] = []

    def look(step: int) -> None:
        if step:
            snapshots.append(Snapshot(step, world.logps(policy.module)))

    fit(state, asked, schedule, Hooks(lambda *_: None, look, lambda _: None), take=partial(ppo_step, method=method))
    if out is not None:
        policy.save(out)
        world.tokenizer.save_pretrained(out)
    return snapshots


RATE, VALUE_RATE = 2e-3, 2.0
"""the policy's learning rate, and the value model's as a multiple of it"""


def fixed(beta: float, steps: int) -> Method:
    """With a KL penalty of β: it aims at the optimum for this β, as DPO does, but is no run to realign."""
    method = PPO(kl_coef=beta, value_rate=VALUE_RATE)
    return Method(f"PPO, true reward, β = {beta:g}", partial(ppo, method=method, rate=RATE, steps=steps))


def targeting(kl: float, steps: int) -> Method:
    """With a β that adapts until the KL is so many nats, as the paper's runs have it."""
    method = PPO(kl_coef=0.2, target_kl=kl, horizon=2000, value_rate=VALUE_RATE)
    return Method(f"PPO, true reward, KL {kl:g}", partial(ppo, method=method, rate=RATE, steps=steps))


WITH_TRUE_REWARD = (
    *(fixed(beta, steps=60) for beta in (0.5, 0.2, 0.1)),
    *(targeting(kl, steps=60) for kl in (1.5, 3, 4.5)),
)

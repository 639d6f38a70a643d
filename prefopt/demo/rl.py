"""PPO in the world: the method that DPO replaces, with a reward model, and with what nobody has outside of a demo.

It learns by the same step as ``prefopt ppo``, from its own samples; the policies that it comes by are enumerated. What
was tried to find these settings is in docs/ppo.md.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from prefopt.data.encode import Encoder
from prefopt.demo.methods import Method
from prefopt.demo.rewards import TrueReward
from prefopt.demo.tune import Snapshot, Start
from prefopt.demo.world import the_world
from prefopt.model.load import load_model
from prefopt.rl.loop import PPO, PPOState, ppo_step
from prefopt.rl.rewards import Reward, RewardModel, load_reward
from prefopt.rl.rollout import Cast
from prefopt.rl.value import ValueModel
from prefopt.train import optimizer
from prefopt.train.guard import Guard
from prefopt.train.loop import Hooks, Schedule, batches, repeat
from prefopt.types import Encoded

TOKENS = 16384
"""computed at once: nearly all of what a batch holds is shared by its responses"""


def ppo(
    start: Start,
    method: PPO,
    rate: float,
    steps: int,
    learned: bool = False,
    prompts: int = 64,
    out: Path | None = None,
) -> list[Snapshot]:
    """Tune on the true reward, or on the one that was ``learned`` from the pairs of this seed; the last is the end.

    ``prompts`` a step, of which there are four. With a reward model, the value model starts as a copy of it.
    """
    world = the_world()
    policy, reference = (load_model(str(start.model), device="cpu") for _ in range(2))
    method = replace(method, max_new_tokens=world.responses.shape[1] + 1)
    asked = [
        Encoded(world.encoded(x, (0,)).prompt, (), (), (), prompt, prompt, prompt)
        for x, prompt in enumerate(world.prompts)
    ]
    texts = {prompt: prompt for prompt in world.prompts}
    reward: Reward = load_reward(str(start.reward_model), device="cpu") if learned else TrueReward(world)
    value = ValueModel.of_reward_model(reward.module, policy) if isinstance(reward, RewardModel) else None
    cast = Cast(policy, reference, value or ValueModel.of_policy(policy), reward, texts, TOKENS)
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

    prompts_of_steps = batches(asked, schedule, state.step)
    repeat(partial(ppo_step, method=method), state, prompts_of_steps, schedule, Hooks(evaluate=look))
    if out is not None:
        policy.save(out)
        world.tokenizer.save_pretrained(out)
    return snapshots


RATE, VALUE_RATE, HORIZON = 1e-3, 4.0, 500
"""the policy's learning rate, the value model's as a multiple of it, and how slowly the penalty adapts"""


def passes_in(steps: int) -> int:
    """Over each step's responses: with few steps four make a policy leave the grammar, with many two are too few."""
    return 2 if steps <= 10 else 4


def ppo_to(kl: float, steps: int, learned: bool, passes: int | None = None) -> Method:
    """With a penalty that adapts until the KL is so many nats, as the paper's runs have it.

    It aims at no β, so it has none: neither a run to realign nor one whose implicit reward is asked for.
    """
    near = 0.8 / kl  # to where the penalty comes
    passes = passes or passes_in(steps)
    method = PPO(kl_coef=near, target_kl=kl, horizon=HORIZON, value_rate=VALUE_RATE, passes=passes)
    name = "PPO" if learned else "PPO-GT"
    return Method(f"{name}, KL {kl:g}", partial(ppo, method=method, rate=RATE, steps=steps, learned=learned))


REDUCED = tuple(ppo_to(3, 10, learned) for learned in (True, False))
FULL = tuple(ppo_to(kl, 25, learned) for kl in (1.5, 4) for learned in (True, False))

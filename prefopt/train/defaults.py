"""The settings that were left to be chosen, and why these values.

Learning rates fall with a model's size. These two lines go through what has been found to work: DPO
at 1e-6 for 2.8B (the paper) and 5e-7 for 7B (Tunstall et al. 2023, 2310.16944), SFT at 2e-5 for 7B, and at 3M
parameters, where this project's own examples are, a thousand times DPO's rate and a hundred times SFT's.
"""

from __future__ import annotations

from typing import Any

import torch

from prefopt.config import Reward, Training
from prefopt.errors import UserError
from prefopt.model.footprint import MOST_TOKENS, kept_a_token
from prefopt.train.loop import Schedule


def dpo_rate(parameters: int) -> float:
    """Peak learning rate for tuning on preferences.

    >>> f"{dpo_rate(7_000_000_000):.0e} {dpo_rate(2_800_000_000):.0e} {dpo_rate(3_000_000):.0e}"
    '5e-07 1e-06 5e-04'
    """
    return min(1e-3, 5e-7 * (7e9 / parameters) ** 0.9)


def sft_rate(parameters: int) -> float:
    """Peak learning rate for supervised fine-tuning.

    >>> f"{sft_rate(7_000_000_000):.0e} {sft_rate(3_000_000):.0e}"
    '2e-05 2e-03'
    """
    return min(3e-3, 2e-5 * (7e9 / parameters) ** 0.6)


def schedule(config: Training, examples: int, parameters: int, imitates: bool) -> Schedule:
    """The loop's settings for ``examples`` training examples and a model of so many parameters.

    The number of steps is the nearest whole one, at least 1: a step always holds ``batch_size``
    examples, so the last one may begin another epoch.
    """
    steps = max(1, round(config.epochs * examples / config.batch_size))
    if config.max_steps is not None:
        steps = min(steps, config.max_steps)
    rate = sft_rate(parameters) if imitates else dpo_rate(parameters)
    if isinstance(config, Reward):  # a head that begins at nothing has more to learn than a policy
        rate = sft_rate(parameters) / 2
    return Schedule(
        steps=steps,
        batch_size=config.batch_size,
        peak=config.learning_rate or float(f"{rate:.1e}"),
        warmup=steps // 10 if config.warmup_steps is None else config.warmup_steps,
        decay=config.schedule,
        clip=config.clip,
        seed=config.seed,
        eval_every=config.eval_every or 0,
        save_every=config.save_every or max(1, -(-steps // 10)),
        group_by_prompt=config.group_by_prompt,
    )


def tokens_per_microbatch(device: torch.device, held: int = 0, each: int = 0) -> int:
    """How many tokens to compute at once: as many as are of use, or fit beside ``held`` bytes at ``each`` a token.

    On a CPU, where a few hundred tokens keep the cores busy, they get a quarter of what is held, or half a gigabyte if
    that is more: for a model of 30M parameters on two cores 768 tokens, where 512 take 5 % more time and 1,024 take
    3 % less; one of 5M was as fast with 512 as with 2048. The choice follows from the model's shape and the device
    alone, and no clock is asked, since another cut of a step is another rounding: a run that is repeated must choose
    the same.
    """
    if device.type != "cuda":
        return fitting(max(5 * 10**8, held // 4), each, most=MOST_TOKENS["cpu"])
    room = int(0.95 * torch.cuda.get_device_properties(device).total_memory) - held
    return fitting(room, each, most=MOST_TOKENS["cuda"])


def pays_to_compile(device: torch.device, parameters: int, tokens: int) -> bool:
    """Whether layers are compiled, in a run that reads so many ``tokens``.

    On an H200 making the kernels takes some 25 s where torch's cache has none. With 0.5 billion parameters a step of 16
    pairs is 0.025 s shorter, which gains that back in 1,000 of them; with 6.6 billion one of 64 is 0.3 s shorter.
    """
    return device.type == "cuda" and parameters * tokens >= 2e15


def must_fit(device: torch.device, held: int) -> None:
    """UserError where ``held`` bytes, of which each step needs all, are more than a GPU has."""
    if device.type == "cuda" and held > (there := torch.cuda.get_device_properties(device).total_memory):
        raise UserError(
            f"weights, gradients and moments take {held / 1e9:.0f} GB, and this GPU has {there / 1e9:.0f}: "
            "take a smaller model or a larger GPU"
        )


def held(parameters: int, optimizer: str = "adamw", dtype: torch.dtype = torch.float32) -> int:
    """Bytes of weights, gradients and moments, and of the weights in a narrower ``dtype`` that is computed in."""
    narrower = dtype.itemsize if dtype.itemsize < 4 else 0
    return parameters * (4 * (2 + (2 if optimizer == "adamw" else 1)) + narrower)


def bytes_a_token(model: Any, dtype: torch.dtype, device: torch.device) -> int:
    """That a step takes for each token computed at once, by a model's configuration.

    What autograd keeps of it, which is measured; 50 widths a layer where it cannot be. On a CPU half as much again for
    what the backward pass makes of that and what the C library holds beside: of 30M parameters, as a process's memory
    shows it, 560,000 bytes, where 361,000 are kept. A GPU's memory has no such gaps, and its attention keeps less: of
    6.6 billion parameters 7.6 million bytes, and 4.7 with compiled layers, where 9.2 are counted.
    """
    kept = kept_a_token(model, dtype, device.type)
    if kept is not None:
        return kept if device.type == "cuda" else kept * 3 // 2
    model = model.get_text_config()
    width, layers = getattr(model, "hidden_size", 0), getattr(model, "num_hidden_layers", 0)
    return dtype.itemsize * width * layers * 50


def fitting(room: int, each: int, most: int) -> int:
    """The multiple of 256 tokens, and 256 at least, that takes no more than ``room`` bytes at ``each`` a token.

    >>> fitting(room=27 * 10**9, each=8_900_000, most=16384), fitting(10**12, 10**6, 16384), fitting(-1, 1, 16384)
    (2816, 16384, 256)
    """
    fits = room // each if each else most
    return min(most, max(256, fits // 256 * 256))

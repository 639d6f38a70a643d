"""How often a reward prefers sampled responses to the data's own.

    python -m examples.preferred OURS.jsonl THEIRS.jsonl --reward R

A stand-in for a win rate, which needs a judge. A reward model that learned from the pairs that the policy learned from
shares their errors, so this says that the policy went where the reward points, and no more. Where the reward itself
chose the responses (Best-of-N), it says nothing, and is refused.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from prefopt import config
from prefopt.data.mix import load
from prefopt.errors import UserError
from prefopt.generate import Prompt
from prefopt.rl.rewards import Reward, load_reward
from prefopt.statistics import Interval, proportion
from prefopt.types import Example


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.preferred", description=__doc__)
    parser.add_argument("ours", help="what prefopt sample wrote")
    parser.add_argument("theirs", help="data with a response to each of these prompts")
    parser.add_argument("--reward", required=True, help="as for prefopt sample")
    args = parser.parse_args(argv)
    try:
        refuse_its_own_choice(Path(args.ours + ".yaml"), args.reward)
        ours, theirs = (load([name]) for name in (args.ours, args.theirs))
        rate, prompts = preferred(ours, theirs, load_reward(args.reward))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.reward} prefers {rate} of {args.ours} on {prompts:,} prompts, a tie counting a half")
    return 0


def refuse_its_own_choice(beside: Path, reward: str) -> None:
    """UserError where the responses are the best of N by this same reward."""
    settings = config.read(beside) if beside.exists() else {}
    if "best_of" in settings and settings["best_of"].value and settings["reward"].value == reward:
        raise UserError(
            f"{beside}: {reward} chose these responses, so its preference says nothing: name another --reward"
        )


def preferred(ours: Sequence[Example], theirs: Sequence[Example], reward: Reward) -> tuple[Interval, int]:
    """The share of ``ours`` with the higher reward, and how many prompts were compared. UserError if there are none."""
    known: dict[Prompt, str] = {example.prompt: text(example) for example in theirs}
    asked = [(example.prompt, text(example)) for example in ours if example.prompt in known]
    if not asked:
        raise UserError("the two files share no prompt")
    margins = np.subtract(reward(asked), reward([(prompt, known[prompt]) for prompt, _ in asked]))
    numbers = {prompt: i for i, prompt in enumerate(known)}
    prompts = [numbers[prompt] for prompt, _ in asked]
    return proportion((np.sign(margins) + 1) / 2, prompts), len(set(prompts))


def text(example: Example) -> str:
    """Of its first response."""
    content = example.responses[0].content
    return content if isinstance(content, str) else content[-1].content


if __name__ == "__main__":
    sys.exit(main())

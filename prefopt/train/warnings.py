"""What to be wary of at the end of a run. A warning is a function of a `Run` that returns a sentence or None; to add
one, write it and name it in ``WARNINGS``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from prefopt.terminal import counted
from prefopt.train.table import Figures, accuracy, meaningful, undecided, worded

DISPLACED_NATS, DISPLACED_SHARE = 1.0, 0.10
"""fall of the chosen responses' log-probability that counts: above both, since a tenth of a short answer's is noise"""
SATURATED_MARGIN = 5.0
"""σ(−5) = 0.7 %: a pair pulls 75 times less than at the start, where σ(0) = 50 %"""
LENGTH_CORRELATION = 0.5
"""a quarter (r²) of the spread of margins is a matter of length; with n pairs also above 3/√n, three standard errors"""
OVERFIT_GAP = 0.10
"""accuracy, training minus held-out; smaller gaps are usual, and larger ones must also be beyond the interval"""
OVERFIT_RISE = 0.05
"""a loss above where it began, or held-out above its lowest, as a share of where it began"""
MANY_DROPPED = 0.05
"""a share of the examples"""
NOTHING_LEARNED = 0.05
"""accuracy's distance from one half"""
KL_EXPLODED = 25.0
"""nats a response: twice the largest target among the runs of Rafailov et al. 2023 (12)"""
MUCH_CLIPPED = 0.3
"""of PPO's tokens, in the median step: what went beyond the clip in its advantage's way has no gradient any more"""
WIDE_INTERVAL = 0.20
"""from end to end: about 100 independent pairs at an accuracy of one half"""


@dataclass(frozen=True)
class Run:
    """What the warnings look at. Empty figures where there are none."""

    training: Figures
    held_out: Figures
    training_before: Figures
    held_out_before: Figures
    history: Sequence[Mapping[str, Any]]
    skipped: int
    held_out_seen: int = 0
    held_out_trained_on: int = 0
    overlong: float = 0.0
    """share of the examples that were left out for it"""
    unit: str = "pair"
    loss: str = ""

    @property
    def judged(self) -> tuple[str, Figures, Figures]:
        """Name, before and after of the split that tells most: held-out if there is one."""
        if self.held_out:
            return "held-out", self.held_out_before, self.held_out
        return "training", self.training_before, self.training


def not_numbers(run: Run) -> str | None:
    names = sorted(
        {
            name
            for figures in (run.training, run.held_out)
            for name, value in figures.items()
            if isinstance(value, float) and not math.isfinite(value)
        }
    )
    if names:
        return f"Not finite at the end: {', '.join(names)}; do not use this model, and lower --learning-rate."
    return None


def steps_skipped(run: Run) -> str | None:
    if run.skipped:
        steps = "1 step was" if run.skipped == 1 else f"{run.skipped:,} steps were"
        return f"{steps} skipped for a loss or gradient that is not finite; lower --learning-rate or look at the data."
    return None


def no_held_out(run: Run) -> str | None:
    if run.held_out:
        return None
    return (
        "No held-out data: nothing here says how the policy does on new prompts; "
        "set --eval-fraction 0.1 or --eval-data."
    )


def held_out_was_seen(run: Run) -> str | None:
    if run.held_out and run.held_out_seen:
        were = "was" if run.held_out_seen == 1 else "were"
        return (
            f"{run.held_out_seen:,} of the held-out prompts {were} trained on when the start model was made, so the "
            "held-out figures flatter; fine-tune it with the same --eval-fraction and --seed, which hold out the same."
        )
    return None


def held_out_is_trained_on(run: Run) -> str | None:
    if run.held_out_trained_on:
        have = "has" if run.held_out_trained_on == 1 else "have"
        return (
            f"{counted(run.held_out_trained_on, 'held-out example')} {have} a prompt that was trained on too, so the "
            "held-out figures flatter; leave those out of --eval-data, or let --eval-fraction hold out whole prompts."
        )
    return None


def many_overlong(run: Run) -> str | None:
    if run.overlong > MANY_DROPPED:
        return (
            f"{100 * run.overlong:.0f} % of the examples were left out, being longer than --max-length; raise it where "
            "the model takes more, or let another --overlong shorten them."
        )
    return None


def chosen_fell(run: Run) -> str | None:
    """Likelihood displacement: the margin grows although the wanted answers become rarer."""
    name, before, after = run.judged
    if "logps/chosen" not in before or "logps/chosen" not in after:
        return None
    fall = before["logps/chosen"] - after["logps/chosen"]
    if fall > max(DISPLACED_NATS, DISPLACED_SHARE * abs(before["logps/chosen"])):
        responses = f"{worded('chosen', run.unit).capitalize()} responses"
        return (
            f"{responses} became less likely: log-probability {before['logps/chosen']:.1f} → "
            f"{after['logps/chosen']:.1f} nats on {name} data, so that probability went to other answers; "
            f"{_against_displacement(run)}."
        )
    return None


def _against_displacement(run: Run) -> str:
    """Of what may be set for this loss, by its unit and its repr; all of it where that is not known."""
    imitate = "raise --nll-weight" if "nll_weight=" in run.loss else "add --nll-weight 0.1"
    ways = [imitate] if run.unit == "pair" else []
    ways += ["raise --beta"] if "beta=" in run.loss or not run.loss else []
    return " or ".join(", ".join([*ways, "lower --learning-rate"]).rsplit(", ", 1))


def loss_rose(run: Run) -> str | None:
    before, after = run.training_before.get("loss"), run.training.get("loss")
    if before is not None and after is not None and after - before > OVERFIT_RISE * abs(before) and not _sampled(run):
        return f"Training loss rose: {before:.4f} → {after:.4f} on what was trained on; lower --learning-rate."
    return None


def reward_fell(run: Run) -> str | None:
    name, before, after = run.judged
    was, now = before.get("reward"), after.get("reward")
    if was is not None and now is not None and was - now > OVERFIT_RISE * abs(was):
        return f"The reward fell: {was:.3f} → {now:.3f} on {name} prompts; lower --learning-rate, or train longer."
    return None


def _sampled(run: Run) -> bool:
    """As PPO's, whose loss begins anew with each batch."""
    return "reward" in run.training


def margins_saturated(run: Run) -> str | None:
    margin = run.training.get("rewards/margins", 0.0)
    if margin > SATURATED_MARGIN and not loss_rose(run) and "Unlikelihood(" not in run.loss:
        larger = ", or a larger --beta" if "beta=" in run.loss or not run.loss else ""
        return (
            f"Margins are saturated: {margin:+.1f} on training pairs, where a pair hardly pulls any more; "
            f"fewer --epochs{larger}."
        )
    return None


def length_drift(run: Run) -> str | None:
    name, _, after = run.judged
    correlation = after.get("length_correlation", 0.0)
    if abs(correlation) > max(LENGTH_CORRELATION, 3 / math.sqrt(after.get("pairs", math.inf))):
        way = "longer" if correlation > 0 else "shorter"
        other = ", or use --loss sigmoid_norm" if "logps/chosen" in after else ""  # not of a reward model
        return (
            f"Rewards follow length: margins correlate by {correlation:+.2f} with the difference in length on {name} "
            f"{run.unit}s, so expect {way} answers; compare lengths when you judge{other}."
        )
    return None


def overfitted(run: Run) -> str | None:
    training, held_out = run.training.get("rewards/accuracies"), run.held_out.get("rewards/accuracies")
    if training is None or held_out is None:
        return None
    beyond = training > run.held_out.get("rewards/accuracies_high", held_out)
    if training - held_out > OVERFIT_GAP and beyond:
        return (
            f"Held-out accuracy {accuracy(run.held_out)} is far below training's {accuracy(run.training)}: "
            "what was learned does not carry over to new prompts; fewer steps or more data, if both are alike."
        )
    return None


def held_out_loss_rose(run: Run) -> str | None:
    curve = [
        (record["loss"], record["step"])
        for record in run.history
        if record["split"] == "eval" and math.isfinite(record.get("loss", math.nan))
    ]
    if len(curve) < 2:
        return None
    (lowest, at), (last, _) = min(curve), curve[-1]
    if last - lowest > OVERFIT_RISE * abs(curve[0][0]):
        instead = f"--max-steps {at}" if at else "a lower --learning-rate"
        return f"Held-out loss was lowest at step {at:,} ({lowest:.4f}) and ended at {last:.4f}; try {instead}."
    return None


def nothing_learned(run: Run) -> str | None:
    after = [meaningful(figures) for figures in (run.training, run.held_out) if "rewards/margins" in figures]
    known = [figures["rewards/accuracies"] for figures in after if "rewards/accuracies" in figures]
    still = all(undecided(figures) for figures in after)
    if after and (known or still) and all(abs(share - 0.5) < NOTHING_LEARNED for share in known):
        shown = " and ".join(f"{share:.3f}" for share in known)
        found = f"accuracy {shown}, where a coin gives 0.5" if known else "the margins are still 0"
        _, before, now = run.judged
        rose = bool(known) and now.get("loss", 0.0) > before.get("loss", math.inf)  # else it is rounding
        do = "the loss rose, so lower --learning-rate" if rose else "raise --learning-rate or --epochs"
        return f"Nothing was learned: {found}; {do}."
    return None


def preference_reversed(run: Run) -> str | None:
    name, _, after = run.judged
    if meaningful(after).get("rewards/accuracies_high", 1.0) < 0.5:
        return (
            f"The model prefers the rejected responses: {name} accuracy {accuracy(after)}; "
            "check that chosen and rejected are not swapped."
        )
    return None


def kl_exploded(run: Run) -> str | None:
    name, _, after = run.judged
    kl = after.get("kl", 0.0)
    if kl > KL_EXPLODED:
        closer = "lower --target-kl, or raise --kl-coef where it is not set," if _sampled(run) else "raise --beta"
        return (
            f"The policy is far from its reference: KL {kl:.1f} nats on {name} data, where text often degenerates; "
            f"{closer} or lower --learning-rate, and read some samples."
        )
    return None


def much_clipped(run: Run) -> str | None:
    known = [record.get("clipfrac", math.nan) for record in run.history if record["split"] == "train"]
    shares = [share for share in known if math.isfinite(share)]
    if shares and (share := median(shares)) > MUCH_CLIPPED:
        return (
            f"Updates are clipped: clipfrac {share:.2f} in the median step, above {MUCH_CLIPPED}, so the policy moves "
            "too far for what it has drawn; lower --learning-rate or --passes."
        )
    return None


def interval_wide(run: Run) -> str | None:
    low, high = run.held_out.get("rewards/accuracies_low"), run.held_out.get("rewards/accuracies_high")
    if low is not None and high is not None and high - low > WIDE_INTERVAL:
        return f"Held-out accuracy is only known as {accuracy(run.held_out)}; hold out more prompts to compare runs."
    return None


WARNINGS: tuple[Callable[[Run], str | None], ...] = (
    not_numbers,
    loss_rose,
    reward_fell,
    steps_skipped,
    nothing_learned,
    preference_reversed,
    overfitted,
    held_out_loss_rose,
    held_out_was_seen,
    held_out_is_trained_on,
    many_overlong,
    chosen_fell,
    margins_saturated,
    length_drift,
    kl_exploded,
    much_clipped,
    interval_wide,
    no_held_out,
)

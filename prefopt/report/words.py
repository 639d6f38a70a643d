"""The sentence at the top of a page: what came out, with how sure it is."""

from __future__ import annotations

from collections.abc import Sequence

from prefopt.report.read import Run
from prefopt.terminal import counted
from prefopt.train.table import Figures, accuracy, mean_reward, meaningful

LISTED = 5
"""names of runs in a sentence"""


def verdict(runs: Sequence[Run]) -> str:
    """One sentence, or "" where there is nothing to say yet."""
    return _of_one(runs[0]) if len(runs) == 1 else _of_several(runs)


def byline(runs: Sequence[Run]) -> str:
    """What was done to what, where that is one thing."""
    if len(runs) > 1:
        return ""
    run = runs[0]
    facts = [str(run.results.get("loss", run.settings.get("loss", "")))]
    if "model" in run.settings:
        facts.append(f"from {run.settings['model']}")
    if "steps" in run.results:
        facts.append(counted(run.results["steps"], "step"))
    return " · ".join(fact for fact in facts if fact)


def _of_one(run: Run) -> str:
    before, after = run.judged.get("before", {}), run.judged.get("after", {})
    name = "held-out" if run.results.get("held_out") else "training"
    if prefers(after):
        what = f"{name} {run.unit}s"
        pairs = f"{after['pairs']:,.0f} {what}" if "pairs" in after else what
        share = f"the tuned model gives the better answer the higher reward in {accuracy(after)}"
        return f"On {pairs} {share}{_loss(before, after)}."
    if "reward" in before and "reward" in after:
        went = f"from {before['reward']:.3f} to {mean_reward(after)}, {after['kl']:.2f} nats from the reference"
        return f"On {name} prompts the mean reward of what the model answers went {went}."
    if "loss" in before and "loss" in after:
        steps = f" in {counted(run.results['steps'], 'step')}" if "steps" in run.results else ""
        return f"The loss on {name} data went from {before['loss']:.3f} to {after['loss']:.3f}{steps}."
    return ""


def _loss(before: Figures, after: Figures) -> str:
    if "loss" not in before or "loss" not in after:
        return ""
    went = "fell" if after["loss"] < before["loss"] else "rose"
    return f", and its loss {went} from {before['loss']:.3f} to {after['loss']:.3f}"


def _of_several(runs: Sequence[Run]) -> str:
    known = [run for run in runs if prefers(run.judged.get("after", {}))]
    known = [run for run in known if run.results.get("held_out")] or known
    known = [run for run in known if run.results.get("method") != "reward"] or known  # its rewards are no implicit ones
    if len(known) < 2:
        return ""
    after = {run.name: run.judged["after"] for run in known}
    highest = max(figures["rewards/accuracies"] for figures in after.values())
    tops = [name for name, figures in after.items() if figures["rewards/accuracies"] == highest]
    held_out = "held-out " if known[0].results.get("held_out") else ""
    best = min(tops, key=lambda name: after[name].get("rewards/accuracies_low", highest))  # the least sure
    if len(tops) == len(after):
        return f"{_listed(list(after))} have the same {held_out}accuracy: {accuracy(after[best])}."
    low = after[best].get("rewards/accuracies_low")
    near = [
        name
        for name, figures in after.items()
        if name not in tops and low is not None and figures.get("rewards/accuracies_high", 0.0) >= low
    ]
    first = f"{_listed(tops)} have" if len(tops) > 1 else f"{best} has"
    sentence = f"Of {_listed(list(after))}, {first} the highest {held_out}accuracy: {accuracy(after[best])}"
    if near and low is not None:
        theirs = (
            f"the interval of {near[0]} overlaps" if len(near) == 1 else f"the intervals of {_listed(near)} overlap"
        )
        sentence += f"; {theirs} with it, so their order may be chance"
    return sentence + "."


def _listed(names: Sequence[str]) -> str:
    """
    >>> _listed(["a", "b", "c"]), _listed("abcdefg")
    ('a, b and c', 'a, b, c and 4 more')
    """
    if len(names) > LISTED:
        names = [*names[: LISTED - 2], f"{len(names) - LISTED + 2} more"]
    return f"{', '.join(names[:-1])} and {names[-1]}"


def prefers(figures: Figures) -> bool:
    """Whether an accuracy means anything: it does not while policy and reference are the same model."""
    return "rewards/accuracies" in meaningful(figures)

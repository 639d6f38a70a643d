"""DPO on 100,000 pairs against the exact optimum: training gets where the theory says that it should."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from prefopt.demo import methods
from prefopt.demo.account import best_trained
from prefopt.demo.processes import workers
from prefopt.demo.run import Size, imitate
from prefopt.demo.world import the_world
from prefopt.frontier.exact import Frontier, condition, realign

# Minutes on two cores: make slow.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

BETAS = (0.1, 0.5, 1.0, 5.0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(exact frontier, outcome of each β), from a new model to its last policy."""
    out = tmp_path_factory.mktemp("efficiency")
    start = imitate(the_world(), out, Size(pairs=100_000, epochs=2), seed=0)
    farthest, *others = methods.jobs([methods.dpo(beta) for beta in BETAS], start, out / "methods")
    farthest = farthest._replace(start=replace(start, epochs=3))  # the optimum at β = 0.1 is 6 nats away
    with workers(len(BETAS)) as every:
        outcomes = {o.method.beta: o for o in every(methods.perform, [farthest, *others])}
    exact = Frontier(start.reference, the_world().reward)
    for beta, outcome in outcomes.items():
        print(f"β = {beta}: {outcome.end}, efficiency {outcome.end.efficiency:.4f}")
    return exact, outcomes


def test_the_reference_keeps_to_the_grammar(trained):
    exact, _ = trained
    assert condition(exact.reference).missing.max() < 0.01


@pytest.mark.parametrize("beta", BETAS)
def test_dpo_reaches_the_frontier(trained, beta):
    assert trained[1][beta].end.efficiency >= 0.97


def test_one_run_at_every_beta(trained):
    """From the best-trained run, for the λ that emulate the other β's."""
    exact, outcomes = trained
    best = best_trained(exact, outcomes.values())
    reference, policy = condition(exact.reference).logps, condition(best.logps).logps
    others = [beta for beta in BETAS if beta != best.method.beta]
    reached = {beta: exact.place(realign(reference, policy, best.method.beta / beta)).efficiency for beta in others}
    print(f"β = {best.method.beta} realigned: {reached}")
    assert np.min(list(reached.values())) >= 0.98, reached

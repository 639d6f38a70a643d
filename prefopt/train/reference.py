"""The reference pass: every log-prob of the reference that the run will ask for, before the first step.

The reference is usually the model that training starts from, so it is that very model which is asked,
before it changes: no second copy is ever in memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

from prefopt import config as settings
from prefopt.data import plan
from prefopt.display import Display
from prefopt.model.load import load_model
from prefopt.model.reference import check_step_zero
from prefopt.model.scoring import figures_of, scope_of
from prefopt.train.job import Job
from prefopt.train.loop import batches, evaluation_batches
from prefopt.train.objective import Objective
from prefopt.types import Encoded


def reference_sums(job: Job, objective: Objective, display: Display) -> Objective:
    """``objective`` with the reference's figures, from the store or computed now."""
    config = job.config
    name = config.reference if isinstance(config, settings.Train) else None
    reference = objective.lm
    if name is not None and not _same_model(name, config.model):
        reference = load_model(name, config.dtype, config.device, job.data.longest)
    scope, budget = scope_of(reference), objective.tokens_without_gradient
    figures = figures_of(reference, scope, lambda: _asked(job, objective), budget, display, "reference log-probs")
    return replace(objective, reference=figures, reference_is=scope.model)


def _asked(job: Job, objective: Objective) -> Iterator[Encoded]:
    """Everything whose reference log-prob some step or evaluation will need."""
    schedule, units = job.schedule, job.data.train
    if schedule.steps * schedule.batch_size < len(units):  # a short run asks for what it reads, not for all
        yield from chain.from_iterable(batches(units, schedule, 0))
        yield from job.sample
    else:
        yield from units
    yield from job.data.held_out
    if objective.loss.needs_baseline:
        held_out, sample = evaluation_batches(job.data.held_out), evaluation_batches(job.sample)
        for batch in chain(batches(units, schedule, 0), held_out, sample):
            yield from plan.mismatched(batch, job.data.longest)


def verify_step_zero(job: Job, objective: Objective) -> None:
    """Before the first update a policy that starts from its reference must agree with it; RunFailed if it does not.

    The first step's examples are scored again, in the packing that training will use.
    """
    if objective.reference is None or not starts_from_reference(job):
        return
    batch = next(batches(job.data.train, job.schedule, 0))
    for group in objective.lm.microbatches(batch, objective.tokens_per_microbatch):
        policy, reference = objective.lm.score(objective.lm.pack(group)), objective.reference_logprobs(group)
        assert reference is not None
        sources = [example.source for example in group for _ in example.responses]
        check_step_zero(policy, reference, objective.lm.dtype, sources, objective.at_reference(group).loss)


def starts_from_reference(job: Job) -> bool:
    config = job.config
    return isinstance(config, settings.Train) and _same_model(config.reference or config.model, config.model)


def _same_model(a: str, b: str) -> bool:
    """Whether two names mean one folder, however they are written: base, base/ and ./base do."""
    return os.path.realpath(os.path.expanduser(a)) == os.path.realpath(os.path.expanduser(b))

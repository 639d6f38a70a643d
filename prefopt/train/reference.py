"""The reference pass: every log-prob of the reference that the run will ask for, before the first step.

The reference is usually the model that training starts from, so it is that very model which is asked,
before it changes: no second copy is ever in memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, islice
from typing import TypeVar

import torch

from prefopt import config as settings
from prefopt.data import plan
from prefopt.model.figures import Figures
from prefopt.model.fingerprint import model_fingerprint
from prefopt.model.language_model import LanguageModel
from prefopt.model.load import load_model
from prefopt.model.reference import ReferenceStore, Row, Scope, check_step_zero, default_path, fill, response_keys
from prefopt.progress import Advance
from prefopt.train.display import Display
from prefopt.train.job import Job
from prefopt.train.loop import evaluation_batches
from prefopt.train.objective import Objective
from prefopt.types import Encoded

T = TypeVar("T")


def reference_sums(job: Job, objective: Objective, display: Display) -> Objective:
    """``objective`` with the reference's figures, from the store or computed now."""
    config = job.config
    name = config.reference if isinstance(config, settings.Train) else None
    reference = objective.lm
    if name is not None and not _same_model(name, config.model):
        reference = load_model(name, config.dtype, config.device, job.data.longest)
    scope = Scope(model_fingerprint(reference.module), "", str(reference.dtype).removeprefix("torch."))
    with ReferenceStore(default_path(), scope) as store:
        figures = Figures(key for example in _asked(job, objective) for key in response_keys(example))
        for keys in _at_once(figures.missing()):
            figures.put(store.get(keys))
        missing = sum(1 for _ in figures.missing())
        if missing:
            with display.pass_("reference log-probs", missing) as advance:
                for some in _at_once(_asked(job, objective)):
                    _score(reference, some, objective.tokens_without_gradient, figures, store, advance)
    return replace(objective, reference=figures, reference_is=scope.model)


def _score(
    reference: LanguageModel,
    examples: list[Encoded],
    budget: int,
    figures: Figures,
    store: ReferenceStore,
    advance: Advance,
) -> None:
    """What ``figures`` and the store lack of these examples."""
    each = [(key, (example, r)) for example in examples for r, key in enumerate(response_keys(example))]
    wanted = {key: response for key, response in each if key not in figures}

    def scorer(missing: list[str]) -> Iterator[Row]:
        for group in reference.microbatches(_together([wanted[key] for key in missing]), budget):
            rows = _rows(reference, group)
            yield from rows
            advance(len(rows))

    figures.put(fill(store, scorer, wanted))


def _at_once(things: Iterator[T]) -> Iterator[list[T]]:
    """A few thousand at a time: packing has something to choose from, and not all are in memory."""
    while some := list(islice(things, 4096)):
        yield some


def _asked(job: Job, objective: Objective) -> Iterator[Encoded]:
    """Everything whose reference log-prob some step or evaluation will need."""
    config, units = job.schedule, job.data.train
    order = plan.order(units, config.seed, config.group_by_prompt)
    if config.steps * config.batch_size < len(units):  # a short run asks for what it reads, not for all
        yield from (units[i] for step in range(config.steps) for i in order.batch(step, config.batch_size))
        yield from job.sample
    else:
        yield from units
    yield from job.data.held_out
    if objective.loss.needs_baseline:
        for step in range(config.steps):
            together = [units[i] for i in order.batch(step, config.batch_size)]
            yield from plan.mismatched(together, job.data.longest)
        for batch in chain(evaluation_batches(job.data.held_out), evaluation_batches(job.sample)):
            yield from plan.mismatched(batch, job.data.longest)


def _together(responses: list[tuple[Encoded, int]]) -> list[Encoded]:
    """Responses of one example as one again, so that they share its prompt."""
    of: dict[int, tuple[Encoded, list[int]]] = {}
    for example, r in responses:
        of.setdefault(id(example), (example, []))[1].append(r)
    return [
        replace(
            example,
            responses=tuple(example.responses[r] for r in chosen),
            scored=tuple(example.scored[r] for r in chosen),
            scores=tuple(example.scores[r] for r in chosen),
        )
        for example, chosen in of.values()
    ]


def _rows(lm: LanguageModel, group: list[Encoded]) -> list[Row]:
    keys = [key for example in group for key in response_keys(example)]
    logps = lm.score(lm.pack(group))
    return list(zip(keys, logps.sum.tolist(), map(int, logps.length.tolist()), strict=True))


def verify_step_zero(job: Job, objective: Objective) -> None:
    """Before the first update a policy that starts from its reference must agree with it; RunFailed if it does not.

    The first step's examples are scored again, in the packing that training will use.
    """
    if objective.reference is None or not starts_from_reference(job):
        return
    units = job.data.train
    order = plan.order(units, job.schedule.seed, job.schedule.group_by_prompt)
    batch = [units[i] for i in order.batch(0, job.schedule.batch_size)]
    # A baseline from wrong figures would shift with them and hide what is wrong, and it is 0 where they are right.
    zero = torch.zeros((), device=objective.lm.device)
    for group in objective.lm.microbatches(batch, objective.tokens_per_microbatch):
        with torch.no_grad():
            found, expected = objective(objective.ready(group), zero), objective.at_reference(group)
        # A loss need not report rewards, and KTO's are not one for each example: its value says it all, too.
        rewards = [found.metrics.get(f"rewards/{side}", found.loss[:0]) for side in ("chosen", "rejected")]
        each = [values for values in rewards if values.shape == found.loss.shape] or [torch.zeros_like(found.loss)]
        sources = [example.source for example in group]
        check_step_zero(found.loss, torch.stack(each, 1), objective.lm.dtype, sources, expected.loss)


def starts_from_reference(job: Job) -> bool:
    config = job.config
    return isinstance(config, settings.Train) and _same_model(config.reference or config.model, config.model)


def _same_model(a: str, b: str) -> bool:
    """Whether two names mean one folder, however they are written: base, base/ and ./base do."""
    return os.path.realpath(os.path.expanduser(a)) == os.path.realpath(os.path.expanduser(b))

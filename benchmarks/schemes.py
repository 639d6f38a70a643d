"""The ways of training that are compared. Each takes the same pairs in the same order and does the same steps.

``prefopt``           the token tree; the reference once, before the first step
``prefopt-lean``      the same with 1,024 tokens at once, where a GPU's memory would take more; only on a GPU
``trl``               TRL's DPOTrainer as it comes: padded, 8 pairs at once, the reference beside the policy,
                      activations recomputed
``trl-whole``         the same, with all pairs of a step at once
``trl-precomputed``   the same, with the reference once, before the first step
``trl-best``          and with activations kept, and small micro-batches, which pad less: of 2 pairs;
                      trl-best-4, -8, -16: of so many
``padded``            the scheme of the DPO paper's code: chosen and rejected in one padded batch, whole
                      logits, the reference beside the policy

All with AdamW without decay at a constant rate, and the gradient clipped at 1, in fp32; on a GPU, and in the workload
``hh-bf16``, the weights stay in fp32, and what is computed is bf16. TRL gets token ids where it would tokenize;
nothing else of it is changed, but that it does not hash the weights of its reference, which no figure here counts.
A pass over the reference is timed when one batch was computed already, as steps are after the first: a GPU's kernels
are compiled then, and a CPU's memory has been touched. Not so where all of a sweep is timed together. prefopt's layers
are compiled on a GPU before that, as in a run that is long enough for it to pay.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from warnings import warn

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from benchmarks import TRL_AT_ONCE
from benchmarks.machine import now
from prefopt.types import Encoded

PADDED_AT_ONCE = 8  # pairs; more do not fit, since the logits are whole


@dataclass(frozen=True)
class Task:
    """``steps`` optimizer steps of ``batch_size`` pairs each, from the same model for every β."""

    model: Path
    examples: Sequence[Encoded]
    batch_size: int
    steps: int
    betas: Sequence[float] = (0.1,)
    rate: float = 1e-4
    device: str = "cpu"
    dtype: str = "float32"  # what is computed in
    tokens_at_once: int | None = None  # prefopt's; None: its default

    @property
    def warms_up(self) -> bool:
        """Whether a batch is computed before the pass is timed; else all is, from the first moment."""
        return len(self.betas) == 1

    @property
    def batches(self) -> list[Sequence[Encoded]]:
        return [self.examples[s * self.batch_size : (s + 1) * self.batch_size] for s in range(self.steps)]


@dataclass
class Run:
    """What a scheme did: the loss and the wall time of each step, and the time of its pass over the reference."""

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    reference_seconds: float = 0.0


def prefopt(task: Task) -> Run:
    run, sums = Run(), {}
    for beta in task.betas:
        _train(task, beta, sums, run)
    return run


def prefopt_lean(task: Task) -> Run:
    return prefopt(replace(task, tokens_at_once=1024))


def _train(task: Task, beta: float, sums: dict[str, tuple[float, int]], run: Run) -> None:
    """``sums`` is what the reference store holds: filled by the first β, and read by all."""
    from prefopt.ahead import ahead
    from prefopt.data.shelf import longest
    from prefopt.losses import DPO
    from prefopt.model.load import load_model
    from prefopt.model.probe import compile_layers
    from prefopt.train import optimizer
    from prefopt.train.guard import Guard
    from prefopt.train.loop import Hooks, Schedule, TrainingState, cut, repeat, train_step
    from prefopt.train.objective import Objective

    lm = load_model(str(task.model), task.dtype, task.device, longest(task.examples))
    assert lm.way == "tree", lm.why
    if task.device == "cuda" and (why := compile_layers(lm, longest(task.examples))):
        warn(why, stacklevel=2)
    objective = Objective(DPO(beta), lm, sums, task.tokens_at_once or _budget(lm.module, lm.dtype))
    if not sums:
        if task.warms_up:
            _reference(objective, task.batches[0])
        began = now()
        sums |= _reference(objective, [e for batch in task.batches for e in batch])
        run.reference_seconds = now() - began
    schedule = Schedule(task.steps, task.batch_size, task.rate, 0, "constant", 1.0, 0, 0, task.steps)
    state = TrainingState(objective, optimizer.build("adamw", lm.module.named_parameters()), Guard())

    def log(step: int, values: dict[str, float]) -> None:
        run.losses.append(values["loss"])
        run.seconds.append(task.batch_size / values["pairs_per_second"])

    with lm.recorded(warn), closing(ahead(partial(cut, objective), task.batches)) as ready:
        repeat(train_step, state, ready, schedule, Hooks(log))


def _reference(objective: Any, pairs: Sequence[Encoded]) -> dict[str, tuple[float, int]]:
    """What the store would hold, by the key of a response."""
    from prefopt.model.reference import response_keys
    from prefopt.model.scoring import scored

    found = scored(objective.lm, pairs, objective.tokens_without_gradient)
    of_each = zip(pairs, found, strict=True)
    return {key: known for e, logps in of_each for key, *known in zip(response_keys(e), *logps, strict=True)}


def _budget(module: torch.nn.Module, dtype: torch.dtype) -> int:
    """What ``prefopt train`` would choose."""
    from prefopt.train import defaults

    held = defaults.held(sum(p.numel() for p in module.parameters()), dtype=dtype)
    defaults.must_fit(module.device, held)
    each = defaults.bytes_a_token(module.config, dtype, module.device)
    return defaults.tokens_per_microbatch(module.device, held, each)


def padded(task: Task) -> Run:
    run = Run()
    for beta in task.betas:
        _train_padded(task, beta, run)
    return run


def _train_padded(task: Task, beta: float, run: Run) -> None:
    load = AutoModelForCausalLM.from_pretrained
    policy, reference = (load(task.model, dtype=torch.float32).to(task.device) for _ in range(2))
    computing = partial(torch.autocast, task.device, torch.bfloat16, task.dtype == "bfloat16")
    adamw = torch.optim.AdamW(policy.parameters(), lr=task.rate, weight_decay=0.0, fused=True)
    for batch in task.batches:
        began, total = now(), 0.0
        adamw.zero_grad()
        for start in range(0, len(batch), PADDED_AT_ONCE):
            group = batch[start : start + PADDED_AT_ONCE]
            with torch.no_grad(), computing():
                before = _padded_logps(reference, group)
            with computing():
                s = _padded_logps(policy, group) - before
            loss = -F.logsigmoid(beta * (s[: len(group)] - s[len(group) :])).sum() / len(batch)
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        adamw.step()
        run.losses.append(total)
        run.seconds.append(now() - began)


def _padded_logps(model, group: Sequence[Encoded]) -> torch.Tensor:
    """[2P] log π(y|x): all chosen, then all rejected."""
    rows = [(e.prompt, e.responses[side]) for side in (0, 1) for e in group]
    width = max(len(prompt) + len(response) for prompt, response in rows)
    ids, attended, scored = torch.zeros(3, len(rows), width, dtype=torch.long)
    for i, (prompt, response) in enumerate(rows):
        end = len(prompt) + len(response)
        ids[i, :end] = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))
        attended[i, :end] = 1
        scored[i, len(prompt) : end] = 1
    ids, attended, scored = (x.to(model.device) for x in (ids, attended, scored))
    logits = model(input_ids=ids, attention_mask=attended, use_cache=False).logits[:, :-1].float()
    logps = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    return (logps * scored[:, 1:]).sum(1)


def trl(task: Task, pairs_at_once: int = TRL_AT_ONCE, **options) -> Run:
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer
    from trl.trainer import dpo_trainer

    run = Run()
    dpo_trainer.hash_module = lambda module: "known"

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            run.losses.append(0.0)
            self.began = now()

        def on_step_end(self, *args, **kwargs):
            run.seconds.append(now() - self.began)

    class Trainer(DPOTrainer):
        def _prepare_dataset(self, dataset, *args):
            return dataset  # token ids already

        def _precompute_ref_logps(self, dataset, *args):
            if task.warms_up:
                super()._precompute_ref_logps(dataset.select(range(task.batch_size)), *args)
            began = now()
            try:
                return super()._precompute_ref_logps(dataset, *args)
            finally:
                run.reference_seconds += now() - began

        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)  # divided by the accumulation steps already
            run.losses[-1] += float(loss)
            return loss

    pairs = [e for batch in task.batches for e in batch]
    columns = {
        "prompt_ids": [e.prompt.tolist() for e in pairs],
        "chosen_ids": [e.responses[0].tolist() for e in pairs],
        "rejected_ids": [e.responses[1].tolist() for e in pairs],
    }
    at_once = min(pairs_at_once, task.batch_size)
    if task.batch_size % at_once:
        raise ValueError(f"{task.batch_size} pairs cannot be cut into micro-batches of {at_once}")
    with tempfile.TemporaryDirectory() as out:
        for beta in task.betas:
            config = DPOConfig(
                out, per_device_train_batch_size=at_once, gradient_accumulation_steps=task.batch_size // at_once,
                max_steps=task.steps, learning_rate=task.rate, lr_scheduler_type="constant", weight_decay=0.0,
                max_length=None, train_sampling_strategy="sequential", report_to="none", save_strategy="no", beta=beta,
                bf16=task.dtype == "bfloat16", use_cpu=task.device == "cpu", disable_tqdm=True, **options,
            )  # fmt: skip
            trainer = Trainer(
                str(task.model), args=config, train_dataset=Dataset.from_dict(columns), callbacks=[Clock()],
                processing_class=AutoTokenizer.from_pretrained(task.model),
            )  # fmt: skip
            trainer.train()
    return run


def trl_whole(task: Task) -> Run:
    return trl(task, task.batch_size)


def trl_precomputed(task: Task) -> Run:
    return trl(task, precompute_ref_log_probs=True)


def trl_best(task: Task, pairs_at_once: int = 2) -> Run:
    at_once = 16 if task.device == "cuda" else pairs_at_once  # of the pass, which keeps no activations
    return trl(
        task, pairs_at_once, precompute_ref_log_probs=True, precompute_ref_batch_size=at_once,
        gradient_checkpointing=False,
    )  # fmt: skip


SCHEMES: dict[str, Callable[[Task], Run]] = {
    "prefopt": prefopt,
    "prefopt-lean": prefopt_lean,
    "trl": trl,
    "trl-whole": trl_whole,
    "trl-precomputed": trl_precomputed,
    "trl-best": trl_best,
    **{f"trl-best-{n}": partial(trl_best, pairs_at_once=n) for n in (4, 8, 16)},
    "padded": padded,
}

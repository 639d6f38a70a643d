"""What a run is before it starts: its settings with every choice made, its data, and the steps that follow."""

from __future__ import annotations

import dataclasses
from collections.abc import Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import xxhash
import yaml

from prefopt import config as settings
from prefopt import losses
from prefopt.data import plan
from prefopt.data.shelf import each
from prefopt.display import Display
from prefopt.errors import UserError
from prefopt.model import recompute
from prefopt.model.load import (
    check_reference,
    count_parameters,
    length_limit,
    load_config,
    load_tokenizer,
    must_write,
    pick_device,
    pick_dtype,
)
from prefopt.terminal import counted, size
from prefopt.train import defaults
from prefopt.train.checkpoint import Checkpoint
from prefopt.train.loop import Schedule
from prefopt.train.metrics import peak_memory, read_metrics
from prefopt.train.prepare import Prepare, Prepared, prepare
from prefopt.types import Encoded
from prefopt.whole import whole, writable

SAMPLE = 1000
FREE = {"out", "resume", "keep", "track", "save_every", "eval_every", "tokens_per_microbatch", "device", "strict"}
"""Settings that may differ when a run goes on; all others decide where it goes."""
FROM_DATA = {"warmup_steps"}
"""Settings that follow from the data where they are not set: other data is the reason to name then."""


@dataclass
class Job:
    """Made by ``plan``, which reads the data and the model's configuration but not its weights."""

    config: settings.Training
    loss: losses.Loss
    tokenizer: Any
    data: Prepared
    schedule: Schedule
    parameters: int
    chosen: set[str] = dataclasses.field(default_factory=set)
    """settings that nobody set"""

    @classmethod
    def plan(cls, config: settings.Training, loss: losses.Loss, display: Display, prepare: Prepare = prepare) -> Job:
        """UserError for anything that the run would stumble over later: folder, length, data, settings."""
        check_folder(config)
        device = pick_device(config.device)
        if loss.needs_baseline and config.batch_size < 2:
            raise UserError(f"--batch-size 1: {loss} compares each answer with another one of its step, so it needs 2")
        tokenizer = load_tokenizer(config.model)
        if not isinstance(config, settings.Reward):
            must_write(config.model)
        reference = getattr(config, "reference", None)
        if reference is not None:
            check_reference(reference, config.model, tokenizer)
        length = length_limit(config.max_length, config.model, reference)
        data = prepare(config, tokenizer, loss.unit, length, display)
        parameters = count_parameters(load_config(config.model))
        schedule = defaults.schedule(config, len(data.train), parameters, imitates=loss.unit == "demonstration")
        if config.warmup_steps and config.warmup_steps >= schedule.steps:
            raise settings.SettingError(
                "warmup_steps",
                f"must be below the steps of the run, which are {schedule.steps}: lower it, or train longer",
            )
        if config.max_steps and schedule.steps < config.max_steps:
            ends = f"--epochs {config.epochs:g} ends at step {schedule.steps:,}"
            display.note(f"{ends}, before --max-steps {config.max_steps:,}: raise --epochs to go on")
        resolved = dataclasses.replace(
            config,
            max_length=length,
            learning_rate=schedule.peak,
            warmup_steps=schedule.warmup,
            save_every=schedule.save_every,
        )
        if config.batch_size > len(data.train):
            display.note(
                f"--batch-size {config.batch_size:,} is more than the {counted(len(data.train), 'example')} there are: "
                "each step holds some of them more than once"
            )
        job = cls(resolved, loss, tokenizer, data, schedule, parameters)
        defaults.must_fit(device, job.held() * (2 if isinstance(config, settings.PPO) else 1))  # a value model like it
        budget = config.tokens_per_microbatch or _recorded(config, "tokens_per_microbatch")
        budget = budget or defaults.tokens_per_microbatch(device, job.held(), job.bytes_a_token)
        job.config = dataclasses.replace(resolved, tokens_per_microbatch=budget)
        job.chosen = settings.chosen(config, job.config)
        _ = job.code  # as it is now, when it is loaded
        return job

    @property
    def out(self) -> Path:
        return self.config.out

    @property
    def checkpoints(self) -> Path:
        return self.out / "checkpoints"

    @property
    def metrics_file(self) -> Path:
        return self.out / "metrics.jsonl"

    @property
    def verb(self) -> str:
        return type(self.config).__name__.lower()

    @property
    def method(self) -> str:
        """The loss by its name, or what there is instead of one."""
        if not isinstance(self.config, settings.Train):
            return self.verb
        loss = self.config.loss
        return loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)

    @cached_property
    def code(self) -> str:
        """What stands in the file of a loss or a reward of the user's own: a run goes on with the same."""
        spec = getattr(self.config, "reward", None) or getattr(self.config, "loss", "")
        file = Path(spec.rpartition(":")[0] if isinstance(spec, str) else "").expanduser()
        return xxhash.xxh3_128_hexdigest(file.read_bytes()) if file.suffix == ".py" and file.is_file() else ""

    @property
    def sample(self) -> list[Encoded]:
        """Training examples that are scored at the end, for a figure to hold beside the held-out one."""
        order = plan.order(self.data.train, self.config.seed)
        return [self.data.train[i] for i in order.batch(0, min(SAMPLE, len(self.data.train)))]

    def written(self, chosen: Set[str] = frozenset()) -> str:
        """The settings as YAML. A checkpoint keeps all of them, since a run's config.yaml is a person's to edit."""
        return settings.dump(dataclasses.replace(self.config, resume=False), chosen)

    def open_folder(self, found: Checkpoint | None) -> None:
        """Hold settings and data against a checkpoint, if there is one; write config.yaml, unless it says the same."""
        path = self.out / "config.yaml"
        if found:
            self.check_unchanged(found.state["data"], config=found.state.get("config"))
            if path.exists() and settings.recorded(path) == yaml.safe_load(self.written()):
                return  # with whatever a person has noted there
        with writable(self.out), whole(path) as file:
            file.write(self.written(self.chosen))

    def check_unchanged(self, data: str, code: str | None = None, config: str | None = None) -> None:
        """UserError unless the run in the folder had these settings, and data and ``code`` of these fingerprints.

        ``config`` is what it was trained with; where nothing tells, that is what its config.yaml says.
        """
        before = yaml.safe_load(config) if config else settings.recorded(self.out / "config.yaml")
        now = yaml.safe_load(self.written())
        if any((key in before) != (key in now) for key in ("loss", "reward", "rankings")):  # each of one command alone
            raise UserError(f"--out {self.out} holds a run of another command: choose another folder")
        begun = f"the run in {self.out} began"
        try:
            settings.unchanged(before, now, now.keys() - FREE - FROM_DATA, begun)
        except settings.SettingError as error:
            raise UserError(f"{error}{self._further(error.key)}") from None
        if data != self.data.fingerprint:
            raise UserError(
                f"--out {self.out}: its run began with other data than {', '.join(self.config.data)} now hold: "
                "bring those back, or choose another --out"
            )
        if code is not None and code != self.code:
            raise UserError(
                f"--out {self.out}: its run is of what stood in the file of its loss before: "
                "bring that back, or choose another --out"
            )
        settings.unchanged(before, now, FROM_DATA, begun)

    def _further(self, key: str) -> str:
        """How to train the result of a finished run for longer."""
        if key not in ("epochs", "max_steps") or not (self.out / "model").is_dir():
            return ""
        start = f"--model {self.out / 'model'}"
        if isinstance(self.config, settings.Train | settings.PPO) and getattr(self.loss, "needs_reference", True):
            start += f" --reference {self.config.reference or self.config.model}"
        return f", from {start} to train its result further"

    def description(self) -> str:
        """What ``--dry-run`` prints: what would be done, and what it would need."""
        config, schedule = self.config, self.schedule
        held_out = f", {len(self.data.held_out):,} held out" if self.data.held_out else ""
        memory = size(self.running() + self.memory())
        epochs = counted(self.epochs, "epoch")
        longest = f"{self.data.longest:,} of at most {config.max_length or 'any'}"
        rows = {
            "model": f"{config.model}, {size(self.parameters)} parameters",
            "method": f"{self.method}  {self.loss}",
            "data": f"{counted(len(self.data.train), 'example')} to train on{held_out}",
            "tokens": f"{self.tokens_an_epoch:,} an epoch; longest sequence {longest}",
            "steps": f"{schedule.steps:,} of {counted(schedule.batch_size, 'example')} ({epochs})",
            "learning rate": f"{schedule.peak:g}, {counted(schedule.warmup, 'step')} of warm-up, then {schedule.decay}",
            "memory": f"about {memory}B, with {config.tokens_per_microbatch:,} tokens at once",
            "writes": str(self.out),
        }
        return "\n".join(f"{name:<14} {value}" for name, value in rows.items())

    def memory(self) -> int:
        """Bytes, roughly, of the model and the peak of a step."""
        layers = getattr(load_config(self.config.model).get_text_config(), "num_hidden_layers", 1)
        kept = max(self.config.tokens_per_microbatch or 0, recompute.at_least(self.data.longest, layers))
        return self.held() + kept * self.bytes_a_token

    @property
    def tokens_an_epoch(self) -> int:
        return sum(map(sum, each(self.data.train, "lengths")))

    @property
    def epochs(self) -> float:
        return self.schedule.steps * self.schedule.batch_size / len(self.data.train)

    @property
    def compiles(self) -> bool:
        """Whether it pays to compile the model's layers."""
        device = pick_device(self.config.device)
        return defaults.pays_to_compile(device, self.parameters, round(self.epochs * self.tokens_an_epoch))

    def running(self) -> int:
        """Bytes of Python, torch and the data on a CPU, where they share the memory."""
        return peak_memory() if pick_device(self.config.device).type == "cpu" else 0

    def held(self) -> int:
        dtype = pick_dtype(self.config.dtype, pick_device(self.config.device))
        return defaults.held(self.parameters, self.config.optimizer, dtype)

    @cached_property
    def bytes_a_token(self) -> int:
        device = pick_device(self.config.device)
        return defaults.bytes_a_token(load_config(self.config.model), pick_dtype(self.config.dtype, device), device)


def check_folder(config: settings.Training) -> None:
    """UserError where ``--out`` holds something that this run is not to continue."""
    held = {path.name for path in config.out.iterdir()} if config.out.is_dir() else set()
    begun = "config.yaml" in held
    if begun and not config.resume and not _came_to_nothing(config.out, held):
        raise UserError(f"--out {config.out} holds a run already: continue it with --resume, or choose another folder")
    if not begun and (held or (config.out.exists() and not config.out.is_dir())):
        raise UserError(f"--out {config.out} exists and is no run: choose another folder")


def _came_to_nothing(out: Path, held: set[str]) -> bool:
    """Whether a run failed before its first step, so that nothing is lost by another one in its place."""
    if not held <= {"config.yaml", "metrics.jsonl", "samples.jsonl", "tensorboard", "wandb"}:
        return False
    return "metrics.jsonl" not in held or all(record["step"] == 0 for record in read_metrics(out / "metrics.jsonl"))


def _recorded(config: settings.Training, key: str) -> Any:
    """What was chosen when the run that is resumed began."""
    file = config.out / "config.yaml"
    recorded = settings.recorded(file) if config.resume and file.exists() else {}
    return recorded.get(key)

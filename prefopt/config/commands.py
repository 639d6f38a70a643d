"""The settings: one frozen dataclass per command, whose fields are its flags and its YAML keys.

A field's help is the string below it; ``None`` means "chosen for you". What cannot be, or has no effect under the
other settings, is a `SettingError`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from prefopt.config.checks import (
    SettingError,
    defaults,
    needs,
    not_negative,
    of_their_kind,
    positive,
    right_seed,
    some_data,
)
from prefopt.types import Overlong, TrainOn

Dtype = Literal["auto", "float32", "bfloat16"]
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """Count and check preference data, or prompts alone, and show how they are read."""

    data: tuple[str, ...]
    """files, globs, folders or hub names, as NAME:SPLIT where there are splits"""
    model: str | None = None
    """folder or hub name of a model or tokenizer, to count tokens"""
    format: str | None = None
    """layout of the data, when it cannot be guessed (prefopt check --help-all lists them)"""
    max_length: int | None = None
    """tokens of prompt and response; by default the model's own limit"""
    overlong: Overlong = "drop"
    """what to do with examples beyond that"""
    train_on: TrainOn = "last-assistant"
    """which turns of a conversation are the response"""
    strict: bool = False
    """fail on any finding"""
    json: bool = False
    """print one JSON object instead of a report"""

    def __post_init__(self) -> None:
        some_data(self)
        positive(self, "max_length")
        if self.model is None:
            for key in ("max_length", "overlong", "train_on"):
                needs(self, key, "is about tokens: add --model")


@dataclass(frozen=True, kw_only=True)
class NewModel:
    """Make a small model with random weights, and its tokenizer."""

    size: str
    """parameters, embeddings included, such as 3M, 30M or 0.5B"""
    tokenizer_from: str
    """data to train a tokenizer on, or a folder with a tokenizer"""
    out: Path
    """the folder to write"""
    architecture: Literal["llama", "qwen2", "qwen3", "mistral", "gpt2", "gpt-neox"] = "llama"
    """family of the model"""
    vocab: int | None = None
    """tokens of a tokenizer that is trained; by default from the size, 4096 for 3M"""
    max_length: int = 1024
    """longest sequence that the model takes, in tokens"""
    seed: int = 0
    """decides the weights"""

    def __post_init__(self) -> None:
        positive(self, "max_length")
        right_seed(self)
        if self.vocab is not None and self.vocab < 300:
            raise SettingError("vocab", f"must be at least 300 (the 256 bytes and some more), not {self.vocab}")
        _ = self.parameters

    @property
    def parameters(self) -> int:
        """
        >>> NewModel(size="0.5B", tokenizer_from="prefs.jsonl", out=Path("base")).parameters
        500000000
        """
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMB])", self.size.upper())
        if not match:
            raise SettingError("size", f"must be a number and K, M or B, such as 3M, not {self.size!r}")
        return round(float(match[1]) * {"K": 1e3, "M": 1e6, "B": 1e9}[match[2]])


@dataclass(frozen=True, kw_only=True)
class Training:
    """What every command that trains has in common."""

    model: str
    """folder or hub name of the model to start from"""
    data: tuple[str, ...]
    """files, globs, folders or hub names, as NAME:SPLIT where there are splits; NAME=2 counts twice an epoch"""
    out: Path
    """the run directory to write"""
    format: str | None = None
    """layout of the data, when it cannot be guessed (prefopt check --help-all lists them)"""
    epochs: float = 3
    """passes over the data"""
    max_steps: int | None = None
    """stop after this many optimizer steps"""
    batch_size: int = 32
    """examples per optimizer step, however they are packed"""
    tokens_per_microbatch: int | None = None
    """tokens computed at once; fewer need less memory, also for longer examples, which are then partly recomputed"""
    learning_rate: float | None = None
    """peak; by default from the model's size"""
    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    """rmsprop is the paper's"""
    weight_decay: float = 0.0
    """AdamW's, decoupled"""
    clip: float = 1.0
    """largest gradient norm; the DPO paper's code has 10"""
    warmup_steps: int | None = None
    """by default a tenth of the run"""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """after the warm-up"""
    max_length: int | None = None
    """tokens of prompt and response; by default the model's own limit"""
    overlong: Overlong = "drop"
    """what to do with examples beyond that"""
    train_on: TrainOn = "last-assistant"
    """which turns of a conversation are the response"""
    eval_data: tuple[str, ...] = ()
    """held-out data"""
    eval_fraction: float = 0.0
    """or: this share of the prompts is held out"""
    eval_every: int | None = None
    """steps between evaluations; by default only before the first step and at the end"""
    save_every: int | None = None
    """steps between checkpoints; by default a tenth of the run"""
    keep: int = 2
    """checkpoints kept, at least 2"""
    seed: int = 0
    """decides the order, the split and all that is random"""
    group_by_prompt: bool = False
    """the examples of a prompt meet in a step: fewer tokens, but a noisier gradient, since they resemble one another"""
    dtype: Dtype = "auto"
    """auto: bfloat16 where the GPU has it, else float32"""
    device: Device = "auto"
    """where to compute"""
    resume: bool = False
    """continue the run in --out from its newest good checkpoint"""
    strict: bool = False
    """refuse data with findings, instead of dropping and counting"""
    track: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """copy the metrics there too"""

    def __post_init__(self) -> None:
        of_their_kind(self)
        positive(self, "epochs", "max_steps", "batch_size", "tokens_per_microbatch", "learning_rate", "clip")
        positive(self, "max_length", "eval_every", "save_every")
        not_negative(self, "weight_decay", "warmup_steps")
        right_seed(self)
        some_data(self)
        if self.keep < 2:
            raise SettingError(
                "keep", f"must be at least 2, so that a bad checkpoint has one before it, not {self.keep}"
            )
        if not 0 <= self.eval_fraction < 1:
            raise SettingError("eval_fraction", f"must be at least 0 and below 1, not {self.eval_fraction}")
        if self.eval_data and self.eval_fraction:
            raise SettingError(
                "eval_fraction", "holds prompts of --data out, and --eval-data is held out already: drop one"
            )
        if not self.eval_data and not self.eval_fraction:
            needs(self, "eval_every", "has nothing to evaluate on: add --eval-data or --eval-fraction")
        if self.optimizer != "adamw":
            needs(self, "weight_decay", f"is AdamW's and has no effect on {self.optimizer}: drop it")
        if self.max_steps and self.warmup_steps and self.warmup_steps >= self.max_steps:
            raise SettingError(
                "warmup_steps", f"must be below --max-steps, which is {self.max_steps}, not {self.warmup_steps}"
            )


@dataclass(frozen=True, kw_only=True)
class SFT(Training):
    """Supervised fine-tuning: imitate the (chosen) responses."""


@dataclass(frozen=True, kw_only=True)
class Train(Training):
    """Tune a model on preferences."""

    loss: str = "dpo"  # from Python, any loss
    """a name below, or file.py:Class of your own; its fields become flags, e.g. --beta"""
    loss_options: dict[str, float | int | bool | str] | None = None
    """filled from the flags that are the loss's fields"""
    reference: str | None = None
    """by default the model that training starts from"""

    def __post_init__(self) -> None:
        super().__post_init__()
        from prefopt.losses import make_loss

        loss = make_loss(self.loss, self.loss_options)
        if not loss.needs_reference:
            needs(self, "reference", f"has no effect: {self.loss} compares with no reference")


@dataclass(frozen=True, kw_only=True)
class PPONumbers:
    """The numbers of the method; `prefopt.rl.loop.PPO` is what they do."""

    samples: int = 4
    """responses to each prompt"""
    max_new_tokens: int = 128
    """longest response"""
    kl_coef: float = 0.05
    """β, the weight of the KL penalty; where it begins, with --target-kl"""
    target_kl: float | None = None
    """adapt β, so that the KL comes to so many nats a response"""
    horizon: int = 10_000
    """responses over which β adapts"""
    passes: int = 4
    """how often a step's responses are learned from"""
    minibatches: int = 4
    """updates in a pass"""
    missing_eos_penalty: float = 1.0
    """taken off the reward of a response that does not end"""
    gae_lambda: float = 0.95
    """λ of the advantages: 1 trusts what was seen, 0 the value model"""
    clip_ratio: float = 0.2
    """how far a token's probability may move in a step"""
    clip_value: float = 0.2
    """how far the value model's forecast may move in a step"""
    value_rate: float = 10.0
    """the value model's learning rate, as a multiple of the policy's"""


@dataclass(frozen=True, kw_only=True)
class PPO(PPONumbers, Training):
    """Tune a model on a reward: PPO on its own responses, with a KL penalty."""

    data: tuple[str, ...]
    """prompts: any data that prefopt reads, or JSONL with prompt alone"""
    reward: str
    """reward model, MODEL:LABEL, file.py:function, or implicit:POLICY@REFERENCE:BETA"""
    reference: str | None = None
    """by default the model that training starts from"""
    batch_size: int = 32
    """prompts per step, each answered --samples times"""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "samples", "max_new_tokens", "target_kl", "horizon", "passes", "minibatches")
        positive(self, "clip_ratio", "clip_value", "value_rate")
        not_negative(self, "kl_coef", "missing_eos_penalty")
        if not 0 <= self.gae_lambda <= 1:
            raise SettingError("gae_lambda", f"must be between 0 and 1, not {self.gae_lambda}")
        if self.minibatches > self.batch_size:
            raise SettingError("minibatches", f"must be at most --batch-size, which is {self.batch_size}")
        if self.target_kl is None:
            needs(self, "horizon", "is about adapting β: add --target-kl")
        elif not self.kl_coef:
            raise SettingError("kl_coef", "must be above 0 with --target-kl, since β adapts by factors")
        if self.overlong == "cut-response":
            raise SettingError("overlong", "cut-response has no effect: responses end at --max-new-tokens")
        for key in ("group_by_prompt", "train_on"):
            needs(self, key, "has no effect: PPO reads prompts only")


@dataclass(frozen=True, kw_only=True)
class Sweep(Train):
    """Train once for each combination of settings, and place the runs between reward and KL."""

    out: Path
    """the folder of the sweep; each run gets a folder in it"""
    resume: bool = False
    """skip the finished runs in --out and continue the one that was stopped"""
    grid: tuple[str, ...]
    """KEY=VALUE,VALUE: a flag of train, or of a loss, and its values"""
    samples: int = 64
    """responses drawn from each policy to estimate KL and reward; 0: none"""
    max_new_tokens: int | None = None
    """longest response that is drawn; by default 128, or half of the model's limit where that is less"""
    reward: str | None = None
    """reward model, MODEL:LABEL, file.py:function, or implicit:POLICY@REFERENCE:BETA"""

    def __post_init__(self) -> None:
        Training.__post_init__(self)  # which loss gets which options, and whether it is right, is each run's
        not_negative(self, "samples")
        positive(self, "max_new_tokens")
        if not self.samples:
            for key in ("max_new_tokens", "reward"):
                needs(self, key, "is about samples: drop it, or --samples 0")
        for key in axes(self.grid):
            if key in {"model", "data", *Sweep.__annotations__}:
                raise SettingError("grid", f"cannot vary {key}, which is the same for all runs")
            if key in (self.loss_options or {}) or getattr(self, key, None) != defaults(type(self)).get(key):
                raise SettingError(key, "is set, and --grid sets it too: drop one")


def axes(grid: Sequence[str]) -> dict[str, list[str]]:
    """What ``--grid`` varies: the values of each key.

    >>> axes(["beta=0.05,0.1", "loss=dpo,ipo"])
    {'beta': ['0.05', '0.1'], 'loss': ['dpo', 'ipo']}
    """
    found: dict[str, list[str]] = {}
    for text in grid:
        key, _, values = text.partition("=")
        key = key.strip().replace("-", "_")
        if not key or not all(value.strip() for value in values.split(",")):
            raise SettingError("grid", f"must be KEY=VALUE,VALUE such as beta=0.1,1, not {text!r}")
        if key in found:
            raise SettingError("grid", f"has {key} twice: write all its values behind one")
        found[key] = [value.strip() for value in values.split(",")]
    if not found:
        raise SettingError("grid", "is empty: name a key and its values, such as beta=0.1,1")
    return found


@dataclass(frozen=True, kw_only=True)
class Reward(Training):
    """Train a reward model on preferences: a scalar head on a language model, by Bradley–Terry."""

    rankings: bool = False
    """learn all responses of a prompt as one ranking (Plackett–Luce), not two at a time"""
    margin: float = 0.0
    """ask for rewards this many times as far apart as the data's scores"""
    center: float = 0.0
    """weight of (sum of an example's rewards)², which keeps them around 0; 0.01 is usual"""

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "margin", "center")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Answer the prompts of a file, with a model or a server."""

    data: tuple[str, ...]
    """prompts: any data that prefopt reads, or JSONL with prompt alone"""
    out: Path
    """JSONL file to write, one line per response"""
    model: str | None = None
    """folder or hub name of the model"""
    server: str | None = None
    """or: address of an OpenAI-compatible server, such as http://localhost:8000"""
    server_model: str | None = None
    """what the server calls its model"""
    n: int = 1
    """responses to each prompt"""
    temperature: float = 1.0
    """0 is greedy"""
    top_p: float = 1.0
    """share of the probability that is drawn from"""
    top_k: int = 0
    """number of tokens that is drawn from; 0: all"""
    max_new_tokens: int = 256
    """longest response"""
    realign: float | None = None
    """λ: decode from π_ref^(1-λ) π^λ, token by token"""
    reference: str | None = None
    """π_ref of --realign"""
    best_of: int | None = None
    """draw so many for each response, and keep the one with the highest reward"""
    reward: str | None = None
    """reward model, MODEL:LABEL, file.py:function, or implicit:POLICY@REFERENCE:BETA"""
    batch_size: int = 32
    """responses generated at once; of a server, prompts asked at once"""
    seed: int = 0
    """decides all that is drawn"""
    format: str | None = None
    """layout of the data, when it cannot be guessed (prefopt check --help-all lists them)"""
    dtype: Dtype = "auto"
    """auto: bfloat16 where the GPU has it, else float32"""
    device: Device = "auto"
    """where to compute"""
    resume: bool = False
    """continue the file in --out where it ends"""

    def __post_init__(self) -> None:
        some_data(self)
        positive(self, "n", "top_p", "max_new_tokens", "best_of", "batch_size")
        not_negative(self, "temperature", "top_k", "realign")
        right_seed(self)
        if self.top_p > 1:
            raise SettingError("top_p", f"must be at most 1, not {self.top_p}")
        if (self.model is None) == (self.server is None):
            raise SettingError("model", "or --server: name one of them, and not both")
        if (self.server is None) != (self.server_model is None):
            raise SettingError("server_model", "and --server go together: what does the server call its model?")
        if self.server is not None and self.realign is not None:
            raise SettingError("realign", "needs the model's own probabilities, which a server does not give")
        if (self.realign is None) != (self.reference is None):
            raise SettingError("realign", "and --reference go together: name the weight and the model")
        if self.temperature == 0:
            for key in ("top_p", "top_k", "best_of"):
                needs(self, key, "has no effect on greedy responses: drop it, or set --temperature above 0")
            if self.n > 1:
                raise SettingError("n", "greedy responses would all be the same: set --temperature above 0")
        if self.best_of is not None and self.reward is None:
            raise SettingError("best_of", "needs --reward, to know which is the best")


@dataclass(frozen=True, kw_only=True)
class Score:
    """Score responses: by a policy's log-probabilities, by its implicit reward, or by any reward."""

    data: tuple[str, ...]
    """files, globs, folders or hub names, as NAME:SPLIT where there are splits"""
    policy: str | None = None
    """folder or hub name of a model that writes"""
    reward: str | None = None
    """instead of it a reward model, MODEL:LABEL, file.py:function, or implicit:POLICY@REFERENCE:BETA"""
    reference: str | None = None
    """model to compare with; without it there are log-probabilities only"""
    beta: float = 0.1
    """an implicit reward is beta times the log-ratio of policy and reference"""
    out: Path | None = None
    """JSONL file to write, one line per response"""
    format: str | None = None
    """layout of the data, when it cannot be guessed (prefopt check --help-all lists them)"""
    max_length: int | None = None
    """tokens of prompt and response; by default the model's own limit"""
    overlong: Overlong = "drop"
    """what to do with examples beyond that"""
    train_on: TrainOn = "last-assistant"
    """which turns of a conversation are the response"""
    tokens_per_microbatch: int | None = None
    """tokens computed at once: less memory when smaller"""
    dtype: Dtype = "auto"
    """auto: bfloat16 where the GPU has it, else float32"""
    device: Device = "auto"
    """where to compute"""

    def __post_init__(self) -> None:
        some_data(self)
        positive(self, "beta", "max_length", "tokens_per_microbatch")
        if (self.policy is None) == (self.reward is None):
            raise SettingError("policy", "or --reward: name one of them, and not both")
        if self.policy is None:
            for key in ("reference", "beta", "max_length", "overlong", "train_on", "tokens_per_microbatch"):
                needs(self, key, "has no effect on a --reward, which reads responses in its own way: drop it")
        elif self.reference is None:
            needs(self, "beta", "scales the log-ratio to a reference: add --reference")


@dataclass(frozen=True, kw_only=True)
class Report:
    """Show a run, or several on the same axes, as one HTML file."""

    runs: tuple[Path, ...]
    """run directories"""
    out: Path = Path("report.html")
    """the file to write"""

    def __post_init__(self) -> None:
        if not self.runs:
            raise SettingError("runs", "is empty: name at least one run directory")
        if len(set(self.runs)) < len(self.runs):
            raise SettingError("runs", "names a run twice")


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Tune a small model in a world where the optimum is known exactly, and place every method against it."""

    out: Path = Path("runs/demo")
    """the folder to write"""
    seed: int = 0
    """decides all that is random"""
    full: bool = False
    """ten times the pairs, longer SFT and PPO, several KLs, three seeds: an hour and more on two cores"""
    pairs: int | None = None
    """how many each method gets; by default 10,000, with --full 100,000"""
    seeds: int | None = None
    """how many for each method, whose mean and spread are shown; by default 1, with --full 3"""
    resume: bool = False
    """continue a demo that was stopped: what is done is kept"""

    def __post_init__(self) -> None:
        right_seed(self)
        positive(self, "seeds", "pairs")

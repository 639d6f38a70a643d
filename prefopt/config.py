"""What can be set: one frozen dataclass per command, its fields are its flags and its YAML keys.

A field's help is the string below it; ``None`` means "chosen for you", and ``--print-config`` shows
what was chosen. A key that does not exist, or has no effect under the other settings, is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Training:
    """What every command that trains has in common."""

    model: str
    """folder or hub name of the model to start from"""
    data: tuple[str, ...]
    """files, globs or hub names; NAME=2 counts twice an epoch"""
    out: Path
    """the run directory to write"""
    format: str | None = None
    """layout of the data, when it cannot be guessed"""
    epochs: float = 3
    """passes over the data"""
    max_steps: int | None = None
    """stop after this many optimizer steps"""
    batch_size: int = 32
    """examples per optimizer step, however they are packed"""
    tokens_per_microbatch: int | None = None
    """tokens computed at once: less memory when smaller"""
    learning_rate: float | None = None
    """peak; by default from the model's size"""
    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    """rmsprop is the paper's"""
    weight_decay: float = 0.0
    """AdamW's, decoupled"""
    clip: float = 1.0
    """largest gradient norm; the paper's is 10"""
    warmup_steps: int | None = None
    """by default a tenth of the run"""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """after the warm-up"""
    max_length: int | None = None
    """tokens of prompt and response; by default the model's own limit"""
    overlong: Literal["drop", "cut-prompt", "cut-response"] = "drop"
    """what to do with examples beyond that"""
    train_on: Literal["last-assistant", "all-assistant"] = "last-assistant"
    """which turns of a conversation are the response"""
    eval_data: tuple[str, ...] = ()
    """held-out data"""
    eval_fraction: float = 0.0
    """or: this share of the prompts is held out"""
    eval_every: int | None = None
    """steps between evaluations; by default at the end only"""
    save_every: int | None = None
    """steps between checkpoints; by default a tenth of the run"""
    keep: int = 2
    """checkpoints kept, at least 2"""
    seed: int = 0
    """decides the order, the split and all that is random"""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 where the GPU has it, else float32"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to compute"""
    activation_checkpointing: bool = False
    """recompute activations: less memory, a third more time"""
    resume: bool = False
    """continue the run in --out from its newest good checkpoint"""
    strict: bool = False
    """refuse data with findings, instead of dropping and counting"""
    track: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """copy the metrics there too"""


@dataclass(frozen=True, kw_only=True)
class SFT(Training):
    """Supervised fine-tuning: imitate the (chosen) responses."""


@dataclass(frozen=True, kw_only=True)
class Train(Training):
    """Tune a model on preferences."""

    loss: str = "dpo"
    """a name, or file.py:Class of your own; its fields become flags, e.g. --beta"""
    loss_options: dict[str, float | int | bool | str] | None = None
    """filled from the flags that are the loss's fields"""
    reference: str | None = None
    """by default the model that training starts from"""

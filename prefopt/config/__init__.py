"""What can be set: commands.py has a dataclass for each command, checks.py what is asked of their fields, and
reading.py makes one of a file or of flags.

A YAML file is flat. What is no field of a command with a loss is taken for an option of that loss:

    loss: ipo
    tau: 0.1
"""

from prefopt.config.checks import SettingError, flag
from prefopt.config.commands import (
    PPO,
    SFT,
    Check,
    Demo,
    NewModel,
    PPONumbers,
    Report,
    Reward,
    Sample,
    Score,
    Sweep,
    Train,
    Training,
    axes,
)
from prefopt.config.reading import Setting, build, chosen, dump, helps, load, plain, read, recorded, unchanged, unknown

__all__ = [
    "PPO",
    "SFT",
    "Check",
    "Demo",
    "NewModel",
    "PPONumbers",
    "Report",
    "Reward",
    "Sample",
    "Score",
    "Setting",
    "SettingError",
    "Sweep",
    "Train",
    "Training",
    "axes",
    "build",
    "chosen",
    "dump",
    "flag",
    "helps",
    "load",
    "plain",
    "read",
    "recorded",
    "unchanged",
    "unknown",
]

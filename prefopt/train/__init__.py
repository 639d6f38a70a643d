"""Training: the loop, and what a run needs around it.

From Python, `train` and `sft` are what the commands of these names do, and a loss may be an object:

    from prefopt.losses import DPO
    from prefopt.train import train

    results = train(model="runs/sft/model", data="prefs.jsonl", loss=DPO(beta=0.1), out="runs/dpo")
    results["training"]["after"]["rewards/accuracies"]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefopt.errors import UserError


def train(
    *, model: str, data: str | Sequence[str], out: str | Path, loss: Any = "dpo", **settings: Any
) -> dict[str, Any]:
    """Tune ``model`` on preferences and write the run to ``out``; returns what ``results.json`` holds.

    ``loss``: a name, a loss object, or a class, instance or function of your own. ``settings`` are the fields
    of `prefopt.config.Train`, such as ``eval_fraction=0.1``, and options of the loss, such as ``beta=0.3``.
    UserError, RunFailed and Stopped say it in one sentence.
    """
    from prefopt import config, losses
    from prefopt.train.run import run

    spec, options = losses.spec_of(loss)
    options |= settings.pop("loss_options", None) or {}
    fields, known = [*config.Train.__dataclass_fields__], losses.options_of(spec)
    for key in settings.keys() - fields:
        if key not in known:
            named = [spec] if isinstance(spec, str) else []
            raise UserError(config.unknown(key, config.Setting(None, "train()"), [*fields, *known], named))
        options[key] = settings.pop(key)  # beta=0.3, as --beta 0.3
    given = {"loss": spec, "loss_options": options}
    resolved = _config(config.Train, model=model, data=data, out=out, **given, **settings)
    return run(resolved, losses.make_loss(resolved.loss, resolved.loss_options))


def sft(*, model: str, data: str | Sequence[str], out: str | Path, **settings: Any) -> dict[str, Any]:
    """Fine-tune ``model`` on the (chosen) responses; as `train` otherwise."""
    from prefopt import config, losses
    from prefopt.train.run import run

    if "loss" in settings:
        raise UserError("sft() takes no loss: it imitates the chosen responses; train() tunes with one")
    fields = [*config.SFT.__dataclass_fields__]
    for key in settings.keys() - fields:
        raise UserError(config.unknown(key, config.Setting(None, "sft()"), fields, []))
    return run(_config(config.SFT, model=model, data=data, out=out, **settings), losses.SFT())


def _config(cls: type, *, out: str | Path, **settings: Any) -> Any:
    """The settings with the types that a command line would give them."""
    for key in ("data", "eval_data", "track"):
        if isinstance(settings.get(key), str | Path):
            settings[key] = (str(settings[key]),)
        elif key in settings:
            settings[key] = tuple(map(str, settings[key]))
    settings |= {key: str(settings[key]) for key in ("model", "reference") if isinstance(settings.get(key), Path)}
    return cls(out=Path(out), **settings)

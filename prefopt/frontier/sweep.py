"""``prefopt sweep``: one run for each combination of settings, and all of them on the axes of reward and KL.

A run of a sweep is an ordinary one: the same code, and a folder of its own in ``out``. They share the reference
store, so the reference is asked once, and the data. Beside the runs' folders stand

results.json    {"runs": [{"name": "beta-0.1", "settings": {"beta": 0.1}, "status": "done", "steps": 100, "training":
                ..., "held_out": ..., "estimate": {"kl": {"value": 2.1, "low": 1.8, "high": 2.4}, ...}}, ...],
                 "frontier": {"points": [{"name": "beta-0.1", "kl": 2.1, "kl_interval": [1.8, 2.4], "reward": 0.7,
                              "reward_interval": [0.6, 0.8]}, ...]}}, the latter where there is a reward
report.html     the runs side by side
reference.json  where the reference stands, if there is a reward; a policy's own is estimate.json in its run
frontier.svg    reward, or without one the held-out accuracy, against KL
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from prefopt import config as settings
from prefopt import losses
from prefopt.config import Setting, Train
from prefopt.data.encode import Encoder
from prefopt.data.mix import open_source
from prefopt.display import Display
from prefopt.errors import RunFailed, Stopped, UserError
from prefopt.frontier import show
from prefopt.frontier.estimate import MAX_NEW_TOKENS, Estimate, Sampling, choose, measure, prompt_key
from prefopt.generate import Prompt
from prefopt.model.load import load_config, positions
from prefopt.rl.rewards import Reward, identity, load_reward
from prefopt.terminal import counted, described, printable
from prefopt.train.card import write_results
from prefopt.train.job import Job
from prefopt.train.outcome import report_on
from prefopt.train.prepare import Prepared, prepare
from prefopt.train.run import start
from prefopt.train.session import execute
from prefopt.types import Encoded, Example, Message, Unit
from prefopt.whole import whole

Settings = dict[str, Setting]
"""What was set, by key, and where; an option of a loss is a key like any other."""

FIELDS = {field.name for field in dataclasses.fields(Train)} - {"loss_options"}
CHOICE = FIELDS - {"model", "data", "out"}
"""what runs may differ in"""
OF_DATA = "model", "data", "eval_data", "eval_fraction", "format", "overlong", "train_on", "seed", "strict"
"""Settings that decide what is read, beside the loss's unit and the length."""


def run(config: settings.Sweep, dry_run: bool = False) -> None:
    """Writes ``config.out`` and prints the table; RunFailed, after all else is done, where a run failed."""
    given = {key: Setting(value) for key, value in yaml.safe_load(settings.dump(config)).items() if value is not None}
    common = {key: setting for key, setting in given.items() if key in FIELDS or key in (config.loss_options or {})}
    axes = {key: [Setting(v, "--grid") for v in values] for key, values in settings.axes(config.grid).items()}
    chosen = configurations(common, combinations(common, axes))
    sampling = _sampling(config.model, config.samples, config.max_new_tokens, config.reward, vars(config))
    sweeping = Sweeping.plan(config.out, chosen, sampling)
    if dry_run:
        print(sweeping.description())
        return
    results = sweeping.perform({key: setting.value for key, setting in given.items()})
    failed = [found["name"] for found in results["runs"] if found["status"] == "failed"]
    if failed:
        raise RunFailed(
            f"{len(failed)} of {len(results['runs'])} runs failed ({', '.join(failed)}), as said above; the same "
            "command with --resume tries those again"
        )


def sweep(
    *,
    model: str,
    data: str | Sequence[str],
    out: str | Path,
    grid: Mapping[str, Sequence[Any]] | None = None,
    runs: Sequence[Mapping[str, Any]] | None = None,
    samples: int = 64,
    max_new_tokens: int | None = None,
    reward: str | Reward | Callable[..., Any] | None = None,
    **common: Any,
) -> dict[str, Any]:
    """Train once for each combination of ``grid``, or once for each of ``runs``; returns what ``results.json`` holds.

    Settings are the fields of `prefopt.config.Train` and the options of the losses, side by side. Those of a run
    stand before the ``common`` ones, and its ``name``, where it has one, is its folder's:

        sweep(model="runs/sft/model", data="prefs.jsonl", out="runs/sweep", epochs=1, runs=[
            {"loss": "dpo", "beta": 0.1, "learning_rate": 2e-3},
            {"name": "noisy", "loss": DPO(beta=0.1, label_smoothing=0.2)},
        ])

    ``reward``: a function of one's own, or what `prefopt.rl.rewards` reads from text.
    A run that fails is recorded, with ``status`` "failed". UserError and Stopped as from `prefopt.train.train`.
    """
    if bool(grid) == bool(runs):
        raise UserError("sweep() takes either grid, values by key, or runs, a list of settings")
    shared = _given({"model": model, "data": data, "out": out, **common}, "sweep()")
    if runs is None:
        axes = {key: [Setting(_plain(value), "grid") for value in values] for key, values in (grid or {}).items()}
        own = combinations(shared, axes)
    else:
        own = [_given(one, f"runs[{i}]") for i, one in enumerate(runs)]
    sampling = _sampling(model, samples, max_new_tokens, reward, common)
    sweeping = Sweeping.plan(Path(out), configurations(shared, own), sampling)
    return sweeping.perform({key: setting.value for key, setting in shared.items()})


# --- which runs ---------------------------------------------------------------------------------


class Chosen(NamedTuple):
    """One run: what tells it from the others, and all of its settings."""

    name: str
    own: dict[str, Any]
    config: Train


def combinations(common: Settings, axes: Mapping[str, Sequence[Setting]]) -> list[Settings]:
    """Each combination of the axes' values, without what has no effect on its loss.

    UserError for a key that has no effect on any.

    >>> axes = {"loss": [Setting("dpo"), Setting("ipo")], "tau": [Setting("0.1")]}
    >>> [{key: setting.value for key, setting in own.items()} for own in combinations({}, axes)]
    [{'loss': 'dpo'}, {'loss': 'ipo', 'tau': '0.1'}]
    """
    whole = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    return _fitted([(own, _loss(common | own)) for own in whole])


def configurations(common: Settings, own: Sequence[Settings]) -> list[Chosen]:
    """Each run's own settings over the common ones; of equal runs the first. UserError for what is wrong.

    An option among the common ones is for the runs whose loss has it.
    """
    shared = _fitted([(common, _loss(common | one)) for one in own])
    found: dict[str, Chosen] = {}
    for one, rest in zip(own, shared, strict=True):
        set_here = {key: setting for key, setting in one.items() if key != "name"}
        config = _build(rest | set_here)
        values = {key: getattr(config, key, (config.loss_options or {}).get(key)) for key in set_here}
        name = _slug(one["name"].value) if "name" in one else name_of(values)
        if name in found and found[name].config != config:
            raise UserError(f"two different runs would be called {name}: choose other names")
        found.setdefault(name, Chosen(name, values, config))
    return [
        Chosen(name, values, dataclasses.replace(config, out=config.out / name))
        for name, values, config in found.values()
    ]


def name_of(values: Mapping[str, Any]) -> str:
    """A folder's name that says what was set.

    >>> name_of({"loss": "ipo", "learning_rate": 1e-6, "tau": 0.1, "eval_data": ("a/b.jsonl", "c")})
    'loss-ipo_learning-rate-1e-06_tau-0.1_eval-data-a-b.jsonl+c'
    """
    return "_".join(f"{key.replace('_', '-')}-{_slug(value)}" for key, value in values.items()) or "run"


def _slug(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(map(_slug, value))
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    text = value.__name__ if hasattr(value, "__name__") else value if isinstance(value, str) else described(value)
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.") or "run"


def _fitted(given: Sequence[tuple[Settings, Any]]) -> list[Settings]:
    """Settings, each for a loss, without the options of other losses; UserError for what is none of any."""
    kinds = {id(loss): loss for _, loss in given}  # an object of one's own need not be hashable
    options = {of: set(losses.options_of(loss)) for of, loss in kinds.items()}

    def fits(key: str, loss: Any) -> bool:
        return key in options[id(loss)] or (key in FIELDS and not (key == "reference" and _without_reference(loss)))

    fitted = [{key: one for key, one in of_run.items() if fits(key, loss)} for of_run, loss in given]
    used = {key for of_run in fitted for key in of_run}
    names = [*dict.fromkeys(loss for loss in kinds.values() if isinstance(loss, str))]
    for key, setting in ((key, setting) for of_run, _ in given for key, setting in of_run.items()):
        if key == "reference" and key not in used:
            raise UserError(setting.says(key, f"has no effect: {', '.join(names)} compare with no reference"))
        if key not in used:
            raise UserError(settings.unknown(key, setting, [*CHOICE, *set().union(*options.values())], names))
    return fitted


def _without_reference(loss: Any) -> bool:
    return isinstance(loss, str) and loss in losses.LOSSES and not losses.LOSSES[loss].needs_reference


def _loss(given: Settings) -> Any:
    return given["loss"].value if "loss" in given else Train.loss


def _build(given: Settings) -> Train:
    loss = _loss(given)
    if isinstance(loss, str):
        return settings.build(Train, given, needed_by="sweep()")
    rest = {key: setting for key, setting in given.items() if key != "loss"}  # an object, which no text can say
    return dataclasses.replace(settings.build(Train, rest, needed_by="sweep()"), loss=loss, loss_options=None)


def _given(values: Mapping[str, Any], where: str) -> Settings:
    """What was set from Python; a loss that has a name is said by it and its options."""
    values = dict(values)
    if "loss" in values:
        values["loss"], options = losses.spec_of(values["loss"])
        values = options | values
    return {key: Setting(_plain(value), where) for key, value in values.items() if value is not None}


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value


def _sampling(model: str, samples: int, max_new_tokens: int | None, reward: Any, common: Mapping[str, Any]) -> Sampling:
    longest = positions(load_config(model))
    default = MAX_NEW_TOKENS if longest is None else min(MAX_NEW_TOKENS, longest // 2)
    sampling = Sampling(samples, max_new_tokens or default, common.get("seed", 0))
    if reward is None:
        return sampling
    where = {key: common[key] for key in ("dtype", "device") if key in common}
    return dataclasses.replace(sampling, reward=load_reward(reward, **where), reward_is=identity(reward))


# --- and running them ---------------------------------------------------------------------------


class Reader:
    """Reads and encodes the same data once, however many runs ask for them."""

    def __init__(self) -> None:
        self._known: dict[Any, Prepared] = {}

    def __call__(self, config: Any, tokenizer: Any, unit: Unit, length: int | None, display: Display) -> Prepared:
        key = (unit, length, *(getattr(config, name) for name in OF_DATA))
        if key not in self._known:
            self._known[key] = prepare(config, tokenizer, unit, length, display)
        return self._known[key]


class Planned(NamedTuple):
    name: str
    own: dict[str, Any]
    job: Job

    @property
    def finished(self) -> bool:
        return (self.job.out / "results.json").exists()


@dataclass(frozen=True)
class Sweeping:
    """The runs of a sweep, planned; ``perform`` trains and measures those that are not done yet."""

    out: Path
    runs: list[Planned]
    sampling: Sampling

    @classmethod
    def plan(cls, out: Path, chosen: Sequence[Chosen], sampling: Sampling) -> Sweeping:
        """UserError for anything that a run would stumble over later, so that none starts before all are right."""
        _check_folder(out, chosen)
        reader = Reader()
        runs = []
        with Display(0, "set-up") as display:
            for name, own, config in chosen:
                loss = losses.make_loss(config.loss, config.loss_options)
                runs.append(Planned(name, own, Job.plan(config, loss, display, reader)))
        sweeping = cls(out, runs, sampling)
        for planned in runs:
            if planned.finished:
                results = _read(planned.job.out / "results.json")
                planned.job.check_unchanged(results["data"]["fingerprint"], results.get("code"))
            if sampling.responses:
                sweeping._asked(planned.job)
        return sweeping

    def description(self) -> str:
        """What ``--dry-run`` prints."""
        width = max(len(planned.name) for planned in self.runs)
        lines = [f"{counted(len(self.runs), 'run')} in {self.out}"]
        for planned in self.runs:
            done = ", finished" if planned.finished else ""
            steps, rate = planned.job.schedule.steps, planned.job.schedule.peak
            lines.append(f"  {planned.name:<{width}}  {planned.job.loss}, {counted(steps, 'step')} at {rate:g}{done}")
        return "\n".join([*lines, "the first of them:", self.runs[0].job.description()])

    def perform(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The results, which are written and printed too; ``config`` is what they say was asked for.

        Stopped after a signal; the run that it met has saved all.
        """
        at = ""
        try:
            origin = self._start() if self.sampling.reward else []
            found = []
            for number, planned in enumerate(self.runs, 1):
                at = f"run {number} of {len(self.runs)}: {planned.name}"
                _say(f"{at}{', finished before' if planned.finished else ''}")
                found.append(self._perform(planned))
            results: dict[str, Any] = {"runs": found}
            if points := origin + [point for record in found if (point := _point(record))]:
                results["frontier"] = {"points": points}
            self._write(results, config)
        except Stopped as stopped:
            raise Stopped(f"{at}: {stopped}") from None
        except KeyboardInterrupt:
            where = at or "the reference's samples"
            raise Stopped(f"stopped at {where}; all is saved: continue with the same command and --resume") from None
        return results

    def _perform(self, planned: Planned) -> dict[str, Any]:
        """One run and its estimates, as results.json tells of it."""
        record = {"name": planned.name, "settings": planned.own}
        if not planned.finished:
            try:
                with redirect_stdout(sys.stderr):  # stdout is for the sweep's own results
                    execute(planned.job, start)
            except RunFailed as error:
                _say(f"{planned.name} failed: {error}")
                return {**record, "status": "failed", "error": str(error)}
        results = _read(planned.job.out / "results.json")
        kept = ("method", "loss", "steps", "skipped_steps", "training", "held_out", "seconds", "peak_memory", "data")
        record |= {"status": "done", **{key: results[key] for key in kept}}
        if self.sampling.responses:
            file = planned.job.out / "estimate.json"
            try:
                record["estimate"] = self._measured(file, str(planned.job.out / "model"), planned.job)
            except (UserError, RunFailed) as error:  # the policy went astray; the other runs have their figures
                _say(f"{planned.name} failed: {error}")
                record |= {"status": "failed", "error": str(error)}
        return record

    def _start(self) -> list[dict[str, Any]]:
        """The reference's own place, or those of several; also the first that calls the reward, before any training."""
        of = {_reference(planned.job): planned.job for planned in reversed(self.runs)}
        points = []
        for number, (reference, job) in enumerate(reversed(of.items())):
            file = self.out / (f"reference-{number}.json" if number else "reference.json")
            found = self._measured(file, reference, job)
            name = f"reference {reference}" if len(of) > 1 else "reference"
            points.append(_placed(name, found))
        return points

    def _measured(self, file: Path, policy: str, job: Job) -> dict[str, Any]:
        """From the file if it is about the same samples, else estimated now."""
        asked, reference = self._asked(job), _reference(job)
        prompts = [unit.prompt for unit in asked]
        key = self.sampling.key([policy, reference], prompts)
        if file.exists() and (known := _read(file)).pop("of", None) == key:
            return known
        _say(f"{counted(self.sampling.responses, 'response')} of {policy}")
        encoder = Encoder(job.tokenizer, job.config.max_length, job.config.overlong, job.config.train_on)
        texts = _texts(asked, encoder, job.config) if self.sampling.reward else {}
        found = _as_json(measure(policy, reference, encoder, prompts, texts, self.sampling, job.config))
        _write(file, json.dumps({"of": key, **found}, indent=2))
        return found

    def _asked(self, job: Job) -> list[Encoded]:
        return choose(job.data.held_out or job.data.train, self.sampling, positions(load_config(job.config.model)))

    def _write(self, results: dict[str, Any], config: Mapping[str, Any]) -> None:
        from prefopt.report.frontier import of_sweep  # matplotlib takes a second to import

        file, picture = self.out / "results.json", of_sweep(results)
        try:
            write_results(file, config, results)
        except OSError as error:
            raise RunFailed(f"{file}: cannot be written ({error.strerror}); the runs are kept: use --resume") from error
        show.table(results)
        print(f"\nresults  {file}")
        (self.out / "frontier.svg").unlink(missing_ok=True)
        if picture:
            _write(self.out / "frontier.svg", picture)
            print(f"picture  {self.out / 'frontier.svg'}")
        try:
            written = report_on([self.out], self.out / "report.html")
        except OSError as error:
            raise RunFailed(f"{self.out / 'report.html'}: cannot be written ({error.strerror})") from error
        if written:
            print(f"report   {self.out / 'report.html'}")


def _check_folder(out: Path, chosen: Sequence[Chosen]) -> None:
    if (out / "config.yaml").exists():
        raise UserError(f"--out {out} holds a run, and no sweep: choose another folder")
    resume = any(one.config.resume for one in chosen)
    if not resume and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} is not empty: continue its sweep with --resume, or choose another folder")


def _reference(job: Job) -> str:
    """What the policy is compared with: where its loss knows no reference, the model that it started from."""
    return getattr(job.config, "reference", None) or job.config.model


def _texts(asked: Sequence[Encoded], encoder: Encoder, config: settings.Training) -> dict[str, Prompt]:
    """What was written where these prompts come from, by `prompt_key`: a template has made more of it."""
    units = {unit.source: unit for unit in asked}
    sources = [open_source(spec, config.format) for spec in (*config.data, *config.eval_data)]
    found = (item for source in sources for item in source if item.source in units)
    examples = [item for item in found if isinstance(item, Example)]
    ids = [units[e.source].prompt for e in examples]
    read = _answered(ids, [e.prompt for e in examples], encoder)
    return {prompt_key(key): prompt for key, prompt in zip(ids, read, strict=True)}


def _answered(ids: Sequence[np.ndarray], prompts: Sequence[Prompt], encoder: Encoder) -> Iterator[Prompt]:
    """What of these prompts the policy answers, by what it reads: all of each, or what stands before its first answer.

    The latter with --train-on all-assistant, except where a template shows an answer otherwise later on.
    """
    if encoder.train_on != "all-assistant":
        yield from prompts
        return
    begun = [prompt if isinstance(prompt, str) else prompt[: _first_answer(prompt)] for prompt in prompts]
    for prompt, beginning, seen, read in zip(prompts, begun, encoder.prompts(begun), ids, strict=True):
        tail = min(len(seen), len(read)) - 1  # --overlong may have cut what stands between BOS and the end
        yield beginning if np.array_equal(seen[-tail:], read[-tail:]) else prompt


def _first_answer(messages: Sequence[Message]) -> int:
    return next((i for i, message in enumerate(messages) if message.role == "assistant"), len(messages))


def _point(record: Mapping[str, Any]) -> dict[str, Any] | None:
    found = record.get("estimate", {})
    return _placed(record["name"], found) if found.get("reward") else None


def _placed(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    point: dict[str, Any] = {"name": name}
    for axis in ("kl", "reward"):
        point |= {axis: found[axis]["value"], f"{axis}_interval": [found[axis]["low"], found[axis]["high"]]}
    return point


def _as_json(found: Estimate) -> dict[str, Any]:
    return {
        key: value._asdict() if hasattr(value, "_asdict") else value
        for key, value in found._asdict().items()
        if value is not None
    }


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not readable as JSON ({error}): delete it, and --resume makes it again") from None


def _write(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole(file) as opened:
            opened.write(text + "\n")
    except OSError as error:
        raise RunFailed(f"{file}: cannot be written ({error.strerror}); the runs are kept: use --resume") from error


def _say(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)

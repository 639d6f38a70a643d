"""What a run came to: figures before and after, the model with its card, and a few words."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError

from prefopt.data.encode import Encoder
from prefopt.errors import RunFailed
from prefopt.model.language_model import LanguageModel
from prefopt.model.load import readable
from prefopt.statistics import proportion
from prefopt.train import evidence, seen
from prefopt.train.card import model_card, write_results
from prefopt.train.guard import Guard
from prefopt.train.job import Job
from prefopt.train.loop import Evaluation
from prefopt.train.metrics import peak_memory, read_metrics
from prefopt.train.summary import render, summarize
from prefopt.types import Encoded
from prefopt.whole import whole_folder

log = logging.getLogger(__name__)


def described(evaluation: Evaluation, units: Sequence[Encoded]) -> dict[str, float]:
    """Averages, and for pairs the accuracy's interval and how far margins follow length."""
    if not evaluation.accuracies:
        return evaluation.values | {"examples": len(units)}
    lengths = [[len(response) for response in unit.responses] for unit in units]
    longer = [best - sum(others) / len(others) for best, *others in lengths if others]  # as margins are
    values = with_interval(evaluation.values, evaluation.accuracies, [u.prompt_key for u in units])
    if len(longer) == len(evaluation.margins):
        values["length_correlation"] = length_correlation(evaluation.margins, longer)
    return values


def with_interval(
    figures: Mapping[str, float], accuracies: Sequence[float], prompts: Sequence[str]
) -> dict[str, float]:
    """``figures`` and the 95 % interval of the accuracy: ``accuracies`` [P] and ``prompts`` [P] (keys), one per pair.

    >>> with_interval({"rewards/accuracies": 1.0}, [1.0, 1.0], ["p", "p"])["prompts"]
    1
    """
    more: dict[str, float] = {"pairs": len(prompts), "prompts": len(set(prompts))}
    if len(accuracies) and not np.isnan(accuracies).any():
        _, low, high = proportion(accuracies, prompts)
        more |= {"rewards/accuracies_low": low, "rewards/accuracies_high": high}
    return {**figures, **more}


def length_correlation(margins: Sequence[float], length_differences: Sequence[float]) -> float:
    """Pearson's r of margins [P] and |y_w| − |y_l| [P], in tokens; 0.0 where either does not vary.

    >>> length_correlation([1.0, 2.0, 3.0], [10, 20, 30])
    1.0
    """
    x, y = np.asarray(margins, float), np.asarray(length_differences, float)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return round(float(np.corrcoef(x, y)[0, 1]), 12)


def results(job: Job, lm: LanguageModel, steps: int, guard: Guard, seconds: float) -> dict[str, Any]:
    """What results.json holds of every run."""
    return {
        "method": job.method,
        "loss": repr(job.loss),
        "steps": steps,
        "skipped_steps": guard.skipped,
        "held_out_seen": seen.among(job.config.model, job.data.held_out),
        "seconds": round(seconds, 1),
        "peak_memory": peak_memory(),
        "read_as": lm.way,
        "data": {"fingerprint": job.data.fingerprint, **job.data.counts},
        "code": job.code,
    }


def around(job: Job, steps: tuple[int, int], split: str) -> dict[str, dict[str, float]]:
    """A split's figures before and after, from the metrics file, so that a resumed run has those before too."""
    history = read_metrics(job.metrics_file)

    def at(step: int) -> dict[str, float]:
        record = next((r for r in history if (r["step"], r["split"]) == (step, split)), {})
        return {name: value for name, value in record.items() if name not in ("step", "split")}

    before, after = steps
    return {"before": at(before), "after": at(after)}


def sample(job: Job, lm: LanguageModel, when: Literal["before", "after"]) -> None:
    """What the model answers to a few prompts, held out if there are such; a reward model answers none."""
    if not lm.bare.can_generate():
        return
    encoder = Encoder(job.tokenizer, job.config.max_length, job.config.overlong, job.config.train_on)
    evidence.write_samples(job.out / "samples.jsonl", lm, encoder, job.data.held_out or job.sample, when)


def write(job: Job, lm: LanguageModel, figures: dict[str, Any], scored: Mapping[str, evidence.Scored]) -> None:
    """All that a run leaves behind; then the closing words on the screen. RunFailed when the disk is full."""
    sample(job, lm, "after")
    evidence.write_pairs(job.out / "pairs.jsonl", job.tokenizer, scored)
    with left_in(job.out / "model"):
        save_model(job, lm, model_card(job.config, figures))
        write_results(job.out / "results.json", job.config, figures)
        reported = report_on([job.out], job.out / "report.html")
    summary = summarize(read_metrics(job.metrics_file), figures)
    render(summary, figures)
    print(f"\nmodel    {job.out / 'model'}\nresults  {job.out / 'results.json'}")
    if reported:
        print(f"report   {job.out / 'report.html'}")


@contextmanager
def left_in(place: Path) -> Iterator[None]:
    """RunFailed where what a run leaves behind cannot be written, within the block."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise RunFailed(
            f"{place}: cannot be written ({error}); the checkpoints are untouched: "
            "make room, then run the same command with --resume"
        ) from error


def report_on(folders: Sequence[Path], out: Path) -> bool:
    """Whether there is a page: one that cannot be drawn costs the page, not the run."""
    from prefopt import report  # matplotlib takes a second to import

    try:
        report.write(folders, out)
        return True
    except OSError:
        raise
    except Exception as error:
        log.warning("no report.html: %s: %s; the run is complete without it", type(error).__name__, error)
        return False


def save_model(job: Job, lm: LanguageModel, card: str) -> None:
    """A folder that ``AutoModelForCausalLM.from_pretrained`` reads."""
    with whole_folder(job.out / "model") as aside:
        lm.save(aside)
        job.tokenizer.save_pretrained(aside)
        readable(aside)
        seen.write(aside, job.config.model, job.data.train)
        (aside / "README.md").write_text(card, encoding="utf-8")

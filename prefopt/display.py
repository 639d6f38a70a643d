"""What a person sees while work goes on: a live bar on a terminal, a few plain lines elsewhere.

Everything goes to stderr, so that stdout holds results only. Text from data or models is printed as text:
no markup in it is obeyed and no control character reaches the terminal.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, NamedTuple

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from prefopt.progress import Advance
from prefopt.terminal import console, counted, duration, printable, size
from prefopt.train.metrics import peak_memory
from prefopt.train.table import OF_NO_PAIR, undecided

LINES_BY_SHARE = 10
"""plain lines for the steps of a run: one every tenth of it,"""
LINE_SECONDS = 30.0
"""and one after so long a silence,"""
SILENCE_GROWS = 1 / 20
"""or after this share of the time passed: a run of ten hours gets about a hundred lines, not a thousand"""


class Figure(NamedTuple):
    """How a metric is shown: its short name, its number in about ``width`` letters, whether it stands below the bar."""

    short: str
    text: Callable[[float], str]
    width: int
    live: bool = True


FIGURES = {
    "loss": Figure("loss", "{:.4f}".format, 7),
    "rewards/accuracies": Figure("accuracy", "{:.3f}".format, 5),
    "rewards/margins": Figure("margin", "{:+.3f}".format, 7),
    "rewards/chosen": Figure("desirable", "{:+.3f}".format, 7),  # where there are no pairs
    "rewards/rejected": Figure("undesirable", "{:+.3f}".format, 7),
    "reward": Figure("reward", "{:+.3f}".format, 7),
    "kl": Figure("kl", "{:.2f}".format, 6),
    "clipfrac": Figure("clipfrac", "{:.3f}".format, 5),
    "approx_kl": Figure("approx_kl", "{:.4f}".format, 6, live=False),
    "explained_variance": Figure("explained", "{:+.2f}".format, 5),
    "entropy": Figure("entropy", "{:.2f}".format, 5),
    "response_length": Figure("length", "{:.1f}".format, 5),
    "grad_norm": Figure("grad_norm", "{:.3g}".format, 8, live=False),
    "learning_rate": Figure("lr", "{:.2e}".format, 8, live=False),
    "tokens_per_second": Figure("tokens/s", "{:,.0f}".format, 7),
}


class Display:
    """Progress, evaluations, notes and warnings of one piece of work; the same calls on a terminal and without.

    ``start``: steps that a resumed run has already done. ``terminal=None`` finds out.

    >>> with Display(2, "train", terminal=False, file=sys.stdout, clock=lambda: 0.0, memory=lambda: 2_000_000_000) as d:
    ...     d.step(1, {"loss": 0.6931, "rewards/accuracies": 0.5})
    ...     d.evaluation(1, {"loss": 0.7})
    ...     d.step(2, {"loss": 0.6, "rewards/accuracies": 0.75})
    train  2 steps
    train  step 1/2  loss  0.6931  accuracy 0.500  memory 2.0 GB  left ?
    eval   step 1/2  loss  0.7000
    train  step 2/2  loss  0.6000  accuracy 0.750  memory 2.0 GB  left 0:00
    train  done: 2 steps in 0:00
    """

    def __init__(
        self,
        total_steps: int,
        what: str,
        terminal: bool | None = None,
        start: int = 0,
        file: IO[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        memory: Callable[[], int] = peak_memory,
    ) -> None:
        file = sys.stderr if file is None else file
        if terminal is None:
            terminal = file.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self.total, self.what, self.terminal = total_steps, printable(what), terminal
        self._start = self._step = start
        self._first: tuple[int, float] | None = None  # the first step seen, and when
        self._clock, self._memory = clock, memory
        self._console = console(file, terminal)
        self._began = clock()
        self._lines = Pacing(self._began)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            _Done(),
            _Pace(clock),
            console=self._console,
            expand=True,
            get_time=clock,
        )
        self._figures = Text(no_wrap=True, overflow="ellipsis")
        self._warnings = _ToDisplay(self)
        self._live: Live | None = None

    def __enter__(self) -> Display:
        logging.getLogger("prefopt").addHandler(self._warnings)
        resumed = f", from step {self._start}" if self._start else ""
        if self.total:
            self._line(self.what, f"{counted(self.total, 'step')}{resumed}")
            self._bar = self._bars.add_task(
                self.what, total=self.total, completed=self._start, first=(self._start, self._began), unit=""
            )
        if self.terminal:
            # stdout is left alone where it leads to a file: what is printed there is a result.
            self._live = Live(
                Group(self._bars, self._figures),
                console=self._console,
                transient=True,
                redirect_stdout=sys.stdout.isatty(),
            )
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        logging.getLogger("prefopt").removeHandler(self._warnings)
        if self._live:
            self._live.stop()
            self._live = None
        if self.total:
            end = "done" if self._step == self.total and kind is None else f"stopped at step {self._step:,}"
            done = self._step - self._start
            self._line(self.what, f"{end}: {counted(done, 'step')} in {duration(self._clock() - self._began)}")

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """``step`` steps are done; ``values`` are the last one's metrics."""
        self._step, now = step, self._clock()
        self._first = self._first or (step, now)
        done = (step - self._start) / max(1, self.total - self._start)
        if self.terminal:
            self._bars.update(self._bar, completed=step, first=self._first)
            self._figures.plain = "  " + _row(values, live=True) + f"  memory {size(self._memory())}B"
        elif self._lines.due(now, done) or step == self.total:
            left = _left(step, self.total, now, self._first)
            self._line(self.what, f"{self._at(step)}  {_row(values)}  memory {size(self._memory())}B  left {left}")

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Held-out figures; the line stays."""
        self._line("eval", f"{self._at(step)}  {_row(values)}", "bold cyan")

    def note(self, text: str) -> None:
        self._console.print(Text(printable(text)))

    def warn(self, text: str) -> None:
        self._console.print(Text("warning: " + printable(text), style="yellow"))

    @contextmanager
    def pass_(self, name: str, total: float, unit: str = "") -> Iterator[Advance]:
        """One pass over ``total`` things, or bytes ("B"); call what it yields with how many more are done.

        One that took less than a second leaves no line behind.

        >>> now = 0.0
        >>> with Display(0, "train", terminal=False, file=sys.stdout, clock=lambda: now) as d:
        ...     with d.pass_("reference log-probs", 100) as advance:
        ...         now = 40.0
        ...         advance(100)
        reference log-probs  100 done in 0:40, 2.5/s
        """
        name, began, done = printable(name), self._clock(), 0.0
        lines = Pacing(began, shares=None)
        bar = self._bars.add_task(name, total=total, first=(0, began), unit=unit)

        def advance(more: float) -> None:
            nonlocal done
            done += more
            self._bars.update(bar, completed=done)
            now = self._clock()
            if not self.terminal and lines.due(now, 0) and done < total:
                left = _left(done, total, now, (0, began))
                self._line(name, f"{_amount(done, unit)}/{_amount(total, unit)}  left {left}")

        try:
            yield advance
        finally:
            self._bars.remove_task(bar)
            seconds = self._clock() - began
            if seconds >= 1:
                share = _amount(done, unit)
                share += "" if round(done) == round(total) else f" of {_amount(total, unit)}"
                self._line(name, f"{share} done in {duration(seconds)}, {_amount(done / seconds, unit, 1)}/s")

    def _at(self, step: int) -> str:
        return f"step {step:>{len(str(self.total))}}/{self.total}"

    def _line(self, kind: str, text: str, style: str = "bold") -> None:
        """Columns start at the same place, whether the line is of training or of an evaluation."""
        self._console.print(Text.assemble((f"{kind:<{max(4, len(self.what))}}", style), "  ", text))


class _ToDisplay(logging.Handler):
    """Warnings that the package logs while a display is open go through it, above the bar."""

    def __init__(self, display: Display) -> None:
        super().__init__(logging.WARNING)
        self._display = display

    def emit(self, record: logging.LogRecord) -> None:
        self._display.warn(record.getMessage())


class Pacing:
    """When the next plain line is due: often enough to be company, too seldom to be a flood."""

    def __init__(self, began: float, shares: int | None = LINES_BY_SHARE) -> None:
        self._began = self._last = began
        self._shares, self._printed = shares, 0

    def due(self, now: float, done: float) -> bool:
        """``done`` in [0, 1]. True at each tenth of the work, or after too long a silence."""
        share = int(done * self._shares + 1e-9) if self._shares else 0
        silence = max(LINE_SECONDS, (now - self._began) * SILENCE_GROWS)
        if share <= self._printed and now - self._last < silence:
            return False
        self._last, self._printed = now, max(share, self._printed)
        return True


def _amount(count: float, unit: str, digits: int = 0) -> str:
    """
    >>> _amount(2500, "B"), _amount(2500, ""), _amount(2.5, "", 1)
    ('2.5 kB', '2,500', '2.5')
    """
    return f"{size(count)}{unit}" if unit else f"{count:,.{digits}f}"


class _Done(ProgressColumn):
    """How much of all."""

    def render(self, task: Task) -> Text:
        assert task.total is not None
        unit = task.fields["unit"]
        return Text(f"{_amount(task.completed, unit)}/{_amount(task.total, unit)}")


class _Pace(ProgressColumn):
    """How many a second, and the time left at that rate."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock

    def render(self, task: Task) -> Text:
        assert task.total is not None
        done, now, first, unit = task.completed, self._clock(), task.fields["first"], task.fields["unit"]
        known = done > first[0] and now > first[1]
        rate = f"{_amount((done - first[0]) / (now - first[1]), unit, 1)}/s  " if known else ""
        return Text(f"{rate}{_left(done, task.total, now, first)} left")


def _left(done: float, total: float, now: float, first: tuple[float, float]) -> str:
    """The time that the rest takes, at the rate since ``first`` = (done then, when)."""
    before, began = first
    return duration((now - began) * max(0, total - done) / (done - before)) if done > before else "?"


def _row(values: Mapping[str, float], live: bool = False) -> str:
    """The figures that there are, as ``key value`` pairs; padded, so that rows align. ``live``: the bar's.

    >>> _row({"loss": 0.5, "rewards/chosen": 3.0, "rewards/margins": 1.25, "grad_norm": 2.0}, live=True)
    'loss  0.5000  margin  +1.250'
    >>> _row({"rewards/accuracies": 0.125, "rewards/margins": 1e-7})  # the first step: policy and reference are one
    'accuracy     –  margin  +0.000'
    >>> _row({"rewards/chosen": 0.5, "rewards/rejected": -0.25})
    'desirable  +0.500  undesirable  -0.250'
    """
    shown = []
    hidden = OF_NO_PAIR if "rewards/margins" in values else set()
    for name, figure in FIGURES.items():
        if name in values and name not in hidden and (figure.live or not live):
            text = "–" if name == "rewards/accuracies" and undecided(values) else figure.text(values[name])
            shown.append(f"{figure.short} {text:>{figure.width}}")
    return "  ".join(shown)

"""The command line as a person types it: help at once, one configuration out of flags and YAML, and exit codes."""

import errno
import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import prefopt
from prefopt import config
from prefopt.cli import main
from prefopt.commands import COMMANDS
from prefopt.errors import RunFailed, Stopped, UserError

TRAIN = ["train", "--model", "base", "--data", "prefs.jsonl", "--out", "runs/a"]


class Fake(types.ModuleType):
    """Stands in for what a command runs, and keeps what it was given."""

    def __init__(self) -> None:
        super().__init__("fake_commands")
        self.calls: list[tuple[Any, ...]] = []
        self.does: Callable[[], None] = lambda: None

    def run(self, *arguments: Any) -> None:
        self.calls.append(arguments)
        self.does()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    module = Fake()
    monkeypatch.setitem(sys.modules, "fake_commands", module)
    for name, command in COMMANDS.items():
        monkeypatch.setitem(COMMANDS, name, command._replace(function="fake_commands:run"))
    return module


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "prefopt", *words], capture_output=True, text=True, timeout=120)


# --- help ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--help"], [], ["-h"], *([name, "--help"] for name in COMMANDS)])
def test_help_fits_a_screen(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("usage: prefopt")
    assert len(lines) < 60
    assert max(map(len, lines)) <= 100


def test_help_imports_nothing_slow() -> None:
    script = (
        "import sys\nfrom prefopt.cli import main\n"
        "for words in (['--help'], ['train', '--help'], ['check', '--help-all']): assert main(words) == 0\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'numpy', 'pandas', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_of_train_shows_the_losses_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    from prefopt.losses import LOSSES, make_loss

    main(["train", "--help"])
    lines = capsys.readouterr().out.splitlines()
    for name in LOSSES:
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        words = line.split()[1:]
        options = {key[2:].replace("-", "_"): value for key, value in zip(words[::2], words[1::2], strict=True)}
        assert make_loss(name, options) == make_loss(name)


def test_help_explains_the_options_of_one_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Mine:\n"
        '    sharp: float\n    """how sharp it is"""\n    turns: int = 3\n    each: list[float] | None = None\n'
        "    mode: str | None = None\n"
        "    def __call__(self, policy, reference, preferences): ...\n"
    )
    assert main(["train", "--loss", f"{tmp_path}/mine.py:Mine", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "  --sharp NUMBER       how sharp it is\n  --turns INTEGER      [3]\n  --mode TEXT\n" in shown
    assert "simpo" not in shown
    assert main(["train", "--loss=ipo", "-h"]) == 0 and "--tau NUMBER" in capsys.readouterr().out
    assert main(["train", "--loss", "ipp", "--help"]) == 2 and "did you mean ipo?" in capsys.readouterr().err


def test_the_layouts_of_data_are_in_help_all_of_check(capsys: pytest.CaptureFixture[str]) -> None:
    from prefopt.data.formats import LAYOUTS

    assert main(["check", "--help-all"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    _, listed = shown.split("layouts of the data, for --format:\n")
    assert [line.split()[0] for line in listed.splitlines() if line[2] != " "] == [*LAYOUTS]
    assert main(["check", "--help"]) == 0 and "prefopt check --help-all" in capsys.readouterr().out


def test_rare_flags_are_in_help_all(capsys: pytest.CaptureFixture[str]) -> None:
    main(["train", "--help"])
    short = capsys.readouterr().out
    main(["train", "--help-all"])
    long = capsys.readouterr().out
    assert "--weight-decay" not in short and "--help-all" in short
    assert all(config.flag(flag.key) in long for flag in COMMANDS["train"].flags())
    assert max(map(len, long.splitlines())) <= 100


def test_the_program_itself() -> None:
    assert run("--version").stdout == f"prefopt {prefopt.__version__}\n"
    done = run(*TRAIN, "--lerning-rate", "3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "prefopt: unknown flag --lerning-rate; did you mean --learning-rate?\n"


def test_output_that_nobody_reads() -> None:
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", "prefopt", "--help"]
    done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


# --- flags and YAML ------------------------------------------------------------------------------


def test_flags_become_a_configuration(fake: Fake) -> None:
    words = [*TRAIN, "--data", "more.jsonl=2", "--learning-rate=1e-5", "--resume", "--loss", "ipo", "--tau", "0.3"]
    assert main(words) == 0
    ((got, dry_run),) = fake.calls
    assert got == config.Train(
        model="base",
        data=("prefs.jsonl", "more.jsonl=2"),
        out=Path("runs/a"),
        learning_rate=1e-5,
        resume=True,
        loss="ipo",
        loss_options={"tau": 0.3},
    )
    assert dry_run is False


def test_flags_override_the_file(fake: Fake, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("model: base\ndata: [a, b]\nout: runs/a\nresume: true\nbeta: 0.5\nepochs: 7\n")
    assert main(["train", "--config", str(file), "--data", "c", "--resume=false", "--beta", "0.2"]) == 0
    ((got, _),) = fake.calls
    assert (got.data, got.resume, got.loss_options, got.epochs) == (("c",), False, {"beta": 0.2}, 7)


def test_dry_run_is_passed_on(fake: Fake) -> None:
    assert main([*TRAIN, "--dry-run"]) == 0
    assert main(["sft", *TRAIN[1:], "--dry-run"]) == 0
    assert [call[1] for call in fake.calls] == [True, True]
    assert main(["demo", "--dry-run"]) == 2  # takes no such flag


def test_print_config_can_be_fed_back(fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TRAIN, "--print-config", "--loss", "simpo", "--gamma", "0.7", "--learning-rate", "3e-7"]) == 0
    said = capsys.readouterr().out
    assert not fake.calls
    assert yaml.safe_load(said)["gamma"] == 0.7
    (tmp_path / "a.yaml").write_text(said)
    assert main(["train", "--config", str(tmp_path / "a.yaml"), "--print-config"]) == 0
    assert capsys.readouterr().out == said


def test_arguments_without_a_flag(fake: Fake) -> None:
    assert main(["check", "a.jsonl", "b.jsonl", "--strict"]) == 0
    assert fake.calls == [(config.Check(data=("a.jsonl", "b.jsonl"), strict=True),)]


def test_a_loss_of_ones_own(fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass\n\n@dataclass(frozen=True)\nclass Mine:\n    anything: int\n"
        "    label: str = 'a'\n    fast: bool = False\n    def __call__(self, policy, reference, preferences): ...\n"
    )
    words = [*TRAIN, "--loss", f"{file}:Mine"]
    assert main([*words, "--anything", "3", "--fast", "--label", "-1"]) == 0
    assert fake.calls[0][0].loss_options == {"anything": 3, "fast": True, "label": "-1"}
    assert main(words) == 2
    assert "needs a value for anything" in capsys.readouterr().err
    assert main([*words, "--anythin", "3"]) == 2
    assert "unknown flag --anythin; did you mean --anything?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "there is no command trian; did you mean train?"),
        (["xyzzy"], "there is no command xyzzy; there are demo, check, "),
        (["train"], "prefopt train needs --model: folder or hub name of the model to start from"),
        (["train", "--modl", "base"], "unknown flag --modl; did you mean --model?"),
        (["check"], "prefopt check needs --data"),
        ([*TRAIN, "--model", "other"], "--model is given twice"),
        ([*TRAIN, "stray"], "unexpected 'stray': a value follows its flag, as in --data stray"),
        ([*TRAIN, "--seed"], "--seed needs a value: decides the order"),
        ([*TRAIN, "--seed", "--resume"], "--seed needs a value"),
        ([*TRAIN, "--seed", "1.5"], "--seed must be a whole number, not '1.5'"),
        ([*TRAIN, "--learning-rate", "fast"], "--learning-rate must be a number, not 'fast'"),
        ([*TRAIN, "--resume=maybe"], "--resume must be true or false, not 'maybe'"),
        ([*TRAIN, "--overlong", "cut"], "--overlong must be drop, cut-prompt or cut-response, not 'cut'"),
        ([*TRAIN, "--keep", "1"], "--keep must be at least 2"),
        ([*TRAIN, "--batch-size", "-3"], "--batch-size must be above 0, not -3"),
        ([*TRAIN, "--eval-every", "5"], "--eval-every has nothing to evaluate on"),
        ([*TRAIN, "--loss", "ipoo"], "there is no loss ipoo; did you mean ipo?"),
        ([*TRAIN, "--betta", "1"], "unknown flag --betta; did you mean --beta?"),
        ([*TRAIN, "--loss", "ipo", "--beta", "1"], "--beta has no effect on ipo, whose options are tau"),
        ([*TRAIN, "--beta"], "--beta must be a number, not 'true'"),
        ([*TRAIN, "--beta", "0"], "--beta must be a number above 0, not 0.0"),
        ([*TRAIN, "--loss", "orpo", "--reference", "base"], "--reference has no effect"),
        ([*TRAIN, "--config", "none.yaml"], "none.yaml: cannot read the configuration"),
        ([*TRAIN, "--print-config", "--resume"], "--print-config runs nothing: drop it, or --resume"),
        ([*TRAIN, "--print-config", "--dry-run"], "--print-config runs nothing: drop it, or --dry-run"),
        (["sft", *TRAIN[1:], "--beta", "1"], "unknown flag --beta"),
        (["score", "--model", "a", "--data", "d"], "unknown flag --model; did you mean --policy?"),
        ([*TRAIN, "--lr", "1"], "unknown flag --lr; did you mean --learning-rate?"),
        ([*TRAIN, "--output_dir", "a"], "unknown flag --output-dir; did you mean --out?"),
    ],
)
def test_mistakes(words: list[str], message: str, fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    """One clear line, exit code 2, and nothing runs."""
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.err.startswith("prefopt: ") and message in said.err
    assert said.err.count("\n") == 1 and said.out == ""
    assert not fake.calls


def test_a_typo_in_the_file_names_its_line(fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("model: base\nlerning_rate: 1e-6\n")
    assert main(["train", "--config", str(file)]) == 2
    assert capsys.readouterr().err == f"prefopt: {file}:2: unknown key lerning_rate; did you mean learning_rate?\n"


@pytest.mark.parametrize("command", ["check", "train", "sample", "score"])
def test_no_data_at_all(command: str, fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("data: []\n")
    model = ["--policy" if command == "score" else "--model", "base"]
    out = [] if command == "check" else ["--out", "a"]
    assert main([command, "--config", str(file), *model, *out]) == 2
    assert f"prefopt: {file}:1: data is empty: name at least one file" in capsys.readouterr().err


# --- exit codes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("prefs.jsonl:3: broken"), 2, "prefopt: prefs.jsonl:3: broken\n"),
        (RunFailed("the disk is full"), 1, "prefopt: the disk is full\n"),
        (Stopped("saved; continue with --resume"), 75, "prefopt: saved; continue with --resume\n"),
        (KeyboardInterrupt(), 130, "prefopt: interrupted; finished files are kept\n"),
    ],
)
def test_exit_codes(error: BaseException, code: int, said: str, fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    def does() -> None:
        raise error

    fake.does = does
    assert main(TRAIN) == code
    assert capsys.readouterr().err == said


def test_a_fault_of_our_own_shows_where(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake.does = lambda: [][0]
    assert main(TRAIN) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.endswith("prefopt: failed by a fault of its own: IndexError: list index out of range\n")


def test_a_full_disk_is_no_fault_of_ours_and_any_other_error_of_the_system_is(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    def last_words(number: int) -> str:
        def does() -> None:
            raise OSError(number, os.strerror(number), "x.html")

        fake.does = does
        assert main(TRAIN) == 1
        return capsys.readouterr().err

    assert last_words(errno.ENOSPC) == "prefopt: x.html cannot be written: No space left on device\n"
    assert "prefopt: failed by a fault of its own: PermissionError" in last_words(errno.EACCES)


def test_debugging_shows_where_a_mistake_was_found(
    fake: Fake, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFOPT_DEBUG", "1")
    assert main([*TRAIN, "--seed", "x"]) == 2
    said = capsys.readouterr().err
    assert "Traceback" in said and said.endswith("prefopt: --seed must be a whole number, not 'x'\n")


def test_sigterm_where_nothing_is_to_be_saved(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake.does = lambda: signal.raise_signal(signal.SIGTERM)
    before = signal.getsignal(signal.SIGTERM)
    assert main(TRAIN) == 130
    assert capsys.readouterr().err == "prefopt: interrupted; finished files are kept\n"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("given", "found"), [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)]
)
@pytest.mark.parametrize("by", ["cli", "examples"])
def test_threads_give_way_to_other_processes_unless_told_otherwise(by, given, found):
    root = Path(__file__).parents[1]
    begun = {"cli": "from prefopt.cli import main\nmain(['--version'])", "examples": "import examples"}[by]
    script = f"import os, sys\n{begun}\nprint(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    clean = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, env=clean | given, cwd=root
    )
    assert done.stdout.splitlines()[-1] == f"{found} False", done.stderr


def test_a_value_too_many_is_shown_with_the_flag_that_it_follows(capsys):
    assert main(["train", "--data", "a", "--eval-data", "b", "c"]) == 2
    assert "as in --eval-data c" in capsys.readouterr().err
    assert main(["train", "c"]) == 2
    assert "as in --data c" in capsys.readouterr().err

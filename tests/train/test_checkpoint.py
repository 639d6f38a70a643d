import errno
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from prefopt.errors import RunFailed, UserError
from prefopt.train import checkpoint

FILES = ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]


def save(folder: Path, step: int) -> Path:
    tensors = {
        "model": {"w": torch.full((3, 2), float(step)), "b": torch.tensor([step])},
        "optimizer": {"w.exp_avg": torch.full((3, 2), step / 7)},
    }
    return checkpoint.save(folder, step, tensors, {"step": step, "note": "ε"})


def flip(file: Path, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


DAMAGE = {
    "missing": Path.unlink,
    "truncated": truncate,
    "checksum differs": lambda file: flip(file, 8 * (file.stat().st_size - 1)),
    "too long": lambda file: file.write_bytes(file.read_bytes() + b"!"),
}


def test_what_was_saved_is_what_is_loaded(tmp_path):
    base = torch.randn(4, 6)
    model = {
        "float": base,
        "transposed": torch.randn(2, 3).T,
        "bf16": torch.randn(3).bfloat16(),
        "long": torch.arange(3),
        "bool": torch.tensor([True, False]),
        "bytes": torch.get_rng_state(),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
    }
    state = {"step": 7, "guard": {"skipped": 1}, "rates": [1e-6, 0.1], "who": "ö"}
    path = checkpoint.save(tmp_path / "checkpoints", 7, {"model": model, "nothing": {}}, state)
    loaded = checkpoint.load_newest(tmp_path / "checkpoints")
    assert (loaded.path, loaded.step, loaded.state) == (path, 7, state)
    assert loaded.tensors("nothing") == {}
    found = loaded.tensors("model")
    assert found.keys() == model.keys()
    for name, tensor in model.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_tied_weights_are_stored_once_and_come_back_tied(tmp_path):
    embedding = torch.nn.Parameter(torch.randn(50, 4))
    names = {"embed": embedding, "head": embedding, "rows": embedding[:10], "other": torch.randn(50, 4)}
    path = checkpoint.save(tmp_path, 1, {"model": names}, {})
    found = checkpoint.load_newest(tmp_path).tensors("model")
    assert found["head"] is found["embed"]
    assert all(torch.equal(found[name], tensor) for name, tensor in names.items())
    assert found["rows"].data_ptr() != found["embed"].data_ptr()
    assert (path / "model.safetensors").stat().st_size < 3 * 50 * 4 * 4


def test_a_loaded_tensor_can_be_changed_without_changing_the_file(tmp_path):
    save(tmp_path, 1)
    checkpoint.load_newest(tmp_path).tensors("model")["w"].add_(1)
    assert checkpoint.verify(tmp_path / "step-00000001") == []


def test_nothing_is_pickle(tmp_path):
    assert {file.name for file in save(tmp_path, 1).iterdir()} == set(FILES)
    for file in tmp_path.rglob("*.json"):
        json.loads(file.read_text())


def test_no_checkpoint_is_not_an_error(tmp_path):
    assert checkpoint.load_newest(tmp_path) is None
    assert checkpoint.load_newest(tmp_path / "absent") is None


def test_a_group_that_was_not_saved_is_named(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(UserError, match=r"rng\.safetensors"):
        checkpoint.load_newest(tmp_path).tensors("rng")


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_used(tmp_path, caplog, name, kind):
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    DAMAGE[kind](newest / name)
    found = checkpoint.load_newest(tmp_path)
    assert found.step == found.state["step"] == 1
    assert torch.equal(found.tensors("model")["b"], torch.tensor([1]))
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "step-00000002" in warning and name in warning and "step-00000001" in warning
    # What is wrong with the manifest itself is known less precisely.
    assert kind in warning or name == "manifest.json"


def test_every_single_bit_of_the_manifest_matters(tmp_path):
    with checkpoint.committing(tmp_path, 1) as aside:
        (aside / "state.json").write_text("{}")
    manifest = tmp_path / "step-00000001" / "manifest.json"
    whole = manifest.read_bytes()
    for bit in range(8 * len(whole)):
        flip(manifest, bit)
        assert checkpoint.verify(manifest.parent), f"bit {bit} of {whole!r}"
        manifest.write_bytes(whole)
    assert checkpoint.verify(manifest.parent) == []


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_any_flipped_bit_is_found(tmp_path_factory, data):
    path = save(tmp_path_factory.mktemp("flip"), 1)
    file = path / data.draw(st.sampled_from(FILES))
    flip(file, data.draw(st.integers(0, 8 * file.stat().st_size - 1)))
    faults = checkpoint.verify(path)
    assert faults
    assert file.name == "manifest.json" or faults == [f"{file.name}: checksum differs"]


@pytest.mark.parametrize("manifest", ["", "[]", "null", '{"format": 1}', '{"format": 1, "step": 1, "files": [1]}'])
def test_a_manifest_that_is_none(tmp_path, manifest):
    path = save(tmp_path, 1)
    (path / "manifest.json").write_text(manifest)
    assert checkpoint.verify(path)[0].startswith("manifest.json: ")


def test_all_damaged_is_an_error_that_names_each(tmp_path):
    truncate(save(tmp_path, 1) / "model.safetensors")
    (save(tmp_path, 2) / "state.json").unlink()
    with pytest.raises(UserError) as error:
        checkpoint.load_newest(tmp_path)
    for part in ("step-00000001", "model.safetensors: truncated", "step-00000002", "state.json: missing"):
        assert part in str(error.value)


def test_a_checkpoint_copied_to_another_step_is_not_taken_for_it(tmp_path):
    save(tmp_path, 1).rename(tmp_path / "step-00000002")
    with pytest.raises(UserError, match="another step"):
        checkpoint.load_newest(tmp_path)


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.iterdir())


def test_prune_keeps_the_last_k_and_removes_leftovers(tmp_path):
    for step in (90, 100, 100_000_000, 110):
        save(tmp_path, step)
    (tmp_path / ".tmp-new-step-00000120").mkdir()
    checkpoint.prune(tmp_path, keep=2)
    assert steps(tmp_path) == [110, 100_000_000]


def test_prune_never_removes_the_newest_whole_one(tmp_path):
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    for step in (3, 4):
        truncate(tmp_path / f"step-0000000{step}" / "optimizer.safetensors")
    checkpoint.prune(tmp_path, keep=2)
    assert steps(tmp_path) == [1, 2]


def test_prune_removes_nothing_when_nothing_is_whole(tmp_path):
    for step in (1, 2, 3):
        truncate(save(tmp_path, step) / "model.safetensors")
    checkpoint.prune(tmp_path, keep=2)
    assert steps(tmp_path) == [1, 2, 3]


def test_fewer_than_two_are_not_enough(tmp_path):
    with pytest.raises(UserError, match="keep: 1"):
        checkpoint.prune(tmp_path, keep=1)


def test_saving_a_damaged_step_again_mends_it(tmp_path):
    truncate(save(tmp_path, 5) / "model.safetensors")
    save(tmp_path, 5)
    assert checkpoint.load_newest(tmp_path).step == 5
    assert steps(tmp_path) == [5]


FULL = "No space left on device"


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("save_file", SafetensorError(f"Error while serializing: I/O error: {FULL} (os error 28)")),
        ("sync", OSError(errno.ENOSPC, FULL)),
        ("_identity", OSError(errno.ENOSPC, FULL)),
    ],
)
def test_a_full_disk_leaves_the_checkpoints_before_alone(tmp_path, monkeypatch, where, error):
    before = save(tmp_path, 1)

    def fail(*_, **__):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, where, fail)
        with pytest.raises(RunFailed, match=rf"step-00000002: cannot be saved .*{FULL}.*--resume"):
            save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == [before.name]
    assert checkpoint.load_newest(tmp_path).step == 1


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError])
def test_whatever_ends_a_save_leaves_no_half_of_it(tmp_path, interruption):
    save(tmp_path, 1)
    with pytest.raises(interruption), checkpoint.committing(tmp_path, 2) as aside:
        (aside / "half").write_text("…")
        raise interruption
    assert steps(tmp_path) == [1]


def test_a_disk_that_is_really_full(tmp_path):
    """A 1 MB file system of its own, where the kernel lets us have one: the second save finds it full."""
    script = f"""
set -e
mount -t tmpfs -o size=1m none {tmp_path}
exec {sys.executable} - <<'PYTHON'
import torch
from pathlib import Path
from prefopt.errors import RunFailed
from prefopt.train import checkpoint
folder = Path({str(tmp_path)!r})
tensors = {{"model": {{"w": torch.ones(150_000)}}}}
checkpoint.save(folder, 1, tensors, {{}})
try:
    checkpoint.save(folder, 2, tensors, {{}})
except RunFailed as error:
    print(error)
print([path.name for path in folder.iterdir()], checkpoint.load_newest(folder).step)
PYTHON
"""
    try:
        probe = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", tmp_path], capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if probe.returncode:
        pytest.skip("this user may not mount a file system")
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, timeout=120)
    message, found = done.stdout.splitlines()
    assert FULL in message and done.returncode == 0, done.stderr
    assert found == "['step-00000001'] 1"


def kill(*arguments: object) -> str:
    command = [sys.executable, "-m", "tests.train.saving", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_killed_at_any_moment_a_whole_checkpoint_is_found(tmp_path):
    assert "30 kills" in kill(tmp_path, "random", 30, 0, 20_000)


@pytest.mark.slow
def test_killed_200_times(tmp_path):
    assert "200 kills" in kill(tmp_path, "random", 200, 1, 1_000_000)


def test_killed_before_each_file_operation(tmp_path):
    (_, _) = kill(tmp_path, "every").splitlines()

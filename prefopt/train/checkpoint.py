"""Checkpoints that survive a crash: whole or absent, and never silently wrong.

    checkpoints/step-00000100/
        model.safetensors  optimizer.safetensors  ...   one file per group of tensors
        state.json                                      everything else
        manifest.json                                   size and xxh3-128 sum of each of them

A checkpoint is written aside, synced to the disk, given its manifest and renamed, so its folder has
its name exactly when all of it is on the disk. Nothing here is pickle, and loading runs no code.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from prefopt.errors import RunFailed, UserError
from prefopt.whole import sync, whole_folder

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose every file has been verified. Tensors are read when they are asked for."""

    path: Path
    step: int
    state: dict[str, Any]

    def tensors(self, group: str) -> dict[str, Tensor]:
        """The group's tensors by name, those that were saved as one memory as one memory again."""
        file = self.path / f"{group}.safetensors"
        if not file.exists():
            raise UserError(f"{file}: no such file, so this checkpoint is of another kind of run")
        with safe_open(file, framework="pt") as opened:
            named = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            aliases = json.loads((opened.metadata() or {}).get("aliases", "{}"))
        return named | {alias: named[name] for alias, name in aliases.items()}


def save(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
    """Write ``folder/step-00000100/`` and return it. ``state`` is whatever JSON holds.

    At most one group is copied at a time, and on the CPU only tensors that are not contiguous are.
    RunFailed when the disk is full or cannot be written; checkpoints that exist are untouched then.

    >>> import tempfile, torch
    >>> folder = Path(tempfile.mkdtemp())
    >>> save(folder, 100, {"model": {"w": torch.ones(2)}}, {"epoch": 1}).name
    'step-00000100'
    >>> newest = load_newest(folder)
    >>> newest.step, newest.state, newest.tensors("model")
    (100, {'epoch': 1}, {'w': tensor([1., 1.])})
    """
    with committing(folder, step) as aside:
        for group, named in tensors.items():
            _write_tensors(aside / f"{group}.safetensors", named)
        (aside / "state.json").write_text(json.dumps(state), encoding="utf-8")
    return _folder_of(folder, step)


@contextmanager
def committing(folder: Path, step: int) -> Iterator[Path]:
    """A folder to write into, which becomes the checkpoint of this step when the block ends well.

    A second save of the same step replaces the first, which happens when that one was damaged.
    """
    final = _folder_of(folder, step)
    try:
        with whole_folder(final) as aside:
            yield aside
            files = sorted(aside.iterdir())
            for file in files:
                sync(file)
            manifest = {"format": FORMAT, "step": step, "files": {file.name: _identity(file) for file in files}}
            (aside / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            sync(aside / MANIFEST)
            sync(aside)
    except (OSError, SafetensorError) as error:
        raise RunFailed(
            f"{final}: cannot be saved ({error}); earlier checkpoints are untouched: "
            "make room or mend the folder, then continue with --resume"
        ) from error


def load_newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint of which every file is whole; None when there is no checkpoint at all.

    A damaged one is passed over with a warning that names each bad file and what is wrong with it.
    UserError when all of them are damaged. Changes nothing on the disk.
    """
    damaged: list[str] = []
    for path in _newest_first(folder):
        if faults := verify(path):
            damaged.append(f"{path} is damaged ({'; '.join(faults)})")
            continue
        for sentence in damaged:
            log.warning("%s: it is not used, %s is", sentence, path.name)
        return Checkpoint(path, _step_of(path), json.loads((path / "state.json").read_text(encoding="utf-8")))
    if damaged:
        raise UserError(f"no checkpoint is whole, so start again with another --out: {', '.join(damaged)}")
    return None


def verify(checkpoint: Path) -> list[str]:
    """What is wrong, one sentence for each bad file; empty when the checkpoint is whole."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT or manifest["step"] != _step_of(checkpoint):
            return [f"{MANIFEST}: is for another step or version"]
        expected = {name: (entry["size"], entry["xxh3_128"]) for name, entry in manifest["files"].items()}
    except FileNotFoundError:
        return [f"{MANIFEST}: missing"]
    except OSError as error:
        return [f"{MANIFEST}: {error.strerror}"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return [f"{MANIFEST}: cannot be understood"]
    return [
        f"{name}: {fault}" for name, identity in expected.items() if (fault := _fault(checkpoint / name, *identity))
    ]


def prune(folder: Path, keep: int) -> None:
    """Keep the newest whole checkpoint and the ``keep - 1`` before it; remove all else, leftovers too.

    Newer ones that are damaged go, since the run has passed them over. When none is whole, nothing is
    removed but what a crash left half-written. Call it after ``save``, from one process only.
    """
    if keep < 2:
        raise UserError(f"keep: {keep} is too few, at least 2 checkpoints stay in case the newest is damaged")
    paths = _newest_first(folder)
    newest_whole = next((i for i, path in enumerate(paths) if not verify(path)), None)
    if newest_whole is not None:
        for path in paths[:newest_whole] + paths[newest_whole + keep :]:
            # Renamed first: a crash between two deletions must not leave a checkpoint with holes.
            os.rename(path, path.with_name(f".tmp-old-{path.name}"))
    for leftover in folder.glob(".tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _write_tensors(file: Path, named: Mapping[str, Tensor]) -> None:
    """One safetensors file. Names for one and the same memory (tied weights) are stored once."""
    kept: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple, str] = {}
    storages: set[tuple] = set()
    for name, tensor in named.items():
        tensor = tensor.detach()
        storage = (tensor.device, tensor.untyped_storage().data_ptr())
        view = (*storage, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and view in seen:
            aliases[name] = seen[view]
            continue
        # Two different views of one storage are two tensors; safetensors wants them apart.
        kept[name] = tensor.clone() if storage in storages else tensor.contiguous()
        seen[view] = name
        storages.add(storage)
    save_file(kept, file, metadata={"format": "pt", "aliases": json.dumps(aliases)})


def _identity(file: Path) -> dict[str, int | str]:
    digest = xxhash.xxh3_128()
    with file.open("rb") as opened:
        while chunk := opened.read(1 << 22):
            digest.update(chunk)
    return {"size": file.stat().st_size, "xxh3_128": digest.hexdigest()}


def _fault(file: Path, size: int, digest: str) -> str | None:
    try:
        found = file.stat().st_size
        if found != size:
            return f"{'truncated' if found < size else 'too long'}, {found} bytes instead of {size}"
        return None if _identity(file)["xxh3_128"] == digest else "checksum differs"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return error.strerror or str(error)


def _folder_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _newest_first(folder: Path) -> list[Path]:
    names = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in names if re.fullmatch(r"step-\d{8,}", path.name)), key=_step_of, reverse=True)

"""Encoded data on disk, keyed by everything that it follows from. Safetensors and JSON, no pickle.

A file that is damaged, or cannot be written, costs time and never changes a number.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from prefopt.types import Encoded, Example, Finding

if TYPE_CHECKING:
    from prefopt.data.encode import EncodedData

log = logging.getLogger(__name__)

VERSION = 1  # of the layout below and of what encoding means; raise it when either changes


def folder() -> Path:
    """PREFOPT_CACHE, or prefopt in the user's cache folder."""
    return Path(os.environ.get("PREFOPT_CACHE") or Path.home() / ".cache" / "prefopt").expanduser()


def key(tokenizer: Any, options: Sequence[object], examples: Sequence[Example]) -> str:
    """xxh3-128 over the tokenizer, its template and special tokens, the options and every example."""
    sums = xxhash.xxh3_128()

    def add(*values: object) -> None:
        sums.update(json.dumps(values).encode() + b"\n")

    specials = {k: str(v) for k, v in tokenizer.special_tokens_map.items()}
    add(VERSION, tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template, specials, *options)
    for example in examples:
        add(example.prompt, [(r.content, r.score) for r in example.responses], example.source)
    return sums.hexdigest()


def save(key: str, data: EncodedData) -> None:
    """Writes aside and renames, so that a reader sees the whole file or none."""
    examples = data.examples
    parts = [part for e in examples for part in (e.prompt, *e.responses)]
    masks = [mask for e in examples for mask in e.scored]
    arrays = {
        "ids": np.concatenate([np.zeros(0, np.int32), *parts]),
        "lengths": np.array([len(part) for part in parts], np.int64),
        "scored": np.packbits(np.concatenate([np.zeros(0, bool), *masks])),
    }
    said = {
        "examples": [(e.source, e.key, e.prompt_key, e.scores) for e in examples],
        "counts": dict(data.counts),
        "findings": [asdict(finding) for finding in data.findings],
    }
    meta = {"said": json.dumps(said), "sum": _sum(arrays, json.dumps(said))}
    try:
        folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder(), prefix=".writing-") as aside:
            save_file(arrays, written := Path(aside) / "data", meta)
            os.replace(written, _path(key))
    except OSError as error:
        log.warning("encoded data is not cached in %s: %s", folder(), error)


def load(key: str) -> EncodedData | None:
    """What was saved under the key, without notes; None if nothing was, or if it is damaged."""
    path = _path(key)
    if not path.exists():
        return None
    try:
        with safe_open(path, "np") as file:
            meta, arrays = file.metadata(), {name: file.get_tensor(name) for name in ("ids", "lengths", "scored")}
        if meta["sum"] != _sum(arrays, meta["said"]):
            raise ValueError("the checksum is wrong")
        return _read(arrays, json.loads(meta["said"]))
    except (SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
        log.warning("%s is damaged (%s): encoding again", path, error)
        return None


def _read(arrays: dict[str, np.ndarray], said: dict[str, Any]) -> EncodedData:
    from collections import Counter

    from prefopt.data.encode import EncodedData

    bounds = np.cumsum(arrays["lengths"])[:-1]
    parts = iter(np.split(arrays["ids"], bounds) if len(arrays["lengths"]) else [])
    bits, at = np.unpackbits(arrays["scored"]).astype(bool), 0
    examples = []
    for source, content_key, prompt_key, scores in said["examples"]:
        prompt = next(parts)
        responses = tuple(next(parts) for _ in scores)
        scored = []
        for response in responses:
            scored.append(bits[at : at + len(response)])
            at += len(response)
        encoded = Encoded(prompt, responses, tuple(scored), tuple(scores), source, content_key, prompt_key)
        examples.append(encoded)
    return EncodedData(examples, Counter(said["counts"]), [Finding(**f) for f in said["findings"]])


def _path(key: str) -> Path:
    return folder() / f"encoded-{key}.safetensors"


def _sum(arrays: dict[str, np.ndarray], said: str) -> str:
    sums = xxhash.xxh3_128(said.encode())
    for name in sorted(arrays):
        sums.update(arrays[name].tobytes())
    return sums.hexdigest()

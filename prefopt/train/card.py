"""What a run leaves to read: ``results.json`` for machines, and the model card for people."""

from __future__ import annotations

import html
import json
import math
import platform
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

import prefopt
from prefopt.config import Reward, Training, plain
from prefopt.terminal import printable
from prefopt.train.summary import summarize
from prefopt.train.table import table_rows
from prefopt.train.track import redact
from prefopt.whole import whole


def write_results(path: Path, config: Training | Mapping[str, Any], results: Mapping[str, Any]) -> None:
    """``results`` with configuration and versions, keys sorted and no time of day: equal runs, equal files.

    What is not a finite number is written as the string "nan", "inf" or "-inf", since JSON has no such numbers.
    """
    document = {**results, "config": redact(config), "versions": versions()}
    text = json.dumps(_finite(document), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with whole(path, errors="backslashreplace") as file:
        file.write(text + "\n")


def versions() -> dict[str, str]:
    """Of what computed the figures."""
    packages = {name: metadata.version(name) for name in ("torch", "transformers")}
    return {"python": platform.python_version(), "prefopt": prefopt.__version__, **packages}


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def model_card(config: Training, results: Mapping[str, Any]) -> str:
    """The README.md of a trained model: Markdown with YAML front matter that the Hugging Face hub reads.

    Text from outside (paths, names, options) is escaped: it cannot end a table, add a heading, a link or HTML.
    """
    return "\n\n".join(
        [
            _front_matter(config, results),
            f"# {_text(config.out.resolve().name)}",
            _introduction(config, results),
            f"## Results\n\n{_results(results)}",
            f"## Data\n\n{_data(config, results)}",
            f"## Hyperparameters\n\n{_hyperparameters(config)}",
            f"## Use\n\n{USE.replace(CAUSAL, auto_class(config))}",
            "",
        ]
    )


CAUSAL = "AutoModelForCausalLM"
USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("path/of/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/of/this/folder")
```"""


def auto_class(config: Training) -> str:
    """What transformers reads the model with."""
    return "AutoModelForSequenceClassification" if isinstance(config, Reward) else CAUSAL


def _front_matter(config: Training, results: Mapping[str, Any]) -> str:
    method = str(results.get("method", ""))
    tags = ["prefopt", *([method] if re.fullmatch(r"[\w-]+", method) else [])]  # not the path of one's own loss
    task = "text-generation" if auto_class(config) == CAUSAL else "text-classification"
    fields: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": task, "tags": tags}
    if _on_the_hub(config.model):
        fields["base_model"] = config.model
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---"


def _on_the_hub(model: str) -> bool:
    """The hub refuses a card whose base_model is a folder on somebody's disk."""
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) is not None and not Path(model).exists()


def _introduction(config: Training, results: Mapping[str, Any]) -> str:
    loss = f", loss {_text(results['loss'])}" if "loss" in results else ""
    steps = f", {results['steps']:,} optimizer steps" if "steps" in results else ""
    used = ", ".join(f"{name} {version}" for name, version in versions().items())
    method = _text(results.get("method", "training"))
    return f"{_text(config.model)}, trained by prefopt with {method}{loss}{steps}. Made with {used}."


def _results(results: Mapping[str, Any]) -> str:
    header, rows = table_rows(results)
    if not rows:
        return "None were recorded."
    summary = summarize([], results)
    parts = [_table(header, rows)]
    if any("95 %" in row[0] for row in rows):
        parts.append("Intervals are bootstraps over prompts: pairs with one prompt are not independent.")
    if summary.warnings:
        parts.append("\n".join(f"- {_text(warning)}" for warning in summary.warnings))
    return "\n\n".join(parts)


def _data(config: Training, results: Mapping[str, Any]) -> str:
    files = [["training", source] for source in config.data] + [["held-out", source] for source in config.eval_data]
    counts = [[name.replace("_", " "), _shown(value)] for name, value in results.get("data", {}).items()]
    return _table(["", ""], [[name, str(redact(value))] for name, value in files + counts])


def _hyperparameters(config: Training) -> str:
    elsewhere = {"model", "data", "eval_data", "out", "resume", "track"}
    settings = {name: value for name, value in plain(config).items() if name not in elsewhere and value is not None}
    rows = [[name, _shown(value)] for name, value in redact(settings).items()]
    return _table(["setting", "value"], rows)


def _shown(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *([_text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: object) -> str:
    r"""One line that Markdown shows as it is.

    >>> _text("a|b <script> [x](y) *z*\n# no heading")
    'a\\|b &lt;script&gt; \\[x\\](y) \\*z\\* \\# no heading'
    """
    line = " ".join(printable(str(value)).split())
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", html.escape(line, quote=False))

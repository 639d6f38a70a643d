"""Responses from a server that speaks OpenAI's protocol, such as vLLM's or SGLang's.

Text prompts go to ``/v1/completions`` as they are; messages to ``/v1/chat/completions``, where the server applies
its model's template. A key, where one is needed, is read from OPENAI_API_KEY.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, NamedTuple

from prefopt.errors import RunFailed, UserError
from prefopt.progress import untold
from prefopt.types import Content

BUSY = {408, 409, 425, 429, 500, 502, 503, 504}
"""answers that may be another one a little later"""


class Sampled(NamedTuple):
    """A response, and whether it came to its end, not to the limit of tokens."""

    text: str
    ended: bool


@dataclass(frozen=True)
class ServerGenerator:
    """Asks for ``concurrency`` prompts at a time, and again after 1, 2, 4, ... seconds where it is busy or away.

    UserError where it refuses a request; RunFailed where it is still busy or away after ``retries`` more attempts.
    """

    url: str
    model: str
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    seed: int = 0
    top_k: int = 0
    concurrency: int = 8
    retries: int = 5
    timeout: float = 600.0
    first_wait: float = 1.0
    note: Callable[[str], object] = untold
    """told why it has to be asked again"""

    def __post_init__(self) -> None:
        try:
            address = urllib.parse.urlsplit(self.url)
            known = address.scheme in ("http", "https") and address.hostname and address.port != 0
            known = known and self.url.isascii() and self.url.isprintable() and " " not in self.url
            (address.hostname or "").encode("idna")
        except ValueError:
            known = False
        if not known:
            raise UserError(f"--server {self.url} is no address: write it as http://localhost:8000")

    def __call__(self, prompts: Sequence[Content], n: int = 1) -> list[list[str]]:
        return [[sampled.text for sampled in answers] for answers in self.sampled(prompts, n)]

    def sampled(self, prompts: Sequence[Content], n: int = 1, first: int = 0) -> list[list[Sampled]]:
        """``n`` responses to each prompt; prompt i is asked for with the seed of number ``first + i``."""
        with ThreadPoolExecutor(self.concurrency) as pool:
            asked = [pool.submit(self._ask, prompt, n, first + i) for i, prompt in enumerate(prompts)]
            try:
                return [answer.result() for answer in asked]
            except BaseException:
                pool.shutdown(cancel_futures=True)  # nobody waits for the others any more
                raise

    def _ask(self, prompt: Content, n: int, number: int) -> list[Sampled]:
        body: dict[str, Any] = {"model": self.model, "max_tokens": self.max_new_tokens}
        body |= {"temperature": self.temperature, "top_p": self.top_p}
        if self.top_k:
            body["top_k"] = self.top_k
        if isinstance(prompt, str):
            path, body["prompt"] = "completions", prompt
        else:
            path, body["messages"] = "chat/completions", [message._asdict() for message in prompt]
        found: list[Sampled] = []
        while len(found) < n:  # some servers give one response, however many are asked for
            body |= {"n": n - len(found), "seed": self.seed + number + len(found)}
            answer = self._post(path, body)
            try:
                choices = sorted(answer["choices"], key=lambda choice: choice.get("index", 0))
                found += [_read(choice) for choice in choices]
            except (KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f"--server {self.url} answers something else than OpenAI's protocol has: {error}"
                ) from error
            if not choices:
                raise UserError(f"--server {self.url} answers without a response: {str(answer)[:200]}")
        return found[:n]

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        base = self.url.rstrip("/").removesuffix("/v1")
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY", "").strip():
            if not (key.isascii() and key.isprintable()):
                raise UserError("OPENAI_API_KEY holds what no key has: characters that are not plain ASCII")
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{base}/v1/{path}", json.dumps(body).encode(), headers)
        problem = ""
        for attempt in range(self.retries + 1):
            if attempt:
                self.note(f"--server {self.url} is asked again, up to {self.retries} times: {problem}")
                time.sleep(self.first_wait * 2 ** (attempt - 1))
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                said = " ".join(error.read(2000).decode(errors="replace").split())[:300]
                problem = f"{error.code} {error.reason}: {said}"
                if error.code not in BUSY:
                    raise UserError(f"--server {self.url} refuses the request: {problem}") from error
            except (OSError, HTTPException) as error:  # urllib's own errors are OSErrors
                problem = str(getattr(error, "reason", error))
            except ValueError as error:
                raise UserError(f"--server {self.url} answers with something else than JSON: {error}") from error
        raise RunFailed(f"--server {self.url} does not answer after {self.retries + 1} attempts: {problem}")


def _read(choice: dict[str, Any]) -> Sampled:
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    return Sampled(text or "", choice.get("finish_reason") != "length")

"""From an Example to the text that a tokenizer reads: chat template, control tokens, the boundary.

The rule: training sees exactly the context that inference will see. A prompt is the chat template
rendered with its generation prompt; a response is what the template renders after that, cut behind
its end-of-turn token, which one that was itself cut off does not have. In rendered text a genuine
control token is one stand-in character of Unicode's private planes, so whatever else looks like one,
in a person's words, is only text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from os.path import commonprefix
from typing import Any, NamedTuple

from jinja2 import TemplateError

from prefopt.types import Content, Example, Message

# Written into a tokenizer without a chat template, so that it is saved with the model that learnt it.
# It gives Anthropic's HH transcripts back as they were.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '\n\nAssistant: ' + message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ '\n\nHuman: ' + message['content'] }}"
    "{% else %}{{ '\n\n' + message['role'] | capitalize + ': ' + message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)

DAY = datetime(2024, 7, 26)
"""what templates that write a date take for today: the day that Llama 3's own falls back to"""
PRIVATE = re.compile("[\U000f0000-\U0010ffff]")


class Control(NamedTuple):
    """A control token of the tokenizer: its text, its id, and how it treats the text beside it."""

    content: str
    id: int
    flags: dict[str, bool]


class Controls:
    """The control tokens of a tokenizer, and for each a stand-in character that no text in use holds.

    >>> controls = Controls([Control("</s>", 2, {})], private=[])
    >>> asked = controls.quote("what does </s> mean?")            # a person's words
    >>> shown = controls.stand_in(asked + "</s>")                 # what a template made of them
    >>> shown.startswith("what does </s> mean?"), len(shown) - len("what does </s> mean?")
    (True, 1)
    >>> controls.name(shown)
    'what does </s> mean?</s>'
    """

    def __init__(self, tokens: list[Control], private: Iterable[int]):
        """``private``: code points beyond Unicode's public planes that are in use."""
        self.tokens = tokens
        need = 2 * len(tokens) + 1
        used = set(private)
        base = next(b for b in range(0xF0000, 0x10FFFE - need, need) if used.isdisjoint(range(b, b + need)))
        self.chars = {t.content: chr(base + i) for i, t in enumerate(tokens)}
        self.gap = chr(base + need - 1)
        self._quotes = {t.content: chr(base + len(tokens) + i) for i, t in enumerate(tokens)}
        self._names = {c: content for content, c in [*self.chars.items(), *self._quotes.items()]}
        longest_first = sorted(self.chars, key=len, reverse=True)
        self._written = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._begin = commonprefix(longest_first)  # noqa: RUF071  # most texts hold not even that, which is soon seen
        span = f"{chr(base)}-{chr(base + need - 2)}"
        self._any = re.compile(f"[{span}]")
        self._quoted = re.compile("[" + "".join(map(re.escape, self._quotes.values())) + "]") if tokens else None
        self.genuine = re.compile("[" + "".join(map(re.escape, self.chars.values())) + "]" if tokens else r"(?!)")

    def found(self, text: str) -> str | None:
        """The first control token that stands in the text as a person wrote it, or None."""
        match = self._written.search(text) if self._begin in text else None
        return match and match[0]

    def quote(self, text: str) -> str:
        """Hides what looks like a control token from the template and from ``stand_in``."""
        return self._written.sub(lambda m: self._quotes[m[0]], text) if self._begin in text else text

    def stand_in(self, text: str) -> str:
        """Replaces control tokens by their characters, then puts back what was quoted."""
        text = self._written.sub(lambda m: self.chars[m[0]], text) if self._begin in text else text
        return self._quoted.sub(lambda m: self._names[m[0]], text) if self._quoted else text

    def part(self, text: str) -> str:
        """Puts a gap into whatever looks like a control token, for vocabularies that match it as a word."""
        return self._written.sub(lambda m: m[0][:1] + self.gap + m[0][1:], text)

    def name(self, text: str) -> str:
        """The text as a person would read it, control tokens spelt out."""
        return self._any.sub(lambda m: self._names[m[0]], text)


def control_tokens(tokenizer: Any) -> list[Control]:
    """All special tokens of a tokenizer, in the order of their ids."""
    special = set(tokenizer.all_special_tokens)
    found = {}
    for id, token in tokenizer.added_tokens_decoder.items():
        if token.special or token.content in special:
            flags = {name: getattr(token, name) for name in ("lstrip", "rstrip", "single_word", "normalized")}
            found[token.content] = Control(token.content, id, flags)
    for content in special - set(found):
        found[content] = Control(content, tokenizer.convert_tokens_to_ids(content), {"normalized": False})
    return sorted(found.values(), key=lambda token: token.id)


class Segment(NamedTuple):
    """A piece of a response, encoded by itself; its first ``scored`` characters count."""

    text: str
    scored: int


@dataclass(slots=True)
class Rendered:
    """The text of one example. ``plain``: the prompt never went through a template, so BOS is still to come."""

    index: int
    prompt: str
    responses: tuple[tuple[Segment, ...], ...]
    plain: bool
    findings: list[tuple[str, str]] = field(default_factory=list)


class Around(NamedTuple):
    """What a chat template writes around the content of an answer: behind its generation prompt, and before the end."""

    lead: str = ""
    trail: str = ""


class Unusable(Exception):
    """This example cannot be rendered; the arguments are kind and message of a Finding."""


class Renderer:
    """Examples to text, for one tokenizer and one set of examples (see the module's docstring)."""

    def __init__(self, tokenizer: Any, controls: Controls, train_on: str, templated: bool):
        self.tokenizer, self.controls, self.train_on, self.templated = tokenizer, controls, train_on, templated
        self.bos = controls.chars.get(tokenizer.bos_token or "", "") if templated else ""
        self.eos = controls.chars.get(tokenizer.eos_token or "", "")
        self.template = _template(tokenizer)

    def render(self, index: int, example: Example) -> Rendered:
        """Raises Unusable where the template refuses the conversation or leaves the answer out."""
        return self._chat(index, example) if example.is_chat else self._text(index, example)

    def around(self, example: Example) -> Around:
        """What an answer to this prompt stands in: nothing where that is text, or the template refuses an answer."""
        if not example.is_chat:
            return Around()
        assert isinstance(example.prompt, tuple)
        content = self.controls.gap  # which is neither in the prompt nor trimmed
        try:
            before = self._apply(example.prompt, True)
            full = self._apply((*example.prompt, Message("assistant", content)), False)
        except Unusable:
            return Around()
        before_it, found, behind_it = full.rpartition(content)
        if not found:
            return Around()
        lead = before_it.removeprefix(before) if before_it.startswith(before) else ""
        return Around(lead, self.controls.genuine.split(behind_it, 1)[0])

    def _text(self, index: int, example: Example) -> Rendered:
        texts = [str(example.prompt), *(str(r.content) for r in example.responses)]
        findings = []
        if self.templated:
            texts = [self.controls.stand_in(text) for text in texts]
        elif token := self.controls.found("\0".join(texts)):
            findings.append(("special-token", f"the text holds {token!r}, which stays text"))
        prompt, *responses = texts
        if self.bos and not prompt and all(r.startswith(self.bos) for r in responses):  # text alone, rendered
            prompt, responses = self.bos, [r.removeprefix(self.bos) for r in responses]
        whole = [
            text if not r.ended or self.controls.genuine.match(text[-1:]) else text + self.eos
            for text, r in zip(responses, example.responses, strict=True)
        ]
        return Rendered(index, prompt, tuple((Segment(text, len(text)),) for text in whole), True, findings)

    def _chat(self, index: int, example: Example) -> Rendered:
        assert isinstance(example.prompt, tuple)
        if not example.responses:
            return Rendered(index, self._apply(example.prompt, True), (), plain=False)
        conversations = [(*example.prompt, *_messages(r.content)) for r in example.responses]
        first = len(example.prompt)
        if self.train_on == "all-assistant":
            first = next(i for i, m in enumerate(conversations[0]) if m.role == "assistant")
        findings = []
        written = "\0".join(m.content for m in {m: None for c in conversations for m in c})
        if token := self.controls.found(written):
            findings.append(("special-token", f"a message holds {token!r}, which stays text"))
        try:
            prompt = self._apply(conversations[0][:first], True)
            responses = tuple(self._turns(c, first, prompt) for c in conversations)
        except _Rewritten as rewritten:
            if self.train_on == "all-assistant" and first < len(example.prompt):
                findings.append(("rewritten", f"only the last turn is trained on: {rewritten}"))
                first = len(example.prompt)
                prompt = self._apply(conversations[0][:first], True)
            else:
                findings.append(("rewritten", str(rewritten)))
            responses = tuple(self._last_turn(c, first, prompt) for c in conversations)
        responses = tuple(
            segments if response.ended else (*segments[:-1], self._cut_off(conversation))
            for segments, response, conversation in zip(responses, example.responses, conversations, strict=True)
        )
        return Rendered(index, prompt, responses, False, findings)

    def _turns(self, messages: tuple[Message, ...], first: int, prompt: str) -> tuple[Segment, ...]:
        """The response as segments, each of which begins where the model would begin to write."""
        last = len(messages) - 1
        scored = [last]
        if self.train_on == "all-assistant":
            scored = [i for i in range(first, last + 1) if messages[i].role == "assistant"]
        full = self._apply(messages, False)
        self._check(prompt, full)
        starts, ends = [], []
        for turn in scored:
            before = prompt if turn == first else self._apply(messages[:turn], True)
            until = full if turn == last else self._apply(messages[: turn + 1], False)
            end = self._end(until, len(before), messages[turn].content)
            self._check(before, full)
            self._check(until[:end], full)
            starts.append(len(before))
            ends.append(end)
        if starts[0] > len(prompt):
            starts, ends = [len(prompt), *starts], [len(prompt), *ends]
        bounds = [*starts[1:], ends[-1]]
        segments = [Segment(full[a:b], e - a) for a, b, e in zip(starts, bounds, ends, strict=True)]
        return self._ended(segments)

    def _last_turn(self, messages: tuple[Message, ...], first: int, prompt: str) -> tuple[Segment, ...]:
        """For templates that show an answer otherwise in history than where it is written: what the model
        would see, then the answer as it stands in the data, then the template's own ending."""
        if len(messages) != first + 1:
            raise Unusable("rewritten", "the template changes the turns inside the response; dropped")
        full = self._apply(messages, False)
        content = messages[-1].content.strip()
        if full.startswith(prompt):
            return self._ended([Segment(text := full[len(prompt) : self._end(full, len(prompt), content)], len(text))])
        at = full.rfind(shown := content.rpartition("</think>")[2].strip())
        if at < 0:
            raise Unusable("rewritten", "the template leaves the answer out; dropped")
        text = content + full[at + len(shown) : self._end(full, at, shown)]
        return self._ended([Segment(text, len(text))])

    def _cut_off(self, messages: tuple[Message, ...]) -> Segment:
        """An answer that was cut off, as it was written: untrimmed, with nothing behind it.

        What the template writes before every answer stands before this one too, unless it begins in the same way: a
        thought that was cut off is none to the template, which would put an empty one before it.
        """
        *before, (_, content) = messages
        lead = self.around(Example(tuple(before), ())).lead
        opening = lead.split(maxsplit=1)[:1]
        text = content if opening and content.lstrip().startswith(opening[0]) else lead + content
        return Segment(text, len(text))

    def _end(self, full: str, start: int, content: str) -> int:
        """Where a turn ends: behind the first control token after its content, else with the text."""
        content = content.strip()
        at = full.rfind(content, start) if content else start
        token = self.controls.genuine.search(full, max(at, start) + (len(content) if at >= 0 else 0))
        return token.end() if token else len(full)

    def _ended(self, segments: list[Segment]) -> tuple[Segment, ...]:
        text, scored = segments[-1]
        if not self.controls.genuine.match(text[-1:]):
            segments = [*segments[:-1], Segment(text + self.eos, scored + len(self.eos))]
        return tuple(segments)

    def _apply(self, messages: tuple[Message, ...], generation: bool) -> str:
        quoted = [{"role": m.role, "content": self.controls.quote(m.content)} for m in messages]
        try:
            text = self.template(quoted, add_generation_prompt=generation)
        except (TemplateError, ValueError, TypeError) as error:
            raise Unusable("template", f"the chat template says: {error}") from None
        return self.controls.stand_in(text)

    def _check(self, expected: str, full: str) -> None:
        """Raises _Rewritten with the place where two renderings part."""
        if full.startswith(expected):
            return
        at = next((i for i, (a, b) in enumerate(zip(expected, full, strict=False)) if a != b), len(full))
        before, after = (repr(self.controls.name(text[max(0, at - 20) : at + 40])) for text in (expected, full))
        raise _Rewritten(f"when the model writes it sees {before}, later the same place reads {after}")


def _template(tokenizer: Any) -> Callable[..., str]:
    """``apply_chat_template(..., tokenize=False)``, without what it does for messages that are more than text.

    That would be two thirds of the time that rendering takes, and half of the rest is jinja's copying of its globals.
    """
    public = partial(tokenizer.apply_chat_template, tokenize=False)
    compiled = _compiler()
    if compiled is None or tokenizer.chat_template is None:
        return public
    try:
        template = compiled(tokenizer.get_chat_template())  # of several, its default
    except ValueError:  # there is none
        return public
    fixed = {**template.globals, **tokenizer.special_tokens_map, "tools": None, "documents": None}
    fixed["strftime_now"] = DAY.strftime  # else the ids, and with them which prompts are held out, hang on today

    def rendered(messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        known = {**fixed, "messages": messages, "add_generation_prompt": add_generation_prompt}
        return "".join(template.root_render_func(template.new_context(known, shared=True)))

    return rendered


def _compiler() -> Any:
    """transformers' own, which has no public name; to import it takes half a second, which text alone need not wait."""
    from transformers.utils import chat_template_utils

    return getattr(chat_template_utils, "_compile_jinja_template", None)


class _Rewritten(Exception):
    """The full rendering does not begin with what the model sees when it writes."""


def _messages(content: Content) -> tuple[Message, ...]:
    return (Message("assistant", content),) if isinstance(content, str) else content

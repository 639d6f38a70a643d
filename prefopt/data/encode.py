"""From examples to token ids: one boundary rule, one policy for what is too long, and an account of both.

``Encoder`` renders (see render.py), tokenizes in big batches, and cuts. What it dropped, cut or found
odd is counted and named by source before anything is trained on.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
import xxhash
from tokenizers import AddedToken, Tokenizer

from prefopt.data.render import (
    PLAIN_TEMPLATE,
    PRIVATE,
    Controls,
    Rendered,
    Renderer,
    Segment,
    Unusable,
    control_tokens,
)
from prefopt.data.shelf import Writer
from prefopt.errors import UserError
from prefopt.types import Content, Encoded, Example, Finding, Overlong, TrainOn

AT_ONCE = 512
"""examples that are rendered, then tokenized: enough for every core, few enough that the two overlap"""


@dataclass(frozen=True, slots=True)
class Survey:
    """What has to be known of all examples before the first one is rendered.

    ``private``: code points beyond Unicode's public planes that occur. ``chats`` of them are messages and ``texts``
    are text, of which ``begun`` begin with a control token.
    """

    private: Set[int] = frozenset()
    chats: int = 0
    texts: int = 0
    begun: int = 0

    @property
    def templated(self) -> bool:
        """Whether all texts were already rendered by a template."""
        return 0 < self.begun == self.texts

    def __add__(self, other: Survey) -> Survey:
        numbers = (self.chats + other.chats, self.texts + other.texts, self.begun + other.begun)
        return Survey(self.private | other.private, *numbers)

    def allows(self, seen: Survey, bare: bool) -> bool:
        """Whether some of the examples may be as they were ``seen``, where this is what is taken for granted of all.

        ``bare``: there is no chat template yet.
        """
        begun = seen.begun == seen.texts if self.templated else True
        return begun and seen.private <= self.private and not (bare and seen.chats and not self.chats)


class Surprise(UserError):
    """Examples are not what their survey says."""

    def __init__(self) -> None:
        super().__init__(CHANGED)


CHANGED = "the data changed while they were read: start again when they are complete"


@dataclass(slots=True)
class EncodedData:
    """Examples ready to be planned, and what became of the others.

    ``counts``: examples given and kept, and how many were touched for each reason. ``findings`` name the
    source of each. ``notes`` hold for the whole data set, whose ``survey`` they follow from. ``of_each``: how many
    examples each source gave, where they are of several.
    """

    examples: Sequence[Encoded] = ()
    counts: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    survey: Survey = field(default_factory=Survey)
    of_each: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Draft:
    """Token ids of one example before anything is cut: prompt [L], per response ids and scored [L_r]."""

    index: int
    prompt: np.ndarray
    responses: list[np.ndarray]
    scored: list[np.ndarray]

    @property
    def length(self) -> int:
        """Tokens of the prompt with its longest response."""
        return len(self.prompt) + max((len(r) for r in self.responses), default=0)


class Part(NamedTuple):
    """Some examples, of which the first one's number is ``start``, and what became of them on the way to drafts.

    ``seen``: a survey of these and all before them.
    """

    start: int
    examples: list[Example]
    tokens: Tokens
    rendered: list[Rendered]
    findings: list[Finding]
    seen: Survey
    drafts: list[Draft]


@dataclass(frozen=True, slots=True)
class Fit:
    """What a policy makes of one example: a draft that fits, or None; and how many responses lost their end."""

    draft: Draft | None
    ends_lost: int = 0


def fit(draft: Draft, max_length: int | None, policy: Overlong, head: int = 0) -> Fit:
    """Applies the policy for over-long examples to one draft; ``head`` prompt tokens (BOS) are always kept.

    >>> long = Draft(0, np.arange(6), [np.arange(3), np.arange(2)], [np.ones(3, bool), np.ones(2, bool)])
    >>> fit(long, 8, "drop").draft is None
    True
    >>> fit(long, 8, "cut-prompt", head=1).draft.prompt.tolist()
    [0, 2, 3, 4, 5]
    >>> cut = fit(long, 8, "cut-response")
    >>> [len(r) for r in cut.draft.responses], cut.ends_lost
    ([2, 2], 1)
    """
    if max_length is None or draft.length <= max_length:
        return Fit(draft)
    if policy == "cut-prompt":
        room = max_length - (draft.length - len(draft.prompt)) - head
        if room < 1:  # the response alone is too long
            return Fit(None)
        prompt = np.concatenate([draft.prompt[:head], draft.prompt[-room:]])
        return Fit(Draft(draft.index, prompt, draft.responses, draft.scored))
    if policy == "cut-response":
        room = max_length - len(draft.prompt)
        if room < 1:
            return Fit(None)
        lost = sum(len(r) > room for r in draft.responses)
        responses, scored = [r[:room] for r in draft.responses], [s[:room] for s in draft.scored]
        return Fit(Draft(draft.index, draft.prompt, responses, scored), lost)
    return Fit(None)


class Tokens:
    """The fast tokenizer with stand-in characters: text in, ids out, and only a stand-in becomes a control token."""

    def __init__(self, tokenizer: Any, controls: Controls):
        backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True
        backend.add_tokens(
            [AddedToken(controls.chars[t.content], special=False, **t.flags) for t in controls.tokens]
            + [AddedToken(controls.gap, special=False, normalized=False)]
        )
        self.backend, self.controls = backend, controls
        (self.gap,) = self._ids(controls.gap)
        self.real = np.arange(self.gap + 1, dtype=np.int32)
        self.forbidden = np.zeros(self.gap + 1, bool)
        for token in controls.tokens:
            self.real[self._ids(controls.chars[token.content])[-1]] = token.id
            self.forbidden[token.id] = token.content != tokenizer.unk_token
        self.anchors = self._find_anchors(tokenizer.unk_token_id)

    def _find_anchors(self, unknown: int | None) -> list[str]:
        """Some tokenizers begin every text with a space of their own; behind an anchor they do not.

        An anchor is text whose tokens stay the same whatever follows. Empty: none is needed.
        """
        probe = "x"
        found = []
        for anchor in "\n\ufdd0" + string.punctuation:
            alone, joint = self._ids(anchor), self._ids(anchor + probe)
            if len(alone) and unknown not in alone and np.array_equal(joint[: len(alone)], alone):
                found.append(anchor)
        if not found or np.array_equal(self._ids(found[0] + probe)[len(self._ids(found[0])) :], self._ids(probe)):
            return []
        return found

    def _ids(self, text: str) -> np.ndarray:
        return np.array(self.backend.encode(text, add_special_tokens=False).ids, np.int32)

    def texts(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of texts that begin at the beginning."""
        made = [e.ids for e in self.backend.encode_batch_fast(texts, add_special_tokens=False)]
        lengths = np.fromiter(map(len, made), np.int64, len(made))
        ids = np.fromiter(chain.from_iterable(made), np.int32, lengths.sum())  # at once: most texts are short
        found = np.split(self.real[ids], np.cumsum(lengths)[:-1]) if len(made) else []
        owners = np.repeat(np.arange(len(made)), lengths)
        for i in np.unique(owners[self.forbidden[ids]]):
            found[i] = self._checked(texts[i], np.array(made[i], np.int32))
        return found

    def continuations(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of texts that go on where another text ended."""
        if not self.anchors:
            return self.texts(texts)
        anchor, *others = self.anchors
        head = self._ids(anchor)
        made = self.texts([anchor + text for text in texts])
        return [
            ids[len(head) :] if np.array_equal(ids[: len(head)], head) else self._continuation(text, others)
            for text, ids in zip(texts, made, strict=True)
        ]

    def _continuation(self, text: str, anchors: Sequence[str]) -> np.ndarray:
        for anchor in anchors:
            head, ids = self._ids(anchor), self._ids(anchor + text)
            if np.array_equal(ids[: len(head)], head):
                return self._checked(text, ids)[len(head) :]
        raise UserError(f"the tokenizer cannot continue a text with {self.controls.name(text[:40])!r}")

    def _checked(self, text: str, ids: np.ndarray) -> np.ndarray:
        """Stand-ins to control tokens. Vocabularies that match a control token's text as a word get it in parts."""
        if self.forbidden[ids].any():
            ids = self._ids(self.controls.part(text))
            ids = ids[ids != self.gap]
            assert not self.forbidden[ids].any()
        return self.real[ids]

    def responses(self, segments: Sequence[Segment]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Ids of segments and which of them are scored; a token across the end of the scored text is."""
        ids = self.continuations([s.text for s in segments])
        partly = [i for i, s in enumerate(segments) if 0 < s.scored < len(s.text)]
        heads = self.continuations([segments[i].text[: segments[i].scored] for i in partly])
        scored = [np.full(len(t), s.scored > 0) for s, t in zip(segments, ids, strict=True)]
        for i, head in zip(partly, heads, strict=True):
            common = min(len(head), len(ids[i]))
            same = np.append(head[:common] == ids[i][:common], False).argmin()
            scored[i][same + (same < len(head)) :] = False
        return list(zip(ids, scored, strict=True))


class Encoder:
    """Examples to ids, for one tokenizer and one set of options.

    UserError if the tokenizer is not a fast one. A tokenizer without a chat template gets a plain one
    as soon as it meets messages, so that it is saved with the model.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length: int | None = None,
        overlong: Overlong = "drop",
        train_on: TrainOn = "last-assistant",
    ):
        if not getattr(tokenizer, "is_fast", False):
            raise UserError(
                f"{tokenizer.name_or_path or 'the tokenizer'} has no tokenizer.json; a fast tokenizer is needed"
            )
        self.tokenizer, self.max_length, self.overlong, self.train_on = tokenizer, max_length, overlong, train_on
        self.controls = control_tokens(tokenizer)
        self.bos = _bos(tokenizer)
        self.bare = tokenizer.chat_template is None
        begin = "{{ bos_token }}" if len(self.bos) else ""
        self.template = begin + PLAIN_TEMPLATE if self.bare else tokenizer.chat_template
        """what messages are rendered with"""

    def survey(self, examples: Iterable[Example]) -> Survey:
        """Goes through all of them, holding none."""
        written = tuple(control.content for control in self.controls)
        private, chats, texts, begun = set[int](), 0, 0, 0
        for example in examples:
            text = "".join(example.texts())
            private.update(map(ord, () if text.isascii() else PRIVATE.findall(text)))
            chats += example.is_chat
            texts += not example.is_chat
            begun += not example.is_chat and text.startswith(written)
        return Survey(private, chats, texts, begun)

    def encode(
        self, examples: Iterable[Example], writer: Writer | None = None, survey: Survey | None = None
    ) -> EncodedData:
        """The examples that can be trained on, cut to fit, and an account of the rest.

        ``writer`` takes them; without one they are in memory. ``survey`` is what is taken for granted of all of them;
        without one they are gone through twice. Surprise where it does not hold.
        """
        shelf = writer or Writer(lambda column: BytesIO())
        granted = survey or self.survey(examples)
        data, odd = EncodedData(notes=self.prepare(granted)), []
        for part in self.parts(examples, granted):
            odd += part.findings
            data.survey = part.seen
            data.counts["given"] += len(part.examples)
            for draft in part.drafts:
                kept = self.keep(draft, part.examples[draft.index - part.start], data)
                if kept is not None:
                    shelf.add(kept, draft.index)
                    data.counts["kept"] += 1
        if data.survey.templated != granted.templated or (survey is None and data.survey != granted):
            raise Surprise
        data.findings = [*odd, *data.findings]
        data.counts.update(finding.kind for finding in data.findings)
        data.counts.update(given=0, kept=0)
        if writer is None:
            data.examples = shelf.in_memory()
        return data

    def prompts(self, prompts: Sequence[Content], survey: Survey | None = None) -> list[np.ndarray]:
        """Ids of prompts alone, as in training: what a generator reads. UserError if a template refuses one.

        ``survey``: of all prompts that are asked for, where these are some of them.
        """
        examples = [Example(x, (), f"prompt {i + 1}") for i, x in enumerate(prompts)]
        return [draft.prompt for draft in self.drafts(examples, survey)]

    def drafts(self, examples: Sequence[Example], survey: Survey | None = None) -> list[Draft]:
        """Ids of each example, nothing cut. UserError if a template refuses one."""
        survey = survey or self.survey(examples)
        self.prepare(survey)
        parts = list(self.parts(examples, survey))
        if refused := [finding for part in parts for finding in part.findings if finding.drops]:
            raise UserError("; ".join(f"{f.source}: {f.message}" for f in refused[:3]))
        return [draft for part in parts for draft in part.drafts]

    def prepare(self, survey: Survey) -> list[str]:
        """Gives a tokenizer that lacks a chat template a plain one if there are messages; says what holds for all."""
        notes = []
        if survey.texts and not survey.begun and not self.bare:
            some = "some prompts" if survey.chats else "prompts"
            notes.append(f"{some} are text, read as written: only messages go through the model's chat template")
        if self.bare and survey.chats:
            self.tokenizer.chat_template = self.template
            notes.append("the tokenizer has no chat template: a plain one is used, and saved with the model")
        if survey.templated:
            notes.append("every prompt begins with a control token: the text is taken as already rendered")
        elif survey.begun:
            some = f"{survey.begun:,} of {survey.texts:,} prompts begin with a control token"
            notes.append(f"{some}, so it stays text in all of them: render all of them or none")
        if self.tokenizer.eos_token is None:
            notes.append("the tokenizer has no end token: responses end only where the chat template ends them")
        return notes

    def parts(self, examples: Iterable[Example], survey: Survey) -> Iterator[Part]:
        """All examples, some hundreds at a time, as far as they can be rendered, nothing cut; ``prepare`` first.

        While some are tokenized, which takes other cores, the next ones are rendered. Surprise where they are not
        those of the survey.
        """
        controls = Controls(self.controls, survey.private)
        renderer = Renderer(self.tokenizer, controls, self.train_on, survey.templated)
        tokens, rest, start, seen = Tokens(self.tokenizer, controls), iter(examples), 0, Survey()
        with ThreadPoolExecutor(1) as pool:
            before = None
            while some := list(islice(rest, AT_ONCE)):
                seen += self.survey(some)
                if not survey.allows(seen, self.bare):
                    raise Surprise
                rendered, findings = self._render(renderer, start, some)
                job = pool.submit(self.assembled, tokens, rendered)
                if before:
                    yield Part(*before[:-1], before[-1].result())
                before, start = (start, some, tokens, rendered, findings, seen, job), start + len(some)
            if before:
                yield Part(*before[:-1], before[-1].result())

    def assembled(self, tokens: Tokens, rendered: Sequence[Rendered]) -> list[Draft]:
        """Text to ids, all prompts in one batch and all responses in another."""
        prompts = self._prompts(tokens, rendered)
        pieces = iter(tokens.responses([s for r in rendered for response in r.responses for s in response]))
        drafts = []
        for item, prompt in zip(rendered, prompts, strict=True):
            drafts.append(Draft(item.index, prompt, [], []))
            for response in item.responses:
                ids, scored = zip(*(next(pieces) for _ in response), strict=True)
                drafts[-1].responses.append(np.concatenate(ids))
                drafts[-1].scored.append(np.concatenate(scored))
        return drafts

    def _render(
        self, renderer: Renderer, start: int, examples: Sequence[Example]
    ) -> tuple[list[Rendered], list[Finding]]:
        bos = renderer.controls.chars.get(self.tokenizer.bos_token or "", "")
        rendered, findings = [], []
        for index, example in enumerate(examples, start):
            try:
                item = renderer.render(index, example)
            except Unusable as unusable:
                findings.append(Finding(example.source, *unusable.args))
                continue
            findings += [Finding(example.source, *found, drops=False) for found in item.findings]
            if bos and example.prompt and item.prompt.startswith(bos if item.plain and len(self.bos) else bos * 2):
                message = f"the text begins with {self.tokenizer.bos_token!r}, which the tokenizer adds too"
                findings.append(Finding(example.source, "double-bos", message, drops=False))
            rendered.append(item)
        return rendered, findings

    def _prompts(self, tokens: Tokens, rendered: Sequence[Rendered]) -> list[np.ndarray]:
        """Prompts with the tokenizer's own beginning, once, where no template has set one; never empty."""
        start = self.bos
        if not len(start):
            alone = self.tokenizer.bos_token_id if self.tokenizer.bos_token else self.tokenizer.eos_token_id
            start = np.array([alone] if alone is not None else [], np.int32)
        prompts = []
        for item, ids in zip(rendered, tokens.texts([item.prompt for item in rendered]), strict=True):
            if item.plain and len(self.bos) and not np.array_equal(ids[: len(self.bos)], self.bos):
                ids = np.concatenate([self.bos, ids])
            prompts.append(ids if len(ids) else start)
        return prompts

    def keep(self, draft: Draft, example: Example, data: EncodedData) -> Encoded | None:
        """The example, cut to fit, if something is left to learn from; tells ``data`` what is odd, or why not."""

        def report(kind: str, message: str, drops: bool = True) -> None:
            data.findings.append(Finding(example.source, kind, message, drops))

        whole = draft.prompt
        fitted = fit(draft, self.max_length, self.overlong, self.head(draft))
        if self.max_length is not None and draft.length > self.max_length:
            done = "dropped" if fitted.draft is None else self.overlong
            what = " with the longest response" if draft.responses else ""
            message = f"{draft.length} tokens{what}, more than {self.max_length}: {done}"
            report("overlong", message, drops=fitted.draft is None)
            data.counts["end tokens lost"] += fitted.ends_lost
            data.counts["too long"] += fitted.draft is None
        if fitted.draft is None:
            return None
        draft = fitted.draft
        kept: dict[bytes, int] = {}
        odd = []
        for i, (ids, scored) in enumerate(zip(draft.responses, draft.scored, strict=True)):
            content = ids.tobytes() + scored.tobytes()
            if not scored.any() or not _said(example.responses[i].content):
                odd.append(("empty", f"response {i + 1} has nothing to learn from"))
            elif content in kept:
                odd.append(("equal", f"responses {kept[content] + 1} and {i + 1} have the same tokens"))
            else:
                kept[content] = i
        if not len(draft.prompt):
            odd.append(("empty", "the prompt is empty and the tokenizer has no token to begin with"))
        usable = len(draft.prompt) > 0 and len(kept) >= min(2, len(draft.responses))
        for kind, message in odd:
            report(kind, message, drops=not usable)
        return _encoded(draft, list(kept.values()), example, whole) if usable else None

    def head(self, draft: Draft) -> int:
        """How many tokens at the start of a prompt are BOS."""
        return int(len(draft.prompt) > 0 and draft.prompt[0] == self.tokenizer.bos_token_id)


def _encoded(draft: Draft, kept: list[int], example: Example, whole: np.ndarray) -> Encoded:
    """``whole``: the prompt before it was cut, which tells it from others."""
    responses = tuple(draft.responses[i] for i in kept)
    scored = tuple(draft.scored[i] for i in kept)
    scores = tuple(example.responses[i].score for i in kept)
    lengths = np.array([len(draft.prompt), *map(len, responses)], np.int64)
    content = b"".join([lengths.tobytes(), draft.prompt.tobytes(), *(a.tobytes() for a in (*responses, *scored))])
    prompt_key = xxhash.xxh3_128_hexdigest(whole.tobytes())
    key = xxhash.xxh3_128_hexdigest(content)
    return Encoded(draft.prompt, responses, scored, scores, example.source, key, prompt_key)


def _bos(tokenizer: Any) -> np.ndarray:
    """What the tokenizer itself puts before a text; often BOS, often nothing."""
    bare, full = (tokenizer("x", add_special_tokens=added)["input_ids"] for added in (False, True))
    start = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
    return np.array(full[:start], np.int32)


def _said(content: Content) -> str:
    return (content if isinstance(content, str) else content[-1].content).strip()

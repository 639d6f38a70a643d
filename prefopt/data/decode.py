"""From the ids of a response back to its text: that of which ``Encoder`` makes these ids again.

A response to messages is the content of a message. What the chat template writes around a content, often nothing and
often a space before it, stands among the ids and is no part of the text: else the template would write it twice when
the text is read again. A response to text goes on where that stopped, so it is all that was written.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from prefopt.data.encode import Encoder
from prefopt.data.render import Around, Control, Controls, Renderer
from prefopt.types import Content, Example

ANCHORS = "\n" + string.punctuation
"""texts behind which a decoder may leave spaces as they are"""


def decoded(encoder: Encoder, prompts: Sequence[Content], responses: Sequence[Sequence[np.ndarray]]) -> list[list[str]]:
    """What was answered to each prompt, without control tokens.

    With a template that writes "Assistant:" for the model to go on and "Assistant: 4" where the answer is known, the
    ids of " 4" are the text "4" after messages, and " 4" after text. Where the model left the space out, no content
    gives that, and the text is what it wrote.
    """
    asked = [Example(prompt, ()) for prompt in prompts]
    survey = encoder.survey(asked)
    encoder.prepare(survey)
    controls = Controls(encoder.controls, survey.private)
    renderer = Renderer(encoder.tokenizer, controls, encoder.train_on, templated=False)
    head = _head(encoder.tokenizer)
    found = []
    for example, of_prompt in zip(asked, responses, strict=True):
        around = renderer.around(example)
        found.append([_content(encoder.tokenizer, head, ids.tolist(), around, controls) for ids in of_prompt])
    return found


def _content(tokenizer: Any, head: list[int], ids: list[int], around: Around, controls: Controls) -> str:
    text, written = (_behind(tokenizer, head, ids, named) for named in (False, True))
    if not written.startswith(controls.name(around.lead)):  # all of it, control tokens too, which the text has lost
        return text
    answer = text.removeprefix(controls.genuine.sub("", around.lead))
    return answer.removesuffix(around.trail) if ended(controls.tokens, ids) else answer


def ended(controls: Iterable[Control], response: Sequence[int] | np.ndarray) -> bool:
    """Whether a control token ends the ids of a response: it was not cut off."""
    return len(response) > 0 and int(response[-1]) in {control.id for control in controls}


def _behind(tokenizer: Any, head: list[int], ids: list[int], named: bool) -> str:
    """The text of ids behind those of ``head``; ``named``: with the control tokens spelt out."""
    return _text(tokenizer, [*head, *ids], named)[len(_text(tokenizer, head, named)) :]


def _text(tokenizer: Any, ids: list[int], named: bool = False) -> str:
    return tokenizer.decode(ids, skip_special_tokens=not named, clean_up_tokenization_spaces=False)


def _head(tokenizer: Any) -> list[int]:
    """Some decoders drop the space that a text begins with. Behind these ids they do not; empty: none are needed."""
    probe = " a"
    for anchor in ANCHORS:
        head, joint = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (anchor, anchor + probe))
        if joint[: len(head)] == head and _text(tokenizer, joint) == _text(tokenizer, head) + probe:
            return [] if _text(tokenizer, joint[len(head) :]) == probe else head
    return []

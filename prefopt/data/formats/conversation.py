"""From what a column holds to a prompt and its responses.

Every function here raises BadRow, in words for a person, where the row does not allow it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prefopt.data.formats.columns import ANSWER, TEXTS, TURN, BadRow, is_message, number, shown, truth, type_of
from prefopt.types import Message, Response

Fields = Mapping[str, Any]
Turns = tuple[Message, ...]
Content = tuple[str | Turns, tuple[Response, ...]]  # a prompt and its responses

ROLES = {role: role for role in ("system", "developer", "user", "assistant", "tool")}
ROLES |= {"human": "user", "prompter": "user", "observation": "tool"}
ROLES |= dict.fromkeys(("gpt", "chatgpt", "bot", "model"), "assistant")


def turns(value: Any, column: str) -> Turns:
    """Messages from a list of them, a single one, in OpenAI's or ShareGPT's dialect."""
    items = value if isinstance(value, list) else [value]
    return tuple(turn(item, f'"{column}"[{i}]') for i, item in enumerate(items))


def turn(item: Any, where: str) -> Message:
    if not is_message(item):
        raise BadRow("type", f"{where} is {type_of(item)}, not a message")
    role = item.get("role", item.get("from"))
    if not isinstance(role, str) or role not in ROLES:
        raise BadRow("role", f"{where} has the unknown role {role!r}")
    if item.get("tool_calls") or item.get("function_call"):
        raise BadRow("type", f"{where} holds a tool call; only text can be trained on")
    return Message(ROLES[role], content(item.get("content", item.get("value")), where))


def content(value: Any, where: str) -> str:
    """Text, or the texts of a list of typed parts."""
    if value is None:
        raise BadRow("null", f"{where} has no content")
    if isinstance(value, list):
        return "".join(part_text(part, where) for part in value)
    if not isinstance(value, str):
        raise BadRow("type", f"the content of {where} is {type_of(value)}, not text")
    return value


def part_text(part: Any, where: str) -> str:
    text = part.get("text", part.get("value")) if isinstance(part, dict) and part.get("type") == "text" else None
    if not isinstance(text, str):
        raise BadRow("type", f"{where} has a part that is not text; only text can be trained on")
    return text


def user(text: str, system: Any = None) -> Turns:
    """A prompt of one user message, after a system message if there is one."""
    if system is not None and not isinstance(system, str):
        raise BadRow("type", f"the system message is {type_of(system)}, not text")
    return (*((Message("system", system),) if system else ()), Message("user", text))


def transcript(text: str) -> Turns:
    r"""The turns of an Anthropic HH transcript.

    "\n\nHuman: " or "\n\nAssistant: " before each content gives the very text back, except where no space
    followed the colon (most often a last answer that is empty, "\n\nAssistant:").

    >>> transcript("\n\nHuman: Hi \n\nAssistant: Yes?")
    (Message(role='user', content='Hi '), Message(role='assistant', content='Yes?'))
    """
    _, *rest = TURN.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    return tuple(Message(roles[who], said.removeprefix(" ")) for who, said in zip(rest[::2], rest[1::2], strict=True))


def text_or_turns(value: Any, column: str) -> str | Turns:
    return value if isinstance(value, str) else turns(value, column)


def reply(prompt: str | Turns, value: Any, column: str) -> str | Turns:
    """A response: to text, text; to messages, those of ``answer``."""
    if not isinstance(prompt, str):
        return answer(value, column)
    if not isinstance(value, str):
        raise BadRow("type", f'"{column}" is {type_of(value)}, but its prompt is text')
    return value


def answer(value: Any, column: str) -> Turns:
    """A response to messages: text is one assistant message; messages begin and end with an assistant's."""
    found = (Message("assistant", value),) if isinstance(value, str) else turns(value, column)
    if found[0].role != "assistant" or found[-1].role != "assistant":
        raise BadRow("role", f'"{column}" must begin and end with an assistant\'s message')
    return found


def last_turn(conversation: Turns, column: str, score: float | None = None) -> Content:
    """The last turn, an assistant's, as the response to all before it."""
    must_end_with_assistant(conversation, column)
    if len(conversation) == 1:
        raise BadRow("no-prompt", f'"{column}" has no turn before the response')
    return conversation[:-1], (Response(conversation[-1:], score),)


def must_end_with_assistant(conversation: Turns, column: str) -> None:
    if conversation[-1].role != "assistant":
        raise BadRow("role", f'"{column}" ends with a {conversation[-1].role} turn, so there is no response')


def pair(prompt: str | Turns, chosen: Any, rejected: Any, scores: tuple[float, float] = (1.0, 0.0)) -> Content:
    """A prompt with its better and its worse response."""
    better, worse = reply(prompt, chosen, "chosen"), reply(prompt, rejected, "rejected")
    return prompt, (Response(better, scores[0]), Response(worse, scores[1]))


def ordered(prompt: Turns, first: Any, second: Any, first_is_better: bool) -> Content:
    return pair(prompt, first, second) if first_is_better else pair(prompt, second, first)


def ranking(prompt: Turns, answers: Iterable[tuple[Any, Any]], column: str) -> Content:
    """K responses with their scores, best first; equal scores stay in the order written."""
    found = []
    for i, (value, score) in enumerate(answers):
        if (points := number(score)) is None:
            raise BadRow("score", f'"{column}"[{i}] has the score {score!r}, which is no number')
        if not ANSWER.holds(value):
            raise BadRow("null" if value is None else "type", f'"{column}"[{i}] is {type_of(value)}, not {ANSWER.name}')
        found.append((points, answer(value, column)))
    if len(found) < 2:
        raise BadRow("single", f'"{column}" holds {len(found)} response: there is nothing to rank')
    found.sort(key=lambda scored: -scored[0])
    return prompt, tuple(Response(said, points) for points, said in found)


def from_rank(rank: Any) -> Any:
    """A rank, lower for better, as a score; what is no number stays as it is, for ``ranking`` to refuse."""
    points = number(rank)
    return rank if points is None else -points


def split_chat(chosen: Turns, rejected: Turns, scores: tuple[float, float] = (1.0, 0.0)) -> Content:
    """Two whole conversations: the prompt is what they share, up to the last assistant turn at most."""
    must_end_with_assistant(chosen, "chosen")
    must_end_with_assistant(rejected, "rejected")
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    while shared and not chosen[shared].role == rejected[shared].role == "assistant":
        shared -= 1
    if not shared:
        raise BadRow("no-prompt", "the two sides share no beginning that could be the prompt")
    return chosen[:shared], (Response(chosen[shared:], scores[0]), Response(rejected[shared:], scores[1]))


SCORES = ("score_{}", "{}_score", "{}_rating", "{}-rating", "{}_avg_rating")


def scores(row: Fields) -> tuple[float, float]:
    """The scores that many data sets write beside chosen and rejected; 1 and 0 without."""
    for name in SCORES:
        better, worse = number(row.get(name.format("chosen"))), number(row.get(name.format("rejected")))
        if better is not None and worse is not None:
            if better < worse:
                raise BadRow("order", f"its scores say the contrary: chosen {better:g}, rejected {worse:g}")
            return better, worse
    return 1.0, 0.0


def with_system(row: Fields, column: str) -> Turns:
    """The messages of a column, after the optional column ``system``."""
    system = text_of(row, "system")
    return (*((Message("system", system),) if system else ()), *turns(row[column], column))


def alpaca(row: Fields) -> Turns:
    """Instruction and input, a line break between, are one user message, after the turns of ``history``."""
    earlier = row.get("history") or []
    if not isinstance(earlier, list) or not all(TEXTS.holds(said) and len(said) == 2 for said in earlier):
        raise BadRow("type", '"history" is no list of [question, answer]')
    past = (said for q, a in earlier for said in (Message("user", q), Message("assistant", a)))
    *system, question = user("\n".join(filter(None, (row["instruction"], text_of(row, "input")))), row.get("system"))
    return (*system, *past, question)


def has_ended(row: Fields) -> bool:
    """Whether the response came to its end, as ``prefopt sample`` says it in an optional column; true without."""
    value = row.get("ended")
    if value is None or value == "":  # an empty cell of a table
        return True
    if (found := truth(value)) is None:
        meant = "true or false (was the response cut off?): rename it if it means something else"
        raise BadRow("type", f'"ended" is {shown(value)}, not {meant}')
    return found


def text_of(row: Fields, name: str) -> str:
    """An optional column of text; "" where it is null or not there."""
    value = row.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRow("type", f'"{name}" is {type_of(value)}, not text')
    return value

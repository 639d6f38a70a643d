"""From ids back to text: read again, the text of a response is the ids that were drawn."""

from __future__ import annotations

import random
from functools import partial

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from prefopt.cli import main
from prefopt.data.decode import decoded
from prefopt.data.encode import Encoder
from prefopt.data.mix import load
from prefopt.data.render import PLAIN_TEMPLATE
from prefopt.generate import TransformersGenerator
from prefopt.model.load import load_model, load_tokenizer
from prefopt.model.scoring import scored
from prefopt.types import Encoded, Example, Message, Response
from tests.data.made import CHATML, LLAMA, OPENED, THINKING, byte_level, metaspace, unigram, user
from tests.train import tiny

# As Mistral's first ones: a space behind [/INST], and the end token right behind the answer.
MISTRAL = LLAMA.replace("' ' + eos_token", "eos_token")
TRIMMED = LLAMA.replace("m['content']", "m['content'] | trim")
# as Zephyr's: the line break is left to the model
ZEPHYR = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
)
# a channel, as in gpt-oss: of the lead only "final" is text
CHANNEL = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] }}"
    "{% if m['role'] == 'assistant' %}{{ '<s>final' }}{% endif %}{{ '<|im_end|>' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
)
SYSTEM_FIRST = (
    "{% for m in messages %}"
    "{% if loop.first != (m['role'] == 'system') %}{{ raise_exception('System first!') }}{% endif %}"
    "{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
ASKED = (user("Hello there"),)
TEMPLATES = {
    "plain": PLAIN_TEMPLATE,
    "chatml": CHATML,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "trimmed": TRIMMED,
    "zephyr": ZEPHYR,
    "channel": CHANNEL,
    "thinking": THINKING,
    "opened": OPENED,
}
CONTENTS = ["It is 4.", "No", " two spaces", "I, am.\n\nfine", "It is", "<think>\nhm\n</think>\n\nfour"]


def as_read(encoder, prompt, content, ended=True) -> np.ndarray:
    """What ``Encoder`` makes of an answer."""
    response = content if isinstance(prompt, str) else (Message("assistant", content),)
    (draft,) = encoder.drafts([Example(prompt, (Response(response, ended=ended),))])
    return draft.responses[0]


MAKERS = {"byte-level": byte_level, "always": metaspace, "first": partial(metaspace, scheme="first")}


@pytest.mark.parametrize(
    ("make", "name"),
    [(make, name) for make in MAKERS for name, t in TEMPLATES.items() if make == "byte-level" or "<|im_" not in t],
)
def test_the_text_of_what_was_read_is_what_was_written(make, name):
    """And its ids are those again, where a template trims too, or drops the thought."""
    encoder = Encoder(MAKERS[make](TEMPLATES[name]))
    ids = [as_read(encoder, ASKED, content) for content in CONTENTS]
    (found,) = decoded(encoder, [ASKED], [ids])
    assert [as_read(encoder, ASKED, text).tolist() for text in found] == [of_one.tolist() for of_one in ids]
    if name == "trimmed":
        assert found == [content.strip() for content in CONTENTS]
    elif name not in ("thinking", "opened"):
        assert found == CONTENTS


@pytest.mark.parametrize("make", [byte_level, metaspace, lambda: metaspace(scheme="first"), unigram])
def test_text_goes_on_where_a_text_stopped(make):
    encoder = Encoder(make())
    contents = [" a bad cafe", "a", "  a", "b c d", ""]
    ids = [as_read(encoder, "bad", content) for content in contents]
    assert decoded(encoder, ["bad"], [ids]) == [contents]


def test_text_and_messages_may_be_mixed():
    encoder = Encoder(byte_level(PLAIN_TEMPLATE))
    ids = [as_read(encoder, "Hello", " It is 4.")]
    system = (Message("system", "You \U000f0000 think"), *ASKED)
    prompts = ["Hello", ASKED, "\n\nHuman: Hello\n\nAssistant:", system]
    assert decoded(encoder, prompts, [ids, ids, ids, []]) == [[" It is 4."], ["It is 4."], [" It is 4."], []]


def test_a_tokenizer_without_a_template_has_the_plain_one():
    ids = as_read(Encoder(byte_level()), ASKED, "It is 4.")
    assert decoded(Encoder(byte_level()), [ASKED], [[ids]]) == [["It is 4."]]


def drawn(tokenizer, text: str) -> np.ndarray:
    """What a model may have written, control tokens as they are spelt."""
    return np.array(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)


@pytest.mark.parametrize(
    ("template", "written", "text"),
    [
        (PLAIN_TEMPLATE, "It is", "It is"),  # the space was left out
        (PLAIN_TEMPLATE, "  It is", " It is"),
        (PLAIN_TEMPLATE, " </s>", ""),
        (PLAIN_TEMPLATE, " ", ""),
        (PLAIN_TEMPLATE, "</s>", ""),
        (PLAIN_TEMPLATE, "\nIt is", "\nIt is"),
        (CHATML, " It is <|im_end|>", " It is "),
        (LLAMA, " It is </s>", "It is"),
        (LLAMA, " It is", "It is"),  # the limit came first
        (LLAMA, "It is </s>", "It is "),
        (CHANNEL, "<s>final<|im_end|>It is</s>", "It is"),
        (CHANNEL, "finally</s>", "finally"),
        (THINKING, "<think>\n\n</think>\n\nfour<|im_end|>", "four"),
        (THINKING, "<think>\nhm\n</think>\n\nfour<|im_end|>", "<think>\nhm\n</think>\n\nfour"),
        (OPENED, "hm\n</think>\n\nfour<|im_end|>", "hm\n</think>\n\nfour"),
    ],
)
def test_what_the_template_does_not_write_is_the_answers_own(template, written, text):
    tokenizer = byte_level(template)
    assert decoded(Encoder(tokenizer), [ASKED], [[drawn(tokenizer, written)]]) == [[text]]


@pytest.mark.parametrize(
    ("template", "written", "text"),
    [
        (PLAIN_TEMPLATE, " It is", "It is"),
        (PLAIN_TEMPLATE, "  It is \n", " It is \n"),
        (CHATML, "It is\n", "It is\n"),
        (MISTRAL, " It is", "It is"),
        (LLAMA, " It is ", "It is "),  # the template would write that space too, but an end token behind it
        (TRIMMED, "  It is ", " It is "),
        (ZEPHYR, "\nIt is", "It is"),
        (CHANNEL, "<s>final<|im_end|>It is", "It is"),
        (THINKING, "<think>\n\n</think>\n\nfour and", "four and"),
        (THINKING, "<think>\nhm, no", "<think>\nhm, no"),
        (THINKING, "<think>\nhm\n</think>\n\nfour and", "<think>\nhm\n</think>\n\nfour and"),
        (OPENED, "hm, no", "hm, no"),
        (OPENED, "hm\n</think>\n\nfour and", "hm\n</think>\n\nfour and"),
    ],
)
def test_an_answer_that_was_cut_off_is_read_again_as_it_was_drawn(template, written, text):
    """Without an end, without what the template writes before one, and untrimmed."""
    encoder = Encoder(byte_level(template))
    ids = drawn(encoder.tokenizer, written)
    assert decoded(encoder, [ASKED], [[ids]]) == [[text]]
    assert as_read(encoder, ASKED, text, ended=False).tolist() == ids.tolist()
    assert as_read(encoder, ASKED, text).tolist() != ids.tolist()


@pytest.mark.parametrize("make", [byte_level, metaspace, lambda: metaspace(scheme="first"), unigram])
def test_text_that_was_cut_off_has_no_end_token(make):
    encoder = Encoder(make())
    whole, cut = (as_read(encoder, "bad", " a cafe", ended) for ended in (True, False))
    assert whole.tolist() == [*cut.tolist(), encoder.tokenizer.eos_token_id]
    assert decoded(encoder, ["bad"], [[whole, cut]]) == [[" a cafe", " a cafe"]]


def test_a_template_is_asked_with_the_prompt_itself():
    """One that refuses conversations without a system turn says nothing of those, and all of the others."""
    tokenizer = byte_level(SYSTEM_FIRST)
    prompts = [(Message("system", "think"), *ASKED), ASKED]
    ids = [drawn(tokenizer, " It is 4.</s>")]
    assert decoded(Encoder(tokenizer), prompts, [ids, ids]) == [["It is 4."], [" It is 4."]]


# ---------------------------------------------------------------- from a model


@pytest.fixture(scope="module", params=["plain", "mistral", "sentencepiece"])
def talker(request, tmp_path_factory) -> str:
    """A small model that has learnt a little to answer messages, by a template that writes a space before an answer."""
    folder = tmp_path_factory.mktemp(request.param)
    base = tiny.model(folder / "base", "wide")
    tokenizer = load_tokenizer(base)
    if request.param == "sentencepiece":
        tokenizer = metaspace(MISTRAL)
        AutoModelForCausalLM.from_config(tiny.config("wide", len(tokenizer))).save_pretrained(base)
    elif request.param == "mistral":
        tokenizer.chat_template = MISTRAL
    tokenizer.save_pretrained(base)
    rng = random.Random(0)
    turns = [
        [{"role": "user", "content": "no"}, {"role": "assistant", "content": tiny.text(rng, 1, 3)}] for _ in range(96)
    ]
    data = tiny.write(folder / "chats.jsonl", [{"messages": conversation} for conversation in turns])
    settings = dict(max_steps=None, epochs=8, batch_size=16, learning_rate=1e-2)
    assert tiny.cli("sft", base, data, folder / "out", **settings) == 0
    return str(folder / "out" / "model")


@pytest.mark.parametrize("prompt", [(user("no"),), "the cat"], ids=["messages", "text"])
@pytest.mark.parametrize("limit", [24, 3])
def test_what_was_drawn_is_read_back(talker, prompt, limit, tmp_path):
    """Ids and log-probs, from the file that ``prefopt sample`` writes; of answers that were cut off too."""
    asked = prompt if isinstance(prompt, str) else [message._asdict() for message in prompt]
    data, out = tiny.write(tmp_path / "asked.jsonl", [{"prompt": asked}]), tmp_path / "out.jsonl"
    settings = ["--n", "80", "--max-new-tokens", str(limit), "--batch-size", "80"]
    assert main(["sample", "--model", talker, "--data", data, "--out", str(out), *settings]) == 0
    lm, encoder = load_model(talker), Encoder(load_tokenizer(talker))
    (ids,) = encoder.prompts([prompt])
    (drawn,) = TransformersGenerator(lm, encoder, max_new_tokens=limit, batch_size=80).ids([ids], 80)
    lead = "" if isinstance(prompt, str) else " "
    pairs = [
        (_encoded(ids, response), _encoded(draft.prompt, draft.responses[0]))
        for response, draft in zip(drawn, encoder.drafts(load([str(out)])), strict=True)
        if tells_all(encoder.tokenizer, ids, response, lead)
    ]
    ends = [int(one.responses[0][-1]) in encoder.tokenizer.all_special_ids for one, _ in pairs]
    assert len(pairs) > 10 and len({one.key for one, _ in pairs}) > 3
    assert any(ends) if limit == 24 else not all(ends)
    assert [one.key for one, _ in pairs] == [other.key for _, other in pairs]
    ours, theirs = ([sums for sums, _ in scored(lm, side)] for side in zip(*pairs, strict=True))
    assert ours == theirs


def tells_all(tokenizer, prompt: np.ndarray, response: np.ndarray, lead: str) -> bool:
    """Whether what was written says which tokens it has: it holds the lead, and is cut in tokens as it would be."""
    whole = [*prompt.tolist(), *response.tolist()]
    written = tokenizer.decode(whole)
    behind = written[len(tokenizer.decode(prompt)) :]
    cut = tokenizer(written, add_special_tokens=False)["input_ids"]
    controls = [i for i, id in enumerate(response) if id in tokenizer.all_special_ids]
    return (
        controls in ([], [len(response) - 1]) and behind.startswith(lead) and cut[-len(response) :] == response.tolist()
    )


def _encoded(prompt: np.ndarray, response: np.ndarray) -> Encoded:
    key = (prompt.tobytes() + b"|" + response.tobytes()).hex()
    return Encoded(prompt, (response,), (np.ones(len(response), bool),), (None,), "", key, key)

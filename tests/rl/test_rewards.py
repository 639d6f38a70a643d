"""Rewards of every kind: what they give is what the model itself gives, one sequence at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification, LlamaConfig

from prefopt.data.encode import Encoder
from prefopt.errors import UserError
from prefopt.model.load import load_model, load_tokenizer
from prefopt.model.scoring import scored
from prefopt.rl.rewards import Function, encode, load_reward, rewarded
from prefopt.types import Message
from tests.train import tiny

PAIRS = [("the cat", " sat on the mat"), ("a dog ran under the tree", " no"), ("never", "")]
CHAT = [((Message("user", "the cat"),), "sat on the mat"), ((Message("user", "never again"),), "thanks")]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return tiny.model(folder / "a"), tiny.model(folder / "b", seed=1)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """Makes a folder with a classifier of some labels."""

    def make(labels: list[str], architecture: str = "llama") -> str:
        folder = tmp_path_factory.mktemp("classifier")
        tokenizer = load_tokenizer(tiny.model(folder))
        names: dict[str, Any] = dict(num_labels=len(labels), id2label=dict(enumerate(labels)))
        torch.manual_seed(0)
        if architecture == "bert":
            small: dict[str, Any] = dict(
                hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
            )
            config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=24, pad_token_id=2, **small, **names)
            module = BertForSequenceClassification(config)
        else:
            settings = {**tiny.config("llama", len(tokenizer)).to_dict(), **names}
            module = AutoModelForSequenceClassification.from_config(LlamaConfig(**settings))
        module.save_pretrained(folder)
        return str(folder)

    return make


@torch.no_grad()
@pytest.mark.parametrize("pairs", [PAIRS, CHAT])
def test_a_reward_model_reads_as_in_training_and_as_transformers_does(classifier, pairs):
    name = classifier(["score"])
    module = AutoModelForSequenceClassification.from_pretrained(name).eval()
    examples = encode(Encoder(load_tokenizer(name)), pairs)
    ids = [torch.from_numpy(np.concatenate([e.prompt, e.responses[0]]).astype(np.int64)) for e in examples]
    expected = [float(module(input_ids=row[None]).logits) for row in ids]
    assert np.allclose(load_reward(name)(pairs), expected, atol=1e-5)
    assert len(set(expected)) == len(pairs)
    assert [int(row[-1]) for row in ids] == [1 if pairs is PAIRS else int(ids[0][-1])] * len(pairs)


@torch.no_grad()
def test_a_label_is_its_probability_and_a_long_text_is_read_from_its_end(classifier):
    name = classifier(["bad", "good"], "bert")
    long = [("the cat " * 40, "sat on the mat"), ("the dog " * 40, "sat on the mat"), ("a", " dog")]
    good, bad = (load_reward(f"{name}:{label}")(long) for label in ("good", "0"))
    assert np.allclose(np.add(good, bad), 1) and all(0 < p < 1 for p in good)
    module, tokenizer = AutoModelForSequenceClassification.from_pretrained(name).eval(), load_tokenizer(name)
    start, *rest = tokenizer("".join(long[0]))["input_ids"]  # what the tokenizer begins with is kept
    ids = torch.tensor([[start, *rest[-23:]]])
    assert np.isclose(good[0], float(module(input_ids=ids).logits.softmax(-1)[0, 1]), atol=1e-6)


def test_an_answer_to_messages_is_a_message_of_its_own(classifier):
    name = classifier(["bad", "good"], "bert")
    asked = (Message("user", "the cat"), Message("assistant", "sat"), Message("user", "on"))
    chat, text = load_reward(f"{name}:good")([(asked, "the mat"), ("the cat\n\nsat\n\non\n\n", "the mat")])
    assert chat == pytest.approx(text)


def test_what_is_read_of_a_pair_does_not_hang_on_the_others(models):
    encoder = Encoder(load_tokenizer(models[0]))
    rendered, plain = (encoder.tokenizer.eos_token + "the cat", " a"), ("the dog", " b")
    together = encode(encoder, [plain, rendered, plain])
    for pair, found in zip([plain, rendered, plain], together, strict=True):
        (alone,) = encode(encoder, [pair])
        assert found.prompt.tolist() == alone.prompt.tolist()
        assert found.responses[0].tolist() == alone.responses[0].tolist()


def test_the_implicit_reward_is_the_scaled_log_ratio(models):
    policy, reference = models
    examples = encode(Encoder(load_tokenizer(policy)), PAIRS)
    sums = [[s[0] for s, _ in scored(load_model(name), examples)] for name in models]
    expected = 0.5 * np.subtract(sums[0], sums[1])
    assert np.allclose(load_reward(f"implicit:{policy}@{reference}:0.5")(PAIRS), expected, atol=1e-5)
    assert np.allclose(load_reward(f"implicit:{policy}@{reference}")(PAIRS), expected / 5, atol=1e-5)
    assert load_reward(f"implicit:{policy}@{policy}")(PAIRS) == [0.0] * 3


def test_the_implicit_reward_of_nothing_is_zero(models):
    """A sample of one control token that is no end, for example, which the text does not hold."""
    reward = load_reward("implicit:{}@{}".format(*models))
    (alone,) = rewarded(reward, [("the cat", " a")], [False])
    assert alone and rewarded(reward, [("never", ""), ("the cat", " a")], [False, False]) == [0.0, pytest.approx(alone)]
    assert rewarded(reward, [("never", "")], [False]) == [0.0] and reward([]) == []


def test_functions_of_pairs_and_of_prompts_and_responses(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def of_pairs(pairs):\n    return [len(p) + len(r) for p, r in pairs]\n"
        "def of_texts(prompts, responses):\n    return [p.count('c') for p in prompts]\n"
        "def fails(pairs):\n    return [1 / 0 for _ in pairs]\n"
        "number = 3\n"
    )
    assert load_reward(f"{file}:of_pairs")(PAIRS[:2]) == [22.0, 27.0]
    assert load_reward(f"{file}:of_texts")(CHAT) == [1.0, 0.0]
    with pytest.raises(UserError, match=r"failed at .*mine.py:6: ZeroDivisionError"):
        load_reward(f"{file}:fails")(PAIRS)
    with pytest.raises(UserError, match="cannot be called"):
        load_reward(f"{file}:number")


@pytest.mark.parametrize(
    ("gives", "says"), [([1.0], "gave 1 numbers for 3"), ([1, 2, float("nan")], "gave nan for the response ''")]
)
def test_a_function_gives_one_finite_number_for_each(gives, says):
    with pytest.raises(UserError, match=says):
        Function(lambda pairs: gives, "mine")(PAIRS)


def test_specs_that_name_nothing(models, classifier):
    policy, reference = models
    labels = classifier(["bad", "good"])
    one = classifier(["score"])
    for spec, says in [
        (policy, "is no sequence classifier"),
        (labels, "name one of them, .*:bad, .*:good"),
        (f"{labels}:fine", "its labels are bad, good"),
        (f"{one}:good", "has one output and no labels"),
        (f"implicit:{policy}", "write implicit:POLICY@REFERENCE"),
        (f"implicit:{policy}@{reference}:high", "beta must be a number above 0, not 'high'"),
        (f"implicit:{policy}@{reference}:0", "beta must be a number above 0"),
        ("./nothing", "no such folder"),
        ("none.py:good", "no such file"),
    ]:
        with pytest.raises(UserError, match=says):
            load_reward(spec)


def test_a_response_longer_than_the_model_is_refused_and_a_prompt_loses_its_beginning(classifier):
    reward = load_reward(classifier(["score"]))
    long = "the cat sat " * 60
    one, other = reward([(long + "on the mat", " no"), ("x " + long + "on the mat", " no")])
    assert np.isclose(one, other, atol=1e-6)
    with pytest.raises(UserError, match="response 1 alone is longer than 128 tokens"):
        reward([("a", long)])
    assert reward([]) == []

"""KL and reward by sampling: 0 where nothing changed, the exact value within the interval, and clear refusals."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xxhash
from transformers import AutoModelForCausalLM

from prefopt.data.encode import Encoder
from prefopt.errors import UserError
from prefopt.frontier.estimate import Sampling, choose, estimate, measure, rewards
from prefopt.generate import Prompt
from prefopt.model.load import load_model, load_tokenizer
from prefopt.model.scoring import scored
from prefopt.rl.rewards import identity, load_reward
from prefopt.types import Encoded, Example, Message, Response
from tests.train import tiny

CPU = SimpleNamespace(dtype="float32", device="cpu", tokens_per_microbatch=256)


def example(prompt: list[int], *responses: list[int], key: str = "p") -> Encoded:
    arrays = tuple(np.array(response, np.int32) for response in responses)
    masks = tuple(np.ones(len(response), bool) for response in responses)
    return Encoded(np.array(prompt, np.int32), arrays, masks, (None,) * len(responses), "sample", key, key)


@pytest.fixture(scope="module")
def encoder(given):
    return Encoder(load_tokenizer(given.model), 128)


@pytest.fixture(scope="module")
def prompts(encoder):
    return encoder.prompts(["the cat", "a dog ran", "under"])


def test_by_hand():
    """Two prompts: log-ratios 1 and 3, and 2; rewards 0 and 1, and 5. One of three responses has 2 tokens."""
    drawn = [example([1], [5], [6, 2]), example([2], [7], key="q")]
    found = estimate(drawn, [[-1.0, -2.0], [-3.0]], [[-2.0, -5.0], [-5.0]], [0.0, 1.0, 5.0], limit=2)
    assert found.kl.value == 2.0 and found.reward is not None and found.reward.value == 2.0
    assert found.reward[1:] == (0.5, 5.0)  # one prompt or the other, never half of one
    assert found[2:] == (2, 3, pytest.approx(4 / 3), pytest.approx(1 / 3))


def test_a_policy_is_not_away_from_itself(given, encoder, prompts, tmp_path):
    shutil.copytree(given.model, tmp_path / "copy")
    for reference in (given.model, str(tmp_path / "copy")):
        found = measure(given.model, reference, encoder, prompts, {}, Sampling(6, max_new_tokens=8), CPU)
        assert found.kl == (0.0, 0.0, 0.0)
        assert (found.reward, found.prompts, found.responses) == (None, 3, 6)


def exact_kl(policy: str, reference: str, prompt: np.ndarray, ends: set[int]) -> float:
    """Of responses of at most two tokens: KL of the first, and of the second wherever there is one."""
    logps = []
    for name in (policy, reference):
        model = AutoModelForCausalLM.from_pretrained(name)
        first = torch.tensor(prompt, dtype=torch.long)
        vocabulary = torch.arange(model.config.vocab_size)
        second = torch.cat([first.expand(len(vocabulary), -1), vocabulary[:, None]], 1)
        with torch.no_grad():
            logps.append([model(ids).logits[:, -1].double().log_softmax(-1) for ids in (first[None], second)])
    (p1, p2), (q1, q2) = logps
    then = (p2.exp() * (p2 - q2)).sum(1)
    then[list(ends)] = 0
    return float((p1.exp()[0] * (p1[0] - q1[0] + then)).sum())


def test_the_exact_value_lies_in_the_interval(given, encoder, prompts, tmp_path):
    policy = tiny.model(tmp_path / "other", seed=1)
    sampling = Sampling(600, max_new_tokens=2, reward=load_reward(lambda pairs: [len(said) for _, said in pairs]))
    texts = {xxhash.xxh3_128_hexdigest(prompts[0].tobytes()): "the cat"}
    found = measure(policy, given.model, encoder, prompts[:1], texts, sampling, CPU)
    exact = exact_kl(policy, given.model, prompts[0], {1})
    assert found.responses == 600 and found.reward is not None and found.reward.value > 0
    assert exact > 0.1 and found.kl.low < exact < found.kl.high < 1.4 * found.kl.low

    one_each = measure(policy, given.model, encoder, prompts * 100, {}, Sampling(300, max_new_tokens=2), CPU)
    mean = float(np.mean([exact_kl(policy, given.model, prompt, {1}) for prompt in prompts]))
    assert one_each.kl.low < mean < one_each.kl.high and one_each.kl.high - one_each.kl.low < mean


def test_equal_seeds_equal_samples(given, encoder, prompts, tmp_path):
    policy = tiny.model(tmp_path / "other", seed=1)
    a, b, c = (
        measure(policy, given.model, encoder, prompts, {}, Sampling(6, 8, seed), CPU).kl.value for seed in (0, 0, 1)
    )
    assert a == b != c


def test_prompts_are_different_and_leave_room():
    units = [example([i % 7] * (1 + i % 7), [1], key=f"p{i % 7}") for i in range(30)]
    chosen = choose(units, Sampling(4, max_new_tokens=4), longest=9)
    assert (
        len(chosen) == 4 == len({tuple(unit.prompt) for unit in chosen})
        and max(len(unit.prompt) for unit in chosen) <= 5
    )
    again = choose(units[::-1], Sampling(4, max_new_tokens=4), 9)
    assert [unit.prompt_key for unit in again] == [unit.prompt_key for unit in chosen]
    assert len(choose(units, Sampling(64), None)) == 7
    with pytest.raises(UserError, match="no prompt leaves room for --max-new-tokens 9: the model takes 9 tokens"):
        choose(units, Sampling(4, max_new_tokens=9), 9)


def test_what_an_estimate_depends_on(tmp_path):
    prompts = [np.array([1, 2], np.int32), np.array([3], np.int32)]
    split = [np.array([1], np.int32), np.array([2, 3], np.int32)]
    (file := tmp_path / "mine.py").write_text("def good(prompts, responses): return [1.0] * len(responses)\n")
    first = identity(f"{file}:good")
    file.write_text("def good(prompts, responses): return [2.0] * len(responses)\n")
    known = ["", first, identity(f"{file}:good"), identity("runs/reward/model"), identity(len)]
    keys = [Sampling(reward_is=reward_is).key(["a", "b"], prompts) for reward_is in known]
    keys += [Sampling().key(["a", "b"], split), Sampling().key(["a", "c"], prompts), Sampling(seed=1).key([], prompts)]
    assert len(set(keys)) == len(keys)


def test_a_response_that_was_cut_off_has_the_implicit_reward_of_what_was_drawn(given, encoder, tmp_path):
    other = tiny.model(tmp_path / "other", seed=1)
    prompt = encoder.prompts(["the cat"])[0]
    said = encoder.drafts([Example("the cat", (Response(" sat on"),))])[0].responses[0]
    drawn = [example(prompt, said[:-1], said)]
    ours, theirs = (scored(load_model(name), drawn)[0][0] for name in (other, given.model))
    found = rewards(drawn, {"p": "the cat"}, encoder, load_reward(f"implicit:{other}@{given.model}:1"))
    assert found == pytest.approx(np.subtract(ours, theirs), abs=1e-4) and abs(found[0] - found[1]) > 0.01


def test_a_reward_reads_what_was_written(encoder):
    chat = (Message("user", "the cat"),)
    drawn = [example([5, 6], list(encoder.prompts([said])[0][1:])) for said in ("sat", " sat")]
    seen: list[tuple[Prompt, str]] = []

    def reward(pairs):
        seen.extend(pairs)
        return [0.0] * len(pairs)

    for prompt in (chat, "the cat"):
        rewards(drawn, {"p": prompt}, encoder, reward)
    assert seen == [(chat, "sat"), (chat, "sat"), ("the cat", "sat"), ("the cat", " sat")]

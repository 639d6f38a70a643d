"""The embedded world: what it claims about its corpus, its rewards and its samples holds, by counting."""

import numpy as np
import pytest

from prefopt.demo.world import World
from prefopt.frontier.exact import Frontier, bradley_terry, expectation


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def find(world: World, text: str) -> int:
    return world.texts.index(text)


def test_the_corpus_is_a_distribution_that_differs_by_prompt(world):
    np.testing.assert_allclose(np.exp(world.corpus_logps).sum(-1), 1)
    assert len(set(world.texts)) == len(world.texts) == 36_864
    distance = np.abs(np.exp(world.corpus_logps[:, None]) - np.exp(world.corpus_logps)).sum(-1) / 2
    assert distance[~np.eye(len(distance), dtype=bool)].min() > 0.3  # total variation between genres


def test_a_latent_mood_correlates_words_of_different_slots(world):
    """In the corpus, a sharp detail is commoner after "Happily," than after "Sadly,"."""
    probs = np.exp(world.corpus_logps)
    sharp = np.array(["sharp" in text for text in world.texts])
    for row in probs:
        share = {
            opening: row[np.array([t.startswith(opening) for t in world.texts]) & sharp].sum()
            / row[np.array([t.startswith(opening) for t in world.texts])].sum()
            for opening in ("Happily,", "Sadly,")
        }
        assert share["Happily,"] > 1.3 * share["Sadly,"]


def test_words_interact(world):
    good, turned = "Overall, a truly superb film with {}", "Overall, a hardly superb film with {}"
    bad, saved = "Overall, a truly dull film with {}", "Overall, a never dull film with {}"
    end = "warm acting."
    for rewards in world.reward:
        r = {text: rewards[find(world, text.format(end))] for text in (good, turned, bad, saved)}
        assert r[good] > r[saved] > 0 > r[turned] - rewards.max() / 10 and r[saved] > r[bad]
    scary = find(world, "Overall, a truly frightening film with warm acting.")
    assert world.reward[0, scary] > 1 > world.reward[1, scary]  # praise for horror, not for comedy


def test_a_sum_of_word_values_does_not_explain_the_reward(world):
    """The control for "words interact": the best additive model leaves a good part of the variance."""
    slots = [(world.words[:, [s]] == np.arange(world.words[:, s].max() + 1)) for s in range(world.words.shape[1])]
    features = np.concatenate(slots, axis=1).astype(float)
    for rewards in world.reward:
        fitted = features @ np.linalg.lstsq(features, rewards, rcond=None)[0]
        assert (rewards - fitted).var() > 0.2 * rewards.var()


def test_the_reward_spreads_and_the_frontier_is_long(world):
    mean = expectation(world.corpus_logps, world.reward)
    spread = np.sqrt(expectation(world.corpus_logps, (world.reward - mean[:, None]) ** 2))
    assert ((spread > 0.9) & (spread < 1.5)).all()
    frontier = Frontier(world.corpus_logps, world.reward)
    assert frontier.at(0.1).kl > 5 and frontier.at(5.0).kl < 0.1


def test_two_decimals(world):
    np.testing.assert_array_equal(world.reward, np.round(world.reward, 2))


class TestTokens:
    def test_round_trip(self, world):
        tokenizer = world.tokenizer
        ids = tokenizer(world.prompts[0])["input_ids"]
        assert ids[0] == tokenizer.bos_token_id and tokenizer.unk_token_id not in ids
        for y in (0, 17_000, 36_863):
            assert tokenizer.decode(world.responses[y]) == world.texts[y]
        assert not (world.responses == tokenizer.unk_token_id).any()

    def test_saved_and_loaded(self, world, tmp_path):
        from transformers import AutoTokenizer

        world.tokenizer.save_pretrained(tmp_path)
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        assert loaded(world.texts[5])["input_ids"] == world.tokenizer(world.texts[5])["input_ids"]
        assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == ("<s>", "</s>", "<pad>")

    def test_trees(self, world):
        """Prefixes are shared: 51,135 tokens to read for 36,864 reviews of 8 words; a uniform model gives each V^-9."""
        assert len(world.trees) == len(world.prompts)
        tree = world.trees[1]
        assert len(tree.ids) < 1.4 * len(world.texts)
        vocabulary = len(world.tokenizer)
        logps = tree.path_sums(np.full(len(tree.source), -np.log(vocabulary)))
        np.testing.assert_allclose(logps, -9 * np.log(vocabulary))
        assert tree.ids[: tree.prompt_length].tolist() == world.tokenizer(world.prompts[1])["input_ids"]


class TestSampling:
    def test_frequencies_are_the_probabilities(self, world):
        """Total variation between 200,000 draws and the corpus's distribution of first words and adjectives."""
        rng = np.random.default_rng(0)
        drawn = world.draw(world.corpus_logps, np.full(200_000, 2), rng)
        for slot in (0, 2):
            counted = np.bincount(world.words[drawn, slot]) / len(drawn)
            expected = np.bincount(world.words[:, slot], np.exp(world.corpus_logps[2]))
            assert np.abs(counted - expected).sum() / 2 < 0.01

    def test_missing_mass_and_the_impossible_are_never_drawn(self, world):
        logps = np.full_like(world.corpus_logps, -np.inf)
        logps[:, [3, 7]] = np.log(0.1)
        drawn = world.draw(logps, np.zeros(1000, int), np.random.default_rng(0))
        assert set(drawn) == {3, 7}

    def test_corpus(self, world):
        examples = world.corpus(100, seed=1)
        assert examples == world.corpus(100, seed=1) != world.corpus(100, seed=2)
        assert {e.prompt for e in examples} == set(world.prompts)
        assert all(e.responses[0].content in world.texts for e in examples)

    def test_labels_are_bradley_terry(self, world):
        """Grouped by |margin|, the better review is chosen as often as σ says, within five standard errors."""
        pairs = world.pairs(world.corpus_logps, 100_000, seed=0)
        margin = world.reward[pairs.prompt, pairs.chosen] - world.reward[pairs.prompt, pairs.rejected]
        for low, high in ((0.1, 0.5), (0.5, 1.5), (1.5, 4.0)):
            group = margin[(np.abs(margin) >= low) & (np.abs(margin) < high)]
            expected = bradley_terry(np.abs(group))
            error = np.sqrt((expected * (1 - expected)).sum()) / len(group)
            assert (group > 0).mean() == pytest.approx(expected.mean(), abs=5 * error)
        assert not (pairs.chosen == pairs.rejected).any() and not pairs.flipped.any()

    def test_flipped_labels_are_the_same_pairs_turned_around(self, world):
        clean = world.pairs(world.corpus_logps, 20_000, seed=0)
        noisy = world.pairs(world.corpus_logps, 20_000, seed=0, flip=0.2)
        assert noisy.flipped.mean() == pytest.approx(0.2, abs=0.015)
        np.testing.assert_array_equal(np.where(noisy.flipped, noisy.rejected, noisy.chosen), clean.chosen)
        np.testing.assert_array_equal(np.where(noisy.flipped, noisy.chosen, noisy.rejected), clean.rejected)

    def test_examples(self, world):
        pairs = world.pairs(world.corpus_logps, 3, seed=5)
        first = next(world.examples(pairs))
        assert first.prompt == world.prompts[pairs.prompt[0]]
        assert [r.content for r in first.responses] == [world.texts[pairs.chosen[0]], world.texts[pairs.rejected[0]]]
        assert [r.score for r in first.responses] == [1.0, 0.0]

    def test_a_policy_with_one_review_has_no_pairs(self, world):
        logps = np.full_like(world.corpus_logps, -np.inf)
        logps[:, 0] = 0.0
        with pytest.raises(ValueError, match="nothing to compare"):
            world.pairs(logps, 2)

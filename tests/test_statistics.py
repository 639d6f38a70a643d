import numpy as np
import pytest

from prefopt.statistics import Interval, clustered_bootstrap, proportion, wilson


def test_wilson_solves_its_own_equation():
    """The bounds are the two p0 with |p − p0| = z·sqrt(p0(1 − p0)/n): checked without the closed form."""
    z = 1.959963984540054
    for successes, trials in [(8, 10), (1, 50), (146, 256), (12.5, 30)]:
        value, low, high = wilson(successes, trials)
        for bound in (low, high):
            assert abs(value - bound) == pytest.approx(z * np.sqrt(bound * (1 - bound) / trials), rel=1e-9)
        assert low < value < high


def test_wilson_known_values():
    # Newcombe 1998, table I: 81/263 and 0/20.
    assert wilson(81, 263)[1:] == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20)[1:] == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(20, 20).high == 1.0


@pytest.mark.parametrize("successes, trials", [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_what_is_no_proportion(successes, trials):
    with pytest.raises(ValueError, match="no proportion"):
        wilson(successes, trials)


def test_bootstrap_agrees_with_the_normal_interval_of_a_mean():
    """500 independent values: percentile bounds come to mean ± 1.96·sd/√n, within the noise of 10,000 draws."""
    values = np.random.default_rng(3).normal(2.0, 1.0, 500)
    value, low, high = clustered_bootstrap(values, np.arange(500))
    half = 1.96 * values.std() / np.sqrt(500)
    assert value == values.mean()
    assert (low, high) == pytest.approx((value - half, value + half), abs=0.05 * half)


def test_prompts_are_resampled_and_not_pairs():
    """Four copies of each value say no more than one: the interval is that of the 100 prompts."""
    once = (np.arange(100) % 3 == 0).astype(float)
    copied = clustered_bootstrap(np.repeat(once, 4), np.repeat(np.arange(100), 4))
    assert copied == clustered_bootstrap(once, np.arange(100))
    as_if_independent = clustered_bootstrap(np.repeat(once, 4), np.arange(400))
    assert copied.high - copied.low > 1.8 * (as_if_independent.high - as_if_independent.low)


def test_bootstrap_is_seeded_and_blind_to_labels():
    values = np.random.default_rng(0).random(40)
    prompts = [f"p{i // 2}" for i in range(40)]
    first = clustered_bootstrap(values, prompts, seed=5)
    assert first == clustered_bootstrap(values, [p.upper() for p in prompts], seed=5)
    assert first != clustered_bootstrap(values, prompts, seed=6)


def test_bootstrap_in_chunks_is_the_same(monkeypatch):
    values, prompts = np.random.default_rng(0).random(30), np.arange(30)
    whole = clustered_bootstrap(values, prompts, draws=500)
    monkeypatch.setattr("prefopt.statistics._DRAWN_AT_ONCE", 1000)
    assert clustered_bootstrap(values, prompts, draws=500) == whole


@pytest.mark.parametrize("values", [np.arange(20_500) % 2, np.arange(20_500) / 20_500, np.arange(20_500) % 5125 == 0])
def test_many_prompts_are_resampled_in_groups_made_by_chance(monkeypatch, values):
    """Values that take turns, that are sorted, and four ones in thousands of zeros: the interval does not hang on it.

    Of 20,500 prompts in 1,000 groups some have 21 and some 20. Groups by order or by turns would give values that
    take turns or are sorted an interval several times as wide.
    """
    monkeypatch.setattr("prefopt.statistics._RESAMPLED", 1000)
    value, low, high = clustered_bootstrap(values, np.arange(20_500))
    monkeypatch.setattr("prefopt.statistics._RESAMPLED", 20_500)
    singly = clustered_bootstrap(values, np.arange(20_500), draws=2000)
    assert value == values.mean() == singly.value
    assert (low, high) == pytest.approx(singly[1:], abs=0.1 * (singly.high - singly.low))


def test_the_last_number_of_prompts_that_are_resampled_one_by_one(monkeypatch):
    values, prompts = np.random.default_rng(0).random(101), np.arange(101)
    singly = [clustered_bootstrap(values[:n], prompts[:n], draws=500) for n in (100, 101)]
    monkeypatch.setattr("prefopt.statistics._RESAMPLED", 100)
    assert clustered_bootstrap(values[:100], prompts[:100], draws=500) == singly[0]
    assert clustered_bootstrap(values, prompts, draws=500) != singly[1]


def test_bootstrap_covers():
    """300 data sets of 40 prompts with 3 correlated pairs each: about 95 % of the intervals hold the truth."""
    random = np.random.default_rng(11)
    covered = 0
    for seed in range(300):
        accuracy = random.beta(2, 1, 40)  # mean 2/3
        values = random.random((40, 3)) < accuracy[:, None]
        _, low, high = clustered_bootstrap(values.ravel(), np.repeat(np.arange(40), 3), draws=500, seed=seed)
        covered += low <= 2 / 3 <= high
    assert 0.90 <= covered / 300 <= 0.98


def test_one_prompt_or_equal_values_say_little():
    """Resampling draws the same again and again; an interval of no width would be a lie."""
    assert proportion([1, 1, 1, 0], ["p"] * 4) == wilson(0.75, 1)
    assert proportion([0.5] * 6, ["p", "p", "q", "q", "r", "r"]) == wilson(1.5, 3)
    for values in ([1, 0], [float("nan")]):
        with pytest.raises(ValueError, match="need as many"):
            proportion(values, ["p"])
    assert proportion([1, 0, 1, 0], list("ppqq")) == clustered_bootstrap([1, 0, 1, 0], list("ppqq"))


@pytest.mark.parametrize("values, clusters", [([], []), ([1.0], ["p", "q"]), ([float("nan")], ["p"])])
def test_bootstrap_refuses(values, clusters):
    with pytest.raises(ValueError, match="need as many"):
        clustered_bootstrap(values, clusters)


def test_an_accuracy_of_one_is_not_certain():
    assert proportion([1.0] * 20, list(range(20))) == wilson(20, 20)
    assert proportion([0.0] * 20, [0] * 20) == wilson(0, 1)  # one prompt asked twenty times
    assert proportion([1.0, 0.0], [0, 1]) == Interval(0.5, 0.0, 1.0)

"""Numbers worked out by hand for each loss; laws over every registered loss; names and options."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prefopt.errors import UserError
from prefopt.losses import (
    CPO,
    DPO,
    IPO,
    KTO,
    LOSSES,
    ORPO,
    SFT,
    APODown,
    APOZero,
    BCOPair,
    DiscoPOP,
    EXOPair,
    Hinge,
    IPOMean,
    Loss,
    NCAPair,
    PlackettLuce,
    Robust,
    SigmoidNorm,
    SimPO,
    SPPOHard,
    Unlikelihood,
    WithNLL,
    kto_baseline,
    make_loss,
    options_of,
)
from prefopt.types import LogProbs, LossOutput, Preferences

# --- numbers ------------------------------------------------------------------------------------
# Three responses: y0 of 4 tokens with s = −10 + 12 = 2, y1 of 6 with s = −19 + 14 = −5, y2 of 2 with s = −8 + 8 = 0.
# y0 over y1 has h = 2 − (−5) = 7.
POLICY = LogProbs(torch.tensor([-10.0, -19.0, -8.0]), torch.tensor([4.0, 6.0, 2.0]))
REFERENCE = LogProbs(torch.tensor([-12.0, -14.0, -8.0]), POLICY.length)
PAIR = Preferences(torch.tensor([[0, 1]]))


def value(loss, preferences=PAIR):
    return loss(POLICY, REFERENCE if loss.needs_reference else None, preferences).loss.tolist()


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        # z = βh = 0.7, σ(0.7) = 0.66819, −log σ(0.7) = 0.40319, −log σ(−0.7) = 1.10319
        (DPO(beta=0.1), 0.40319),
        (DPO(beta=0.1, label_smoothing=0.1), 0.9 * 0.40319 + 0.1 * 1.10319),
        (Robust(beta=0.1, label_smoothing=0.1), (0.9 * 0.40319 - 0.1 * 1.10319) / 0.8),
        (IPO(tau=0.1), 4.0),  # (7 − 5)²
        (IPOMean(tau=0.1), 13.44444),  # (2/4 + 5/6 − 5)² = (−11/3)²
        (Hinge(beta=0.1), 0.3),  # 1 − 0.7
        (Hinge(beta=0.2), 0.0),  # 1 − 1.4 < 0
        (SigmoidNorm(beta=5.0), 0.0012718),  # z = 5 · 4/3, log(1 + e^−6.66667)
        # mean log p: −2.5 and −3.16667; odds e^m/(1 − e^m) = 0.089425 and 0.043998, whose ratio is 2.03248;
        # −log σ(log 2.03248) = log(1 + 1/2.03248) = 0.40012
        (ORPO(odds_weight=0.1), 2.5 + 0.1 * 0.40012),
        (SimPO(beta=2.0, gamma=1.0), 0.54030),  # z = 2 · 2/3 − 1 = 1/3, log(1 + e^−1/3)
        (CPO(beta=0.1, alpha=1.0), 0.34115 + 2.5),  # z = 0.1 · 9, log(1 + e^−0.9)
        (Unlikelihood(alpha=0.1), 10 - 1.9),
        # r_w = 0.2 and r_l = −0.5; −log σ: 0.59814 at 0.2, 0.79814 at −0.2, 0.97408 at −0.5, 0.47408 at 0.5
        (NCAPair(beta=0.1), 0.59814 + (0.79814 + 0.47408) / 2),
        (BCOPair(beta=0.1), 0.59814 + 0.47408),
        (APOZero(beta=0.1), 0.45017 + 0.37754),  # σ(−0.2) + σ(−0.5)
        (APODown(beta=0.1), 0.54983 + 0.33181),  # σ(0.2) + σ(−0.7)
        (SPPOHard(beta=0.1), 9.0),  # (2 − 5)² + (−5 + 5)²
        (EXOPair(beta=0.1, label_smoothing=0.1), 0.66819 * (-0.40319 + 0.10536) + 0.33181 * (-1.10319 + 2.30259)),
        # z = 0.35, σ(z/τ) = σ(0.35) = 0.58662, −log σ(0.35) = 0.53338, e^−0.35 = 0.70469
        (DiscoPOP(beta=0.05, tau=1.0), 0.41338 * 0.53338 + 0.58662 * 0.70469),
        (WithNLL(DPO(beta=0.1), nll_weight=0.5), 0.40319 + 0.5 * 2.5),
    ],
    ids=repr,
)
def test_pair_losses_by_hand(loss, expected):
    assert value(loss) == pytest.approx([expected], abs=1e-5)


def test_plackett_luce_by_hand():
    """y0, y2, y1 with rewards 0.2, 0, −0.5: log(e^0.2 + 1 + e^−0.5) − 0.2 + log(1 + e^−0.5) − 0
    = log 2.827934 − 0.2 + log 1.606531 = 0.839546 + 0.474077."""
    assert value(PlackettLuce(beta=0.1), Preferences(torch.tensor([[0, 2, 1]]))) == pytest.approx([1.313623], abs=1e-5)


def test_kto_by_hand():
    """z0 = 1. Desirable y0: 1 − σ(0.1 (2 − 1)) = 0.475021. Undesirable y1: 1.5 (1 − σ(0.1 (1 + 5))) = 0.531516."""
    each = Preferences(torch.tensor([[0], [1]]), torch.tensor([True, False]), torch.tensor(1.0))
    assert value(KTO(undesirable_weight=1.5), each) == pytest.approx([0.475021, 0.531516], abs=1e-5)
    metrics = KTO()(POLICY, REFERENCE, each).metrics
    assert metrics["rewards/chosen"].tolist() == pytest.approx([0.2])
    assert metrics["rewards/rejected"].tolist() == pytest.approx([-0.5])


def test_kto_baseline_is_a_mean_above_zero_without_gradient():
    """s = −4 + 9 = 5 and −7 + 8 = 1, mean 3; the other way around −3, so 0."""
    one, other = (LogProbs(torch.tensor(s, requires_grad=True), torch.ones(2)) for s in ([-4.0, -7.0], [-9.0, -8.0]))
    assert kto_baseline(one, other).item() == 3.0 and not kto_baseline(one, other).requires_grad
    assert kto_baseline(other, one).item() == 0.0


def test_sft_by_hand():
    assert value(SFT(), Preferences(torch.tensor([[0], [1]]))) == pytest.approx([2.5, 19 / 6])


def test_metrics_by_hand():
    metrics = {name: value.item() for name, value in DPO(beta=0.1)(POLICY, REFERENCE, PAIR).metrics.items()}
    assert metrics == pytest.approx(
        {
            "rewards/chosen": 0.2,
            "rewards/rejected": -0.5,
            "rewards/margins": 0.7,
            "rewards/accuracies": 1.0,
            "logps/chosen": -10.0,
            "logps/rejected": -19.0,
            "weights": 0.33181,  # σ(−0.7)
        },
        abs=1e-5,
    )


def test_a_tie_is_not_accurate():
    assert DPO()(POLICY, POLICY, PAIR).metrics["rewards/accuracies"].item() == 0.0


# --- laws over every registered loss ------------------------------------------------------------
P, K = 5, 3


def example(unit: str, dtype=torch.float64, seed: int = 0):
    """Random token log-probs of P·K responses, a reference, and P examples of ``unit`` over them by shuffled index."""
    draw = torch.Generator().manual_seed(seed)
    length = torch.randint(1, 6, (P * K,), generator=draw)
    owner = torch.repeat_interleave(torch.arange(P * K), length)
    tokens, reference_tokens = -4 * torch.rand(2, len(owner), generator=draw, dtype=dtype) - 0.05
    ranking = torch.randperm(P * K, generator=draw).reshape(P, K)
    columns = {"pair": 2, "ranking": K, "response": 1, "demonstration": 1}[unit]
    preferences = Preferences(ranking[:, :columns])
    if unit == "ranking":
        preferences.ranking[0, 2] = preferences.ranking[3, 2] = -1
    if unit == "response":
        desirable = torch.tensor([True, False, True, True, False])
        preferences = replace(preferences, desirable=desirable, baseline=torch.tensor(0.5, dtype=dtype))
    return tokens.requires_grad_(), owner, LogProbs.from_tokens(reference_tokens, owner, P * K), preferences


def evaluate(loss: Loss, tokens, owner, reference, preferences) -> LossOutput:
    policy = LogProbs.from_tokens(tokens, owner, P * K)
    return loss(policy, reference if loss.needs_reference else None, preferences)


EVERY = [cls() for cls in LOSSES.values()] + [WithNLL(DPO(), 0.5), DPO(label_smoothing=0.1)]
every_loss = pytest.mark.parametrize("loss", EVERY, ids=repr)
PAIRED = [loss for loss in EVERY if loss.unit == "pair"]
WEIGHTED = [DPO(), DPO(label_smoothing=0.1), Robust(), Hinge(), SigmoidNorm(), SimPO()]
# losses with −log σ of a margin that is 0 where policy and reference agree
LOGISTIC = [DPO(), DPO(label_smoothing=0.1), Robust(), SigmoidNorm(), PlackettLuce()]


@every_loss
def test_gradient_is_that_of_the_value(loss):
    tokens, *rest = example(loss.unit)
    assert torch.autograd.gradcheck(lambda t: evaluate(loss, t, *rest).loss, tokens)


@every_loss
def test_one_value_per_example_and_metrics_without_gradient(loss):
    out = evaluate(loss, *example(loss.unit))
    assert out.loss.shape == (P,) and out.loss.requires_grad
    assert not any(metric.requires_grad for metric in out.metrics.values())
    if loss.unit in ("pair", "ranking"):
        assert {metric.shape for metric in out.metrics.values()} == {(P,)}


@every_loss
def test_the_order_of_examples_does_not_matter(loss):
    *batch, preferences = example(loss.unit)
    order = torch.tensor([3, 1, 4, 0, 2])
    desirable = None if preferences.desirable is None else preferences.desirable[order]
    shuffled = replace(preferences, ranking=preferences.ranking[order], desirable=desirable)
    expected = evaluate(loss, *batch, preferences).loss[order]
    torch.testing.assert_close(evaluate(loss, *batch, shuffled).loss, expected)


@every_loss
def test_an_example_pulls_on_its_own_responses_only(loss):
    tokens, owner, reference, preferences = example(loss.unit)
    (gradient,) = torch.autograd.grad(evaluate(loss, tokens, owner, reference, preferences).loss[0], tokens)
    pulled = set(owner[gradient != 0].tolist())
    assert pulled <= set(preferences.ranking[0].tolist()) and pulled


@pytest.mark.parametrize("loss", PAIRED, ids=repr)
def test_swapping_a_pair_flips_its_margin(loss):
    *batch, preferences = example("pair")
    swapped = replace(preferences, ranking=preferences.ranking.flip(1))
    one, other = (evaluate(loss, *batch, each).metrics for each in (preferences, swapped))
    torch.testing.assert_close(one["rewards/margins"], -other["rewards/margins"])
    torch.testing.assert_close(one["rewards/chosen"], other["rewards/rejected"])
    torch.testing.assert_close(one["rewards/accuracies"], 1 - other["rewards/accuracies"])


@pytest.mark.parametrize("loss", LOGISTIC, ids=repr)
def test_policy_equal_to_reference_gives_ln_2_for_every_example(loss):
    tokens, owner, _, preferences = example("pair", torch.float32)
    same = LogProbs.from_tokens(tokens.detach(), owner, P * K)
    out = evaluate(loss, tokens, owner, same, preferences)
    assert out.loss.tolist() == pytest.approx([math.log(2)] * P, abs=1e-5)
    assert out.metrics["rewards/chosen"].tolist() == [0.0] * P


def test_the_gradient_at_the_reference_is_half_beta_and_not_zero():
    tokens, owner, _, preferences = example("pair")
    same = LogProbs.from_tokens(tokens.detach(), owner, P * K)
    out = evaluate(DPO(beta=0.3), tokens, owner, same, preferences)
    (gradient,) = torch.autograd.grad(out.loss[0], tokens)
    chosen, rejected = preferences.ranking[0].tolist()
    torch.testing.assert_close(gradient[owner == chosen], torch.full_like(gradient[owner == chosen], -0.15))
    torch.testing.assert_close(gradient[owner == rejected], torch.full_like(gradient[owner == rejected], 0.15))


@pytest.mark.parametrize("loss", WEIGHTED, ids=repr)
def test_reported_weights_are_the_slope_of_the_loss_in_the_margin(loss):
    tokens, owner, reference, preferences = example("pair")
    out = evaluate(loss, tokens, owner, reference, preferences)
    nudged = tokens.detach().clone()
    nudged[torch.isin(owner, preferences.chosen)] += 1e-7
    near = evaluate(loss, nudged, owner, reference, preferences)
    slope = (near.loss - out.loss) / (near.metrics["rewards/margins"] - out.metrics["rewards/margins"])
    torch.testing.assert_close(-slope.detach(), out.metrics["weights"], atol=1e-5, rtol=1e-5)


@every_loss
@pytest.mark.parametrize("h", [1e4, -1e4])
def test_far_from_the_reference_nothing_overflows(loss, h):
    total = torch.tensor([-2e4 + max(h, 0), -2e4 + max(-h, 0)], requires_grad=True)
    policy = LogProbs(total, torch.tensor([10.0, 10.0]))
    reference = LogProbs(torch.full((2,), -1.5e4), policy.length)
    preferences = Preferences(torch.tensor([[0, 1]]))
    if loss.unit in ("response", "demonstration"):
        preferences = Preferences(torch.tensor([[0], [1]]), torch.tensor([True, False]), torch.tensor(0.0))
    out = loss(policy, reference, preferences)
    (gradient,) = torch.autograd.grad(out.loss.sum(), total)
    assert torch.isfinite(out.loss).all() and torch.isfinite(gradient).all()


def test_orpo_stays_finite_where_a_response_is_certain():
    total = torch.tensor([0.0, 0.0], requires_grad=True)
    out = ORPO()(LogProbs(total, torch.ones(2)), None, PAIR)
    (gradient,) = torch.autograd.grad(out.loss.sum(), total)
    assert torch.isfinite(out.loss).all() and torch.isfinite(gradient).all()


# --- relations between losses -------------------------------------------------------------------


def test_plackett_luce_of_two_is_dpo():
    batch = example("pair")
    ranking, pair = (evaluate(loss, *batch) for loss in (PlackettLuce(beta=0.3), DPO(beta=0.3)))
    torch.testing.assert_close(ranking.loss, pair.loss)
    for name, metric in ranking.metrics.items():
        torch.testing.assert_close(metric, pair.metrics[name])


def test_a_padded_ranking_is_the_shorter_ranking():
    *batch, preferences = example("ranking")
    padded = evaluate(PlackettLuce(), *batch, preferences)
    short = evaluate(PlackettLuce(), *batch, Preferences(preferences.ranking[:, :2]))
    for row in (0, 3):
        assert padded.loss[row].item() == pytest.approx(short.loss[row].item())
        for name, metric in padded.metrics.items():
            assert metric[row].item() == pytest.approx(short.metrics[name][row].item()), name


def test_robust_under_flipped_labels_is_dpo_on_average():
    """(1−ε) ℓ(z) + ε ℓ(−z) = −log σ(z): Chowdhury et al. 2024, lemma 3.1."""
    *batch, preferences = example("pair")
    flipped = replace(preferences, ranking=preferences.ranking.flip(1))
    robust = Robust(label_smoothing=0.2)
    average = 0.8 * evaluate(robust, *batch, preferences).loss + 0.2 * evaluate(robust, *batch, flipped).loss
    torch.testing.assert_close(average, evaluate(DPO(), *batch, preferences).loss)


def test_equal_lengths_make_ipo_mean_an_ipo_with_scaled_tau():
    """With |y| = n: (h/n − 1/(2τ))² = (h − 1/(2τ/n))² / n²."""
    policy, reference = (LogProbs(lp.sum, torch.full((3,), 4.0)) for lp in (POLICY, REFERENCE))
    mean = IPOMean(tau=0.1)(policy, reference, PAIR).loss
    torch.testing.assert_close(mean, IPO(tau=0.1 / 4)(policy, reference, PAIR).loss / 16)


# --- names and options --------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_every_option_has_a_type_a_default_and_help(name):
    for option in options_of(name).values():
        assert option.type is float and isinstance(option.default, float) and option.help


@pytest.mark.parametrize("name", LOSSES)
def test_every_option_has_an_effect(name):
    """An option that does nothing would be a silent mistake."""
    batch = example(LOSSES[name].unit)
    for option, (_, default, _) in options_of(name).items():
        changed = make_loss(name, {option: default + 0.05})
        assert not torch.equal(evaluate(changed, *batch).loss, evaluate(make_loss(name), *batch).loss), option


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("dop", {}, "there is no loss dop; did you mean dpo?"),
        ("dpo", {"betta": 1.0}, "dpo has no option betta; did you mean beta? It has beta, label_smoothing, nll_weight"),
        ("ipo", {"beta": 1.0}, "ipo has no option beta"),
        ("kto", {"nll_weight": 1.0}, "kto has no option nll_weight"),
        ("sft", {"beta": 0.1}, "sft has no option beta. It has none"),
        ("dpo", {"beta": "a lot"}, "beta must be a number, not 'a lot'"),
        ("dpo", {"beta": True}, "beta must be a number, not True"),
        ("dpo", {"beta": None}, "beta must be a number, not None"),
        ("dpo", {"beta": 0}, "beta must be a number above 0, not 0.0"),
        ("dpo", {"beta": "nan"}, "beta must be a number above 0, not nan"),
        ("dpo", {"label_smoothing": 0.5}, "label_smoothing must be at least 0 and below 0.5"),
        ("robust", {"label_smoothing": -0.1}, "label_smoothing must be at least 0"),
        ("ipo", {"tau": -1}, "tau must be a number above 0"),
        ("exo_pair", {"label_smoothing": 0}, "label_smoothing must be a number above 0"),
        ("discopop", {"tau": 2}, "tau must be at most 1"),
        ("simpo", {"gamma": -1}, "gamma must be a number of at least 0"),
        ("dpo", {"nll_weight": -1}, "nll_weight must be a number of at least 0"),
        ("my_loss.py", {}, "my_loss.py names no loss: write my_loss.py:MyLoss"),
        ("nowhere.py:MyLoss", {}, "nowhere.py: no such file"),
    ],
)
def test_mistakes_are_named(name, options, says):
    with pytest.raises(UserError) as error:
        make_loss(name, options)
    assert says in str(error.value)


def test_text_from_a_command_line_becomes_values():
    assert make_loss("simpo", {"beta": "2.5", "gamma": 1}) == SimPO(beta=2.5, gamma=1.0)
    assert make_loss("dpo", {"nll_weight": "1"}) == WithNLL(DPO(), 1.0)


def test_reference_free_losses_say_so():
    free = {name for name, loss in LOSSES.items() if not loss.needs_reference}
    assert free == {"orpo", "simpo", "cpo", "sft", "unlikelihood"}
    assert not make_loss("orpo", {"nll_weight": 1.0}).needs_reference
    asks = type("Asks", (), {"needs_baseline": True, "__call__": lambda *_: None})
    assert make_loss(asks, {"nll_weight": 1.0}).needs_baseline


MY_FILE = """
from __future__ import annotations
from dataclasses import dataclass
from prefopt.losses import log_ratio, pair, pair_output
from prefopt.types import LossOutput

@dataclass(frozen=True)
class MyLoss:
    scale: float
    power: int = 2
    '''what the hinge is raised to'''
    squash: bool = False
    name: str = "mine"

    def __call__(self, policy, reference, preferences):
        s_w, s_l = pair(log_ratio(policy, reference), preferences)
        loss = (1 - self.scale * (s_w - s_l)).clamp(min=0) ** self.power
        return pair_output(loss.tanh() if self.squash else loss, policy, preferences, (s_w, s_l))

def plain(policy, reference, preferences):
    return LossOutput(-policy.sum[preferences.chosen])
plain.needs_reference = False

def reduced(policy, reference, preferences):
    return LossOutput(policy.sum.mean())

def bare(policy, reference, preferences):
    return policy.sum

number = 3
"""


@pytest.fixture
def my_file(tmp_path):
    path = tmp_path / "my_file.py"
    path.write_text(MY_FILE)
    return str(path)


def test_a_loss_from_the_users_file(my_file):
    loss = make_loss(f"{my_file}:MyLoss", {"scale": "0.1", "squash": "true", "power": 3})
    assert (loss.unit, loss.needs_reference, loss.needs_baseline) == ("pair", True, False)
    assert value(loss) == pytest.approx([math.tanh(0.3**3)])
    assert options_of(f"{my_file}:MyLoss")["power"] == (int, 2, "what the hinge is raised to")
    assert value(make_loss(f"{my_file}:MyLoss", {"scale": 0.1, "nll_weight": 2})) == pytest.approx([0.09 + 2 * 2.5])


def test_a_function_is_a_loss_too(my_file):
    loss = make_loss(f"{my_file}:plain")
    assert value(loss) == [10.0] and not loss.needs_reference


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("MyLos", {}, "my_file.py defines no MyLos; did you mean MyLoss? It defines MyLoss, plain, reduced, bare"),
        ("MyLoss", {}, "MyLoss needs a value for scale"),
        ("MyLoss", {"scale": 1, "power": 1.5}, "power must be a whole number, not 1.5"),
        ("MyLoss", {"scale": 1, "squash": 1}, "squash must be true or false, not 1"),
        ("plain", {"beta": 1}, "plain has no option beta"),
        ("number", {}, "number cannot be called"),
    ],
)
def test_mistakes_in_the_users_file_are_named(my_file, name, options, says):
    with pytest.raises(UserError) as error:
        make_loss(f"{my_file}:{name}", options)
    assert says in str(error.value)


def test_a_file_that_does_not_run_is_named_with_its_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    broken = Path("broken.py")
    for text, says in [("x = 1\ny = x.z\n", ":2: AttributeError"), ("x = 1\n\nif\n", ":3: SyntaxError")]:
        broken.write_text(text)
        with pytest.raises(UserError, match="^broken.py" + says):
            make_loss(f"{broken}:MyLoss")


def test_a_users_loss_that_returns_the_wrong_thing_is_told(my_file):
    for name, says in [
        ("reduced", r"returned a loss of shape \[\]"),
        ("bare", "returned a Tensor: return a LossOutput"),
    ]:
        with pytest.raises(UserError, match=says):
            value(make_loss(f"{my_file}:{name}"))


def test_a_users_loss_that_fails_is_told_with_its_line(tmp_path):
    policy = LogProbs(torch.zeros(2, requires_grad=True), torch.ones(2))
    for body, says in [
        ("policy.nothing", r"mine.py:3: .*mine.py:mine fails: AttributeError"),
        ("LossOutput(policy.detach().sum[:1])", "a loss without a gradient"),
        ('LossOutput(policy.sum[:1], {"x": 3.0})', "a metric x that is a float: return a tensor"),
    ]:
        file = tmp_path / "mine.py"
        file.write_text(
            f"from prefopt import LossOutput\ndef mine(policy, reference, preferences):\n    return {body}\n"
        )
        with pytest.raises(UserError, match=says):
            make_loss(f"{file}:mine")(policy, None, Preferences(torch.tensor([[0, 1]])))


def test_instances_and_classes_are_taken_from_python():
    assert make_loss(DPO(beta=0.2)) == DPO(beta=0.2)
    assert make_loss(DPO, {"beta": 0.2}) == DPO(beta=0.2)


def test_options_are_read_without_importing_torch():
    code = "import sys; from prefopt.losses import options_of; options_of('dpo'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_what_a_loss_of_ones_own_says_of_its_options_is_said(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "from dataclasses import dataclass\n@dataclass\nclass Focal:\n    focus: float = 1.0\n"
        "    def __post_init__(self):\n        if self.focus < 0:\n            raise ValueError('focus is negative')\n"
        "    def __call__(self, *given):\n        pass\n"
    )
    with pytest.raises(UserError, match="Focal: focus is negative"):
        make_loss(f"{file}:Focal", {"focus": -1.0})

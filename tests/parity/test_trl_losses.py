"""Our losses against TRL 1.16's own code, on the same log-probabilities: values and gradients.

TRL's loss methods run as they are, on trainers made without their constructors, with a model that
answers with prepared log-probabilities (or, for ORPO and CPO, logits). Where TRL and a paper differ, the difference
is shown. ``make parity`` makes the environment and runs this; elsewhere it is skipped.
"""

import os
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from prefopt.losses import (
    CPO,
    DPO,
    IPO,
    KTO,
    ORPO,
    SFT,
    APODown,
    APOZero,
    BCOPair,
    DiscoPOP,
    EXOPair,
    Hinge,
    IPOMean,
    NCAPair,
    Robust,
    SigmoidNorm,
    SimPO,
    SPPOHard,
    WithNLL,
    kto_baseline,
)
from prefopt.types import LogProbs, Preferences

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
pytest.importorskip("trl", reason="TRL is not installed here; `make parity` makes an environment with it")

from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

PAIRS, PROMPT, VOCABULARY = 4, 3, 11
PREFERENCES = Preferences(torch.arange(2 * PAIRS).reshape(2, PAIRS).T)  # as TRL: all chosen, then all rejected


def same(ours, theirs):
    torch.testing.assert_close(ours.double(), theirs.double(), atol=1e-6, rtol=1e-6)


def bare(trainer, **attributes):
    """A TRL trainer without its constructor: one process, nothing to gather."""
    made = trainer.__new__(trainer)
    made.model = SimpleNamespace(training=True)
    made.accelerator = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    made._metrics = {"train": defaultdict(list)}
    made._total_train_tokens, made._tp_size, made.aux_loss_enabled, made.precompute_ref_logps = 0, 1, False, True
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


class Responses:
    """2·PAIRS responses of 1 to 6 tokens after a prompt, padded as TRL pads, with random log-probs (float64)."""

    def __init__(self, seed: int, scale: float = 4.0):
        draw = torch.Generator().manual_seed(seed)
        length = torch.randint(1, 7, (2 * PAIRS,), generator=draw)
        width = PROMPT + 6
        place = torch.arange(width)
        self.completion_mask = ((place >= PROMPT) & (place < PROMPT + length[:, None])).long()  # [R, L]
        self.attention_mask = (place < PROMPT + length[:, None]).long()
        self.ids = torch.randint(1, VOCABULARY, (2 * PAIRS, width), generator=draw)
        self.scored = self.completion_mask[:, 1:].bool()  # [R, L − 1]
        self.owner = self.scored.nonzero()[:, 0]
        tokens, reference = -scale * torch.rand(2, len(self.owner), generator=draw, dtype=torch.float64)
        self.tokens = tokens.requires_grad_()
        self.reference = LogProbs.from_tokens(reference, self.owner, 2 * PAIRS)

    @property
    def policy(self) -> LogProbs:
        return LogProbs.from_tokens(self.tokens, self.owner, 2 * PAIRS)

    def outputs(self):
        """What TRL's fused head returns: [R, L − 1], zero where nothing is scored."""
        zeros = torch.zeros(self.scored.shape, dtype=torch.float64)
        log_probs = zeros.masked_scatter(self.scored, self.tokens)
        return SimpleNamespace(log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())

    def gradient(self, loss):
        return torch.autograd.grad(loss, self.tokens, retain_graph=True)[0]


def trl_dpo(batch: Responses, loss_type, *, beta=0.1, label_smoothing=0.0, loss_weights=None, rows=None):
    """TRL's loss and metrics, for the pairs in ``rows`` (all of them)."""
    kinds = [loss_type] if isinstance(loss_type, str) else loss_type
    trainer = bare(
        DPOTrainer,
        loss_types=kinds,
        loss_weights=loss_weights or [1.0] * len(kinds),
        beta=beta,
        label_smoothing=label_smoothing,
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        use_weighting=False,
        args=SimpleNamespace(discopop_tau=0.05),
    )
    pairs = torch.arange(PAIRS) if rows is None else torch.tensor(rows)
    both = torch.cat([pairs, pairs + PAIRS])
    inputs = {
        "input_ids": batch.ids[both],
        "attention_mask": batch.attention_mask[both],
        "completion_mask": batch.completion_mask[both],
        "ref_chosen_logps": batch.reference.sum[pairs],
        "ref_rejected_logps": batch.reference.sum[pairs + PAIRS],
    }
    outputs = SimpleNamespace(**{name: value[both] for name, value in vars(batch.outputs()).items()})
    loss = trainer._compute_loss(lambda **_: outputs, inputs, return_outputs=False)
    return loss, trainer._metrics["train"]


SAME_AS_DPO_TRAINER = [
    (DPO(beta=0.1), dict(loss_type="sigmoid", beta=0.1)),
    (DPO(beta=0.7), dict(loss_type="sigmoid", beta=0.7)),
    (IPOMean(tau=0.2), dict(loss_type="ipo", beta=0.2)),
    (Hinge(beta=0.3), dict(loss_type="hinge", beta=0.3)),
    (Robust(beta=0.2, label_smoothing=0.1), dict(loss_type="robust", beta=0.2, label_smoothing=0.1)),
    (SigmoidNorm(beta=5.0), dict(loss_type="sigmoid_norm", beta=5.0)),
    (EXOPair(beta=0.2, label_smoothing=0.01), dict(loss_type="exo_pair", beta=0.2, label_smoothing=0.01)),
    (NCAPair(beta=0.2), dict(loss_type="nca_pair", beta=0.2)),
    (BCOPair(beta=0.2), dict(loss_type="bco_pair", beta=0.2)),
    (SPPOHard(beta=0.2), dict(loss_type="sppo_hard", beta=0.2)),
    (APOZero(beta=0.2), dict(loss_type="apo_zero", beta=0.2)),
    (APODown(beta=0.2), dict(loss_type="apo_down", beta=0.2)),
    (DiscoPOP(beta=0.05), dict(loss_type="discopop", beta=0.05)),
]
dpo_trainer = pytest.mark.parametrize(("loss", "options"), SAME_AS_DPO_TRAINER, ids=lambda x: repr(x))


@dpo_trainer
@pytest.mark.parametrize("seed", range(3))
def test_dpo_trainer_values_and_gradients(loss, options, seed):
    batch = Responses(seed)
    ours = loss(batch.policy, batch.reference, PREFERENCES).loss
    theirs, _ = trl_dpo(batch, **options)
    same(ours.mean(), theirs)
    same(batch.gradient(ours.mean()), batch.gradient(theirs))
    each = torch.stack([trl_dpo(batch, rows=[row], **options)[0] for row in range(PAIRS)])
    same(ours, each)


def test_dpo_trainer_metrics():
    batch = Responses(0)
    ours = DPO(beta=0.3)(batch.policy, batch.reference, PREFERENCES).metrics
    _, theirs = trl_dpo(batch, "sigmoid", beta=0.3)
    for name in ("chosen", "rejected", "margins", "accuracies"):
        same(ours[f"rewards/{name}"].mean(), torch.tensor(theirs[f"rewards/{name}"][0]))
    for name in ("chosen", "rejected"):
        same(ours[f"logps/{name}"].mean(), torch.tensor(theirs[f"logps/{name}"][0]))


@pytest.mark.parametrize("row", range(PAIRS))
def test_sft_and_nll_weight_pair_by_pair(row):
    batch = Responses(0)
    only = Preferences(PREFERENCES.ranking[row : row + 1])
    for loss, kinds, weights in [
        (SFT(), ["sft"], [1.0]),
        (WithNLL(DPO(beta=0.1), 0.5), ["sigmoid", "sft"], [1.0, 0.5]),
    ]:
        ours = loss(batch.policy, batch.reference, only).loss.mean()
        theirs, _ = trl_dpo(batch, kinds, loss_weights=weights, rows=[row])
        same(ours, theirs)
        same(batch.gradient(ours), batch.gradient(theirs))


# --- KTO ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sign", [1, -1])  # the baseline is clamped at 0 for one of the two
def test_kto_trainer(seed, sign):
    batch, mismatched = Responses(seed), Responses(seed + 100)
    mismatched.reference = LogProbs(mismatched.policy.sum.detach() - sign * 2.0, mismatched.policy.length)
    good = torch.rand(2 * PAIRS, generator=torch.Generator().manual_seed(seed)) < 0.5
    trainer = bare(
        KTOTrainer, loss_type="kto", beta=0.2, desirable_weight=1.0, undesirable_weight=1.33, calculate_KL=True
    )
    inputs = {
        "input_ids": batch.ids,
        "attention_mask": batch.attention_mask,
        "completion_mask": batch.completion_mask,
        "KL_input_ids": mismatched.ids,
        "KL_attention_mask": mismatched.attention_mask,
        "KL_completion_mask": mismatched.completion_mask,
        "label": good,
        "ref_logps": batch.reference.sum,
        "ref_KL_logps": mismatched.reference.sum,
    }
    answers = {id(batch.ids): batch.outputs(), id(mismatched.ids): mismatched.outputs()}
    theirs = trainer._compute_loss(lambda input_ids, **_: answers[id(input_ids)], inputs, return_outputs=False)

    baseline = kto_baseline(mismatched.policy, mismatched.reference)
    assert baseline.item() == pytest.approx(max(0.0, sign * 2.0))
    each = Preferences(torch.arange(2 * PAIRS)[:, None], good, baseline)
    ours = KTO(beta=0.2, undesirable_weight=1.33)(batch.policy, batch.reference, each)
    same(ours.loss.mean(), theirs)
    same(batch.gradient(ours.loss.mean()), batch.gradient(theirs))
    same(baseline, torch.tensor(trainer._metrics["train"]["kl"][0]))
    if good.any():
        same(ours.metrics["rewards/chosen"].mean(), torch.tensor(trainer._metrics["train"]["rewards/chosen"][0]))


# --- the trainers that read logits --------------------------------------------------------------


class Logits(Responses):
    """The same, with log-probs that come from random logits [R, L, V]; gradients are with respect to those."""

    def __init__(self, seed: int):
        super().__init__(seed)
        draw = torch.Generator().manual_seed(seed + 1)
        shape = (*self.ids.shape, VOCABULARY)
        self.logits = torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_()

    @property
    def policy(self) -> LogProbs:
        log_probs = self.logits[:, :-1].log_softmax(-1).gather(-1, self.ids[:, 1:, None])[..., 0]
        return LogProbs.from_tokens(log_probs[self.scored], self.owner, 2 * PAIRS)

    def gradient(self, loss):
        return torch.autograd.grad(loss, self.logits, retain_graph=True)[0]


def trl_logits(trainer, batch: Logits, rows, prompt: int = PROMPT):
    """TRL's loss for the pairs in ``rows``, with the last ``prompt`` tokens of the prompt as context."""
    rows, start = torch.tensor(rows), PROMPT - prompt
    inputs = {}
    for side, index in (("chosen", rows), ("rejected", rows + PAIRS)):
        ids, mask = batch.ids[index, start:], batch.completion_mask[index, start:]
        inputs[f"{side}_input_ids"] = ids
        inputs[f"{side}_attention_mask"] = batch.attention_mask[index, start:]
        inputs[f"{side}_labels"] = ids.masked_fill(mask == 0, -100)
    logits = batch.logits[torch.cat([rows, rows + PAIRS]), start:]
    loss, _ = trainer.get_batch_loss_metrics(lambda *_, **__: SimpleNamespace(logits=logits), inputs)
    return loss


def cpo_trainer(**options):
    defaults = dict(loss_type="sigmoid", alpha=0.0, label_smoothing=0.0, cpo_alpha=0.0, beta=0.1)
    return bare(CPOTrainer, is_encoder_decoder=False, pad_token_id=0, **(defaults | options))


def orpo_trainer(beta):
    return bare(ORPOTrainer, is_encoder_decoder=False, padding_value=0, beta=beta)


def check_pair_by_pair(loss, trainer, prompt=PROMPT):
    batch = Logits(0)
    ours = loss(batch.policy, None, PREFERENCES).loss
    for row in range(PAIRS):
        theirs = trl_logits(trainer, batch, [row], prompt)
        same(ours[row], theirs)
        same(batch.gradient(ours[row]), batch.gradient(theirs))


@pytest.mark.parametrize("alpha", [0.0, 1.0, 0.3])
def test_cpo(alpha):
    check_pair_by_pair(CPO(beta=0.2, alpha=alpha), cpo_trainer(cpo_alpha=alpha, beta=0.2))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.4])
def test_simpo_and_its_gamma(gamma):
    """TRL's simpo_gamma is the paper's γ, not γ/β."""
    check_pair_by_pair(SimPO(beta=2.0, gamma=gamma), cpo_trainer(loss_type="simpo", beta=2.0, simpo_gamma=gamma))


@pytest.mark.parametrize("weight", [0.1, 0.25])
def test_orpo_after_a_prompt_of_one_token(weight):
    """One token is predicted by nothing, so TRL's first term, over prompt and response, is over the response alone."""
    check_pair_by_pair(ORPO(odds_weight=weight), orpo_trainer(weight), prompt=1)


def test_batches_of_pairs():
    """Without a term that TRL averages over tokens, its value for a batch is our mean."""
    batch = Logits(1)
    for loss, trainer in [
        (CPO(beta=0.2, alpha=0.0), cpo_trainer(beta=0.2)),
        (SimPO(beta=2.5, gamma=1.0), cpo_trainer(loss_type="simpo", beta=2.5, simpo_gamma=1.0)),
    ]:
        ours = loss(batch.policy, None, PREFERENCES).loss.mean()
        theirs = trl_logits(trainer, batch, list(range(PAIRS)))
        same(ours, theirs)
        same(batch.gradient(ours), batch.gradient(theirs))


# --- where TRL and the papers differ ------------------------------------------------------------


def differs(ours, theirs):
    assert (ours - theirs).abs().item() > 1e-3


def test_trl_ignores_label_smoothing_with_the_sigmoid_loss():
    batch = Responses(0)
    theirs, _ = trl_dpo(batch, "sigmoid", label_smoothing=0.2)
    same(DPO()(batch.policy, batch.reference, PREFERENCES).loss.mean(), theirs)
    differs(DPO(label_smoothing=0.2)(batch.policy, batch.reference, PREFERENCES).loss.mean(), theirs)


def test_trl_ipo_is_that_of_means_and_the_papers_is_of_sums():
    batch = Responses(0)
    theirs, _ = trl_dpo(batch, "ipo", beta=0.1)
    same(IPOMean(tau=0.1)(batch.policy, batch.reference, PREFERENCES).loss.mean(), theirs)
    differs(IPO(tau=0.1)(batch.policy, batch.reference, PREFERENCES).loss.mean(), theirs)


def test_trl_simpo_comes_with_cpos_imitation_term_unless_switched_off():
    """cpo_alpha is 1.0 by default: SimPO with nll_weight 1 here."""
    simpo = SimPO(beta=2.0, gamma=0.5)
    default = cpo_trainer(loss_type="simpo", beta=2.0, simpo_gamma=0.5, cpo_alpha=1.0)
    check_pair_by_pair(WithNLL(simpo, 1.0), default)
    batch = Logits(0)
    differs(simpo(batch.policy, None, PREFERENCES).loss[0], trl_logits(default, batch, [0]))


def test_trl_orpo_also_imitates_the_prompt():
    batch = Logits(0)
    differs(ORPO()(batch.policy, None, PREFERENCES).loss[0], trl_logits(orpo_trainer(0.1), batch, [0]))


def test_trl_averages_imitation_over_the_tokens_of_a_batch_and_we_over_each_response():
    batch = Responses(0)
    theirs, _ = trl_dpo(batch, "sft")
    out = SFT()(batch.policy, None, PREFERENCES)
    differs(out.loss.mean(), theirs)
    length = batch.policy.length[PREFERENCES.chosen]
    same((out.loss * length).sum() / length.sum(), theirs)

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from prefopt.model.fingerprint import adapter_fingerprint, fingerprint, model_fingerprint

SMALL = dict(
    vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, max_position_embeddings=32,
)  # fmt: skip


def llama(**settings) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMALL | settings)).eval()


def lora(**settings):
    torch.manual_seed(1)
    return get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], **settings))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard", ["1GB", "5KB"])
def test_the_files_that_a_model_came_from_do_not_matter(tmp_path, tied, shard):
    model = llama(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "somewhere", max_shard_size=shard)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "somewhere", dtype=torch.float32)
    loaded.set_attn_implementation("eager")
    assert model_fingerprint(loaded) == model_fingerprint(model)


def test_one_weight_one_setting_or_the_precision_matters():
    shifted, rounded = llama(), llama().bfloat16().float()
    with torch.no_grad():
        shifted.model.layers[1].mlp.up_proj.weight[3, 4].mul_(1 + 1e-6)
    models = [llama(), shifted, rounded, llama().bfloat16(), llama(rms_norm_eps=1e-5), llama(rope_theta=5e5)]
    assert len({model_fingerprint(model) for model in models}) == len(models)


def test_swapped_tensors_are_another_model():
    a, b = torch.randn(3, 3), torch.randn(3, 3)
    assert fingerprint({}, [("a", a), ("b", b)]) != fingerprint({}, [("a", b), ("b", a)])
    assert fingerprint({}, [("a", a)]) != fingerprint({}, [("a", a.reshape(9))])


def test_memory_layout_does_not_matter():
    a = torch.randn(4, 6)
    strided = a.T.contiguous().T
    assert fingerprint({}, [("a", a)]) == fingerprint({}, [("a", strided)])
    odd = {"scalar": torch.tensor(1.0), "none": torch.zeros(0), "flags": torch.tensor([True])}
    assert fingerprint({}, odd.items()) == fingerprint({}, {n: t.clone() for n, t in odd.items()}.items())


def test_tied_or_equal_weights_are_the_same():
    a = torch.randn(4, 6)
    assert fingerprint({}, [("embed", a), ("head", a)]) == fingerprint({}, [("embed", a), ("head", a.clone())])


@pytest.mark.parametrize("settings", [{}, {"modules_to_save": ["lm_head"]}])
def test_an_adapter_around_a_model_leaves_its_fingerprint(settings):
    model = lora(**settings)
    assert model_fingerprint(model) == model_fingerprint(llama())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    assert model_fingerprint(model) == model_fingerprint(llama())


def test_an_adapter_has_its_own():
    one, other, scaled = lora(), lora(), lora(lora_alpha=3)
    assert adapter_fingerprint(one) == adapter_fingerprint(lora())
    with torch.no_grad():
        next(p for p in other.parameters() if p.requires_grad).add_(1)
    assert len({adapter_fingerprint(model) for model in (one, other, scaled)}) == 3

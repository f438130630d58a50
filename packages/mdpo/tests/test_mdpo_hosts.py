"""Saved models: released parameter names, Dream, bfloat16 weights under LoRA, adapters put back."""

from dataclasses import replace

import pytest
import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.masked_lm import load_host
from noiseworks.kits.training import open_run
from noiseworks.mdpo import Decoding, MDPOConfig, MDPOTrainer, RolloutDecoding, rcr_generate
from noiseworks.mdpo.policy import load_adapter
from safetensors import safe_open

ROWS = [{"prompt": f"{i}+1="} for i in range(4)]
CONFIG = MDPOConfig(
    decoding=RolloutDecoding(8, 8, 4, 1.0, remask="rcr"),
    max_steps=2,
    num_generations=4,
    batch_size=2,
    sample_train_steps=2,
    learning_rate=1e-2,
    lora_rank=2,
    device="cpu",
)
RELEASED = {
    "llada": "model.transformer.blocks.0.attn_out.weight",
    "dream": "model.layers.0.self_attn.q_proj.weight",
}


def some_zeros(prompts, completions):
    return [text.count("0") / 8 for text in completions]


@pytest.fixture(params=["llada", "dream"])
def saved(request, make_host, tokenizer, tmp_path):
    """Return the kind, the model and the folder it was saved in, with its tokenizer."""
    model = make_host(request.param)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return request.param, model, tmp_path / "model"


def test_saved_host_has_the_released_names_and_decodes_alike(saved):
    kind, model, folder = saved
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert RELEASED[kind] in weights.keys()  # noqa: SIM118
    loaded, _, spec = load_host(folder, dtype=torch.float32)
    assert spec.kind == kind
    ids, decoding = torch.tensor([[5, 6, 7], [8, 9, 10]]), Decoding(8, 4, 8, 0.7)
    for record in (False, True):
        made = [
            rcr_generate(host, ids, decoding, seeds=[1, 2], record=record).sequences
            for host in (model, loaded)
        ]
        assert torch.equal(*made)


def test_adapter_of_a_run_is_put_back_on_the_saved_host(saved, tokenizer, tmp_path):
    _, _, folder = saved
    model, _, spec = load_host(folder, dtype=torch.float32)
    trainer = MDPOTrainer(model, tokenizer, [some_zeros], CONFIG, ROWS, spec=spec)
    with open_run(tmp_path / "run", {}) as run:
        result = trainer.fit(run, progress=False)
    ids, decoding = torch.tensor([[5, 6, 7]]), Decoding(8, 8, 8)
    trained = rcr_generate(trainer.policy.model.eval(), ids, decoding, spec=spec, record=True)
    again = load_adapter(load_host(folder, dtype=torch.float32)[0], result.model)
    loaded = rcr_generate(again, ids, decoding, spec=spec, record=True)
    assert torch.equal(trained.trace.scores, loaded.trace.scores)
    plain = rcr_generate(load_host(folder, dtype=torch.float32)[0], ids, decoding, spec=spec, record=True)
    assert not torch.equal(plain.trace.scores, loaded.trace.scores)


def test_folder_without_an_adapter_and_one_of_another_model_are_refused(saved, make_host, tmp_path):
    _, model, folder = saved
    with pytest.raises(InputError, match="cannot put the adapter"):
        load_adapter(model, str(folder))
    trainer = MDPOTrainer(make_host(d_model=64), load_host(folder)[1], [some_zeros], CONFIG, ROWS)
    with open_run(tmp_path / "run", {}) as run:
        made = trainer.fit(run, progress=False)
    with pytest.raises(InputError, match="cannot put the adapter"):
        load_adapter(make_host(d_model=32), made.model)


def test_bfloat16_weights_keep_float32_adapters(saved, tokenizer):
    _, _, folder = saved
    model, _, spec = load_host(folder, dtype=torch.bfloat16)
    config = replace(CONFIG, precision="bf16-mixed", gradient_checkpointing=True)
    trainer = MDPOTrainer(model, tokenizer, [some_zeros], config, ROWS, spec=spec)
    assert {p.dtype for p in trainer.policy.trainable().values()} == {torch.float32}
    frozen = {p.dtype for p in trainer.policy.parameters() if not p.requires_grad}
    assert frozen == {torch.bfloat16}
    assert trainer.round(0)["grad_norm"] > 0


def test_float16_weights_are_refused_for_training(saved, tokenizer):
    _, _, folder = saved
    model, _, spec = load_host(folder, dtype=torch.float16)
    with pytest.raises(InputError, match="float32"):
        MDPOTrainer(model, tokenizer, [some_zeros], replace(CONFIG, lora_rank=0), ROWS, spec=spec)


def test_recomputed_blocks_give_the_same_update(make_host, tokenizer):
    weights = []
    for again in (False, True):
        config = replace(CONFIG, lora_rank=0, gradient_checkpointing=again)
        trainer = MDPOTrainer(make_host(), tokenizer, [some_zeros], config, ROWS)
        assert trainer.policy.model.gradient_checkpointing == again
        trainer.round(0)
        weights.append(torch.cat([p.detach().flatten() for p in trainer.policy.trainable().values()]))
    assert torch.equal(*weights)

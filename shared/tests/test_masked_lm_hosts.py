"""The two hosts of masked language models: names, arithmetic, padding, alignment, adapters."""

import json

import pytest
import torch
import torch.nn.functional as F
from noiseworks.core.errors import InputError, NonFiniteError
from noiseworks.kits.masked_lm import (
    DreamConfig,
    LLaDAConfig,
    LLaDAModelLM,
    aligned_logits,
    check_logits,
    detect_host,
    layer_access,
    load_host,
    make_dream,
    make_llada,
    pad_prompts,
)
from noiseworks.kits.masked_lm.arithmetic import attend

IDS = {"mask_token_id": 30, "eos_token_id": 28, "pad_token_id": 29}
SIZE = {"d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2}
MAKERS = {"llada": make_llada, "dream": make_dream}


def make(kind: str, **options):
    return MAKERS[kind](31, **{**SIZE, **IDS, **options})


def naive_llada(model: LLaDAModelLM, ids: torch.Tensor) -> torch.Tensor:
    """The released arithmetic, written out for one sequence in float64 without attention kernels."""
    state = {name: value.double() for name, value in model.state_dict().items()}
    config, hidden = model.config, state["model.transformer.wte.weight"][ids]
    heads, groups, dim = config.n_heads, config.n_kv_heads, config.d_model // config.n_heads
    angles = torch.arange(len(ids))[:, None] * config.rope_theta ** (-torch.arange(0, dim, 2).double() / dim)

    def norm(x, weight):
        return weight * x / (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).sqrt()

    def turn(x):  # [L, H, d]
        a, b = x[..., : dim // 2], x[..., dim // 2 :]
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

    for layer in range(config.n_layers):
        w = {key.split(f"blocks.{layer}.")[1]: v for key, v in state.items() if f"blocks.{layer}." in key}
        n = norm(hidden, w["attn_norm.weight"])
        q = turn((n @ w["q_proj.weight"].T).view(len(ids), heads, dim))
        k = turn((n @ w["k_proj.weight"].T).view(len(ids), groups, dim)).repeat_interleave(heads // groups, 1)
        v = (n @ w["v_proj.weight"].T).view(len(ids), groups, dim).repeat_interleave(heads // groups, 1)
        p = torch.einsum("qhd,khd->hqk", q, k).div(dim**0.5).softmax(-1)
        hidden = hidden + torch.einsum("hqk,khd->qhd", p, v).flatten(1) @ w["attn_out.weight"].T
        n = norm(hidden, w["ff_norm.weight"])
        hidden = (
            hidden + (F.silu(n @ w["ff_proj.weight"].T) * (n @ w["up_proj.weight"].T)) @ w["ff_out.weight"].T
        )
    return norm(hidden, state["model.transformer.ln_f.weight"]) @ state["model.transformer.ff_out.weight"].T


def test_llada_computes_the_released_arithmetic():
    model, ids = make("llada"), torch.randint(28, (12,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = model(ids[None]).logits[0]
    assert torch.allclose(found.double(), naive_llada(model, ids), atol=1e-5)


def test_parameter_names_are_the_released_ones():
    block = ("attn_norm", "ff_norm", "q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out")
    names = {f"model.transformer.blocks.{i}.{name}.weight" for i in range(2) for name in block}
    names |= {f"model.transformer.{name}.weight" for name in ("wte", "ln_f", "ff_out")}
    assert set(make("llada").state_dict()) == names
    layer = ("input_layernorm", "post_attention_layernorm", "self_attn.o_proj")
    layer += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    biased = [f"self_attn.{name}_proj.{part}" for name in "qkv" for part in ("weight", "bias")]
    names = {
        f"model.layers.{i}.{name}" for i in range(2) for name in [*(f"{n}.weight" for n in layer), *biased]
    }
    assert set(make("dream").state_dict()) == names | {
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
    }


@pytest.mark.parametrize("kind", MAKERS)
def test_saved_models_load_with_auto_classes_and_equal_logits(kind, tmp_path):
    from transformers import AutoModelForCausalLM

    model, ids = make(kind), torch.randint(28, (2, 9))
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == ("llada" if kind == "llada" else "Dream")


def test_released_configurations_are_the_defaults(tmp_path):
    released = {
        "model_type": "llada",
        "architectures": ["LLaDAModelLM"],
        "d_model": 4096,
        "n_layers": 32,
        "n_heads": 32,
        "n_kv_heads": 32,
        "mlp_hidden_size": 12288,
        "vocab_size": 126464,
        "embedding_size": 126464,
        "rope_theta": 500000.0,
        "mask_token_id": 126336,
        "eos_token_id": 126081,
        "pad_token_id": 126081,
        "activation_type": "silu",
        "block_type": "llama",
        "alibi": False,
        "use_cache": False,
        "init_fn": "mitchell",
        "multi_query_attention": None,
    }
    (tmp_path / "config.json").write_text(json.dumps(released))
    config = LLaDAConfig.from_pretrained(tmp_path)
    for key, value in LLaDAConfig().to_dict().items():
        if key not in ("transformers_version", "architectures", "dtype"):
            assert getattr(config, key) == value, key
    with torch.device("meta"):
        count = sum(p.numel() for p in LLaDAModelLM(config).parameters())
    assert count == pytest.approx(8.02e9, rel=2e-3)
    assert DreamConfig().num_key_value_heads == 4


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("alibi", True),
        ("clip_qkv", 8.0),
        ("attention_layer_norm", True),
        ("rope_full_precision", False),
        ("layer_norm_with_affine", False),
        ("bias_for_layer_norm", True),
        ("residual_dropout", 0.1),
    ],
)
def test_arithmetic_that_released_llada_models_do_not_have_is_refused(key, value):
    with pytest.raises(InputError, match=key):
        LLaDAConfig(**{key: value})
    # A key of null says nothing, as in the released files.
    assert LLaDAConfig(**{key: None}).to_dict()[key] == LLaDAConfig().to_dict()[key]
    # A model of the remote code is not built by the configuration above.
    model = make("llada")
    setattr(model.config, key, value)
    with pytest.raises(InputError, match=key):
        layer_access(model)


def test_multi_query_attention_is_one_key_head():
    ids = torch.randint(28, (9,), generator=torch.Generator().manual_seed(0))
    config = LLaDAConfig(
        d_model=32, n_layers=2, n_heads=4, multi_query_attention=True, vocab_size=31, embedding_size=31,
        mlp_hidden_size=None,
    )  # fmt: skip
    assert (config.n_kv_heads, config.mlp_hidden_size) == (1, 128)
    model = LLaDAModelLM(config).eval()
    assert model.model.transformer["blocks"][0].k_proj.weight.shape == (8, 32)
    with torch.no_grad():
        assert torch.allclose(model(ids[None]).logits[0].double(), naive_llada(model, ids), atol=1e-5)
    assert LLaDAConfig(n_heads=4, d_model=32, multi_query_attention=False).n_kv_heads == 4
    with pytest.raises(InputError, match="n_kv_heads says 2"):
        LLaDAConfig(n_heads=4, d_model=32, n_kv_heads=2, multi_query_attention=True)


def test_what_the_released_models_do_not_have_is_refused():
    for key, value in (("use_sliding_window", True), ("tie_word_embeddings", True)):
        with pytest.raises(InputError, match=key):
            DreamConfig(**{key: value})
    with pytest.raises(InputError, match="rope_scaling"):
        DreamConfig(rope_scaling={"type": "yarn"})
    for kind in MAKERS:
        with pytest.raises(InputError, match="cache"):
            make(kind)(torch.zeros(1, 2, dtype=torch.long), use_cache=True)


@pytest.mark.parametrize("kind", MAKERS)
def test_no_causal_mask_is_left(kind):
    model, ids = make(kind), torch.randint(28, (1, 8))
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % 28
    with torch.no_grad():
        assert not torch.allclose(model(ids).logits[0, 0], model(other).logits[0, 0], atol=1e-6)


@pytest.mark.parametrize("kind", MAKERS)
def test_left_padding_leaves_real_tokens_alone(kind):
    model, spec = make(kind), detect_host(make(kind))
    prompts = [torch.randint(28, (5,)).tolist(), torch.randint(28, (12,)).tolist()]
    ids, mask = pad_prompts(prompts, spec.pad_id)
    assert ids[0, :7].tolist() == [spec.pad_id] * 7
    with torch.no_grad():
        batch = aligned_logits(model, ids, mask, spec=spec)[..., :28]
        for row, prompt in enumerate(prompts):
            alone = aligned_logits(model, torch.tensor([prompt]), spec=spec)[0, 1:, :28]
            assert torch.allclose(batch[row, 13 - len(prompt) :], alone, atol=1e-4)
    assert batch.isfinite().all()


@pytest.mark.parametrize("kind", MAKERS)
def test_aligned_logits_shift_and_forbid(kind):
    model, ids = make(kind), torch.randint(28, (2, 9))
    spec = detect_host(model)
    assert spec.shift == (kind == "dream")
    with torch.no_grad():
        raw, full = model(ids).logits, aligned_logits(model, ids, spec=spec)
        positions = torch.tensor([[1, 4], [8, 2]])
        part = aligned_logits(model, ids, spec=spec, positions=positions)
    assert (full[..., spec.mask_id] == -torch.inf).all()
    for i in range(1, 9):
        assert torch.equal(full[:, i, :28], raw[:, i - spec.shift, :28])
    assert torch.allclose(
        part[..., :28], full.gather(1, positions[..., None].expand(-1, -1, 31))[..., :28], atol=1e-6
    )
    inside = detect_host(model, shift=0)
    with torch.no_grad():
        assert torch.equal(aligned_logits(model, ids, spec=inside)[..., :28], raw[..., :28])


@pytest.mark.parametrize("kind", MAKERS)
def test_layer_access_rebuilds_the_forward(kind):
    model, ids = make(kind), torch.randint(28, (2, 7))
    parts, positions = layer_access(model), torch.arange(7)
    with torch.no_grad():
        hidden = parts.embed(ids)
        for block in parts.blocks:
            q, k, v = block.qkv(block.norm1(hidden))
            hidden = hidden + block.out(attend(parts.rotary(q, positions), parts.rotary(k, positions), v))
            hidden = hidden + block.mlp(block.norm2(hidden))
        assert torch.allclose(parts.head(parts.norm(hidden)), model(ids).logits, atol=1e-6)


@pytest.mark.parametrize("kind", MAKERS)
def test_adapters_of_peft_are_honoured(kind):
    from peft import LoraConfig, get_peft_model

    model, ids = make(kind), torch.randint(28, (2, 7))
    with torch.no_grad():
        before = model(ids).logits
    adapted = get_peft_model(
        model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    spec = detect_host(adapted)
    positions = torch.arange(7).expand(2, -1)
    with torch.no_grad():
        full = aligned_logits(adapted, ids, spec=spec)
        part = aligned_logits(adapted, ids, spec=spec, positions=positions)
        assert torch.allclose(full[..., :28], part[..., :28], atol=1e-6)
        assert not torch.allclose(adapted(ids).logits, before, atol=1e-3)
        parts = layer_access(adapted)
        q, _, _ = parts.blocks[0].qkv(parts.blocks[0].norm1(parts.embed(ids)))
        host = adapted.get_base_model()
        with adapted.disable_adapter():
            plain, _, _ = layer_access(host).blocks[0].qkv(parts.blocks[0].norm1(parts.embed(ids)))
    assert not torch.allclose(q, plain)


@pytest.mark.parametrize("kind", MAKERS)
def test_half_precision_and_checkpointing(kind):
    ids = torch.randint(28, (2, 7))
    with torch.no_grad():
        wide, narrow = make(kind)(ids).logits, make(kind).to(torch.bfloat16)(ids).logits
    assert narrow.dtype == torch.bfloat16
    assert torch.allclose(wide, narrow.float(), atol=0.05)
    gradients = []
    for checkpointing in (False, True):
        model = make(kind).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(ids).logits.square().mean().backward()
        gradients.append(model.get_input_embeddings().weight.grad)
    assert torch.allclose(*gradients, atol=1e-7)


def test_other_models_are_refused(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    other = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
        )
    )
    for call in (detect_host, layer_access):
        with pytest.raises(InputError, match="LLaDA or Dream"):
            call(other)
    other.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="'llama'"):
        load_host(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="cannot load"):
        load_host(tmp_path / "empty")


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("fault", ["renamed", "cut", "shape", "nan", "truncated"])
def test_a_checkpoint_of_another_model_is_refused_by_name(kind, fault, tmp_path, capfd):
    from safetensors.torch import load_file, save_file

    make(kind).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    name = sorted(weights)[-1]
    if fault == "renamed":
        weights = {f"other.{key}": value for key, value in weights.items()}
    elif fault == "cut":
        del weights[name]
    elif fault == "shape":
        weights[name] = weights[name][:-1].clone()
    elif fault == "nan":
        weights[name].view(-1)[0] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})
    if fault == "truncated":
        file.write_bytes(file.read_bytes()[:-64])
    capfd.readouterr()
    with pytest.raises(InputError) as refusal:
        load_host(tmp_path)
    said = str(refusal.value)
    assert "\n" not in said
    words = {"renamed": "lacks", "cut": f"lacks {name}", "shape": f"another shape of {name}", "nan": name}
    assert words.get(fault, "cannot load") in said
    assert capfd.readouterr().err == ""


def test_logits_that_are_not_finite_stop_with_the_call():
    for bad in (torch.nan, torch.inf):
        logits = torch.zeros(2, 3, 5)
        logits[1, 2, 4] = bad
        with pytest.raises(NonFiniteError, match="step 7"):
            check_logits(logits, 7)
    check_logits(torch.zeros(2, 3, 5).index_fill(-1, torch.tensor([1, 2]), -torch.inf), 0)

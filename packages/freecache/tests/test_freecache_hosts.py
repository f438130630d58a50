"""FreeCache on hosts as users have them: padded batches, precisions, adapters, released names, Dream's sampler."""

from functools import partial

import pytest
import torch
from noiseworks.core.errors import InputError
from noiseworks.freecache import (
    FreeCache,
    Sampling,
    apply_freecache,
    freecache_generate,
    full_recompute_generate,
    probe_drift,
    threshold_generate,
)
from noiseworks.freecache.cache import COMMIT_RULES
from noiseworks.kits.masked_lm import (
    aligned_logits,
    detect_host,
    dream_generate,
    load_host,
    make_dream,
    make_llada,
    pad_prompts,
)
from safetensors import safe_open

MAKERS = {"llada": make_llada, "dream": make_dream}
MASK, PAD = 30, 29
OPTIONS = {"gen_length": 12, "block_length": 4, "early_stop": 0}


def make_host(kind, layers=2, kv_heads=None):
    ids = {"mask_token_id": MASK, "eos_token_id": 28, "pad_token_id": PAD}
    model = MAKERS[kind](31, d_model=32, n_layers=layers, n_heads=4, n_kv_heads=kv_heads, **ids)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(10)
    return model


def random_prompts(lengths):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(28, (n,), generator=generator).tolist() for n in lengths]


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("commit", COMMIT_RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padded_batches_equal_single_prompts(kind, commit, dtype):
    model = make_host(kind, kv_heads=2).to(dtype)
    prompts = random_prompts((3, 9, 5))
    ids, mask = pad_prompts(prompts, PAD)
    cache = FreeCache(model, commit=commit)
    warm = OPTIONS | {"temperature": 0.5}
    batch = freecache_generate(model, ids, attention_mask=mask, cache=cache, seeds=[1, 2, 3], **warm)
    assert torch.equal(batch.sequences[:, : ids.shape[1]], ids)
    assert not (batch.sequences == MASK).any()
    assert cache.frozen(1)[0].dtype == dtype
    assert cache.frozen(1)[0].shape == (3, 2, 21, 8)
    if dtype == torch.float32:  # in bfloat16, sums of other lengths round differently
        for row, prompt in enumerate(prompts):
            alone = freecache_generate(
                model, torch.tensor([prompt]), commit=commit, seeds=[row + 1], **warm
            ).sequences
            assert torch.equal(alone[0, -12:], batch.sequences[row, -12:])


@pytest.mark.parametrize("kind", MAKERS)
def test_rows_that_end_leave_the_others_unchanged(kind):
    model = make_host(kind)
    ids, mask = pad_prompts(random_prompts(range(3, 11)), PAD)
    options = {"gen_length": 12, "block_length": 4, "temperature": 1.5}
    batch = freecache_generate(model, ids, attention_mask=mask, seeds=range(8), **options)
    full = full_recompute_generate(
        model, ids, Sampling(early_stop=0, **options), attention_mask=mask, seeds=range(8)
    )
    assert batch.sequences.shape == full.sequences.shape
    for row in range(8):
        alone = freecache_generate(
            model, ids[row : row + 1], attention_mask=mask[row : row + 1], seeds=[row], **options
        )
        assert torch.equal(alone.sequences[0], batch.sequences[row])


@pytest.mark.parametrize("kind", MAKERS)
def test_threshold_decoding_reveals_all_that_is_sure(kind):
    model = make_host(kind, 1)
    ids, mask = pad_prompts(random_prompts((3, 9)), PAD)
    sampling = Sampling(**OPTIONS)
    every = threshold_generate(model, ids, sampling, threshold=0.0, attention_mask=mask)
    assert every.stats.steps == 3
    single = threshold_generate(model, ids, sampling, threshold=1.0, attention_mask=mask)
    assert single.stats.steps == 12
    cached = threshold_generate(
        model, ids, sampling, threshold=0.5, attention_mask=mask, cache=FreeCache(model)
    )
    plain = threshold_generate(model, ids, sampling, threshold=0.5, attention_mask=mask)
    assert torch.equal(cached.sequences, plain.sequences)
    with pytest.raises(InputError, match="threshold"):
        threshold_generate(model, ids, sampling, threshold=1.5)


@pytest.mark.parametrize("kind", MAKERS)
def test_adapters_of_peft_are_honoured(kind):
    from peft import LoraConfig, get_peft_model

    model, (prompt,) = make_host(kind), random_prompts((6,))
    tokens = torch.tensor([prompt + [MASK] * 6])
    plain = aligned_logits(model, tokens, spec=detect_host(model))
    lora = LoraConfig(r=8, target_modules=["q_proj", "v_proj", "up_proj"], init_lora_weights=False)
    adapted = get_peft_model(model, lora).eval()
    cache = FreeCache(adapted)
    cache.reset(1, 12)
    windowed = cache.forward(tokens, 0)
    assert torch.equal(windowed, aligned_logits(adapted, tokens, spec=cache.spec))
    assert (windowed - plain)[plain.isfinite()].abs().max() > 1e-2
    found = freecache_generate(adapted, tokens[:, :6], **OPTIONS)
    assert not (found.sequences == MASK).any()


def test_hosts_saved_with_the_released_names_load_and_decode(tmp_path):
    from noiseworks.bench.testbeds.countdown import make_tokenizer

    model, prompts = make_host("llada"), torch.tensor(random_prompts((6,)))
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert {"model.transformer.wte.weight", "model.transformer.blocks.1.ff_proj.weight"} <= names
    loaded, _, _ = load_host(tmp_path)
    expected = freecache_generate(model, prompts, **OPTIONS).sequences
    assert torch.equal(
        freecache_generate(loaded, prompts, spec=detect_host(model), **OPTIONS).sequences, expected
    )


def test_every_window_has_a_graph_of_its_own(monkeypatch):
    from torch._dynamo import reset
    from torch._dynamo.utils import counters

    reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    model, prompts = make_host("llada", 1), torch.tensor(random_prompts((6, 6)))
    options = {"gen_length": 24, "block_length": 2, "early_stop": 0}
    expected = freecache_generate(model, prompts, **options).sequences
    cache = FreeCache(model, compile=True)
    assert torch.equal(freecache_generate(model, prompts, cache=cache, **options).sequences, expected)
    found = counters["stats"]["unique_graphs"]
    # The first forward and the blocks, more than dynamo's usual limit; a lazy window is that of the block before.
    assert found == 1 + 12
    freecache_generate(model, prompts, cache=cache, **options)
    assert counters["stats"]["unique_graphs"] == found


@pytest.mark.slow
def test_compiled_windows_decode_the_same_text():
    model, prompts = make_host("llada", 1), torch.tensor(random_prompts((6, 6)))
    compiled = FreeCache(model, compile=True)
    options = {"gen_length": 4, "block_length": 2, "early_stop": 0}
    expected = freecache_generate(model, prompts, **options).sequences
    assert torch.equal(freecache_generate(model, prompts, cache=compiled, **options).sequences, expected)


@pytest.mark.parametrize("kind", MAKERS)
def test_the_drop_in_gives_samplers_the_cached_path_and_leaves_no_trace(kind):
    model = make_host(kind, 1)
    ids, mask = pad_prompts(random_prompts((5, 9)), PAD)
    before = dict(model.__dict__)

    def sample():
        if kind == "dream":
            return dream_generate(model, ids, attention_mask=mask, max_new_tokens=12, steps=12, alg="entropy")
        from noiseworks.kits.masked_lm import llada_generate

        return llada_generate(model, ids, attention_mask=mask, gen_length=12, block_length=4)

    expected = sample().sequences
    with apply_freecache(model, block_length=4) as handle:
        assert torch.equal(sample().sequences, expected)
        first = handle.rows
        assert handle.calls == 12
        assert handle.resets == 1
        assert first < 12 * 2 * (ids.shape[1] + 12) * 2 / 3
        sample()
        assert handle.resets == 2
        with pytest.raises(InputError, match="already"), apply_freecache(model):
            pass
        with pytest.raises(InputError, match="use_cache"):
            model.forward(ids, use_cache=True)
    assert model.__dict__.keys() == before.keys()
    assert torch.equal(sample().sequences, expected)


def test_masks_that_are_revealed_drift_and_clean_tokens_hardly():
    model, prompts = make_host("llada", 3), torch.tensor(random_prompts((9, 9)))
    drift = probe_drift(model, prompts, Sampling(**OPTIONS))
    assert drift.keys["clean"].shape == (11, 3)
    assert (
        float(drift.keys["clean"][:, 0].abs().max()) == 0
    )  # of the first layer, by token and position alone
    assert float(drift.keys["just_unmasked"][:, 0].min()) > 0.1
    means = drift.means()
    assert all(means["just_unmasked"][layer] > means["clean"][layer] for layer in range(3))

"""FreeCache on hosts as users have them: padded batches, precisions, adapters, released names, Dream's sampler."""

from typing import get_args

import pytest
import torch
from noiseworks.core.errors import InputError
from noiseworks.freecache import (
    Caching,
    FreeCache,
    Sampling,
    apply_freecache,
    freecache_generate,
    probe_drift,
)
from noiseworks.freecache.baselines import dual_cache_generate
from noiseworks.freecache.options import CommitRule
from noiseworks.kits.masked_lm import (
    aligned_logits,
    detect_host,
    dream_generate,
    layer_access,
    load_host,
    make_dream,
    make_llada,
    pad_prompts,
)
from noiseworks.kits.masked_lm.arithmetic import attend, key_mask
from safetensors import safe_open

MAKERS = {"llada": make_llada, "dream": make_dream}
MASK, PAD = 30, 29
COMMIT_RULES = get_args(CommitRule)
OPTIONS = {"gen_length": 12, "block_length": 4, "early_stop": 0}


def generate(model, prompts, *, commit="lazy", sliding=0, refresh_every=0, caching=True, **options):
    """Decode by a schedule, one token a step unless `steps` says otherwise; nothing slides by default."""
    taken = {
        key: options.pop(key)
        for key in ("attention_mask", "seeds", "record", "cache", "spec")
        if key in options
    }
    sampling = Sampling(**{"reveal": "schedule"} | options)
    return freecache_generate(
        model, prompts, sampling, Caching(caching, commit, sliding, refresh_every), **taken
    )


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
    batch = generate(model, ids, attention_mask=mask, cache=cache, seeds=[1, 2, 3], **warm)
    assert torch.equal(batch.sequences[:, : ids.shape[1]], ids)
    assert not (batch.sequences == MASK).any()
    assert cache.frozen(1)[0].dtype == dtype
    assert cache.frozen(1)[0].shape == (3, 2, 21, 8)
    if dtype == torch.float32:  # in bfloat16, sums of other lengths round differently
        for row, prompt in enumerate(prompts):
            alone = generate(model, torch.tensor([prompt]), commit=commit, seeds=[row + 1], **warm).sequences
            assert torch.equal(alone[0, -12:], batch.sequences[row, -12:])


@pytest.mark.parametrize("kind", MAKERS)
def test_rows_that_end_leave_the_others_unchanged(kind):
    model = make_host(kind)
    ids, mask = pad_prompts(random_prompts(range(3, 11)), PAD)
    options = {"gen_length": 12, "block_length": 4, "temperature": 1.5}
    batch = generate(model, ids, attention_mask=mask, seeds=range(8), **options)
    full = generate(model, ids, early_stop=0, caching=False, attention_mask=mask, seeds=range(8), **options)
    assert batch.sequences.shape == full.sequences.shape
    for row in range(0, 8, 2):
        alone = generate(
            model, ids[row : row + 1], attention_mask=mask[row : row + 1], seeds=[row], **options
        )
        assert torch.equal(alone.sequences[0], batch.sequences[row])


@pytest.mark.parametrize("kind", MAKERS)
def test_threshold_decoding_reveals_all_that_is_sure(kind):
    model = make_host(kind, 1)
    ids, mask = pad_prompts(random_prompts((3, 9)), PAD)
    common = {"reveal": "threshold", "attention_mask": mask, **OPTIONS}
    every = generate(model, ids, threshold=0.0, caching=False, **common)
    assert every.stats.steps == 3
    single = generate(model, ids, threshold=1.0, caching=False, **common)
    assert single.stats.steps == 12
    cached = generate(model, ids, threshold=0.5, cache=FreeCache(model), **common)
    plain = generate(model, ids, threshold=0.5, caching=False, **common)
    assert torch.equal(cached.sequences, plain.sequences)
    for row, prompt in enumerate(ids):  # rows that wait for others change nothing
        alone = generate(
            model, prompt[None], threshold=0.5, **common | {"attention_mask": mask[row : row + 1]}
        )
        assert torch.equal(alone.sequences[0], cached.sequences[row])
    with pytest.raises(InputError, match="threshold"):
        Sampling(threshold=1.5)


@pytest.mark.parametrize("kind", MAKERS)
def test_threshold_and_sliding_window_are_the_default(kind):
    model = make_host(kind, 2)
    ids = torch.tensor(random_prompts((40, 40)))
    found = freecache_generate(model, ids, Sampling(12, 4, early_stop=0))
    same = generate(model, ids, reveal="threshold", threshold=0.9, sliding=16, **OPTIONS)
    assert torch.equal(found.sequences, same.sequences)
    assert (found.stats.rows, found.stats.steps) == (same.stats.rows, same.stats.steps)
    assert found.stats.rows < 2 * 52 * found.stats.steps


@pytest.mark.parametrize("kind", MAKERS)
def test_dual_cache_computes_the_block_alone_between_forwards_of_everything(kind):
    model = make_host(kind, 3)
    ids, mask = pad_prompts(random_prompts((5, 9)), PAD)
    sampling = Sampling(12, 4, threshold=1.0, early_stop=0)
    found = dual_cache_generate(model, ids, sampling, attention_mask=mask)
    assert found.stats.rows == 2 * 3 * (21 + 3 * 4)
    expected, spec = torch.cat([ids, torch.full((2, 12), MASK)], dim=1), detect_host(model)
    padding = torch.cat([mask, torch.ones(2, 12, dtype=torch.long)], dim=1)
    for block in range(3):
        low = 9 + 4 * block
        here = slice(low, low + 4)
        frozen = expected.clone()  # what keys and values outside of the block come from
        for _ in range(4):
            logits = windowed_by_hand(model, spec, expected, frozen, padding, here)
            sure = logits.softmax(-1).amax(-1).masked_fill(expected[:, here] != MASK, -1)
            place = sure.argmax(1, keepdim=True)
            expected[:, here] = expected[:, here].scatter(1, place, logits.argmax(-1).gather(1, place))
    assert torch.equal(found.sequences, expected)


def windowed_by_hand(model, spec, tokens, frozen, padding, here):
    """Return the logits of a block whose keys outside of it are those of another canvas, layer by layer."""
    access, positions = layer_access(model), torch.arange(tokens.shape[1])
    allowed = key_mask(padding)
    rows = slice(here.start - spec.shift, here.stop - spec.shift)
    old, new = access.embed(frozen), access.embed(tokens)[:, rows]
    for block in access.blocks:
        q, k, v = block.qkv(block.norm1(old))
        q, k = access.rotary(q, positions), access.rotary(k, positions)
        mine, k_new, v_new = block.qkv(block.norm1(new))
        mine, k_new = (access.rotary(part, positions[rows]) for part in (mine, k_new))
        k_seen, v_seen = k.clone(), v.clone()
        k_seen[:, :, rows], v_seen[:, :, rows] = k_new, v_new
        new = new + block.out(attend(mine, k_seen, v_seen, allowed))
        new = new + block.mlp(block.norm2(new))
        old = old + block.out(attend(q, k, v, allowed))
        old = old + block.mlp(block.norm2(old))
    logits = access.head(access.norm(new))
    logits[..., MASK] = -torch.inf
    return logits


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
    found = generate(adapted, tokens[:, :6], **OPTIONS)
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
    expected = generate(model, prompts, **OPTIONS).sequences
    assert torch.equal(generate(loaded, prompts, spec=detect_host(model), **OPTIONS).sequences, expected)


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

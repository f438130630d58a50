"""The windowed forward, the commit index and block decoding against full recomputation."""

from typing import get_args

import pytest
import torch
from noiseworks.core.errors import InputError, NonFiniteError
from noiseworks.freecache import Caching, FreeCache, Sampling, freecache_generate
from noiseworks.freecache.cache import Recompute, kv_bytes_per_token
from noiseworks.freecache.options import CommitRule, Order
from noiseworks.freecache.orders import block_counts, ended
from noiseworks.kits.masked_lm import aligned_logits, detect_host, llada_generate, make_dream, make_llada

MAKERS = {"llada": make_llada, "dream": make_dream}
COMMIT_RULES, ORDERS = get_args(CommitRule), get_args(Order)
VOCABULARY, MASK = 31, 30


def make_host(kind, layers, *, width=32, longest=512, seed=0):
    """A host whose random weights are large enough for every layer to matter."""
    ids = {"mask_token_id": MASK, "eos_token_id": 28, "pad_token_id": 29}
    sizes = {"d_model": width, "n_layers": layers, "n_heads": 2, "max_sequence_length": longest}
    model = MAKERS[kind](VOCABULARY, **sizes, **ids, seed=seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(10)
    return model


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


def prompts_of(batch, length, seed=0):
    return torch.randint(28, (batch, length), generator=torch.Generator().manual_seed(seed))


def canvas_of(prompts, answer):
    return torch.cat([prompts, torch.full((len(prompts), answer), MASK)], dim=1)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("layers", [1, 2, 4])
def test_a_window_of_everything_equals_the_host_bit_for_bit(kind, layers):
    model = make_host(kind, layers)
    spec = detect_host(model)
    tokens = canvas_of(prompts_of(2, 6), 8)
    cache = FreeCache(model, spec)
    cache.reset(2, 14)
    assert torch.equal(cache.forward(tokens, 0), aligned_logits(model, tokens, spec=spec))
    cache.commit(5)
    tokens[:, 8] = 3
    assert torch.equal(cache.forward(tokens, 0, 14), aligned_logits(model, tokens, spec=spec))


@pytest.mark.parametrize("kind", MAKERS)
def test_windows_are_exact_on_one_layer_and_approximate_on_more(kind):
    for layers in (1, 3):
        model = make_host(kind, layers)
        spec, tokens = detect_host(model), canvas_of(prompts_of(2, 6), 8)
        cache = FreeCache(model, spec)
        cache.reset(2, 14)
        cache.forward(tokens, 0)
        cache.commit(5)
        tokens[:, 6:9] = torch.tensor([[1, 2, 3], [4, 5, 6]])
        windowed = cache.forward(tokens, 5, positions=(6, 14))
        full = aligned_logits(model, tokens, spec=spec)[:, 6:]
        finite = full.isfinite()
        difference = (windowed - full)[finite].abs().max()
        assert difference < 1e-4 if layers == 1 else difference > 1e-2
        picked = cache.forward(tokens, 5, positions=torch.tensor([[7, 13], [6, 9]]))
        assert torch.allclose(picked[1, 1], windowed[1, 3], atol=1e-5)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("steps", [16, 8])
def test_lazy_and_eager_texts_equal_full_recomputation_on_one_layer(kind, steps):
    model, prompts = make_host(kind, 1), prompts_of(4, 6)
    options = {"gen_length": 16, "block_length": 4, "steps": steps, "early_stop": 0}
    full = generate(model, prompts, caching=False, **options).sequences
    assert not (full == MASK).any()
    for commit in ("lazy", "eager"):
        for refresh in (0, 2):
            found = generate(model, prompts, commit=commit, refresh_every=refresh, **options)
            assert torch.equal(found.sequences, full)
    if kind == "llada":
        released = llada_generate(model, prompts, gen_length=16, block_length=4, steps=steps).sequences
        assert torch.equal(full, released)


def test_a_stale_commit_freezes_masks_and_a_lazy_one_does_not():
    model = make_host("llada", 1)
    spec, prompts = detect_host(model), prompts_of(2, 6)
    logits = {}
    for commit in COMMIT_RULES:
        tokens = canvas_of(prompts, 8)
        cache = FreeCache(model, spec, commit=commit)
        cache.reset(2, 14)
        cache.forward(tokens, 0)
        cache.commit(6)
        tokens[:, 6:10] = torch.tensor([7, 8, 9, 10])  # the block's last step reveals these
        cache.finish(tokens, 10)
        assert cache.calls == (2 if commit == "eager" else 1)
        logits[commit] = cache.forward(tokens, 10, positions=(10, 14))[..., :MASK]
        assert cache.committed == 10
        assert cache.rows == 2 * (14 + {"stale": 4, "lazy": 8, "eager": 8}[commit])
    full = aligned_logits(model, tokens, spec=spec)[:, 10:, :MASK]
    assert torch.allclose(logits["lazy"], full, atol=1e-4)
    assert torch.allclose(logits["eager"], full, atol=1e-4)
    assert (logits["stale"] - full).abs().max() > 1e-2


@pytest.mark.parametrize("kind", MAKERS)
def test_first_step_is_exact_and_later_ones_are_not_on_deep_hosts(kind):
    model, prompts = make_host(kind, 3), prompts_of(2, 6)
    logits = {}
    for cache in (FreeCache(model), Recompute(model)):
        tokens, seen = canvas_of(prompts, 4), []
        cache.reset(2, 10)
        for step in range(2):
            seen.append(cache.forward(tokens, 5 * step, positions=(6, 10))[..., :MASK])
            cache.commit(5)
            tokens[:, 6] = 3
        logits[type(cache)] = seen
    first, second = zip(*logits.values(), strict=True)
    assert torch.equal(*first)
    assert (second[0] - second[1]).abs().max() > 1e-2


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("order", ORDERS)
def test_one_block_without_prompt_equals_no_cache_at_any_depth(kind, order):
    model, empty = make_host(kind, 4), torch.zeros(3, 0, dtype=torch.long)
    warm = {"order": order, "temperature": 0.8, "top_p": 0.9, "top_k": 12, "early_stop": 0}
    found = generate(
        model, empty, gen_length=8, block_length=8, steps=4, seeds=[1, 2, 3], record=True, **warm
    )
    full = generate(
        model, empty, gen_length=8, block_length=8, steps=4, caching=False, seeds=[1, 2, 3], **warm
    )
    assert torch.equal(found.sequences, full.sequences)
    assert not (found.sequences == MASK).any()
    assert len(found.history) == 4
    assert found.stats.memory_bytes == 3 * 8 * kv_bytes_per_token(model)


@pytest.mark.parametrize(
    ("prompt", "answer", "blocks", "full", "cached"),
    [
        (1024, 256, 8, 327_680, 37_888),
        (256, 256, 8, 131_072, 37_120),
        (128, 128, 4, 32_768, 10_368),
        (2048, 128, 4, 278_528, 12_288),
        (32, 32, 4, 2_048, 672),
    ],
)
def test_rows_through_the_network_are_those_of_the_formula(prompt, answer, blocks, full, cached):
    model = make_host("llada", 1, width=8, longest=4096)
    prompts, block = prompts_of(1, prompt), answer // blocks
    options = {"gen_length": answer, "block_length": block, "early_stop": 0}
    stats = generate(model, prompts, commit="stale", **options).stats
    assert (stats.steps, stats.calls, stats.rows) == (answer, answer, cached)
    if prompt == 32:
        lazy = generate(model, prompts, **options).stats
        assert lazy.rows == cached + (blocks - 1) * block
        assert lazy.calls == answer
    if prompt == 32:
        assert generate(model, prompts, caching=False, **options).stats.rows == full
    assert full == (prompt + answer) * answer


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("commit", COMMIT_RULES)
def test_a_sliding_window_over_the_whole_prompt_equals_no_cache_at_any_depth(kind, commit):
    model, prompts = make_host(kind, 4), prompts_of(3, 6)
    options = {"gen_length": 16, "block_length": 4, "early_stop": 0}
    full = generate(model, prompts, caching=False, **options).sequences
    everything = generate(model, prompts, commit=commit, sliding=18, **options)
    assert torch.equal(everything.sequences, full)
    frozen = generate(model, prompts, commit=commit, **options).sequences
    assert not torch.equal(frozen, full), "the host is too easy to tell the windows apart"


def test_rows_and_frozen_positions_of_a_sliding_window():
    model, prompts = make_host("llada", 2), prompts_of(1, 32)
    options = {"gen_length": 16, "block_length": 4, "early_stop": 0, "sliding": 8}
    cache = FreeCache(model, commit="stale")
    stats = generate(model, prompts, cache=cache, **options).stats
    # 48 rows at first, then 8 more than what is left of the answer at each of the other 15 steps.
    assert stats.rows == 48 + 3 * 24 + 4 * (20 + 16 + 12)
    assert cache.committed == 32 + 12 - 8
    lazy = generate(model, prompts, **options).stats
    assert lazy.rows == stats.rows + 3 * 4


@pytest.mark.parametrize("sliding", [0, 2, 5])
def test_clean_tokens_inside_a_sliding_window_are_computed_anew(sliding):
    model = make_host("llada", 3)
    spec, tokens = detect_host(model), canvas_of(prompts_of(2, 8), 4)
    cache = FreeCache(model, spec)
    cache.reset(2, 12)
    cache.forward(tokens, 0)
    cache.commit(8 - sliding)
    before = cache.frozen(2)[0].clone()
    tokens[:, 9] = 3
    cache.forward(tokens, 8 - sliding, positions=(8, 12))
    changed = (cache.frozen(2)[0] != before).any(dim=(0, 1, 3))
    assert changed.tolist() == [i >= 8 - sliding for i in range(12)]


def counting_host():
    """A Dream host whose row i says: after token t comes t + 1; rows of masks know nothing."""
    ids = {"mask_token_id": MASK, "eos_token_id": 28, "pad_token_id": 29}
    model = make_dream(VOCABULARY, d_model=32, n_layers=1, n_heads=2, **ids)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_() if weight.ndim == 2 else weight.fill_(1)
        model.model.embed_tokens.weight.copy_(torch.eye(VOCABULARY, 32))
        for token in range(28):
            model.lm_head.weight[token + 1, token] = 5.0
    return model


@pytest.mark.parametrize("commit", COMMIT_RULES)
def test_dream_windows_begin_one_row_early(commit):
    model, prompts = counting_host(), torch.tensor([[9, 9, 3], [9, 9, 11]])
    options = {"gen_length": 12, "block_length": 4, "early_stop": 0}
    cache = FreeCache(model, commit=commit)
    found = generate(model, prompts, reveal="threshold", cache=cache, **options)
    assert found.sequences[:, 3:].tolist() == [list(range(4, 16)), list(range(12, 24))]
    assert found.stats.steps == 12
    unshifted = FreeCache(model, detect_host(model, shift=0), commit=commit)
    wrong = generate(model, prompts, reveal="threshold", cache=unshifted, **options)
    sliding = generate(model, prompts, reveal="threshold", cache=cache, sliding=5, **options)
    assert torch.equal(sliding.sequences, found.sequences)
    assert sliding.stats.rows > found.stats.rows
    assert not torch.equal(wrong.sequences, found.sequences)


def test_counts_follow_the_even_and_the_linear_schedule():
    llada, dream = (detect_host(make_host(kind, 1)) for kind in MAKERS)
    assert block_counts(llada, Sampling(16, 8, "schedule", steps=6)) == [3, 3, 2, 3, 3, 2]
    times = [1 + (1e-3 - 1) * i / 12 for i in range(13)]
    expected = []
    for block in range(2):
        left = 12
        for step in range(6):
            i = block * 6 + step
            wanted = int((left + 12 * (1 - block)) * (1 - times[i + 1] / times[i]) + 1e-9)
            expected.append(left if step == 5 else min(wanted, left))
            left -= expected[-1]
    found = block_counts(dream, Sampling(24, 12, "schedule", steps=12))
    assert found == expected
    assert (sum(found[:6]), sum(found[6:])) == (12, 12)


def test_texts_end_only_when_everything_before_the_end_is_revealed():
    spec = detect_host(make_host("llada", 1))
    answers = torch.tensor(
        [
            [1, 28, MASK, MASK],  # ended
            [1, MASK, 28, 28],  # an end beyond a mask
            [1, 28, 2, MASK],  # something follows
            [1, 2, 3, MASK],
        ]
    )
    done, cut = ended(answers, spec, 1, rightmost=False)
    assert done.tolist() == [True, False, True, False]
    assert cut[[0, 2]].tolist() == [2, 2]
    done, _ = ended(answers, spec, 1, rightmost=True)
    assert done.tolist() == [True, False, False, False]
    done, _ = ended(torch.tensor([[28, 28, MASK], [28, MASK, MASK]]), spec, 2, rightmost=True)
    assert done.tolist() == [True, False]


def ending_host(kind):
    """A host that always answers with the end of text."""
    model = make_host(kind, 1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_() if weight.ndim == 2 else weight.fill_(1)
        model.get_input_embeddings().weight[:, 0] = 1
        model.get_output_embeddings().weight[28, 0] = 5
    return model


@pytest.mark.parametrize("kind", MAKERS)
def test_early_stop_fills_the_rest_with_ends_and_saves_steps(kind):
    model, prompts = ending_host(kind), prompts_of(2, 4)
    options = {"gen_length": 16, "block_length": 4, "order": "position_weighted"}
    stopped = generate(model, prompts, **options)
    assert (stopped.sequences[:, 4:] == 28).all()
    assert stopped.stats.steps < 16
    assert generate(model, prompts, early_stop=0, **options).stats.steps == 16
    later = generate(model, prompts, early_stop=3, **options)
    assert later.stats.steps > stopped.stats.steps


def test_memory_of_the_released_models():
    from noiseworks.kits.masked_lm import DreamConfig, DreamModel, LLaDAConfig, LLaDAModelLM

    with torch.device("meta"):
        assert kv_bytes_per_token(LLaDAModelLM(LLaDAConfig()), torch.bfloat16) == 524_288
        assert kv_bytes_per_token(DreamModel(DreamConfig()), torch.bfloat16) == 57_344


@pytest.mark.parametrize(
    ("kind", "sizes", "expected"),
    [
        # LLaDA-8B (32 layers, 32 heads of 128) at a quarter of the layers and an eighth of the width.
        ("llada", {"n_layers": 8, "d_model": 512, "n_heads": 4}, 524_288 // 32),
        # Dream-7B (28 layers, 28 heads of 128 on 4 key heads) at a quarter of the layers and of the key heads.
        ("dream", {"n_layers": 7, "d_model": 896, "n_heads": 7, "n_kv_heads": 1}, 57_344 // 16),
    ],
)
def test_allocated_memory_is_the_formula_on_scaled_hosts(kind, sizes, expected):
    """Bytes that the allocator handed out for the cache, counted by the profiler, against the formula."""
    ids = {"mask_token_id": MASK, "eos_token_id": 28, "pad_token_id": 29}
    model = MAKERS[kind](VOCABULARY, **sizes, **ids).to(torch.bfloat16)
    assert kv_bytes_per_token(model) == expected
    cache, positions = FreeCache(model), 3 * 256
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as seen:
        cache.reset(3, 256)
    allocated = sum(event.self_cpu_memory_usage for event in seen.events())
    assert cache.memory_bytes() == positions * expected
    assert positions * expected <= allocated <= positions * expected + 4096


def test_memory_is_allocated_once_and_used_again():
    model, prompts = make_host("llada", 1), prompts_of(2, 6)
    cache = FreeCache(model, max_length=32)
    first = generate(model, prompts, cache=cache, gen_length=8, block_length=4, early_stop=0)
    keys = cache._keys.data_ptr()
    assert cache.memory_bytes() == 2 * 32 * kv_bytes_per_token(model)
    again = generate(model, prompts, cache=cache, gen_length=8, block_length=4, early_stop=0)
    assert torch.equal(first.sequences, again.sequences)
    alone = generate(model, prompts[:1], cache=cache, gen_length=8, block_length=4, early_stop=0)
    assert torch.equal(alone.sequences, first.sequences[:1])
    assert cache._keys.data_ptr() == keys


def test_misuse_of_the_cache_is_refused():
    model = make_host("llada", 1)
    cache, tokens = FreeCache(model), canvas_of(prompts_of(2, 6), 8)
    cache.reset(2, 14)
    with pytest.raises(InputError, match="starts at 3 but only positions below 0 are frozen"):
        cache.forward(tokens, 3)
    with pytest.raises(InputError, match="cannot freeze up to 4"):
        cache.commit(4)
    cache.forward(tokens, 0)
    cache.commit(6)
    with pytest.raises(InputError, match="cannot fall from 6 to 5"):
        cache.commit(5)
    with pytest.raises(InputError, match="cannot predict"):
        cache.forward(tokens, 6, positions=(2, 5))
    with pytest.raises(InputError, match="window inside"):
        cache.forward(tokens, 6, 15)
    with pytest.raises(InputError, match="call reset first"):
        cache.forward(tokens[:1], 6)
    with pytest.raises(InputError, match="commit must be one of"):
        FreeCache(model, commit="never")
    with pytest.raises(InputError, match="training mode"):
        FreeCache(model.train()).reset(2, 14)
    with pytest.raises(InputError, match="another model"):
        generate(make_host("llada", 1), prompts_of(1, 4), cache=FreeCache(model.eval()))


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"gen_length": 10, "block_length": 4}, "multiple"),
        ({"gen_length": 8, "block_length": 4, "steps": 3}, "multiple"),
        ({"gen_length": 1024, "block_length": 4}, "the model takes 512"),
        ({"temperature": -1.0}, "temperature"),
        ({"order": "best"}, "order must be one of"),
        ({"refresh_every": -1}, "refresh_every"),
        ({"eps": 0.0}, "eps"),
        ({"sliding": -1}, "sliding"),
        ({"sliding": 1.5}, "sliding"),
        ({"top_p": 0.0}, "top_p"),
        ({"attention_mask": torch.ones(1, 3)}, "attention_mask"),
        ({"reveal": "threshold", "steps": 128}, "go with reveal"),
        ({"reveal": "threshold", "order": "entropy"}, "go with reveal"),
    ],
)
def test_bad_requests_are_refused_in_one_sentence(options, part):
    with pytest.raises(InputError, match=part) as refused:
        generate(make_host("llada", 1), prompts_of(2, 4), **options)
    assert "\n" not in str(refused.value)


def test_masks_in_prompts_are_refused():
    with pytest.raises(InputError, match="mask id"):
        generate(make_host("llada", 1), torch.tensor([[1, MASK]]))


def test_values_that_are_not_finite_stop_the_run_and_name_the_layer():
    model = make_host("dream", 3)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="network call 0, first after layer 1"):
        generate(model, prompts_of(1, 4), gen_length=8, block_length=4, early_stop=0)

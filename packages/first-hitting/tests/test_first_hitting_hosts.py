"""First-hitting on LLaDA and Dream hosts, its objective and its metrics."""

import math

import pytest
import torch
from noiseworks.core.discrete import linear
from noiseworks.core.errors import InputError, NonFiniteError
from noiseworks.first_hitting import (
    AncestralSettings,
    FirstHittingGenerator,
    Settings,
    ancestral_sample,
    elbo,
    fhs_sample,
    from_callable,
    from_sigma_model,
    host_denoiser,
    time_free_loss,
)
from noiseworks.first_hitting.metrics import distinct_tokens, generative_nll, unigram_entropy
from noiseworks.kits.masked_lm import detect_host, make_dream, make_llada, pad_prompts

OPTIONS = {"d_model": 32, "n_layers": 2, "mask_token_id": 30, "eos_token_id": 28, "pad_token_id": 29}
MAKERS = {"llada": make_llada, "dream": make_dream}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padded_batches_equal_single_prompts(kind, dtype):
    model = MAKERS[kind](31, **OPTIONS).to(dtype)
    generator = FirstHittingGenerator(model, None, detect_host(model))
    prompts = [torch.randint(28, (n,)).tolist() for n in (3, 9)]
    ids, mask = pad_prompts(prompts, 29)
    for options in ({}, {"variant": "parallel", "steps": 3}, {"block_length": 4}):
        settings = generator.settings(**options)
        batch = generator.complete(ids, mask, 8, settings, seeds=[1, 2]).tokens
        assert torch.equal(batch[:, : ids.shape[1]], ids)
        assert not (batch == 30).any()
        if dtype == torch.float32:
            for row, prompt in enumerate(prompts):
                alone = generator.complete(torch.tensor([prompt]), None, 8, settings, seeds=[1 + row]).tokens
                assert torch.equal(alone[0, -8:], batch[row, -8:])


@pytest.mark.parametrize("kind", MAKERS)
def test_head_at_one_position_gives_the_same_samples(kind):
    model = MAKERS[kind](31, **OPTIONS)
    spec = detect_host(model)

    def everywhere(tokens, times):
        logits = model(tokens).logits
        # Dream's row i predicts token i + 1.
        return torch.cat([logits[:, :1], logits[:, :-1]], dim=1) if kind == "dream" else logits

    canvas = torch.full((3, 8), 30)
    canvas[:, 0] = torch.tensor([1, 2, 3])
    few = fhs_sample(host_denoiser(model, spec), canvas, Settings(30), seeds=[1, 2, 3])
    full = fhs_sample(from_callable(everywhere, 30), canvas, Settings(30), seeds=[1, 2, 3])
    assert torch.equal(few.tokens, full.tokens)


@pytest.mark.parametrize("kind", MAKERS)
def test_adapted_models_sample_as_their_merged_weights(kind):
    from peft import LoraConfig, get_peft_model

    model = MAKERS[kind](31, **OPTIONS)
    canvas, spec = torch.full((6, 8), 30), detect_host(model)
    canvas[:, 0] = 5
    targets = {"llada": ["q_proj", "ff_proj"], "dream": ["q_proj", "up_proj"]}[kind]
    plain = fhs_sample(host_denoiser(model, spec), canvas, Settings(30), seeds=range(6)).tokens
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules=targets, init_lora_weights=False))
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.mul_(20)
    assert detect_host(adapted) == spec
    other = fhs_sample(host_denoiser(adapted, spec), canvas, Settings(30), seeds=range(6)).tokens
    assert not torch.equal(plain, other)
    merged = adapted.merge_and_unload()
    again = fhs_sample(host_denoiser(merged, spec), canvas, Settings(30), seeds=range(6)).tokens
    assert torch.equal(other, again)


def test_hosts_have_the_released_names():
    """Weights of LLaDA are found by these names, so that sampling works on released checkpoints."""
    names = set(make_llada(31, **OPTIONS).state_dict())
    assert {"model.transformer.wte.weight", "model.transformer.ff_out.weight"} <= names
    assert {
        f"model.transformer.blocks.1.{part}.weight" for part in ("q_proj", "ff_proj", "attn_out")
    } <= names
    model = make_llada(31, **OPTIONS)
    saved = {key: value + 0.1 for key, value in model.state_dict().items()}
    model.load_state_dict(saved, strict=True)
    sample = FirstHittingGenerator(model, None, detect_host(model)).complete(
        torch.tensor([[1, 2, 3]]), None, 6, seeds=[0]
    )
    assert sample.calls == 6
    assert not (sample.tokens == 30).any()


def test_trained_model_answers_and_confidence_beats_its_own_distribution():
    """On the shipped model: exact samples solve fewer problems than surest-first ones, and prompts stay."""
    from noiseworks.bench.testbeds.countdown import problems, verify
    from noiseworks.kits.masked_lm import load_host

    model, tokenizer, spec = load_host("testbed:countdown", dtype=torch.float32)
    generator, asked = FirstHittingGenerator(model, tokenizer, spec), problems("countdown", 40, 21, "test")
    prompts, shares = [problem.prompt for problem in asked], {}
    for order, temperature in (("uniform", 1.0), ("confidence", 0.0)):
        settings = generator.settings(order=order, temperature=temperature)
        texts = generator.generate(prompts, 16, settings, seeds=range(40))
        shares[order] = sum(verify(p, text) for p, text in zip(asked, texts, strict=True)) / 40
    # The card says 0.49 for surest-first decoding; the standard error of 40 problems is 0.08.
    assert shares["confidence"] > 0.25
    assert shares["uniform"] <= shares["confidence"]
    alone = generator.generate(prompts[3:4], 16, seeds=[3])
    assert alone == generator.generate(prompts, 16, seeds=range(40))[3:4]


def test_models_of_sigma_get_the_total_noise():
    seen = []

    def model(tokens, sigma):
        seen.append(sigma)
        return torch.zeros(*tokens.shape, 4)

    denoiser = from_sigma_model(model, linear(), 3)
    sample = fhs_sample(denoiser, torch.full((1, 3), 3), Settings(3, takes_time=True), seeds=[0])
    times = sample.times[0].sort(descending=True).values
    assert torch.stack(seen)[:, 0].tolist() == pytest.approx((-torch.log1p(-times)).tolist(), rel=1e-5)
    fhs_sample(denoiser, torch.full((1, 3), 3), Settings(3), seeds=[0])
    assert float(seen[-1]) == 0


def test_bound_of_a_uniform_denoiser_is_the_length_times_log_v():
    denoiser = from_callable(lambda tokens, times: torch.zeros(*tokens.shape, 6), 6)
    tokens = torch.randint(6, (4, 5))
    assert elbo(denoiser, tokens, 6).tolist() == pytest.approx([5 * math.log(6)] * 4)
    # Σ_n (1/n) n = L holds exactly; one draw of n has weight L / n and n masks.
    assert time_free_loss(denoiser, tokens, 6).tolist() == pytest.approx([5 * math.log(6)] * 4, rel=1e-5)


def test_weights_of_the_bound_are_one_over_n():
    # The integral of t^-1 C(L, n) t^n (1 - t)^(L - n) over t, by quadrature.
    t = torch.linspace(0, 1, 200_001, dtype=torch.float64)[1:]
    for n in range(1, 6):
        integral = torch.trapezoid(math.comb(5, n) * t ** (n - 1) * (1 - t) ** (5 - n), t)
        assert float(integral) == pytest.approx(1 / n, abs=1e-4)


def test_time_free_loss_is_unbiased_and_differentiable():
    table = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def function(tokens, times):
        return table[tokens.clamp(max=3)].roll(1, dims=1)

    denoiser, tokens = from_callable(function, 4), torch.tensor([[0, 1, 2, 3]])
    generator = torch.Generator().manual_seed(1)
    losses = time_free_loss(denoiser, tokens.expand(20_000, -1), 4, generator)
    exact = float(elbo(denoiser, tokens.expand(2000, -1), 4, generator=generator).mean())
    assert float(losses.mean()) == pytest.approx(exact, rel=0.02)
    losses.mean().backward()
    assert table.grad.abs().sum() > 0


def test_metrics_of_known_samples():
    tokens = torch.tensor([[0, 0, 1, 1], [2, 2, 2, 2], [0, 1, 2, 3]])
    assert unigram_entropy(tokens).tolist() == pytest.approx([math.log(2), 0, math.log(4)], abs=1e-12)
    assert distinct_tokens(tokens).tolist() == [2, 1, 4]
    p = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    nll = generative_nll(lambda ids: p.expand(*ids.shape, 4), tokens)
    expected = -(p[tokens[:, 1:]]).mean(dim=1)
    assert nll.tolist() == pytest.approx(expected.tolist(), rel=1e-6)


def test_outputs_that_cannot_be_drawn_from_are_refused():
    bad = from_callable(lambda tokens, times: torch.full((*tokens.shape, 4), torch.nan), 3)
    with pytest.raises(InputError, match="NaN"):
        fhs_sample(bad, torch.full((1, 2), 3), Settings(3), seeds=[0])
    with pytest.raises(InputError, match="NaN"):
        ancestral_sample(bad, torch.full((1, 2), 3), AncestralSettings(3, 4))
    flat = from_callable(lambda tokens, times: torch.zeros(len(tokens), 4), 3)
    with pytest.raises(InputError, match="shape"):
        fhs_sample(flat, torch.full((1, 2), 3), Settings(3), seeds=[0])
    with pytest.raises(InputError, match="tokens"):
        fhs_sample(flat, torch.full((2,), 3), Settings(3), seeds=[0])


def test_a_bound_of_nan_stops_with_the_call():
    calls = iter(range(9))
    bad = from_callable(
        lambda tokens, times: torch.full((*tokens.shape, 4), torch.nan if next(calls) == 3 else 0.0), 3
    )
    with pytest.raises(NonFiniteError, match="logit of a position is not finite at step 3"):
        elbo(bad, torch.zeros(1, 4, dtype=torch.long), 3, draws=2)


def test_prompts_with_masks_are_refused():
    model = make_llada(31, **OPTIONS)
    generator = FirstHittingGenerator(model, None, detect_host(model))
    with pytest.raises(InputError, match="mask id"):
        generator.complete(torch.tensor([[1, 30]]), None, 4, seeds=[0])

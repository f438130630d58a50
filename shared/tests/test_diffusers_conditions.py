"""Changing conditions, forecasting, decoding, steering and masking weights inside a run of every family."""

import pytest
import torch
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.kits.diffusers_hosts import (
    FAMILIES,
    DenoiserHook,
    add_score,
    attach_hook,
    cond_rows,
    decode_latents,
    denoiser_of,
    encode_condition,
    forecast,
    latents_of,
    layout_of,
    noise_level,
    prediction_of,
    prediction_type_of,
    role_rows,
    sample_generators,
    score_of,
    tiny_inputs,
    tiny_pipeline,
    to_x0,
    with_condition,
)
from noiseworks.kits.weight_masks import mask_weights
from torch import nn

BATCH, STEPS = 2, 3


@pytest.fixture(scope="module")
def pipes():
    return {family: tiny_pipeline(family) for family in FAMILIES}


def draw(pipe, family, prompts=None, output_type=None, **extra):
    inputs = {**tiny_inputs(family, BATCH), **extra}
    if prompts is not None:
        inputs["class_labels" if family == "dit" else "prompt"] = prompts
    return pipe(
        **inputs,
        num_inference_steps=STEPS,
        generator=sample_generators(range(BATCH)),
        output_type=output_type or ("pt" if family == "dit" else "latent"),
    ).images


class Prompts(DenoiserHook):
    """Feeds other prompts than the pipeline was called with."""

    def __init__(self, pipe, prompts):
        super().__init__(pipe)
        self.prompts = prompts

    def begin_run(self, call):
        return encode_condition(call, self.prompts)

    def denoise(self, call):
        return self.evaluate(with_condition(call, call.run.state))


@pytest.mark.parametrize("family", FAMILIES)
def test_conditions_of_other_prompts_give_the_images_of_those_prompts_bit_for_bit(pipes, family):
    pipe = pipes[family]
    name = "class_labels" if family == "dit" else "prompt"
    own = tiny_inputs(family, BATCH)[name]
    other = [5, 2] if family == "dit" else ["a green cross on the left", "large red square"]
    plain, expected = draw(pipe, family), draw(pipe, family, other)
    assert not torch.equal(plain, expected)
    with attach_hook(Prompts(pipe, other), "prompts"):
        assert torch.equal(draw(pipe, family), expected)
    with attach_hook(Prompts(pipe, own), "prompts"):
        assert torch.equal(draw(pipe, family), plain)
    assert torch.equal(draw(pipe, family), plain)


def test_one_prompt_for_several_images_is_encoded_as_the_host_does_and_others_refused(pipes):
    pipe = pipes["sd"]
    common = {"num_inference_steps": STEPS, "height": 32, "width": 32, "output_type": "latent"}
    common |= {"num_images_per_prompt": 2}
    expected = pipe("a red circle", generator=sample_generators([0, 1]), **common).images
    with attach_hook(Prompts(pipe, ["a red circle"]), "prompts"):
        found = pipe("blue", generator=sample_generators([0, 1]), **common).images
    assert torch.equal(found, expected)
    with attach_hook(Prompts(pipe, ["a"] * 3), "prompts"), pytest.raises(InputError, match="got 3 prompts"):
        draw(pipe, "sd")
    embeds = torch.randn(BATCH, 9, 32)
    inputs = {"prompt": None, "prompt_embeds": embeds, "negative_prompt_embeds": embeds}
    with (
        attach_hook(Prompts(pipe, ["a", "red"]), "prompts"),
        pytest.raises(UnsupportedHostError, match="prompts as text"),
    ):
        draw(pipe, "sd", **inputs)


def test_conditions_that_do_not_fit_are_refused(pipes):
    class Wrong(DenoiserHook):
        condition = None

        def denoise(self, call):
            return self.evaluate(with_condition(call, self.condition))

    hook = Wrong(pipes["sd"])
    with attach_hook(hook, "wrong"):
        for condition, named in (
            ({"class_labels": torch.zeros(2)}, "without class_labels"),
            ({"encoder_hidden_states": torch.zeros(3, 16, 32)}, r"shape \(3, 16, 32\)"),
        ):
            hook.condition = condition
            with pytest.raises(InputError, match=named):
                draw(pipes["sd"], "sd")


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_roles_are_those_of_the_layout(pipes, family):
    found = []

    class Rows(DenoiserHook):
        def denoise(self, call):
            found.append({role: role_rows(call, role).tolist() for role in ("cond", "image", "uncond")})
            assert role_rows(call, "cond").equal(cond_rows(call))
            return super().denoise(call)

    with attach_hook(Rows(pipes[family]), "rows"):
        draw(pipes[family], family)
        guided, found = found, []
        scale = {"true_cfg_scale" if family == "flux" else "guidance_scale": 1.0}
        draw(pipes[family], family, **scale)
    assert found[0] == {"cond": [0, 1], "image": [], "uncond": []}
    layout = layout_of(pipes[family])
    if layout.calls == "contexts":
        expected = [
            {**found[0], "cond": [0, 1] * (role == "cond"), "uncond": [0, 1] * (role == "uncond")}
            for role in layout.roles
        ]
        assert guided == expected * STEPS
    else:
        blocks = {role: [2 * i, 2 * i + 1] for i, role in enumerate(layout.roles)}
        assert guided == [{**found[0], "cond": [], **blocks}] * STEPS


class Watch(DenoiserHook):
    """Keeps the forecasts of a run."""

    def begin_run(self, call):
        self.seen = []

    def denoise(self, call):
        output = self.evaluate(call)
        self.seen.append((call, forecast(call, output)))
        return output


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_forecast_is_where_a_deterministic_run_ends(pipes, family):
    """A DDIM or flow step to noise level 0 lands on x_0, and decoding it gives the host's own images."""
    pipe = tiny_pipeline(family)
    if family == "dit":
        pipe.scheduler.register_to_config(clip_sample=False)
    hook = Watch(pipe)
    with attach_hook(hook, "watch"):
        ended = draw(pipe, family)
    x0 = hook.seen[-1][1]
    if family in ("sd3", "flux"):
        torch.testing.assert_close(x0, ended, rtol=1e-4, atol=1e-4)
    if family == "dit":
        return
    images = draw(pipe, family, output_type="pt")
    assert torch.equal(decode_latents(pipe, ended), images)


def test_forecasts_obey_the_hosts_guidance_formula(pipes):
    for family, settings in (
        ("sd", {"guidance_rescale": 0.7}),
        ("sdxl", {}),
        ("instruct-pix2pix", {}),
        ("flux", {}),
        ("dit", {}),
        ("pixart", {}),
    ):
        pipe, steps = pipes[family], []
        step = pipe.scheduler.step

        def spy(prediction, *args, _step=step, _steps=steps, **kwargs):
            _steps.append(prediction.clone())
            return _step(prediction, *args, **kwargs)

        pipe.scheduler.step = spy
        hook = Watch(pipe)
        with attach_hook(hook, "watch"):
            draw(pipe, family, **settings)
        del pipe.scheduler.step
        seen = hook.seen[1::2] if family == "flux" else hook.seen
        assert len(seen) == len(steps)
        for (call, x0), prediction in zip(seen, steps, strict=True):
            latents = latents_of(call)
            level = noise_level(pipe.scheduler, call.timestep)
            expected = to_x0(
                prediction[: len(latents), : latents.shape[1]],
                latents,
                *level,
                prediction_type_of(pipe.scheduler),
            )
            torch.testing.assert_close(x0, expected, rtol=1e-4, atol=1e-4)


class Steer(DenoiserHook):
    """Steers towards larger values, and keeps the forecasts with and without."""

    def __init__(self, pipe, scale):
        super().__init__(pipe)
        self.scale = scale

    def begin_run(self, call):
        self.seen = []

    def denoise(self, call):
        output = self.evaluate(call)
        score = self.scale * score_of(call, lambda x: 3.0 * x.flatten(1).sum(dim=1))
        steered = add_score(call, output, score)
        self.seen.append((call, output, steered))
        return steered


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux", "pixart", "dit", "instruct-pix2pix"])
def test_a_score_moves_the_forecast_by_what_the_formula_says(pipes, family):
    pipe = pipes[family]
    plain, hook = draw(pipe, family), Steer(pipe, 0.0)
    with attach_hook(hook, "steer"):
        assert torch.equal(draw(pipe, family), plain)
    hook = Steer(pipe, 1.0)
    with attach_hook(hook, "steer"):
        assert not torch.equal(draw(pipe, family), plain)
    for call, output, steered in hook.seen:
        alpha, sigma = noise_level(pipe.scheduler, call.timestep)
        if alpha < 1e-3 or call.role == "uncond":
            continue
        before, after = forecast(call, output), forecast(call, steered)
        expected = torch.full_like(before, 3.0 * sigma**2 / alpha)
        torch.testing.assert_close(after - before, expected, rtol=1e-3, atol=1e-4)
        assert prediction_of(steered).shape == prediction_of(output).shape


def linears(module):
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}


@pytest.mark.parametrize("family", ["sd", "dit", "flux"])
def test_masks_of_ones_change_nothing_and_zeros_leave_the_bias(pipes, family):
    pipe = pipes[family]
    denoiser, plain = denoiser_of(pipe), draw(pipe, family)
    ones = {name: torch.ones_like(layer.weight) for name, layer in linears(denoiser).items()}
    with mask_weights(denoiser, ones, "masks") as handle:
        assert torch.equal(draw(pipe, family), plain)
        with pytest.raises(InputError, match="masks is attached to this Linear already"):
            mask_weights(denoiser, ones, "masks")
    assert not handle.attached
    name, layer = next((n, one) for n, one in linears(denoiser).items() if one.bias is not None)
    x = torch.randn(2, layer.in_features)
    with mask_weights(denoiser, {name: torch.zeros(layer.out_features, 1)}, "rows"):
        assert torch.equal(layer(x), layer.bias.expand(2, -1))
        assert not torch.equal(draw(pipe, family), plain)
    assert torch.equal(draw(pipe, family), plain)


def test_masks_a_row_are_those_of_single_rows_and_gradients_reach_them():
    layer = nn.Linear(3, 4)
    host = nn.Sequential(layer)
    x, masks = torch.randn(2, 5, 3), torch.rand(2, 4, 3, requires_grad=True)
    single = []
    for i in range(2):
        with mask_weights(host, {"0": masks[i]}, "one"):
            single.append(host(x[i]))
    with mask_weights(host, {"0": lambda given: masks * (given is x)}, "rows"):
        together = host(x)
    torch.testing.assert_close(together, torch.stack(single))
    (gradient,) = torch.autograd.grad(together.sum(), masks)
    assert bool((gradient != 0).any(dim=(1, 2)).all())
    with (
        mask_weights(host, {"0": masks}, "rows"),
        pytest.raises(InputError, match="2 batch rows, the input has 1"),
    ):
        host(x[:1])


def test_masks_stand_beneath_lora_and_bad_ones_are_refused():
    from peft import LoraConfig, inject_adapter_in_model

    host = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    inject_adapter_in_model(LoraConfig(r=1, target_modules=["0"], init_lora_weights=False), host)
    x = torch.randn(2, 3)
    base = host[0].base_layer
    update = host[0](x) - base(x)
    with mask_weights(host, {"0": torch.zeros(4, 1)}, "masks"):
        torch.testing.assert_close(host[0](x), base.bias + update)
    for masks, named in (
        ({}, "empty"),
        ({"9": torch.ones(4, 3)}, "no layer '9'"),
        ({"0": torch.ones(3, 3)}, r"\(3, 3\), which does not fit"),
    ):
        with pytest.raises(InputError, match=named):
            mask_weights(host, masks, "masks")
    with pytest.raises(UnsupportedHostError, match="ReLU"):
        mask_weights(host, {"1": torch.ones(1, 1)}, "masks")

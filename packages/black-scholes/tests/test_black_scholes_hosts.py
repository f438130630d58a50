"""The hook on tiny real pipelines: what it decides is what a loop by hand decides, and the host stays the host."""

import pytest
import torch
from noiseworks.black_scholes import (
    Alternating,
    BlackScholes,
    ClipMin,
    ClipScorer,
    Linear,
    Pricing,
    StepSwitch,
    attach,
)
from noiseworks.black_scholes.calibrating import calibrate_strikes, read_strikes, write_strikes
from noiseworks.black_scholes.comparison import agreement
from noiseworks.black_scholes.mixing import mix
from noiseworks.core.errors import InputError, NonFiniteError, UnsupportedHostError
from noiseworks.kits.diffusers_hosts import (
    Sampling,
    decode_latents,
    sample_generators,
    save_tiny_clip,
    tiny_inputs,
    tiny_pipeline,
)

FAMILIES = ("sd", "sdxl", "sd3", "flux", "pixart", "dit", "instruct-pix2pix")
OTHER = "a small blue square"


def brightness(images, texts):
    """Score by colours: text i of an image by channel i."""
    return 100 * images.mean((2, 3))[:, : len(texts[0])]


def ripples(images, texts):
    """Score so that the order of concepts changes with the image, also on untrained models."""
    return 50 + 10 * torch.sin(1000 * brightness(images, texts) / 100)


def run(pipe, family, batch=2, steps=4, seeds=None, **changed):
    inputs = tiny_inputs(family, batch) | changed
    generator = sample_generators(seeds or range(batch))
    kind = "pt" if family == "dit" else "latent"
    return pipe(**inputs, num_inference_steps=steps, generator=generator, output_type=kind).images


@pytest.mark.parametrize("family", FAMILIES)
def test_feedback_runs_on_every_family_and_leaves_it(family):
    pipe = tiny_pipeline(family)
    plain = run(pipe, family)
    other = 3 if family == "dit" else OTHER
    with attach(pipe, [other], scorer=ripples) as handle:
        blended = run(pipe, family)
        trace = handle.report
    assert torch.equal(run(pipe, family), plain)
    assert trace.decodes == 3
    assert trace.choices.shape == (2, 4)
    assert bool((trace.choices[:, 0] == 0).all())
    known = trace.scores[:, :3]
    assert bool(known.isfinite().all())
    expected = torch.where(known[..., 0] < known[..., 1], 0, 1)
    assert torch.equal(trace.choices[:, 1:], expected)
    assert bool((trace.choices == 1).any())
    torch.testing.assert_close(agreement(trace), torch.ones(2))
    assert not torch.equal(blended, plain)


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_equal_concepts_are_the_plain_pipeline(family):
    pipe = tiny_pipeline(family)
    prompts = tiny_inputs(family, 2)["prompt"]
    plain = run(pipe, family)
    softmin = BlackScholes(Pricing(choice="softmin"))
    for policy in (Alternating(), StepSwitch(), BlackScholes(), softmin, ClipMin(), Linear()):
        with attach(pipe, [[text] for text in prompts], policy, scorer=brightness):
            assert torch.equal(run(pipe, family), plain), policy


def test_a_step_costs_the_host_s_rows_and_a_look_one_decoding():
    """2 N rows of the denoiser an image; a forecast after every k-th step but the last, and the image itself."""
    pipe, rows, decodes = tiny_pipeline("sd"), [], []
    unet, decode = pipe.unet.forward, pipe.vae.decode
    pipe.unet.forward = lambda sample, *args, **kwargs: (
        rows.append(len(sample)) or unet(sample, *args, **kwargs)
    )
    pipe.vae.decode = lambda z, *args, **kwargs: decodes.append(len(z)) or decode(z, *args, **kwargs)
    for every, looks in ((1, 4), (2, 2), (3, 2)):
        rows.clear(), decodes.clear()
        with attach(pipe, [OTHER], scorer=brightness, score_every=every) as handle:
            pipe(**tiny_inputs("sd", 2), num_inference_steps=5, output_type="pt")
        assert sum(rows) == 2 * 5 * 2
        assert handle.report.decodes == looks
        assert sum(decodes) == 2 * (looks + 1)


def test_one_concept_with_all_the_weight_is_its_own_image():
    pipe = tiny_pipeline("sd")
    alone = run(pipe, "sd", prompt=[OTHER] * 2)
    with attach(pipe, [OTHER], Linear((0.0, 1.0))):
        assert torch.equal(run(pipe, "sd"), alone)


def test_a_batch_decides_for_each_sample():
    pipe = tiny_pipeline("sd")
    prompts = tiny_inputs("sd", 3)["prompt"]
    others = [[OTHER], ["a red circle"], ["a large square"]]
    with attach(pipe, others, scorer=brightness) as handle:
        both = run(pipe, "sd", 3)
        together = handle.report.choices
    for i, (prompt, other) in enumerate(zip(prompts, others, strict=True)):
        with attach(pipe, other, scorer=brightness) as handle:
            alone = run(pipe, "sd", 1, seeds=[i], prompt=[prompt])
            assert torch.equal(handle.report.choices[0], together[i])
        torch.testing.assert_close(alone[0], both[i], atol=1e-3, rtol=1e-3)


def test_scores_are_those_of_the_step_s_own_forecast():
    from diffusers import DDIMScheduler

    pipe, seen = tiny_pipeline("sd"), []
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    step = pipe.scheduler.step

    def spying(*args, **kwargs):
        found = (
            step(*args, **kwargs, return_dict=True) if "return_dict" not in kwargs else step(*args, **kwargs)
        )
        seen.append(step(*args[:3]).pred_original_sample)
        return found

    pipe.scheduler.step = spying
    with attach(pipe, [OTHER], scorer=brightness) as handle:
        run(pipe, "sd")
        scores = handle.report.scores
    config = pipe.scheduler.config
    assert not config.get("clip_sample"), "the comparison needs an unclipped forecast"
    for index in range(3):
        expected = brightness(decode_latents(pipe, seen[index]), [["a", "b"]])
        torch.testing.assert_close(scores[:, index], expected.double(), atol=1e-4, rtol=1e-4)


def test_the_released_forecast_uses_the_next_latents_and_refuses_other_solvers():
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    pipe = tiny_pipeline("sd")
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    scores = {}
    for forecast in ("pre", "released"):
        with attach(pipe, [OTHER], ClipMin(), scorer=brightness, forecast=forecast) as handle:
            run(pipe, "sd")
            scores[forecast] = handle.report.scores[:, 0]
    assert not torch.allclose(scores["pre"], scores["released"])
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    with attach(pipe, [OTHER], scorer=brightness, forecast="released"), pytest.raises(UnsupportedHostError):
        run(pipe, "sd")


def test_looking_less_often_keeps_choices_in_between():
    pipe = tiny_pipeline("sd")
    with attach(pipe, [OTHER], scorer=brightness, score_every=2) as handle:
        run(pipe, "sd", steps=6)
        trace = handle.report
    assert trace.decodes == 3
    assert torch.equal(trace.choices[:, 1], trace.choices[:, 2])
    assert trace.scores[0, :, 0].isfinite().tolist() == [True, False, True, False, True, False]


def test_volatility_comes_from_the_scheduler_or_is_refused():
    pipe = tiny_pipeline("sd3")
    stride = BlackScholes(Pricing(volatility="stride"))
    with (
        attach(pipe, [OTHER], stride, scorer=brightness),
        pytest.raises(UnsupportedHostError, match="posterior"),
    ):
        run(pipe, "sd3")
    pipe = tiny_pipeline("sd")
    prices = []
    for kind in ("posterior", "stride", "table"):
        with attach(pipe, [OTHER], BlackScholes(Pricing(volatility=kind)), scorer=brightness) as handle:
            run(pipe, "sd")
            prices.append(float(handle.report.prices[0, 1, 0]))
    assert prices[0] < prices[1] < prices[2]


def test_masks_are_joined_and_labels_cannot_be_averaged():
    masks = [
        {"encoder_attention_mask": torch.tensor([[1, 1, 0]])},
        {"encoder_attention_mask": torch.tensor([[1, 0, 1]])},
    ]
    assert mix(masks, torch.tensor([[0.5, 0.5]]))["encoder_attention_mask"].tolist() == [[1, 1, 1]]
    assert mix(masks, torch.tensor([[0.0, 1.0]]))["encoder_attention_mask"].tolist() == [[1, 0, 1]]
    labels = [{"class_labels": torch.tensor([1, 2])}, {"class_labels": torch.tensor([5, 6])}]
    hard = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert mix(labels, hard)["class_labels"].tolist() == [1, 6]
    with pytest.raises(InputError, match="class_labels"):
        mix(labels, torch.tensor([[0.5, 0.5], [0.0, 1.0]]))


def test_what_cannot_be_blended_is_refused():
    pipe = tiny_pipeline("sd")
    for concepts in ([], "text", [["a"], ["a", "b"]], [[]]):
        with pytest.raises(InputError, match="concepts"):
            attach(pipe, concepts, Linear())
    with pytest.raises(InputError, match="scorer"):
        attach(pipe, [OTHER])
    with attach(pipe, [["a"], ["b"], ["c"]], Linear()), pytest.raises(InputError, match="3"):
        run(pipe, "sd")

    def flat(images, texts):
        return images.mean((1, 2, 3))

    def broken(images, texts):
        return brightness(images, texts) * torch.nan

    with attach(pipe, [OTHER], scorer=flat), pytest.raises(InputError, match="shape"):
        run(pipe, "sd")
    with attach(pipe, [OTHER], scorer=broken), pytest.raises(NonFiniteError):
        run(pipe, "sd")
    embeds = pipe.encode_prompt(["red"] * 2, "cpu", 1, True)
    with attach(pipe, [OTHER], Linear()), pytest.raises(UnsupportedHostError, match="text"):
        run(pipe, "sd", prompt=None, prompt_embeds=embeds[0], negative_prompt_embeds=embeds[1])


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    save_tiny_clip(folder)
    return folder


def test_clip_scores_are_the_model_s_own_cosines(clip):
    from transformers import CLIPModel, CLIPProcessor

    scorer, model = ClipScorer(clip), CLIPModel.from_pretrained(clip).eval()
    processor = CLIPProcessor.from_pretrained(clip)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    texts = [["a red circle", "a blue square"], ["a small square", "a red circle"]]
    found = scorer(images, texts)
    limit = model.config.text_config.max_position_embeddings
    for row in range(2):
        inputs = processor(
            text=texts[row],
            images=[images[row]],
            return_tensors="pt",
            padding="max_length",
            max_length=limit,
            do_rescale=False,
        )
        with torch.no_grad():
            expected = 100 * model(**inputs).logits_per_image / model.logit_scale.exp()
        torch.testing.assert_close(found[row], expected[0], atol=1e-3, rtol=1e-4)
    assert len(scorer.features) == 3


def test_strikes_are_what_plain_images_reach(clip, tmp_path):
    pipe, scorer = tiny_pipeline("sd"), ClipScorer(clip)
    sampling = Sampling(num_inference_steps=2, guidance_scale=4.0, batch_size=3)
    strikes = calibrate_strikes(pipe, ["a red circle", OTHER], scorer, sampling, images=2, quantile=1.0)
    assert set(strikes) == {"a red circle", OTHER}
    from noiseworks.kits.diffusers_hosts import draw

    images = torch.cat(list(draw(pipe, ["a red circle"] * 2 + [OTHER] * 2, sampling, "pt")))
    assert strikes[OTHER] == pytest.approx(float(scorer(images[2:], [[OTHER]] * 2).max()), abs=1e-3)
    positive = {text: abs(value) + 1 for text, value in strikes.items()}
    write_strikes(tmp_path / "strikes.json", positive)
    assert read_strikes(tmp_path / "strikes.json") == pytest.approx(positive)

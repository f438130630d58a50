"""The branch: its equation, nobody as the pipeline itself, what is trained, what stock diffusers loads."""

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, IPAdapterAttnProcessor2_0
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.kits.diffusers_hosts import Sampling, tiny_pipeline
from noiseworks.ppd import UserBranch, draw_for

SAMPLING = Sampling(num_inference_steps=2, guidance_scale=3.0, batch_size=2)
PROMPTS = ("a red circle", "a blue square", "a green cross")


def branched(family="sd", filled=True):
    pipe = tiny_pipeline(family)
    branch = UserBranch.new(pipe, 5, "e")
    if filled:
        g = torch.Generator().manual_seed(1)
        for name, parameter in branch.trainable().items():
            if "to_v" in name:
                parameter.data = 0.3 * torch.randn(parameter.shape, generator=g)
    return pipe, branch


def users(n=3):
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(2))


def draw(pipe, branch, told=None, n=3, **changes):
    settings = Sampling(**vars(SAMPLING) | changes)
    return draw_for(pipe, branch, list(PROMPTS[:n]), users(n) if told is None else told, settings)


def test_the_equation_on_small_numbers():
    attention = Attention(2, 2, heads=1, dim_head=2, bias=False, out_bias=False)
    processor = IPAdapterAttnProcessor2_0(2, 2, num_tokens=(1,))
    eye = torch.eye(2)
    for layer in (attention.to_q, attention.to_out[0], processor.to_k_ip[0], processor.to_v_ip[0]):
        layer.weight.data = eye
    # K and V of the text: three tokens of which the layers make these.
    queries = eye[None]
    keys, values = torch.tensor([[1.0, 0], [0, 1], [1, 1]]), torch.tensor([[1.0, 2], [3, 4], [5, 6]])
    attention.to_k.forward, attention.to_v.forward = lambda x: keys[None], lambda x: values[None]
    processor.to_k_ip[0].forward = lambda x: torch.tensor([[[2.0, 0]]])
    processor.to_v_ip[0].forward = lambda x: torch.tensor([[[0.5, -0.5]]])
    text, user = torch.zeros(1, 3, 2), torch.zeros(1, 1, 2)
    expected = {
        0.0: [[3.0, 4.0], [3.406672, 4.406672]],
        1.0: [[3.5, 3.5], [3.906672, 3.906672]],
        0.5: [[3.25, 3.75], [3.656672, 4.156672]],
    }
    for scale, rows in expected.items():
        processor.scale = [scale]
        found = processor(attention, queries, (text, [user]))
        plain = F.scaled_dot_product_attention(queries, keys[None], values[None])
        expected_now = plain + scale * torch.tensor([0.5, -0.5])
        torch.testing.assert_close(found, expected_now, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(found[0], torch.tensor(rows), atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_nobody_and_a_fresh_branch_are_the_pipeline_itself(family):
    def drawn(pipe, branch=None, told=None):
        return draw_for(pipe, branch, list(PROMPTS[:2]), told, SAMPLING)

    base = drawn(tiny_pipeline(family))
    same = users(1).expand(2, -1)  # one user, so that both are drawn in batches of one size
    assert torch.equal(base, drawn(*branched(family, filled=False), same))
    pipe, branch = branched(family)
    assert torch.equal(base, drawn(pipe, branch, torch.zeros(2, 5)))
    assert not torch.equal(base, drawn(pipe, branch, same))
    with branch.off():
        assert torch.equal(base, drawn(pipe, branch, same))
    assert branch.scale == 1
    branch.scale = 0.5
    with pytest.raises(KeyError), branch.off():
        raise KeyError
    assert branch.scale == 0.5
    branch.remove()
    assert torch.equal(base, drawn(pipe))


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_an_image_depends_on_its_own_user_alone(family):
    pipe, branch = branched(family)
    told = users()[[0, 0, 1]]
    for guidance in (1.0, 3.0):
        settings = {"guidance_scale": guidance, "batch_size": 3}
        together = draw(pipe, branch, told, **settings)
        others = draw(pipe, branch, told[[2, 2, 2]], **settings)
        for row in range(3):
            changes = Sampling(**vars(SAMPLING) | settings)
            one = draw_for(pipe, branch, [PROMPTS[row]], told[row : row + 1], changes, [row])
            torch.testing.assert_close(together[row : row + 1], one, atol=2e-5, rtol=1e-4)
        assert float((together[:2] - others[:2]).abs().amax((1, 2, 3)).min()) > 1e-3
    with pytest.raises(InputError, match="one user"):
        branch.arguments(told)


@pytest.fixture(scope="module")
def state():
    """The branch's tensors of `branched`."""
    return {name: p.detach().clone() for name, p in branched()[1]._parameters().items()}


def mixed(state, shares):
    """Return a pipeline with that branch once a share, and the branch."""
    pipe = tiny_pipeline("sd")
    return pipe, UserBranch(pipe, state, "e", shares)


def test_outputs_are_mixed_in_every_attention(state):
    a, b = users(2)
    g = torch.Generator().manual_seed(4)
    seen = {}
    for name, (shares, told) in {
        "a": ((1.0,), a[None]),
        "b": ((1.0,), b[None]),
        "both": ((0.3, 0.7), torch.stack([a, b])),
    }.items():
        pipe, branch = mixed(state, shares)
        unet, layer = pipe.unet.double(), next(m for n, m in pipe.unet.named_modules() if n.endswith("attn2"))
        parts = [one.double() for one in branch.further(told[None])["added_cond_kwargs"]["image_embeds"]]
        tokens = unet.encoder_hid_proj(parts)
        g.manual_seed(4)
        x = torch.randn(1, 9, layer.to_q.in_features, generator=g, dtype=torch.float64)
        text = torch.randn(1, 7, layer.to_k.in_features, generator=g, dtype=torch.float64)
        seen[name] = layer(x, encoder_hidden_states=(text, tokens))
    expected = 0.3 * seen["a"] + 0.7 * seen["b"]
    torch.testing.assert_close(seen["both"], expected, rtol=1e-10, atol=1e-12)
    assert float((seen["a"] - seen["b"]).detach().abs().max()) > 1e-3


def test_mixed_outputs_of_one_user_are_that_user(state):
    a, b = users(2)
    g = torch.Generator().manual_seed(3)
    x, text = torch.randn(1, 4, 8, 8, generator=g), torch.randn(1, 7, 32, generator=g)

    def said(shares, *who):
        pipe, branch = mixed(state, shares)
        with torch.no_grad():
            return pipe.unet(x, 5, text, **branch.further(torch.stack(who)[None]), return_dict=False)[0]

    alone, both = said((1.0,), a), said((0.5, 0.5), a, b)
    assert torch.equal(said((0.0, 1.0), b, a), alone)
    torch.testing.assert_close(said((0.5, 0.5), a, a), alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(said((0.5, 0.5), b, a), both, rtol=1e-4, atol=1e-5)
    between = said((1.0,), (a + b) / 2)  # a mixture of embeddings is something else
    assert float((both - between).abs().max()) > 1e-4
    with pytest.raises(InputError, match="2 times 5 numbers"):
        mixed(state, (0.5, 0.5))[1].arguments(a)
    for shares in ((0.5, 0.2), (1.5, -0.5), (float("nan"), 0.5)):
        with pytest.raises(InputError, match="at least 0"):
            mixed(state, shares)


def test_the_denoiser_takes_a_user_a_row():
    pipe, branch = branched()
    g = torch.Generator().manual_seed(3)
    x, text = torch.randn(3, 4, 8, 8, generator=g), torch.randn(3, 7, 32, generator=g)
    found = pipe.unet(x, 5, text, **branch.further(users()), return_dict=False)[0]
    for row in range(3):
        more = branch.further(users()[row : row + 1])
        one = pipe.unet(x[row : row + 1], 5, text[row : row + 1], **more, return_dict=False)[0]
        torch.testing.assert_close(found[row : row + 1], one, atol=2e-5, rtol=1e-4)


def test_stock_diffusers_loads_it(tmp_path):
    pipe, branch = branched()
    expected = draw(pipe, branch, guidance_scale=1.0, n=1)
    branch.save(tmp_path / "branch")
    stock = tiny_pipeline("sd")
    stock.load_ip_adapter(
        str(tmp_path), subfolder="branch", weight_name="model.safetensors", image_encoder_folder=None
    )
    stock.set_ip_adapter_scale(1.0)
    image = stock(
        PROMPTS[0],
        num_inference_steps=2,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(0),
        ip_adapter_image_embeds=[users(1)[:, None]],
        output_type="pt",
    ).images
    assert torch.equal(image, expected)
    again = tiny_pipeline("sd")
    assert torch.equal(
        draw(again, UserBranch.load(again, tmp_path / "branch"), guidance_scale=1.0, n=1), expected
    )
    with pytest.raises(InputError, match="already"):
        UserBranch.load(again, tmp_path / "branch")
    with pytest.raises(InputError, match="another model"):
        UserBranch.load(tiny_pipeline("sdxl"), tmp_path / "branch")
    with pytest.raises(UnsupportedHostError, match="sd3"):
        UserBranch.new(tiny_pipeline("sd3"), 5, "e")
    with pytest.raises(InputError, match="do not fit"):
        branch.arguments(torch.zeros(1, 4))

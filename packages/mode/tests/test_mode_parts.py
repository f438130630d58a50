"""Image encoders, goal encoders, upcycling and the released checkpoints' names."""

import numpy as np
import pytest
import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.policies import LinearNormalizer
from noiseworks.mode.clip import clip_text_encoder, embed_goals
from noiseworks.mode.config import MoDEConfig
from noiseworks.mode.encoders import StateEncoder, TextGoalEncoder, table_of
from noiseworks.mode.model import MoDEModel
from noiseworks.mode.network import Condition, MoDEDenoiser
from noiseworks.mode.policy import EDMPolicy
from noiseworks.mode.released import infer_config, load_released, map_state
from noiseworks.mode.upcycling import upcycle
from noiseworks.mode.vision import FiLMResNet, ImageEncoder, ResNet, random_shift
from safetensors.torch import save_file

SMALL = {"action_dim": 3, "obs_dim": 32, "goal_dim": 8, "width": 64, "num_layers": 2, "num_heads": 4}


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("depth", [18, 50])
def test_film_resnets_equal_the_plain_one_until_the_film_learns(depth):
    torch.manual_seed(0)
    network = FiLMResNet(8, depth, width=8).eval()
    image, goal = torch.randn(2, 3, 32, 32), torch.randn(2, 8)
    assert torch.equal(network(image, goal), network.resnet(image))
    torch.nn.init.normal_(network.films[1].gamma.weight)
    assert not torch.allclose(network(image, goal), network.resnet(image))


def test_resnets_have_the_published_sizes():
    with torch.device("meta"):
        sizes = {depth: count(ResNet(depth)) for depth in (18, 34, 50)}
    # The published classifiers have 513,000 (18, 34) and 2,049,000 (50) parameters more.
    assert sizes == {18: 11_689_512 - 513_000, 34: 21_797_672 - 513_000, 50: 25_557_032 - 2_049_000}


def test_a_policy_sees_images_and_learns_from_them():
    torch.manual_seed(0)
    encoder = ImageEncoder(("static", "gripper"), 8, width=8, shift=2)
    model = MoDEModel(MoDEConfig(**SMALL | {"obs_dim": 64}), encoder, LinearNormalizer.identity(3)).train()
    obs = {name: torch.rand(3, 1, 3, 32, 32) for name in ("static", "gripper")} | {"goal": torch.randn(3, 8)}
    out = model.denoise(torch.randn(3, 10, 3), torch.tensor([0.1, 1.0, 10.0]), model.encode(obs))
    out.square().sum().backward()
    assert float(encoder.networks[1].resnet.conv1.weight.grad.abs().sum()) > 0
    seen = obs | {"goal": obs["goal"][:, None]}
    assert EDMPolicy(model).predict_chunk(seen).actions.shape == (3, 10, 3)
    with pytest.raises(InputError, match="lack gripper"):
        model.encode({"static": obs["static"], "goal": obs["goal"]})
    with pytest.raises(InputError, match="static must have shape"):
        model.encode(obs | {"static": obs["static"][:2]})


def test_an_image_model_is_saved_and_loaded(tmp_path):
    model = MoDEModel(
        MoDEConfig(**SMALL), ImageEncoder(("top",), 8, width=4), LinearNormalizer.identity(3)
    ).eval()
    model.save_pretrained(tmp_path / "m")
    again = MoDEModel.from_pretrained(tmp_path / "m")
    obs = {"top": torch.rand(2, 1, 3, 32, 32), "goal": torch.randn(2, 8)}
    assert torch.equal(again.encode(obs).obs, model.encode(obs).obs)


def test_a_random_shift_moves_whole_images_within_the_padding():
    torch.manual_seed(0)
    image = torch.zeros(50, 1, 9, 9)
    image[:, :, 4, 4] = 1
    moved = random_shift(image, 2)
    assert torch.equal(moved.sum(dim=(1, 2, 3)), torch.ones(50))
    places = moved.flatten(1).argmax(1)
    rows, columns = places // 9, places % 9
    assert set(rows.tolist()) == set(columns.tolist()) == {2, 3, 4, 5, 6}
    assert torch.equal(random_shift(image, 0), image)


def test_goals_are_embedded_once_and_unknown_ones_are_refused():
    asked = []
    table = table_of({"open": torch.ones(4), "close": torch.zeros(4)})

    def embed(texts):
        asked.extend(texts)
        return table(texts)

    encoder = TextGoalEncoder(embed)
    assert torch.equal(encoder(["open", "close", "open"])[:, 0], torch.tensor([1.0, 0.0, 1.0]))
    encoder(["close"])
    assert asked == ["open", "close"]
    with pytest.raises(InputError, match="no embedding is known for the goal 'push'"):
        encoder(["push"])
    with pytest.raises(InputError, match=r"returned \[3\] for 1 texts"):
        TextGoalEncoder(lambda texts: torch.zeros(3))(["a"])


def dense(seed=0):
    torch.manual_seed(seed)
    config = MoDEConfig(**SMALL | {"obs_dim": 5, "num_experts": 1, "top_k": 1})
    encoder = StateEncoder(torch.randn(4, 1, 8), LinearNormalizer.identity(5))
    model = MoDEModel(config, encoder, LinearNormalizer.identity(3)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("training", [False, True])
def test_equal_experts_compute_the_dense_output_for_any_routing(training):
    model = dense()
    sparse = upcycle(model, experts=4, top_k=2)
    for block in sparse.denoiser.blocks:
        torch.nn.init.normal_(block.router.out.weight)
    x, sigma = torch.randn(4, 10, 3), torch.tensor([0.01, 0.3, 2.0, 70.0])
    cond = Condition(torch.randn(4, 8), torch.randn(4, 1, 5))
    with torch.no_grad():
        # The blocks draw their experts in training mode; dropout stays off.
        for block in sparse.denoiser.blocks:
            block.training = training
        torch.testing.assert_close(
            sparse.denoise(x, sigma, cond), model.denoise(x, sigma, cond), atol=1e-5, rtol=1e-5
        )
    apart = upcycle(model, jitter=0.1)
    first, second = (apart.denoiser.blocks[0].experts[i].out.weight for i in range(2))
    ratio = (first - second).std() / model.denoiser.blocks[0].experts[0].out.weight.std()
    assert float(ratio.detach()) == pytest.approx(0.1 * 2**0.5, rel=0.1)
    with pytest.raises(InputError, match="this one has 4 experts"):
        upcycle(sparse)


def released_state(width=64, experts=4, layers=2, depth_width=4):
    """Names and shapes as the authors' agent with a FiLM-ResNet-50 has them."""
    shapes = {
        "sigma_emb.weight": (width, 1),
        "sigma_emb.bias": (width,),
        "sigma_linear.weight": (width, width),
    }
    obs = depth_width * 32
    shapes |= {f"{n}.weight": (width, obs) for n in ("tok_emb", "gripper_embed")}
    shapes |= {"goal_emb.weight": (width, 8), "action_emb.weight": (width, 3), "pos_emb": (1, 11, width)}
    shapes |= {"ln.g": (width,), "out.weight": (3, width), "out.bias": (3,)}
    for i in range(layers):
        at = f"blocks.{i}."
        shapes |= {
            f"{at}ln_1.g": (width,),
            f"{at}ln_2.g": (width,),
            f"{at}attn.c_proj.weight": (width, width),
        }
        shapes |= {f"{at}attn.{n}.weight": (width, width) for n in ("key", "query", "value")}
        shapes |= {f"{at}attn.{n}.bias": (width,) for n in ("key", "query", "value")}
        shapes |= {f"{at}attn.{n}_norm.g": (8,) for n in ("q", "k")}
        router = f"{at}router.router.mlp."
        shapes |= {f"{router}0.weight": (2 * width, width), f"{router}0.bias": (2 * width,)}
        shapes |= {f"{router}3.weight": (experts, 2 * width), f"{router}3.bias": (experts,)}
        for j in range(experts):
            expert = f"{at}experts.expert_{j}.mlp."
            shapes |= {
                f"{expert}0.project.weight": (8 * width, width),
                f"{expert}0.project.bias": (8 * width,),
            }
            shapes |= {f"{expert}2.weight": (width, 4 * width)}
    generator = torch.Generator().manual_seed(0)
    state = {f"model.inner_model.{n}": torch.randn(s, generator=generator) / 10 for n, s in shapes.items()}
    for camera in ("static_resnet.", "gripper_resnet."):
        for name, tensor in ResNet(50, depth_width).state_dict().items():
            state[f"{camera}resnet.{name}"] = tensor
        for i, dim in enumerate(ResNet(50, depth_width).stage_dims):
            for part in ("gamma", "beta"):
                state[f"{camera}film{i + 1}.{part}.weight"] = torch.randn(dim, 8, generator=generator)
                state[f"{camera}film{i + 1}.{part}.bias"] = torch.zeros(dim)
    return state


def test_released_names_map_onto_every_tensor_and_no_other(tmp_path):
    state = released_state()
    denoiser, cameras = map_state(state)
    config = infer_config(denoiser)
    assert (config.width, config.num_layers, config.num_experts, config.obs_dim) == (64, 2, 4, 128)
    assert {n: t.shape for n, t in MoDEDenoiser(config).state_dict().items()} == {
        n: t.shape for n, t in denoiser.items()
    }
    save_file(state, tmp_path / "released.safetensors")
    model = load_released(tmp_path / "released.safetensors", LinearNormalizer.identity(3))
    loaded = model.denoiser.blocks[1].experts[3].out.weight
    assert torch.equal(loaded, state["model.inner_model.blocks.1.experts.expert_3.mlp.2.weight"])
    film = model.encoder.networks[1].films[2].gamma.weight
    assert torch.equal(film, state["gripper_resnet.film3.gamma.weight"])
    assert set(model.encoder.state_dict()) == set(cameras)


def test_checkpoints_of_another_layout_are_refused(tmp_path):
    with pytest.raises(InputError, match="no checkpoint at"):
        load_released(tmp_path / "none.pt", LinearNormalizer.identity(3))
    with pytest.raises(InputError, match="no released MoDE checkpoint"):
        map_state({"weight": torch.zeros(1)})
    state = {name: t for name, t in released_state().items() if not name.startswith("static_resnet")}
    torch.save({"state_dict": state}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="modulates inside its blocks"):
        load_released(tmp_path / "other.pt", LinearNormalizer.identity(3))
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match="is corrupt"):
        load_released(tmp_path / "broken.safetensors", LinearNormalizer.identity(3))


def test_clip_goals_are_frozen_embeddings_of_the_text(tmp_path):
    from noiseworks.kits.diffusers_hosts.tokenizers import tiny_clip_tokenizer
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    tokenizer = tiny_clip_tokenizer(["open", "close", "the", "drawer"], 8)
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        projection_dim=12,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    CLIPTextModelWithProjection(config).save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    encoder = TextGoalEncoder(clip_text_encoder(str(tmp_path / "clip")))
    goals = encoder(["open the drawer", "close the drawer"])
    assert goals.shape == (2, 12)
    assert not goals.requires_grad
    alone = encoder.embed(["open the drawer"])
    torch.testing.assert_close(goals[:1], alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(goals[0], goals[1], atol=1e-3)
    with pytest.raises(InputError, match="no model at"):
        clip_text_encoder("nowhere/at/all")

    wordings, out = tmp_path / "wordings.json", tmp_path / "goals.npy"
    wordings.write_text('[["open the drawer", "open drawer"], ["close the drawer", "close drawer"]]')
    made = embed_goals(wordings, out, model=str(tmp_path / "clip"))
    assert (made["tasks"], made["wordings"], made["width"]) == (2, 2, 12)
    torch.testing.assert_close(torch.from_numpy(np.load(out))[:, 0], goals, atol=1e-5, rtol=1e-5)
    for text, match in (("[[]]", "a list of wordings"), ("{", "no JSON"), ('[["a"], ["b", "c"]]', "equally")):
        wordings.write_text(text)
        with pytest.raises(InputError, match=match):
            embed_goals(wordings, tmp_path / "none.npy", model=str(tmp_path / "clip"))
    assert not (tmp_path / "none.npy").exists()

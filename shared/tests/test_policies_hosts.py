"""Other libraries' policies as hosts, on stand-ins with their published attributes, and on the real one."""

import json
from types import SimpleNamespace

import pytest
import torch
from noiseworks.core.errors import ArtifactError, InputError, NonFiniteError, UnsupportedHostError
from noiseworks.kits.policies import (
    ConditionalUnet1D,
    DiffusionPolicy,
    LinearNormalizer,
    NativePolicy,
    PolicyConfig,
    TransformerForDiffusion,
    as_host,
    load_host,
    make_scheduler,
)
from noiseworks.kits.policies.hosts.diffusion_policy import OriginalHost
from noiseworks.kits.policies.hosts.lerobot import LeRobotHost, read_statistics
from torch import nn


class Lookup(dict):
    """A normaliser per entry, which also maps a whole dictionary, as the original library's does."""

    def normalize(self, batch):
        return {name: self[name].normalize(value) for name, value in batch.items()}


class Cameras(nn.Module):
    """Stands in for the original image encoder: [N, ...] per entry -> [N, 6]."""

    def forward(self, batch):
        return torch.cat((batch["image"].mean((-1, -2)), batch["state"]), dim=-1)


def original(kind="unet", **changes):
    torch.manual_seed(0)
    normalizer = Lookup(
        action=LinearNormalizer(torch.tensor([2.0, 3.0]), torch.zeros(2)),
        obs=LinearNormalizer(torch.full((4,), 2.0), torch.ones(4)),
        image=LinearNormalizer.identity(5),
        state=LinearNormalizer(torch.full((3,), 4.0), torch.zeros(3)),
    )
    common = {
        "noise_scheduler": make_scheduler(20),
        "normalizer": normalizer,
        "horizon": 8,
        "n_obs_steps": 2,
        "n_action_steps": 4,
        "action_dim": 2,
        "pred_action_steps_only": False,
    }
    sizes = {"diffusion_step_embed_dim": 8, "down_dims": (8, 16)}
    if kind == "unet":
        net = ConditionalUnet1D(2, global_cond_dim=8, **sizes)
        common |= {"obs_as_global_cond": True, "obs_as_local_cond": False, "oa_step_convention": False}
    elif kind == "image":
        net = ConditionalUnet1D(2, global_cond_dim=12, **sizes)
        common |= {"obs_as_global_cond": True, "obs_encoder": Cameras()}
    else:
        net = TransformerForDiffusion(2, 2, 8, 2, 4, 1, 2, 8)
        common |= {"obs_as_cond": True}
    return SimpleNamespace(model=net.eval(), **(common | changes))


def test_an_original_unet_policy_denoises_with_its_own_parts():
    policy = original()
    host = as_host(policy)
    assert isinstance(host, OriginalHost)
    assert as_host(host) is host
    obs, x = torch.randn(3, 2, 4), torch.randn(3, 8, 2)
    cond = host.encode({"obs": obs})
    torch.testing.assert_close(cond, (2 * obs + 1).reshape(3, 8))
    expected = policy.model(x, torch.full((3,), 7), None, cond)
    assert torch.equal(host.denoise(x, 7, cond), expected)
    assert torch.equal(host.denoise(x, torch.full((3,), 7), cond), expected)


@pytest.mark.parametrize(
    ("kind", "changes", "start"),
    [
        ("unet", {}, 2),
        ("unet", {"oa_step_convention": True}, 1),
        ("transformer", {}, 1),
        ("image", {}, 1),
    ],
)
def test_the_executed_part_is_the_policys_own(kind, changes, start):
    assert as_host(original(kind, **changes)).chunk.executed == slice(start, start + 4)


def test_an_original_transformer_policy_reads_tokens():
    host, obs = as_host(original("transformer")), torch.randn(3, 2, 4)
    cond = host.encode({"obs": obs})
    torch.testing.assert_close(cond, 2 * obs + 1)
    assert host.denoise(torch.randn(3, 8, 2), 7, cond).shape == (3, 8, 2)


def test_an_original_image_policy_encodes_each_step():
    host = as_host(original("image"))
    image, state = torch.rand(3, 2, 3, 5, 5), torch.randn(3, 2, 3)
    cond = host.encode({"image": image, "state": state})
    steps = [torch.cat((image[:, i].mean((-1, -2)), 4 * state[:, i]), -1) for i in range(2)]
    torch.testing.assert_close(cond, torch.cat(steps, -1))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"obs_as_global_cond": False}, "inpainting"),
        ({"obs_as_local_cond": True}, "locally"),
        ({"pred_action_steps_only": True}, "executed actions only"),
    ],
)
def test_original_policies_of_other_kinds_are_refused(changes, words):
    with pytest.raises(UnsupportedHostError, match=words):
        as_host(original(**changes))


def test_unknown_objects_are_refused():
    with pytest.raises(UnsupportedHostError, match="Linear is no diffusion policy"):
        as_host(nn.Linear(2, 2))
    with pytest.raises(UnsupportedHostError, match="lacks horizon"):
        OriginalHost(SimpleNamespace(**{k: v for k, v in vars(original()).items() if k != "horizon"}))


class LeRobotUnet(nn.Module):
    """Takes the arguments of LeRobot's U-Net."""

    def __init__(self):
        super().__init__()
        self.inner = ConditionalUnet1D(2, global_cond_dim=14, diffusion_step_embed_dim=8, down_dims=(8, 16))

    def forward(self, x, timestep, global_cond=None):
        assert timestep.shape == x.shape[:1]
        return self.inner(x, timestep, None, global_cond)


class LeRobotModel(nn.Module):
    """LeRobot's `policy.diffusion`: two cameras, whose colours are their features, and a state."""

    def __init__(self):
        super().__init__()
        self.unet, self.noise_scheduler = LeRobotUnet(), make_scheduler(20)

    def _prepare_global_conditioning(self, batch):
        pictures = batch["observation.images"]
        assert pictures.shape[2] == 2  # [B, To, cameras, C, H, W]
        features = pictures.mean((-1, -2)).flatten(2)
        return torch.cat((batch["observation.state"], features), -1).flatten(1)


class LeRobotPolicy(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.diffusion = LeRobotModel()
        self.config = SimpleNamespace(
            horizon=8,
            n_obs_steps=2,
            n_action_steps=4,
            action_feature=SimpleNamespace(shape=(2,)),
            input_features={
                "observation.state": SimpleNamespace(shape=(1,)),
                "observation.images.top": SimpleNamespace(shape=(3, 4, 4)),
                "observation.images.wrist": SimpleNamespace(shape=(3, 4, 4)),
            },
            image_features={"observation.images.top": None, "observation.images.wrist": None},
        )


def lerobot_obs(rows=3):
    torch.manual_seed(1)
    return {
        "observation.state": torch.randn(rows, 2, 1),
        "observation.images.top": torch.rand(rows, 2, 3, 4, 4),
        "observation.images.wrist": torch.rand(rows, 2, 3, 4, 4),
    }


def test_a_lerobot_policy_is_read_from_its_configuration_and_parts():
    policy = LeRobotPolicy()
    host = as_host(policy)
    assert isinstance(host, LeRobotHost)
    assert as_host(host) is host
    assert not policy.training
    assert (host.horizon, host.n_obs_steps, host.n_action_steps, host.action_dim) == (8, 2, 4, 2)
    assert host.scheduler is policy.diffusion.noise_scheduler
    cond = host.encode(lerobot_obs())
    assert cond.shape == (3, 14)
    x = torch.randn(3, 8, 2)
    assert torch.equal(host.denoise(x, 5, cond), policy.diffusion.unet(x, torch.full((3,), 5), cond))
    chunk = DiffusionPolicy(host, solver="ddim", num_inference_steps=4).predict_chunk(lerobot_obs())
    assert chunk.actions.shape == (3, 4, 2)
    torch.testing.assert_close(chunk.actions, chunk.prediction[:, 1:5])


def test_a_lerobot_policy_gets_actions_in_environment_units_through_a_normaliser():
    normalizer = LinearNormalizer(torch.tensor([2.0, 4.0]), torch.tensor([1.0, 0.0]))
    host = LeRobotHost(LeRobotPolicy(), normalizer)
    chunk = DiffusionPolicy(host, solver="ddim", num_inference_steps=2).predict_chunk(lerobot_obs())
    torch.testing.assert_close(normalizer.normalize(chunk.actions), chunk.prediction[:, 1:5])


def test_a_lerobot_observation_that_lacks_something_is_refused():
    host, obs = as_host(LeRobotPolicy()), lerobot_obs()
    with pytest.raises(InputError, match=r"images\.wrist"):
        host.encode({name: value for name, value in obs.items() if not name.endswith("wrist")})
    with pytest.raises(InputError, match=r"\[3, 2, 1\], got \[3, 1, 1\]"):
        host.encode({name: value[:, :1] for name, value in obs.items()})
    with pytest.raises(UnsupportedHostError, match="_prepare_global_conditioning"):
        LeRobotHost(SimpleNamespace(diffusion=SimpleNamespace(unet=None, noise_scheduler=None)))


@pytest.fixture(scope="module")
def real_lerobot():
    """LeRobot's own class, tiny, with drawn weights."""
    modeling = pytest.importorskip("lerobot.policies.diffusion.modeling_diffusion")
    from lerobot.configs.types import FeatureType, PolicyFeature

    config = modeling.DiffusionConfig(
        n_obs_steps=2,
        horizon=8,
        n_action_steps=4,
        down_dims=(32, 64),
        diffusion_step_embed_dim=16,
        num_train_timesteps=10,
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, (3,)),
            "observation.environment_state": PolicyFeature(FeatureType.ENV, (5,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
        device="cpu",
    )
    return modeling.DiffusionPolicy(config)


def real_obs():
    return {"observation.state": torch.randn(3, 2, 3), "observation.environment_state": torch.randn(3, 2, 5)}


@torch.inference_mode()
def test_the_real_lerobot_policy_samples_the_same_actions(real_lerobot):
    policy, host, obs = real_lerobot, as_host(real_lerobot), real_obs()
    generator = torch.Generator().manual_seed(2)
    ours = DiffusionPolicy(host).predict_chunk(obs, generator)
    theirs = policy.diffusion.conditional_sample(
        3, policy.diffusion._prepare_global_conditioning(obs), torch.Generator().manual_seed(2)
    )
    torch.testing.assert_close(ours.prediction, theirs)
    torch.testing.assert_close(ours.actions, theirs[:, 1:5])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda o: o.pop("observation.state"), InputError, r"lacks observation\.state, .* it holds obs"),
        (lambda o: o.update({"observation.state": torch.zeros(1, 4)}), InputError, r"\[1, 3\], got \[1, 4\]"),
        (lambda o: o.update({"observation.state": torch.zeros(3)}), InputError, r"\[1, 3\], got \[3\]"),
        (lambda o: o.update({"observation.state": [0.0] * 3}), InputError, "tensor, got list"),
        (
            lambda o: o["observation.environment_state"].fill_(torch.inf),
            NonFiniteError,
            r"environment_state holds NaN or infinity in environments \[0\]",
        ),
    ],
    ids=["missing", "wide", "flat", "list", "infinite"],
)
def test_every_step_of_a_lerobot_policy_checks_what_it_is_given(real_lerobot, change, error, words):
    policy = DiffusionPolicy(as_host(real_lerobot))
    obs = {"observation.state": torch.ones(1, 3), "observation.environment_state": torch.ones(1, 5)}
    policy.act(obs)  # the rest of the chunk is in the queue: no network would notice
    before = policy.state_dict()
    broken = {name: value.clone() for name, value in obs.items()}
    change(broken)
    with pytest.raises(error, match=words) as refusal:
        policy.act(broken)
    assert "\n" not in str(refusal.value)
    after = policy.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert policy.act(obs | {"task": "further entries are not read"}).shape == (1, 2)


@torch.inference_mode()
def test_a_lerobot_directory_speaks_environment_units_as_its_processors_do(real_lerobot, tmp_path, capsys):
    from lerobot.policies.diffusion.processor_diffusion import make_diffusion_pre_post_processors

    action = {"min": torch.tensor([-2.0, 1.0]), "max": torch.tensor([4.0, 1.5])}
    state = {"min": torch.tensor([0.0, -1.0, 5.0]), "max": torch.tensor([1.0, 3.0, 5.0])}
    around = {"min": -torch.ones(5), "max": torch.full((5,), 2.0)}
    stats = {"action": action, "observation.state": state, "observation.environment_state": around}
    before, after = make_diffusion_pre_post_processors(real_lerobot.config, stats)
    real_lerobot.save_pretrained(tmp_path)
    with pytest.raises(ArtifactError, match="policy_preprocessor"):
        load_host(tmp_path)
    before.save_pretrained(tmp_path)
    after.save_pretrained(tmp_path)
    capsys.readouterr()
    host, obs = load_host(tmp_path), real_obs()
    assert capsys.readouterr().out == ""  # a command's answer alone goes there
    for name, tensor in real_lerobot.state_dict().items():
        assert torch.equal(host.policy.state_dict()[name], tensor), name
    obs["observation.state"][..., 2] = 5.0  # where its range is empty
    normal = before(dict(obs))
    cond = real_lerobot.diffusion._prepare_global_conditioning({name: normal[name] for name in obs})
    torch.testing.assert_close(host.encode(obs), cond)
    prediction = torch.rand(3, 8, 2)
    torch.testing.assert_close(host.normalizer.unnormalize(prediction), after(prediction))


def test_a_normaliser_is_for_policies_without_their_own(real_lerobot):
    normalizer = LinearNormalizer(torch.tensor([2.0, 4.0]), torch.zeros(2))
    assert as_host(real_lerobot, normalizer).normalizer is normalizer
    with pytest.raises(InputError, match="own normaliser"):
        as_host(original(), normalizer)


@pytest.mark.parametrize("name", ["../../../etc/shadow", "/etc/shadow", "below/state.safetensors"])
def test_a_lerobot_processor_reads_no_file_outside_of_its_folder(tmp_path, name):
    step = {"registry_name": "normalizer_processor", "state_file": name}
    step["config"] = {"features": {}, "norm_map": {}}
    (tmp_path / "processor.json").write_text(json.dumps({"steps": [step]}))
    with pytest.raises(ArtifactError, match="outside of the policy's folder"):
        read_statistics(tmp_path, "processor.json", "normalizer_processor")


@pytest.mark.parametrize("content", ["[1]", "3", "{", ""])
def test_a_policy_whose_configuration_is_no_object_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"config\.json is no policy"):
        load_host(tmp_path)


@pytest.mark.parametrize("damage", ["nan", "cut"])
def test_a_policy_with_broken_weights_is_refused_in_one_line(tmp_path, damage):
    policy = NativePolicy(PolicyConfig(down_dims=(8, 16), kernel_size=3, step_embed_dim=8))
    if damage == "nan":
        next(policy.net.parameters()).data[0] = float("nan")
    policy.save_pretrained(tmp_path / "policy")
    if damage == "cut":
        weights = tmp_path / "policy" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ArtifactError, match=r"holds NaN|corrupt or incomplete") as refused:
        load_host(tmp_path / "policy")
    assert "\n" not in str(refused.value)

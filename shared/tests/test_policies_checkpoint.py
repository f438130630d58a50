"""Original checkpoint files: what comes back, what never runs, and what is refused."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from noiseworks.core.errors import ArtifactError, InputError, UnsupportedHostError
from noiseworks.kits.policies import NativePolicy, PolicyConfig, load_host
from noiseworks.kits.policies.hosts.checkpoint import import_checkpoint, read_checkpoint

UNET = PolicyConfig(
    obs_dim=5,
    action_dim=2,
    horizon=8,
    n_action_steps=3,
    start_at_current=False,
    down_dims=(8, 16),
    step_embed_dim=16,
)
TRANSFORMER = replace(UNET, network="transformer", start_at_current=True, n_layer=2, n_head=2, n_emb=16)


class Node:
    """A node of a configuration as its library pickles it: a container's `_content`, or a leaf's `_val`."""

    def __init__(self, value):
        self._metadata = {"key_type": str}
        if isinstance(value, dict):
            self._content = {name: Node(entry) for name, entry in value.items()}
        elif isinstance(value, list):
            self._content = [Node(entry) for entry in value]
        else:
            self._val = value


class Opened:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


class Touched(Opened):
    def __reduce__(self):
        return Path.touch, (Path(self.path),)


class System(Opened):
    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def settings(config, **changes):
    model = (
        {"n_groups": 8} if config.network == "unet" else {"n_head": 2, "p_drop_attn": 0.1, "n_cond_layers": 0}
    )
    scheduler = {
        "num_train_timesteps": 100,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "epsilon",
    }
    found = {
        "horizon": 8,
        "n_obs_steps": 2,
        "n_action_steps": 3,
        "model": model,
        "noise_scheduler": scheduler,
    }
    return found | {"obs_as_global_cond": True, "tags": ["a", "b"]} | changes


def payload(config, cfg, extra=None):
    """Return what the original workspace saves, and the policy in it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy, plain = NativePolicy(config), NativePolicy(config)
    states = []
    for one in (plain, policy):
        state = {f"model.{name}": tensor for name, tensor in one.net.state_dict().items()}
        state |= {"_dummy_variable": torch.zeros(0), "model._dummy_variable": torch.zeros(0)}
        for name, scale in (("action", torch.tensor([2.0, 3.0])), ("obs", torch.tensor([4.0]))):
            state[f"normalizer.params_dict.{name}.scale"] = scale
            state[f"normalizer.params_dict.{name}.offset"] = torch.full_like(scale, 0.5)
            state[f"normalizer.params_dict.{name}.input_stats.min"] = torch.zeros_like(scale)
        states.append(state | (extra or {}))
    pickles = {"global_step": b"\x80\x04K\x03."}
    return {
        "cfg": cfg,
        "state_dicts": dict(zip(("model", "ema_model"), states, strict=True)),
        "pickles": pickles,
    }, policy


@pytest.mark.parametrize("config", [UNET, TRANSFORMER], ids=["unet", "transformer"])
def test_a_checkpoint_becomes_the_native_policy_of_its_moving_average(config, tmp_path):
    saved, policy = payload(config, Node({"policy": settings(config)}))
    torch.save(saved, tmp_path / "latest.ckpt")
    found = load_host(tmp_path / "latest.ckpt")
    for name in (
        "network",
        "obs_dim",
        "action_dim",
        "horizon",
        "n_obs_steps",
        "n_action_steps",
        "start_at_current",
    ):
        assert getattr(found.config, name) == getattr(config, name), name
    for name, tensor in policy.net.state_dict().items():
        assert torch.equal(found.net.state_dict()[name], tensor)
    assert found.normalizer.scale.tolist() == [2.0, 3.0]
    assert found.obs_normalizer.scale.tolist() == [4.0] * 5
    assert found.config.ema
    found.save_pretrained(tmp_path / "native")
    assert NativePolicy.from_pretrained(tmp_path / "native").config == found.config


def test_nothing_in_a_file_runs(tmp_path):
    left = tmp_path / "left"
    saved, _ = payload(UNET, Node({"policy": settings(UNET), "bomb": Opened(left)}))
    torch.save(saved, tmp_path / "a.ckpt")
    assert import_checkpoint(tmp_path / "a.ckpt").config.horizon == 8
    for bomb in (System(left), Touched(left)):
        saved["cfg"] = bomb
        torch.save(saved, tmp_path / "b.ckpt")
        with pytest.raises(ArtifactError, match="which is not run"):
            read_checkpoint(tmp_path / "b.ckpt")
    assert not left.exists()


def test_sizes_that_a_file_does_not_say_are_asked_for(tmp_path):
    saved, _ = payload(UNET, None)
    torch.save(saved, tmp_path / "bare.ckpt")
    with pytest.raises(InputError, match="does not say horizon, n_obs_steps, n_action_steps"):
        import_checkpoint(tmp_path / "bare.ckpt")
    sizes = {"horizon": 8, "n_obs_steps": 2, "n_action_steps": 3}
    assert import_checkpoint(tmp_path / "bare.ckpt", **sizes).config.obs_dim == 5
    with pytest.raises(ArtifactError, match="do not fit"):
        import_checkpoint(tmp_path / "bare.ckpt", **sizes, kernel_size=3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"obs_as_global_cond": False}, "by inpainting"),
        ({"pred_action_steps_only": True}, "executed actions only"),
        ({"noise_scheduler": {"beta_schedule": "linear"}}, "beta_schedule = 'linear'"),
        ({"model": {"n_groups": 4}}, "other groups"),
    ],
)
def test_policies_of_another_kind_are_refused(changes, words, tmp_path):
    torch.save(payload(UNET, Node({"policy": settings(UNET, **changes)}))[0], tmp_path / "a.ckpt")
    with pytest.raises(UnsupportedHostError, match=words):
        import_checkpoint(tmp_path / "a.ckpt")


def test_images_and_other_files_are_refused(tmp_path):
    image = payload(UNET, None, {"obs_encoder.weight": torch.zeros(1)})[0]
    torch.save(image, tmp_path / "image.ckpt")
    with pytest.raises(UnsupportedHostError, match="image policy"):
        import_checkpoint(tmp_path / "image.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    (tmp_path / "text.ckpt").write_text("nothing")
    for name, words in (
        ("other", "no checkpoint of"),
        ("text", "cannot be read"),
        ("gone", "cannot be read"),
    ):
        with pytest.raises(ArtifactError, match=words):
            read_checkpoint(tmp_path / f"{name}.ckpt")

"""Networks: converted ones give the original's output at equal levels, and save and load exactly."""

import json

import pytest
import torch
from noiseworks.core.errors import ArtifactError, InputError, UnsupportedHostError
from noiseworks.kits.policies import LinearNormalizer, NativePolicy, PolicyConfig
from noiseworks.kits.policies.hosts.checkpoint import import_checkpoint
from noiseworks.streaming_dp import (
    StreamingHost,
    StreamingPolicy,
    convert,
    import_published,
)
from noiseworks.streaming_dp.difference import load_difference, save_difference
from noiseworks.streaming_dp.networks import StreamingUnet1d, from_published

SIZES = {"obs_dim": 3, "action_dim": 2, "horizon": 8, "n_action_steps": 2}
UNET = SIZES | {"down_dims": (8, 16), "kernel_size": 3, "step_embed_dim": 16}
TRANSFORMER = SIZES | {"network": "transformer", "n_layer": 2, "n_head": 2, "n_emb": 16}


def make(kind=NativePolicy, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        normal = LinearNormalizer(torch.tensor([2.0, 0.5]), torch.tensor([0.1, -0.3]))
        host = kind(PolicyConfig(**options), None, normal, LinearNormalizer.identity(3))
        for parameter in host.parameters():  # a fresh transformer's output would not depend on its input
            parameter.data.add_(0.05 * torch.randn(parameter.shape))
    return host.eval()


@pytest.mark.parametrize("options", [UNET, TRANSFORMER], ids=["unet", "transformer"])
@torch.inference_mode()
def test_equal_levels_give_the_originals_output(options):
    host = make(**options)
    made = convert(host, n_action_steps=1)
    assert made.n_action_steps == 1
    x, obs = torch.randn(4, 8, 2), {"obs": torch.randn(4, 2, 3)}
    steps = torch.tensor([0, 10, 50, 99])
    expected = host.denoise(x, steps, host.encode(obs))
    equal = made.denoise(x, steps[:, None].expand(4, 8), made.encode(obs))
    torch.testing.assert_close(equal, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(made.denoise(x, steps, made.encode(obs)), expected, rtol=1e-5, atol=1e-5)
    unequal = made.denoise(x, torch.arange(8).expand(4, 8) * 12, made.encode(obs))
    assert not torch.allclose(unequal, expected, atol=1e-3)
    with pytest.raises(InputError, match="already"):
        convert(made)


@torch.inference_mode()
def test_positions_of_equal_mean_level_are_told_apart_by_a_trained_transformer():
    made = convert(make(**TRANSFORMER))
    made.net.level_emb.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    x, cond = torch.randn(1, 8, 2), made.encode({"obs": torch.randn(1, 2, 3)})
    rising = torch.arange(8)[None] * 10
    swapped = rising.clone()
    swapped[0, [2, 5]] = rising[0, [5, 2]]
    assert not torch.allclose(made.denoise(x, rising, cond), made.denoise(x, swapped, cond), atol=1e-3)
    torch.testing.assert_close(
        made.denoise(x, torch.full((1, 8), 30), cond),
        convert(make(**TRANSFORMER)).denoise(x, torch.full((1, 8), 30), cond),
    )


def test_the_level_encoder_has_the_papers_sizes():
    net = StreamingUnet1d(2, 16, global_cond_dim=4, down_dims=(8, 16))
    _, first, _, second = net.diffusion_step_encoder
    assert (first.in_features, first.out_features, second.out_features) == (256 * 16, 1024, 256)
    published = {}
    for name, tensor in net.state_dict().items():
        name = name.replace("step_encoder.3.", "step_encoder.5.").replace(
            "step_encoder.1.", "step_encoder.3."
        )
        published[name] = tensor
    net.load_state_dict(from_published(published), strict=True)


def test_a_published_policy_streams(tmp_path):
    host = make(StreamingHost, **UNET)
    number = {"step_encoder.3.": "step_encoder.5.", "step_encoder.1.": "step_encoder.3."}
    state = {}
    for name, tensor in host.net.state_dict().items():
        old = next((part for part in number if part in name), None)
        state[f"model.{name if old is None else name.replace(old, number[old])}"] = tensor
    for name in ("action", "obs"):
        state[f"normalizer.params_dict.{name}.scale"] = torch.tensor([2.0])
        state[f"normalizer.params_dict.{name}.offset"] = torch.tensor([0.5])
    policy = {"horizon": 8, "n_obs_steps": 2, "n_action_steps": 2, "oa_step_convention": True}
    payload = {"cfg": {"policy": policy}, "state_dicts": {"model": {}, "ema_model": state}, "pickles": {}}
    torch.save(payload, tmp_path / "latest.ckpt")
    made = import_published(tmp_path / "latest.ckpt")
    for name, tensor in host.net.state_dict().items():
        assert torch.equal(made.net.state_dict()[name], tensor), name
    assert (made.config.step_embed_dim, made.config.obs_dim) == (16, 3)
    assert made.normalizer.scale.tolist() == [2.0, 2.0]
    assert StreamingPolicy(made).act({"obs": torch.zeros(1, 3)}).shape == (1, 2)
    with pytest.raises(ArtifactError, match="do not fit"):
        import_checkpoint(tmp_path / "latest.ckpt")


def test_a_saved_policy_comes_back_and_a_wrong_one_is_refused(tmp_path):
    host = make(StreamingHost, **UNET)
    host.save_pretrained(tmp_path / "a")
    back = StreamingHost.from_pretrained(tmp_path / "a")
    assert back.config == host.config
    assert torch.equal(back.normalizer.scale, host.normalizer.scale)
    for name, tensor in host.net.state_dict().items():
        assert torch.equal(tensor, back.net.state_dict()[name])
    record = json.loads((tmp_path / "a" / "config.json").read_text())
    record["policy"]["horizon"] = 4
    (tmp_path / "a" / "config.json").write_text(json.dumps(record))
    with pytest.raises(ArtifactError, match="corrupt"):
        StreamingHost.from_pretrained(tmp_path / "a")


def test_hosts_that_cannot_stream_are_refused():
    host = make(**UNET)
    with pytest.raises(UnsupportedHostError, match="convert"):
        StreamingPolicy(host)
    with pytest.raises(InputError, match="start_at_current"):
        convert(make(**(UNET | {"start_at_current": False})))
    with pytest.raises(InputError, match="multiple of 4"):
        StreamingUnet1d(2, 6, down_dims=(8, 16, 32))
    with pytest.raises(InputError, match="at least"):
        convert(make(**(UNET | {"num_train_timesteps": 3})), n_action_steps=1)
    made = convert(host)
    with pytest.raises(InputError, match="8 positions"):
        made.denoise(torch.zeros(1, 8, 2), torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 6))


@pytest.mark.parametrize("options", [UNET, TRANSFORMER], ids=["unet", "transformer"])
@torch.inference_mode()
def test_a_difference_of_eight_bits_brings_the_tuned_policy_back(tmp_path, options):
    host = make(**options)
    tuned = convert(host, n_action_steps=1)
    for parameter in tuned.net.parameters():
        parameter.add_(0.02 * torch.randn(parameter.shape))
    save_difference(tmp_path / "small", tuned, host, steps=7)
    back = load_difference(tmp_path / "small", host)
    assert back.n_action_steps == 1
    base, found = (dict(one.net.named_parameters()) for one in (convert(host), back))
    for name, tensor in tuned.net.named_parameters():
        change = (tensor - base[name]).abs().amax()
        assert float((found[name] - tensor).abs().amax()) <= float(change) / 253 + 1e-7
    with pytest.raises(InputError, match="no conversion"):
        save_difference(tmp_path / "other", tuned, make(**(options | {"horizon": 4})))
    with pytest.raises(ArtifactError, match="another"):
        load_difference(tmp_path / "small", make(**(options | {"horizon": 4})))

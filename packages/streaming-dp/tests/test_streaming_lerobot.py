"""Streaming in LeRobot's own evaluation: on a converted policy object, and from a directory that its loader reads."""

import pytest
import torch
from noiseworks.core.errors import UnsupportedHostError
from noiseworks.kits.policies.testing import lerobot_evaluation, tiny_diffusion
from noiseworks.streaming_dp import Stream, convert
from noiseworks.streaming_dp.hosts import save_converted
from noiseworks.streaming_dp.lerobot import attach
from noiseworks.streaming_dp.lerobot.attaching import write_lerobot


def test_lerobots_own_evaluation_streams_a_converted_policy_and_gets_its_bits_back():
    plain = tiny_diffusion()
    policy = convert(plain, n_action_steps=1).policy
    network = policy.diffusion.unet
    with pytest.raises(UnsupportedHostError, match="convert"):
        attach(plain)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    off = lerobot_evaluation(policy, network)
    with attach(policy, Stream(n_action_steps=1)) as handle:
        first = lerobot_evaluation(policy, network)
        stats = handle.controller.stats
    assert first.actions.shape == (4, 9, 2)
    assert (stats.executed, stats.row_calls) == (4 * 9, 2 * first.calls)
    assert first.calls < 4 // 2 * 9 * 14 / 3  # far fewer than a full sampler at every step
    assert not torch.equal(first.actions, off.actions)
    assert torch.equal(lerobot_evaluation(policy, network).actions, off.actions)
    assert "select_action" not in vars(policy)
    assert all(torch.equal(before[name], value) for name, value in policy.state_dict().items())


def test_a_directory_for_lerobot_loads_by_its_type_and_acts_as_the_attached_object(tmp_path):
    import noiseworks.streaming_dp.lerobot.plugin  # noqa: F401, as --discover_packages_path imports it
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies import get_policy_class

    plain = tiny_diffusion()
    made = convert(plain, n_action_steps=1)
    with torch.no_grad():
        made.policy.diffusion.unet.diffusion_step_encoder[1].weight.add_(0.1)  # a fine-tuning
    plain.save_pretrained(tmp_path / "base")
    save_converted(made, tmp_path / "tuned")
    stream = Stream(n_action_steps=1, solver="ddim")
    write_lerobot(tmp_path / "base", tmp_path / "tuned", tmp_path / "stream", stream)
    config = PreTrainedConfig.from_pretrained(tmp_path / "stream")
    assert (config.type, config.solver, config.n_action_steps) == ("streaming_dp", "ddim", 1)
    policy = get_policy_class(config.type).from_pretrained(tmp_path / "stream", config=config)
    found = lerobot_evaluation(policy, policy.diffusion.unet)
    with attach(made.policy, stream):
        expected = lerobot_evaluation(made.policy, made.policy.diffusion.unet)
    assert torch.equal(found.actions, expected.actions)
    assert found.calls == expected.calls

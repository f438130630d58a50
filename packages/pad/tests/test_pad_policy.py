"""Windows of recordings, a policy that follows its plan, and what each optimiser trains."""

import warnings

import numpy as np
import pytest
import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.policies.normalizer import LinearNormalizer
from noiseworks.pad import PAD, Architecture, Fitting, PADPolicy, Recording, Sampling, Shapes, Window
from noiseworks.pad.model import Future
from noiseworks.pad.options import Following
from noiseworks.pad.policy import PosePlanner
from noiseworks.pad.training import PADModule, pose_scales
from noiseworks.pad.windows import Mixed, Windows, future, shifted, window_starts

# --- Windows ---


def recording(poses=True):
    steps = np.arange(12)
    frames = np.broadcast_to(steps[:, None, None, None], (12, 3, 4, 4)).astype(np.uint8)
    path = np.concatenate([np.arange(8), 100 + np.arange(6)]).astype(np.float32)[:, None]
    return Recording(frames, np.eye(2, dtype=np.float32), np.array([7, 12]), path if poses else None)


def test_targets_past_the_end_repeat_the_last_frame_and_pose():
    ends = np.array([7, 12])
    assert window_starts(ends, 4, keep_ends=False).tolist() == [0, 1, 2, 7]
    assert len(window_starts(ends, 4, keep_ends=True)) == 12
    assert future(np.array([2, 9]), ends, [4, 8]).tolist() == [[6, 6], [11, 11]]
    rows = Windows(recording(), Window(frames=2, dense=False, keep_ends=False), 1)
    found = rows.__getitems__([1, 3])
    assert ((found["frames"] + 1) * 127.5).round()[:, ::3, 0, 0].tolist() == [[5, 6], [11, 11]]
    assert found["pose"].tolist() == [[1], [100]]
    assert found["poses"].tolist() == [[5, 7], [104, 105]]
    assert found["goal"].tolist() == [[1, 0], [0, 1]]
    dense = Windows(recording(), Window(frames=2), 1).__getitems__([5])
    assert dense["poses"].tolist() == [[6, 7, 7, 7, 7, 7, 7, 7]]


def test_video_is_a_fixed_share_and_has_no_poses():
    window = Window(frames=1, stride=2)
    robot = Windows(recording(), window, 1)
    video = Windows(recording(poses=False), window, 1, labelled=False, stride=3)
    mixed = Mixed(robot, video, 0.3)
    rows = torch.cat([mixed.__getitems__(range(len(mixed)))["labelled"] for _ in range(2)])
    assert float(rows.float().mean()) == pytest.approx(0.7, abs=0.03)
    found = mixed.__getitems__([0, len(mixed) - 1])
    assert found["labelled"].tolist() == [True, False]
    assert not found["poses"][1].any()
    assert found["frames"][1, 0, 0, 0] > found["image"][1, 0, 0, 0]


def test_pictures_of_a_sample_are_shifted_alike_and_nothing_else_is():
    assert shifted(0) is None
    ramp = torch.arange(16.0).expand(40, 3, 16, 16)  # a pixel's value is its column
    batch = {
        "image": ramp,
        "frames": ramp.mT.repeat(1, 2, 1, 1),
        "goal": torch.zeros(40, 1),
        "pose": torch.ones(40, 1),
    }
    found = shifted(2)(batch, torch.Generator().manual_seed(0))
    across = found["image"][:, 0, 8, 8] - 8
    down = found["frames"][:, 5, 8, 8] - 8
    expected = (torch.arange(16.0) + across[:, None]).clamp(0, 15)
    assert torch.equal(found["image"], expected[:, None, None].expand(-1, 3, 16, -1))
    expected = (torch.arange(16.0) + down[:, None]).clamp(0, 15)
    assert torch.equal(found["frames"], expected[:, None, :, None].expand(-1, 6, -1, 16))
    assert {*across.tolist()} == {*down.tolist()} == {-2, -1, 0, 1, 2}
    assert len({*zip(across.tolist(), down.tolist(), strict=True)}) > 15
    assert found["goal"] is batch["goal"]
    assert found["pose"] is batch["pose"]


def test_a_recording_on_disk_shares_no_memory_with_tensors(tmp_path):
    recording().save(tmp_path)
    found, window = Recording.load(tmp_path), Window(frames=2)
    torch.set_warn_always(True)  # torch warns once a process of what it must not write to
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            Windows(found, window, 1).__getitems__([0, 3])
            pose_scales(found, window, 1)
    finally:
        torch.set_warn_always(False)


def test_recordings_that_do_not_fit_together_are_refused():
    one = recording()
    with pytest.raises(InputError, match="ends must rise"):
        Recording(one.frames, one.goals, np.array([7, 11]), one.poses)
    with pytest.raises(InputError, match="poses must have 14 rows"):
        Recording(one.frames, one.goals, one.ends, one.poses[:12])
    with pytest.raises(InputError, match="NaN"):
        Recording(one.frames, one.goals, one.ends, one.poses * np.nan)
    with pytest.raises(InputError, match="poses of 2 entries"):
        Windows(one, Window(), 2)


# --- Following ---


def test_an_arrived_robot_rests_and_each_axis_is_limited():
    pose, target = (
        torch.tensor([[0.0, 0.0, -1], [0.2, 0.2, 1]]),
        torch.tensor([[0.3, -0.03, 1], [0.2, 0.2, 1]]),
    )
    assert torch.allclose(PosePlanner().act(pose, target), torch.tensor([[1, -0.5, 1], [0, 0, 1]]))


# --- The model ---


def tiny(**window):
    shapes = Shapes(3, 4, 1, 2)
    scale = LinearNormalizer(torch.tensor([0.02]), torch.tensor([-1.0]))
    window = Window(frames=2, **window)
    motion = LinearNormalizer(0.1 * torch.arange(1, window.poses + 1), torch.zeros(window.poses))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = Architecture(width=8, depth=1, heads=2, patch=2)
        return PAD(sizes, window, shapes, scale, motion).eval()


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("changes", [True, False])
def test_targets_come_back_as_poses_and_pictures(relative, changes, monkeypatch):
    model = tiny(relative=relative, changes=changes)
    batch = Windows(recording(), model.window, 1).__getitems__([1, 8])
    values, clean, present = model.targets(batch)
    first = 0.1 * (2.0 - 1.0) if relative else 0.02 * 2 - 1
    assert float(values["action"][0, 0]) == pytest.approx(first)
    assert float(values["rgb"][0, 0, 0, 0]) == pytest.approx(4 / 127.5 if changes else 5 / 127.5 - 1)
    assert present["action"].all()
    monkeypatch.setattr("noiseworks.pad.model.sample", lambda *given: values)
    found = model.predict(clean, batch["goal"])
    torch.testing.assert_close(found.poses.flatten(1), batch["poses"])
    torch.testing.assert_close(found.images.flatten(1, 2), batch["frames"])


def test_a_policy_follows_its_plan_and_holds_a_frames_pose_in_between(monkeypatch):
    model = tiny(dense=False, stride=3)
    plans = torch.tensor([[[10.0], [20.0]]])
    monkeypatch.setattr(model, "predict", lambda *given: Future(plans, None, None))
    policy = PADPolicy(model, planner=PosePlanner(Following(reach=100.0, position=1)), n_action_steps=4)
    image, goal = torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.zeros(1, 2)
    taken = [
        float(policy.act({"image": image, "goal": goal, "pose": torch.tensor([[pose]])}))
        for pose in (0.0, 5.0, 10.0, 10.0)
    ]
    assert taken == pytest.approx([0.1, 0.05, 0.0, 0.1], abs=1e-5)
    assert policy.stats.nfes == [Sampling().steps]


def test_muon_trains_the_blocks_and_adamw_the_rest():
    module = PADModule(tiny(), Fitting(max_steps=10))
    optimizer = module.configure_optimizers()["optimizer"]
    of_muon, of_adamw = (
        {id(p) for g in o.param_groups for p in g["params"]} for o in (optimizer.muon, optimizer.adamw)
    )
    network = module.model.network
    assert id(network.blocks[0].attn.qkv.weight) in of_muon
    assert id(network.heads["rgb"].linear.weight) in of_adamw
    assert of_muon | of_adamw == {id(p) for p in module.model.parameters()}

"""Policies that see images, from the files to the table: training, resuming, fine-tuning and running."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.policies import Episodes
from noiseworks.kits.policies.options import Trials
from noiseworks.mode.cameras import PictureRows
from noiseworks.mode.commands import eval_policy, finetune, train
from noiseworks.mode.config import Demonstrations, Running, Seeing, SmallArchitecture, Training
from noiseworks.mode.model import MoDEModel
from noiseworks.mode.policy import EDMPolicy
from noiseworks.mode.runs import new_model
from noiseworks.mode.task_data import load_task_data
from noiseworks.mode.vision import ResNet
from safetensors.torch import save_file

SHAPE = SmallArchitecture(width=16, num_layers=1, num_heads=2, num_experts=3, chunk=4)
SEEING = Seeing(encoder="film-resnet18", encoder_width=8, shift=1)
QUICK = Training(max_steps=40, batch_size=32, device="cpu", seed=3)


def picture(position: np.ndarray, size: int = 16) -> np.ndarray:
    """Return an image uint8 [3, S, S] with a bright square at a position in [-1, 1]^2."""
    row, column = np.clip(((position + 1) / 2 * (size - 4)).astype(int), 0, size - 4)
    image = np.zeros((3, size, size), np.uint8)
    image[:, row : row + 4, column : column + 4] = 255
    return image


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of demonstrations: walk to the corner that the goal tells; only the cameras see where one is."""
    rng = np.random.default_rng(0)
    tasks = rng.integers(2, size=24)
    obs, actions, ends, images = [], [], [], []
    for task in tasks:
        position = rng.uniform(-1, 1, 2)
        for _ in range(8):
            move = np.clip((1.0 if task else -1.0) - position, -0.2, 0.2)
            obs.append(np.concatenate(([0.0], np.eye(2)[task])))
            actions.append(move / 0.2)
            images.append(picture(position))
            position = position + move
        ends.append(len(obs))
    folder = tmp_path_factory.mktemp("images")
    Episodes(
        np.array(obs, np.float32), np.array(actions, np.float32), np.array(ends), tasks.astype(np.int64)
    ).save(folder / "episodes.npz")
    np.save(folder / "goals.npy", rng.standard_normal((2, 3, 5)))
    np.save(folder / "images-static.npy", np.array(images))
    np.save(folder / "images-gripper.npy", np.array(images)[:, :, ::-1].copy())
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    train(source=Demonstrations(str(data)), out=out, architecture=SHAPE, seeing=SEEING, training=QUICK)
    return out


def test_a_policy_learns_from_images_to_follow_its_goal(data, trained):
    model = MoDEModel.from_pretrained(trained / "model")
    assert model.encoder.cameras == ("gripper", "static")
    policy = EDMPolicy(model)
    policy.cache_experts()
    image = torch.from_numpy(np.array([picture(np.zeros(2))] * 2)).float()[:, None] / 255
    goals = load_task_data(Demonstrations(str(data))).goals[:, 0]
    seen = {"static": image, "gripper": image.flip(3), "goal": goals[:, None]}
    actions = policy.predict_chunk(seen, torch.Generator().manual_seed(0)).actions
    assert policy.cache.report().hit_rate == 1
    assert float(actions[1].mean() - actions[0].mean()) > 0.5  # towards the corners (1, 1) and (-1, -1)
    with pytest.raises(InputError, match="16 x 16 pixels"):
        policy.predict_chunk(seen | {"static": torch.zeros(2, 1, 3, 8, 8)})


def test_an_image_run_does_not_go_on_under_other_settings_and_can_be_finetuned(data, trained, tmp_path):
    source, model = Demonstrations(str(data)), str(trained / "model")
    seeing = replace(SEEING, shift=2)
    with pytest.raises(InputError, match=r"begun with seeing\.shift 1, now seeing\.shift 2"):
        train(source=source, out=trained, architecture=SHAPE, seeing=seeing, training=QUICK)
    few = replace(QUICK, max_steps=1)
    report = finetune(source=source, model=model, out=tmp_path / "tuned", training=few)
    assert MoDEModel.from_pretrained(report.model).encoder.size == 16
    fewer = tmp_path / "one-camera"
    fewer.mkdir()
    for name in ("episodes.npz", "goals.npy", "images-static.npy"):
        (fewer / name).symlink_to(data / name)
    with pytest.raises(InputError, match=r"the data have cameras.*\('static',\)"):
        finetune(source=Demonstrations(str(fewer)), model=model, out=tmp_path / "x", training=few)
    assert not (tmp_path / "x").exists()


def test_the_state_is_a_token_and_a_backbone_is_where_training_starts(data, tmp_path):
    found = load_task_data(Demonstrations(str(data)), image_size=16)
    torch.manual_seed(0)
    donor = ResNet(18, 8).state_dict()
    save_file(donor | {"fc.weight": torch.zeros(10, 64)}, tmp_path / "resnet.safetensors")
    shape = replace(SEEING, proprio=True, backbone=str(tmp_path / "resnet.safetensors"))
    model = new_model(found, SHAPE, shape).eval()
    for network in model.encoder.networks:
        assert torch.equal(network.resnet.layer3[0].conv1.weight, donor["layer3.0.conv1.weight"])
    model.save_pretrained(tmp_path / "model")
    again = MoDEModel.from_pretrained(tmp_path / "model")
    table, rows = found.table(4), torch.arange(3)
    seen = {name: column[rows] for name, column in table.items() if name != "action"}
    plans = [
        EDMPolicy(one).predict_chunk(obs, torch.Generator().manual_seed(0)).actions
        for one, obs in ((model, seen), (again, seen), (again, seen | {"state": seen["state"] + 1}))
    ]
    assert torch.equal(plans[0], plans[1])
    assert not torch.equal(plans[1], plans[2])
    with pytest.raises(InputError, match="lack state"):
        again.encode({name: value for name, value in seen.items() if name != "state"})
    with pytest.raises(InputError, match="another network"):
        new_model(found, SHAPE, replace(shape, encoder="film-resnet34"))
    with pytest.raises(InputError, match="for encoders of images"):
        Seeing(proprio=True)
    tuned = finetune(
        source=Demonstrations(str(data)),
        model=str(tmp_path / "model"),
        out=tmp_path / "tuned",
        training=replace(QUICK, max_steps=1),
    )
    assert MoDEModel.from_pretrained(tuned.model).config.proprio_dim == 1


def test_images_are_read_from_disk_row_by_row(data):
    found = load_task_data(Demonstrations(str(data)), image_size=16)
    table = found.table(4)
    rows = torch.tensor([5, 0, 9])
    assert isinstance(table["static"], PictureRows)
    assert isinstance(found.images["static"], np.memmap)
    expected = torch.from_numpy(np.array(found.images["static"][[5, 0, 9]])).float()[:, None] / 255
    assert torch.equal(table["static"][rows], expected)
    task = found.episodes.obs[:, 1:].argmax(1)
    for row in range(len(table["action"])):
        assert any(torch.equal(table["goal"][row, 0], wording) for wording in found.goals[task[row]])


def test_unfit_images_are_refused(data, tmp_path):
    for name in ("episodes.npz", "goals.npy"):
        (tmp_path / name).write_bytes((data / name).read_bytes())
    with pytest.raises(InputError, match="lacks images"):
        load_task_data(Demonstrations(str(tmp_path)), image_size=16)
    np.save(tmp_path / "images-a.npy", np.zeros((4, 3, 8, 8), np.uint8))
    with pytest.raises(InputError, match=r"uint8 images \[192, 3, H, W\]"):
        load_task_data(Demonstrations(str(tmp_path)), image_size=16)
    np.save(tmp_path / "images-a.npy", np.zeros((192, 3, 8, 4), np.uint8))
    with pytest.raises(InputError, match="square"):
        load_task_data(Demonstrations(str(tmp_path)), image_size=16)


def test_an_image_policy_trains_and_runs_on_the_testbed(tmp_path):
    report = train(
        source=Demonstrations("tabletop", 1),
        out=tmp_path / "run",
        architecture=replace(SHAPE, chunk=10),
        seeing=Seeing(encoder="film-resnet18", encoder_width=4),
        training=Training(max_steps=1, batch_size=8, device="cpu"),
    )
    found = eval_policy(model=str(report.model), running=Running(), trials=Trials(tasks=(9,), episodes=1))
    assert (found["episodes"], found["cache_hit_rate"]) == (1, 1)

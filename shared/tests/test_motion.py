"""Rotations, bodies, frames and signed distances against closed forms and brute force."""

import json

import numpy as np
import pytest
import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.motion import (
    Frame,
    GridScene,
    Naturalness,
    ProcBody,
    Room,
    SkinnedBody,
    contact_score,
    find_path,
    load_body,
    load_scene,
    local_frame,
    write_bvh,
)
from noiseworks.kits.motion.body import PARENTS
from noiseworks.kits.motion.files import mesh_scene, save_room
from noiseworks.kits.motion.measures import acceleration, penetration
from noiseworks.kits.motion.rotations import (
    continuous,
    matrices_of,
    multiply,
    power_blend,
    quaternions_of,
    quaternions_of_matrices,
    vectors_of,
)
from noiseworks.kits.motion.scenes import mesh_distance, rasterise

F64 = torch.float64


def draw(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def some_motion(batch=2, frames=5, seed=0):
    motion = draw(batch, frames, 69, seed=seed, scale=0.4)
    motion[..., 1:3] += 2.2  # upright, half a turn about (0, 1, 1)
    return motion


# --- rotations ---


def test_matrices_agree_with_the_exponential():
    vectors = draw(50, 3)
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).unflatten(-1, (3, 3))
    assert torch.allclose(matrices_of(vectors), torch.matrix_exp(cross), atol=1e-12)


def test_rotations_are_smooth_at_zero():
    vectors = torch.zeros(1, 3, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(matrices_of, vectors)
    assert torch.autograd.gradcheck(lambda v: vectors_of(quaternions_of(v)), vectors)


def test_quaternions_come_back_as_vectors_of_up_to_a_full_turn():
    vectors = draw(400, 3)
    vectors = (
        vectors / vectors.norm(dim=-1, keepdim=True) * torch.linspace(0.01, 6.2, 400, dtype=F64)[:, None]
    )
    assert torch.allclose(vectors_of(quaternions_of(vectors)), vectors, atol=1e-9)
    quaternions = quaternions_of_matrices(matrices_of(vectors))
    assert torch.allclose((quaternions * quaternions_of(vectors)).sum(-1).abs(), torch.ones(400, dtype=F64))
    one, other = quaternions[:200], quaternions[200:]
    both = matrices_of(vectors_of(multiply(one, other)))
    assert torch.allclose(both, matrices_of(vectors[:200]) @ matrices_of(vectors[200:]), atol=1e-9)


def test_signs_follow_the_motion():
    angles = torch.linspace(0, 9, 40, dtype=F64)
    vectors = torch.stack((0 * angles, 0 * angles, angles % (2 * torch.pi)), -1)
    flipped = quaternions_of(vectors) * torch.where(torch.arange(40) % 3 == 0, -1.0, 1.0)[:, None]
    kept = continuous(flipped, torch.tensor((1.0, 0, 0, 0), dtype=F64))
    assert ((kept[1:] * kept[:-1]).sum(-1) > 0.99).all()


def test_blending_takes_the_shorter_way_and_ignores_full_turns():
    start, end = draw(30, 3), draw(30, 3, seed=1)
    p, q = quaternions_of(start), quaternions_of(end)
    half = torch.full((30,), 0.3, dtype=F64)
    blended = matrices_of(vectors_of(power_blend(p, q, half)))
    assert torch.allclose(blended, matrices_of(vectors_of(power_blend(-p, q, half))), atol=1e-9)
    full = end * (1 - 2 * torch.pi / end.norm(dim=-1, keepdim=True))
    assert torch.allclose(
        blended, matrices_of(vectors_of(power_blend(p, quaternions_of(full), half))), atol=1e-9
    )

    def angle(matrices):
        return torch.arccos(((matrices.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2).clamp(-1, 1))

    whole = angle(matrices_of(end) @ matrices_of(start).mT)
    assert torch.allclose(angle(blended @ matrices_of(start).mT), 0.3 * whole, atol=1e-6)


# --- bodies ---


def test_joints_agree_with_a_walk_down_the_tree():
    body = ProcBody().double()
    motion = some_motion()
    joints, markers = body(motion)
    assert markers.shape == (2, 5, 67, 3)
    for b, f in ((0, 0), (1, 3)):
        turned, places = [], []
        for joint, parent in enumerate(PARENTS):
            own = matrices_of(motion[b, f, 3 * joint : 3 * joint + 3])
            turned.append(own if parent < 0 else turned[parent] @ own)
            offset = body.offsets[joint]
            places.append(
                motion[b, f, 66:] + offset if parent < 0 else places[parent] + turned[parent] @ offset
            )
        assert torch.allclose(joints[b, f], torch.stack(places), atol=1e-12)
        for marker, joint in enumerate(body.joints_of_markers):
            assert torch.allclose(markers[b, f, marker], places[joint] + turned[joint] @ body.points[marker])


def test_the_body_is_symmetric_and_tall():
    body = ProcBody()
    joints, markers = body(torch.zeros(69))
    assert torch.allclose(joints[1::3][:3] * torch.tensor((-1.0, 1, 1)), joints[2::3][:3])
    assert float(markers[:, 1].max() - markers[:, 1].min()) == pytest.approx(1.72, abs=0.05)
    mirrored = markers * torch.tensor((-1.0, 1, 1))
    assert (mirrored[:, None] - markers).norm(dim=-1).amin(0).max() < 1e-6


def skinned_parts(vertices=60, joints=25):
    parents = (*PARENTS, 15, 20, 22)
    weights = draw(vertices, joints, seed=2).softmax(-1)
    regressor = draw(joints, vertices, seed=3).softmax(-1)
    return (
        draw(vertices, 3),
        draw(vertices, 3, 9 * (joints - 1), seed=4, scale=0.01),
        regressor,
        weights,
        parents,
    )


def test_kept_vertices_are_those_of_the_whole_mesh():
    parts = skinned_parts()
    motion = some_motion()
    whole = SkinnedBody(*parts)
    some = SkinnedBody(*parts, markers=(3, 17, 59))
    joints, vertices = whole(motion)
    few_joints, few = some(motion)
    assert torch.allclose(vertices[..., (3, 17, 59), :], few, atol=1e-10)
    assert torch.equal(joints, few_joints)


def test_a_mesh_is_skinned_as_by_all_its_joints():
    template, directions, regressor, weights, parents = skinned_parts()
    motion = some_motion(1, 1)
    _, found = SkinnedBody(template, directions, regressor, weights, parents)(motion)
    rest = regressor @ template
    local = [
        matrices_of(motion[0, 0, 3 * j : 3 * j + 3]) if j < 22 else torch.eye(3, dtype=F64) for j in range(25)
    ]
    bent = torch.cat([(one - torch.eye(3, dtype=F64)).flatten() for one in local[1:]])
    shaped = template + directions @ bent
    turned, places = [], []
    for joint, parent in enumerate(parents):
        turned.append(local[joint] if parent < 0 else turned[parent] @ local[joint])
        offset = rest[joint] - (rest[parent] if parent >= 0 else 0)
        places.append(rest[0] if parent < 0 else places[parent] + turned[parent] @ offset)
    moved = sum(
        weights[:, j, None] * ((shaped - rest[j]) @ turned[j].mT + places[j] + motion[0, 0, 66:])
        for j in range(25)
    )
    assert torch.allclose(found[0, 0], moved, atol=1e-10)


def test_bodies_are_read_by_path_and_bad_ones_refused(tmp_path):
    assert isinstance(load_body(), ProcBody)
    template, directions, regressor, weights, parents = skinned_parts()
    names = ("v_template", "posedirs", "J_regressor", "weights")
    arrays = dict(
        zip(names, (part.numpy() for part in (template, directions, regressor, weights)), strict=True)
    )
    tree = np.array((parents, range(25)), dtype=np.int64)
    np.savez(tmp_path / "body.npz", kintree_table=tree, **arrays)
    (tmp_path / "markers.json").write_text(json.dumps({"markers": [1, 2], "feet": [0], "buttocks": [1]}))
    body = load_body(tmp_path / "body.npz", tmp_path / "markers.json")
    assert body(torch.zeros(1, 69))[1].shape == (1, 2, 3)
    assert body.foot_markers == (0,)
    np.savez(tmp_path / "half.npz", v_template=template.numpy())
    with pytest.raises(InputError, match="posedirs"):
        load_body(tmp_path / "half.npz")
    (tmp_path / "no.npz").write_text("no")
    with pytest.raises(InputError, match="cannot read"):
        load_body(tmp_path / "no.npz")
    with pytest.raises(InputError, match="SMPL"):
        SkinnedBody(template, directions, regressor, weights, (0,) * 25)


# --- frames ---


def test_frames_there_and_back():
    body = ProcBody().double()
    motion = some_motion()
    joints, markers = body(motion)
    frame = local_frame(joints[:, 0])
    local = frame.motion_to_local(motion, body.root)
    moved, moved_markers = body(local)
    assert torch.allclose(moved, frame.to_local(joints), atol=1e-9)
    assert torch.allclose(moved_markers, frame.to_local(markers), atol=1e-9)
    assert moved[:, 0, 0].abs().max() < 1e-9
    again, _ = body(frame.motion_to_world(local, body.root))
    assert torch.allclose(again, joints, atol=1e-5)
    across = moved[:, 0, 2] - moved[:, 0, 1]
    assert (across[:, 0] > 0).all()
    assert across[:, 1].abs().max() < 1e-9


# --- scenes ---


def room(*boxes, extent=(5.0, 5.0)):
    return Room(torch.tensor([extent], dtype=F64), torch.tensor([boxes], dtype=F64).reshape(1, -1, 7))


def test_distances_of_a_unit_cube():
    cube = room((0.0, 0.0, 0.5, 0.5, 0.5, 0.5, 0.3), extent=(50.0, 50.0))
    at = torch.tensor([[[0.0, 0.0, 0.5], [0.0, 0.0, 2.0]]], dtype=F64)
    assert torch.allclose(cube.distance(at), torch.tensor([[-0.5, 1.0]], dtype=F64))
    straight = room((0.0, 0.0, 0.5, 0.5, 0.5, 0.5, 0.0), extent=(50.0, 50.0))
    corner = torch.tensor([[[1.5, 1.5, 2.0]]], dtype=F64)
    assert float(straight.distance(corner)) == pytest.approx(3**0.5)


def test_distances_agree_with_brute_force():
    boxes = ((1.0, 1.0, 0.4, 0.5, 0.3, 0.4, 0.5), (-1.5, 0.5, 0.3, 0.4, 0.8, 0.3, -0.2))
    scene = room(*boxes, extent=(3.0, 2.5))
    points = draw(1, 200, 3, scale=1.2)
    points[..., 2] = points[..., 2].abs()
    found = scene.distance(points)[0]
    near, inside = torch.full((200,), torch.inf, dtype=F64), torch.zeros(200, dtype=torch.bool)
    for x, y, z, a, b, c, turn in boxes:
        half = torch.tensor((a, b, c), dtype=F64)
        rotation = matrices_of(torch.tensor((0.0, 0.0, turn), dtype=F64))
        own = (points[0] - torch.tensor((x, y, z), dtype=F64)) @ rotation
        inside |= (own.abs() < half).all(-1)
        for axis in range(3):  # the nearest point of each face
            for sign in (-1.0, 1.0):
                face = own.clamp(-half, half)
                face[:, axis] = sign * half[axis]
                near = torch.minimum(near, (own - face).norm(dim=-1))
    walls = torch.minimum(3.0 - points[0, :, 0].abs(), 2.5 - points[0, :, 1].abs())
    expected = torch.minimum(torch.where(inside, -near, near), walls)
    within = walls > 0
    assert (found - expected)[within].abs().max() < 1e-12
    assert (found[~within] < 0).all()
    assert inside.any()


def test_a_grid_is_within_a_voxel_and_goes_on_beyond_its_box():
    scene = room((0.5, 0.2, 0.5, 0.4, 0.6, 0.5, 0.3), extent=(9.0, 9.0))
    grid = rasterise(scene, torch.zeros(1, 3, dtype=F64), torch.full((1,), 1.5, dtype=F64), 64)
    points = draw(1, 300, 3).clamp(-1.5, 1.5)
    assert (grid.distance(points) - scene.distance(points)).abs().max() < 3.0 / 63
    far = torch.tensor([[[-4.5, 0.0, 0.0]]], dtype=F64)
    edge = torch.tensor([[[-1.5, 0.0, 0.0]]], dtype=F64)
    assert float(grid.distance(far)) == pytest.approx(float(grid.distance(edge)) + 3.0)


def test_gradients_point_away_from_what_is_near():
    scene = room((0.0, 0.0, 0.5, 0.5, 0.5, 0.5, 0.0))
    at = torch.tensor([[[0.9, 0.1, 0.5]]], dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(scene.distance(at).sum(), at)
    assert torch.allclose(slope, torch.tensor([[[1.0, 0.0, 0.0]]], dtype=F64))


CUBE = """
v -1 -1 -1
v 1 -1 -1
v 1 1 -1
v -1 1 -1
v -1 -1 1
v 1 -1 1
v 1 1 1
v -1 1 1
f 4 3 2 1
f 5 6 7 8
f 1 2 6 5
f 2 3 7 6
f 3 4 8 7
f 4 1 5 8
"""


def test_a_closed_mesh_has_the_distances_of_its_box(tmp_path):
    (tmp_path / "cube.obj").write_text(CUBE)
    scene = load_scene(tmp_path / "cube.obj")
    box = room((0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0), extent=(50.0, 50.0))
    points = draw(1, 200, 3).clamp(-1.4, 1.4)
    assert (scene.distance(points) - box.distance(points)).abs().max() < 0.06
    vertices = torch.tensor(
        [[float(v) for v in line.split()[1:]] for line in CUBE.split("\n") if line[:1] == "v"]
    )
    quads = [[int(v) - 1 for v in line.split()[1:]] for line in CUBE.split("\n") if line[:1] == "f"]
    faces = torch.tensor([[q[0], q[i], q[i + 1]] for q in quads for i in (1, 2)])
    exact = mesh_distance(vertices.double(), faces, points[0])
    assert (exact - box.distance(points)[0]).abs().max() < 1e-6
    with pytest.raises(InputError, match="inverted"):
        mesh_scene(vertices, faces.flip(1), 8)


def test_scenes_are_read_by_path_and_bad_ones_refused(tmp_path):
    one = room((1.0, 0.0, 0.4, 0.5, 0.5, 0.4, 0.0))
    save_room(tmp_path / "room.json", one)
    points = draw(1, 20, 3)
    assert torch.allclose(
        load_scene(tmp_path / "room.json").distance(points), one.distance(points), atol=1e-6
    )
    grid = rasterise(one, torch.zeros(1, 3, dtype=F64), torch.full((1,), 2.0, dtype=F64), 16)
    np.savez(tmp_path / "grid.npz", grid=grid.grid[0], centre=grid.centre[0], scale=grid.scale[0])
    assert load_scene(tmp_path / "grid.npz").distance(points).shape == (1, 20)
    (tmp_path / "room.txt").write_text("")
    (tmp_path / "bad.json").write_text("{}")
    (tmp_path / "bad.obj").write_text("v 1 2 3\n")
    for name, word in (("room.txt", "json"), ("bad.json", "extent"), ("bad.obj", "no mesh")):
        with pytest.raises(InputError, match=word):
            load_scene(tmp_path / name)
    with pytest.raises(InputError, match="inverted"):
        GridScene(-grid.grid, grid.centre, grid.scale)
    with pytest.raises(InputError, match="scale"):
        GridScene(grid.grid, grid.centre, 0 * grid.scale)


def test_penetration_sums_what_is_inside_over_markers_and_leaves_out_the_rest():
    scene = room((0.0, 0.0, 0.5, 0.5, 0.5, 0.5, 0.0), extent=(3.0, 3.0))
    above, beside, free = (0.0, 0.0, 0.9), (0.4, 0.0, 0.5), (0.0, 1.5, 1.0)
    mean, most = penetration(torch.tensor([[[above, beside], [above, free], [free, free]]]), scene)
    assert (float(mean), float(most)) == pytest.approx((10, 20), abs=1e-4)


def test_ways_go_round_and_goals_inside_are_refused():
    scene = room((0.0, 0.0, 0.5, 1.0, 0.2, 0.5, 0.0), extent=(3.0, 3.0))
    path = find_path(scene, (0.0, -1.5), (0.0, 1.5))
    assert len(path) > 2
    assert np.abs(path[1:-1, 0]).max() > 1.2
    assert len(find_path(scene, (-2.0, -1.5), (2.0, -1.5))) == 2
    with pytest.raises(InputError, match=r"goal .* inside"):
        find_path(scene, (0.0, -1.5), (0.0, 0.1))
    with pytest.raises(InputError, match="inside a wall"):
        find_path(scene, (0.0, -1.5), (0.0, 3.2))
    closed = room((0.0, 0.0, 0.5, 3.0, 0.2, 0.5, 0.0), extent=(3.0, 3.0))
    with pytest.raises(InputError, match="no way"):
        find_path(closed, (0.0, -1.5), (0.0, 1.5))


# --- measures, files ---


def test_contact_scores_of_known_motions():
    joints = torch.zeros(1, 20, 22, 3, dtype=F64)
    assert float(contact_score(joints, 20.0)) == 1.0
    joints[..., 0] = (1.075 / 20.0) * torch.arange(20, dtype=F64)[:, None]
    assert float(contact_score(joints, 20.0)) == pytest.approx(np.exp(-1.0))
    joints[..., 0], joints[..., 2] = 0.0, 1.05
    assert float(contact_score(joints, 20.0)) == pytest.approx(np.exp(-1.0))


def test_acceleration_of_a_parabola():
    t = torch.arange(10, dtype=F64) / 20.0
    joints = (1.5 * t.square())[None, :, None, None].expand(1, 10, 22, 3) * torch.tensor(
        (1.0, 0, 0), dtype=F64
    )
    assert torch.allclose(acceleration(joints, 20.0), torch.full((1, 8), 3.0, dtype=F64))


def test_naturalness_is_zero_for_the_same_and_grows():
    joints, _ = ProcBody().double()(draw(64, 12, 69, scale=0.2).cumsum(1) * 0.3)
    natural = Naturalness(joints, 20.0)
    assert natural.distance(joints) < 1e-6
    shaken, _ = ProcBody().double()(draw(64, 12, 69, scale=0.4).cumsum(1) * 0.3)
    assert natural.distance(shaken) > 1.0


def test_bvh_holds_every_joint_and_its_rotations_come_back(tmp_path):
    motion = some_motion(1, 3)[0]
    write_bvh(tmp_path / "clip.bvh", motion, 20.0)
    lines = (tmp_path / "clip.bvh").read_text().splitlines()
    assert sum("JOINT" in line or "ROOT" in line for line in lines) == 22
    assert "Frames: 3" in lines
    numbers = [float(value) for value in lines[-3].split()]
    assert len(numbers) == 3 + 3 * 22
    z, x, y = np.deg2rad(numbers[3:6])
    turns = [matrices_of(torch.tensor(v, dtype=F64)) for v in ((0, 0, z), (x, 0, 0), (0, y, 0))]
    assert torch.allclose(turns[0] @ turns[1] @ turns[2], matrices_of(motion[0, :3]), atol=1e-6)
    with pytest.raises(InputError, match="bvh"):
        write_bvh(tmp_path / "clip.txt", motion, 20.0)


def test_a_frame_that_is_the_identity_moves_nothing():
    points = draw(2, 4, 3)
    still = Frame(torch.eye(3, dtype=F64).expand(2, 3, 3), torch.zeros(2, 3, dtype=F64))
    assert torch.equal(still.to_world(points), points)

"""Many rounds: a plan of waypoints becomes a motion of any length (section 3.4).

Each round begins with the last frames of what there is, in their local frame; puts the next waypoints on frames by a
speed; is sampled; and is blended on. Plans of one batch may have different lengths and actions.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from noiseworks.core.errors import InputError
from noiseworks.dip.blending import blend
from noiseworks.dip.options import ACTIONS, Moving
from noiseworks.dip.rewards import Goals, Setting
from noiseworks.dip.sampling import DipSampler, Round
from noiseworks.kits.motion import local_frame
from noiseworks.kits.motion.body import COUNT, NUMBERS, ROTATIONS, BodyModel
from noiseworks.kits.motion.scenes import Scene
from torch import Tensor

ADVANCE = 0.8  # share of a round after the history in which a plan is expected to get on


@dataclass(frozen=True)
class Waypoint:
    """A place that the pelvis shall be at.

    Attributes:
        place: x, y, z in the world; z is not read for walks.
        action: walk, sit or lie.
        joints: A whole pose that is wanted there, [22, 3], or None.
    """

    place: tuple[float, float, float]
    action: str = "walk"
    joints: Tensor | None = None

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise InputError(f"unknown action {self.action!r}: it must be one of {', '.join(ACTIONS)}")


@dataclass
class Motion:
    """A motion on its way through a plan.

    Attributes:
        frames: In the world, [n, 69].
        plan: All waypoints.
        rounds: Each round's frames before they were blended on, in the world.
        joins: For each round, the frame at which its first frame that is not shared stands.
        done: Waypoints that are reached.
    """

    frames: Tensor
    plan: Sequence[Waypoint]
    rounds: list[Tensor] = field(default_factory=list)
    joins: list[int] = field(default_factory=list)
    done: int = 0


@dataclass(frozen=True)
class Targets:
    """What one motion's round aims at.

    Attributes:
        frames: Frame of each aim.
        places: Pelvis in the world, [n, 3].
        joints: Whole poses, where there are any.
        action: The round's action.
        reached: Waypoints that are reached in it.
        kept: Frames of the round that are kept.
        stay: Frame at which the last place is wanted once more, the round's last, or None where the way goes on.
    """

    frames: list[int]
    places: Tensor
    joints: list[Tensor | None]
    action: str
    reached: int
    kept: int
    stay: int | None = None

    def way(self, start: Tensor, places: Tensor, shared: int) -> Tensor:
        """Return where the pelvis is in every frame after the history, at even speed from aim to aim, [n, 3].

        Args:
            start: Where it is in the history's last frame, [3].
            places: The aims in the same coordinates, [len(frames), 3].
            shared: Frames of the history.
        """
        when, where = [shared - 1, *self.frames], [start, *places]
        if self.stay is not None:
            when, where = [*when, self.stay], [*where, where[-1]]
        knots, points = np.array(when), torch.stack(where).cpu().numpy()
        frames = np.arange(shared, when[-1] + 1)
        found = np.stack([np.interp(frames, knots, column) for column in points.T], axis=-1)
        return torch.as_tensor(found).to(start)


def check_plan(plan: Sequence[Waypoint], start: Tensor, scene: Scene | None) -> None:
    """Refuse a plan without way.

    Args:
        plan: Waypoints.
        start: Where the pelvis is, [3].
        scene: A batch of one, in which no walk may end inside anything.

    Raises:
        InputError: When there are none, two are the same, one is not finite, or a walk ends inside a wall or furniture.
    """
    if not plan:
        raise InputError("a plan needs at least one waypoint")
    before = start[:2]
    for number, point in enumerate(plan, 1):
        here = torch.tensor(point.place[:2]).to(before)
        if not bool(here.isfinite().all()):
            raise InputError(f"waypoint {number} is at {point.place}, which is no place")
        if point.action == "walk":
            if float((here - before).norm()) < 1e-6:
                raise InputError(f"waypoint {number} is where the one before it is: {point.place[:2]}")
            if scene is not None:
                heights = torch.tensor((0.1, 0.5, 1.0)) + scene.floor
                column = torch.cat((here.float().expand(3, 2), heights[:, None]), -1)
                deep = float(scene.distance(column[None]).min())
                if deep <= 0:
                    x, y = point.place[:2]
                    raise InputError(
                        f"waypoint {number} ({x:.2f}, {y:.2f}) lies inside a wall or furniture, by {-deep:.2f} m"
                    )
        before = here


def aim(
    plan: Sequence[Waypoint],
    pelvis: Tensor,
    history: int,
    length: int,
    pace: float,
    options: Moving,
) -> Targets:
    """Return where the next waypoints of one action are in time.

    Waypoint i is at frame floor(way to it / pace) after the history. Where one lies beyond the round, a point on
    the way to it is put on the last frame. Where the way ends earlier, its end is a goal on the last frame too, as in
    the released code: a body that has arrived stays.

    Args:
        plan: Waypoints that are left.
        pelvis: Where it is now, in the world, [3].
        history: Frames that the round shares.
        length: Frames of the round.
        pace: Metres a frame.
        options: Holding, and the released code's way to interpolate.
    """
    action = plan[0].action
    frames: list[int] = []
    places: list[Tensor] = []
    joints: list[Tensor | None] = []
    way, before, at = 0.0, pelvis, history - 1
    reached = 0
    for point in plan:
        if point.action != action:
            break
        here = torch.tensor(point.place).to(pelvis)
        here = torch.cat((here[:2], pelvis[2:])) if action == "walk" else here
        way += float((here - before).norm())
        frame = max(history - 1 + int(way / pace + 1e-6), at + 1)
        if frame > length - 1:
            if at < length - 1:
                share = (length - 1 - at) / (frame - at)
                share = 1 - share if options.reference_timing else share
                frames.append(length - 1)
                places.append(before + share * (here - before))
                joints.append(None)
            break
        frames.append(frame)
        places.append(here)
        joints.append(point.joints)
        before, at, reached = here, frame, reached + 1
    if action != "walk" and reached:
        held = range(frames[-1] + 1, min(frames[-1] + options.hold, length - 1) + 1)
        places += [places[-1]] * len(held)
        joints += [joints[-1]] * len(held)
        frames += held
    stay = length - 1 if frames[-1] < length - 1 else None
    return Targets(frames, torch.stack(places), joints, action, reached, frames[-1] + 1, stay)


def arrived(target: Targets, way: Tensor, near: float | None) -> int:
    """Return how many of a round's waypoints are done: for walks, the first ones that the pelvis got near, in turn.

    Args:
        target: What the round aimed at.
        way: Of the pelvis over the frames that are kept, in the world, [n, 3].
        near: Metres; None takes all as done.
    """
    if near is None or target.action != "walk":
        return target.reached
    apart = torch.cdist(target.places[: target.reached, :2], way[:, :2]).amin(1) <= near
    return int(apart.cumprod(0).sum())


class MotionAgent:
    """Carries out plans.

    Args:
        sampler: Samples rounds; without a policy it denoises only.
        body: The body.
        options: History, blending, speeds.
        inpaint_goals: Whether waypoints are inpainted into the pelvis's translation, as without control and policy.
    """

    def __init__(
        self, sampler: DipSampler, body: BodyModel, options: Moving = Moving(), *, inpaint_goals: bool = False
    ) -> None:
        self.sampler, self.body, self.options, self.inpaint_goals = sampler, body, options, inpaint_goals

    def run(
        self,
        plans: Sequence[Sequence[Waypoint]],
        history: Tensor,
        scene: Scene | None,
        generators: Sequence[torch.Generator],
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Motion]:
        """Return the motions of plans; one whose rounds are used up has `done` below its number of waypoints.

        Args:
            plans: Waypoints of each.
            history: What came before, in the world, [B, n, 69]; the last frames that `Moving` asks for are used.
            scene: B scenes, None for an empty world.
            generators: One a motion; it draws speeds and noise.
            progress: Called with (waypoints reached, all).

        Raises:
            InputError: When a plan cannot be carried out.
        """
        model = self.sampler.model
        shared = min(self.options.history, history.shape[1])
        if shared >= model.frames - 1:
            raise InputError(f"a round of {model.frames} frames cannot share {shared} of them")
        if not len(plans) == len(history) == len(generators):
            raise InputError(f"{len(plans)} plans need as many histories and generators")
        starts = self.body(history[:, -1:])[0][:, 0, 0]
        for index, plan in enumerate(plans):
            check_plan(plan, starts[index], None if scene is None else scene[index : index + 1])
        motions = [Motion(frames, plan) for frames, plan in zip(history, plans, strict=True)]
        limits = [self._rounds(plan, start, shared) for plan, start in zip(plans, starts, strict=True)]
        while True:
            active = [
                index
                for index, motion in enumerate(motions)
                if motion.done < len(motion.plan) and len(motion.rounds) < limits[index]
            ]
            if not active:
                return motions
            some = None if scene is None else scene[torch.tensor(active)]
            self._round([motions[i] for i in active], shared, some, [generators[i] for i in active])
            if progress is not None:
                progress(sum(one.done for one in motions), sum(len(one.plan) for one in motions))

    def _rounds(self, plan: Sequence[Waypoint], start: Tensor, shared: int) -> int:
        """Return how many rounds a plan may take: each ends with a change of the action or its own length."""
        model, options = self.sampler.model, self.options
        needed, before, action = 0.0, start[:2], None
        for point in plan:
            here = torch.tensor(point.place[:2]).to(start)
            slowest = getattr(options, f"{point.action}_speed")[0]
            needed += (
                float((here - before).norm()) / slowest / (ADVANCE * (model.frames - shared) / model.fps)
            )
            needed += point.action != action
            before, action = here, point.action
        return options.patience * math.ceil(needed)

    def _round(
        self, motions: list[Motion], shared: int, scene: Scene | None, generators: Sequence[torch.Generator]
    ) -> None:
        model, options = self.sampler.model, self.options
        recent = torch.stack([motion.frames[-shared:] for motion in motions])
        joints, _ = self.body(recent)
        frame = local_frame(joints[:, 0])
        targets = []
        for motion, pelvis, generator in zip(motions, joints[:, -1, 0], generators, strict=True):
            rest = motion.plan[motion.done :]
            low, high = getattr(options, f"{rest[0].action}_speed")
            speed = low + (high - low) * float(torch.rand((), generator=generator))
            targets.append(aim(rest, pelvis, shared, model.frames, speed / model.fps, options))
        local = frame.motion_to_local(recent, self.body.root.to(recent))
        made = self._setting(targets, frame.to_local(joints), local, frame, scene)
        sampled = self.sampler.sample(made, generators)
        world = frame.motion_to_world(sampled, self.body.root.to(recent))
        ways = self.body(world)[0][:, :, 0]
        for motion, target, found, way in zip(motions, targets, world, ways, strict=True):
            kept = found[: target.kept]
            motion.rounds.append(kept)
            motion.joins.append(len(motion.frames))
            if options.blend:
                motion.frames = blend(motion.frames, kept, shared)
            else:
                motion.frames = torch.cat((motion.frames, kept[shared:]))
            motion.done += arrived(target, way[shared : target.kept], options.arrive)

    def _setting(
        self, targets: list[Targets], joints: Tensor, local: Tensor, frame: object, scene: Scene | None
    ) -> Round:
        """Return goals, key poses and hints of a round, in its local frame.

        Args:
            targets: Of each motion.
            joints: Of the history, local, [B, H, 22, 3].
            local: The history, [B, H, 69].
            frame: The local frame.
            scene: B scenes or None.
        """
        batch, shared, length = len(targets), local.shape[1], self.sampler.model.frames
        points = local.new_zeros(batch, length, COUNT, 3)
        mask = torch.zeros(batch, length, COUNT, dtype=torch.bool)
        flat, hinted = mask.clone(), mask.clone()
        poses, keys = (
            local.new_zeros(batch, length, NUMBERS),
            torch.zeros(batch, length, NUMBERS, dtype=torch.bool),
        )
        points[:, :shared], mask[:, :shared] = joints, True
        poses[:, :shared], keys[:, :shared] = local, True
        hinted[:, :shared, 0] = True
        root = self.body.root.to(local)
        for row, target in enumerate(targets):
            one = type(frame)(frame.rotation[row : row + 1], frame.origin[row : row + 1])
            places = one.to_local(target.places[None])[0]
            at = target.frames
            if target.action == "walk" and self.options.show_way:
                way = target.way(joints[row, -1, 0], places, shared)
                points[row, shared : shared + len(way), 0] = way
                hinted[row, shared : shared + len(way), 0] = True
            points[row, at, 0] = places
            wanted = flat if target.action == "walk" else mask
            wanted[row, at, 0] = True
            if target.stay is not None:
                points[row, target.stay, 0], wanted[row, target.stay, 0] = places[-1], True
            hinted[row, at, 0] = True
            for when, pose in zip(at, target.joints, strict=True):
                if pose is not None:
                    points[row, when], mask[row, when] = one.to_local(pose[None].to(local))[0], True
            if self.inpaint_goals:
                poses[row, at, ROTATIONS:] = places - root
                keys[row, at, ROTATIONS : NUMBERS - (target.action == "walk")] = True
        actions = torch.tensor([ACTIONS.index(target.action) for target in targets])
        goals = Goals(points, mask, flat)
        setting = Setting(goals, frame, actions, self.sampler.model.fps, scene, self.body.foot_markers)
        return Round(setting, poses, keys, points, hinted)

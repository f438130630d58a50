"""`boxroom`: rooms with tables, sofas, stools and beds, and something to do in them: walk there, sit here, lie here.

A case is a function of (seed, index): a room, ten frames of what the body did before, and waypoints of the pelvis.
Walks follow a way that A* finds with a clearance; with 0 it brushes along furniture, and whoever walks on it
has to lean out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from noiseworks.bench.testbeds.motion.procgait import (
    FRAMES,
    OVER_BED,
    OVER_SEAT,
    SEAT,
    Clips,
    draw_clips,
)
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError
from noiseworks.kits.motion import Frame, ProcBody, Room, find_path
from noiseworks.kits.motion.scenes import floor_distance, length_of
from torch import Tensor

KINDS = ("walk", "sit", "lie")  # in the order of procgait's ACTIONS
HISTORY = 10  # frames
BOXES = 10  # rows of a room's table
ATTEMPTS = 200
IN_FRONT = (0.12, 0.17)  # metres from a seat's edge to the ankles of whoever is going to sit on it


@dataclass(frozen=True)
class Cases:
    """Things to do.

    Attributes:
        scene: The rooms, [B].
        actions: Index in `KINDS`, [B].
        history: What the body did before, in the world, [B, 10, 69].
        waypoints: Of each case, where the pelvis goes: x, y, z, [N, 3]; walks have no z (NaN).
        reference: The recorded clip that a seat was placed behind, in the world, [B, 80, 69]; NaN for walks.
    """

    scene: Room
    actions: Tensor
    history: Tensor
    waypoints: tuple[np.ndarray, ...]
    reference: Tensor

    def __len__(self) -> int:
        return len(self.waypoints)

    @property
    def goals(self) -> Tensor:
        """The last waypoints, [B, 3]."""
        return torch.tensor(np.stack([one[-1] for one in self.waypoints]), dtype=torch.float32)

    def of(self, kind: str) -> "Cases":
        """Return the cases of one kind."""
        rows = (self.actions == KINDS.index(kind)).nonzero()[:, 0]
        return Cases(
            self.scene[rows],
            self.actions[rows],
            self.history[rows],
            tuple(self.waypoints[row] for row in rows.tolist()),
            self.reference[rows],
        )


def draw_cases(
    seed: int,
    count: int,
    *,
    start: int = 0,
    kinds: Sequence[str] = ("walk", "sit"),
    clearance: float = 0.3,
    lengths: tuple[float, float] = (3.0, 6.5),
) -> Cases:
    """Return cases `start` to `start + count` of a seed, the kinds in turn; each is a function of (seed, index).

    Args:
        seed: Of the set.
        count: Number of cases.
        start: Index of the first one.
        kinds: Of `KINDS`.
        clearance: Metres that a walk's way keeps from furniture; 0 is the hard variant.
        lengths: Of the ways, metres.

    Raises:
        InputError: When a kind is unknown, or no room with such a way is found.
    """
    check_number("seed", seed, low=0, integer=True)
    check_number("count", count, low=1, integer=True)
    for kind in kinds:
        check_choice("kind", kind, KINDS)
    made = [
        _case(
            np.random.default_rng((seed, index, 7)),
            kinds[index % len(kinds)],
            clearance,
            lengths,
            (seed, index),
        )
        for index in range(start, start + count)
    ]
    rooms, actions, histories, waypoints, references = zip(*made, strict=True)
    scene = Room(torch.cat([room.extent for room in rooms]), torch.cat([room.boxes for room in rooms]))
    return Cases(scene, torch.tensor(actions), torch.cat(histories), tuple(waypoints), torch.cat(references))


def _case(
    rng: np.random.Generator, kind: str, clearance: float, lengths: tuple[float, float], name: tuple[int, int]
) -> tuple[Room, int, Tensor, np.ndarray, Tensor]:
    clip_seed = int(rng.integers(2**31))
    for attempt in range(ATTEMPTS):
        room, seats = furnish(rng, kind)
        clip = draw_clips(clip_seed, 1, start=attempt, kinds=(kind,))
        made = _walk(rng, room, clip, clearance, lengths) if kind == "walk" else _rest(rng, room, seats, clip)
        if made is not None:
            history, waypoints, reference = made
            return room, KINDS.index(kind), history, waypoints, reference
    raise InputError(f"no room with a {kind} of {lengths} m and clearance {clearance} found for case {name}")


def _walk(
    rng: np.random.Generator, room: Room, clip: Clips, clearance: float, lengths: tuple[float, float]
) -> tuple[Tensor, np.ndarray, Tensor] | None:
    places = rng.uniform(-1, 1, (2, 2)) * (room.extent[0].numpy() - 0.5)
    if (floor_distance(room, places) < 0.45).any():
        return None
    try:
        path = find_path(room, *map(tuple, places.tolist()), clearance=clearance)
    except InputError:
        return None
    if not lengths[0] <= length_of(path) <= lengths[1]:
        return None
    ahead = path[1] - path[0]
    history = _placed(clip, path[0], float(np.arctan2(-ahead[0], ahead[1])))[:, :HISTORY]
    if float(room.distance(ProcBody()(history)[1]).min()) < 0:
        return None
    waypoints = np.column_stack((path[1:], np.full(len(path) - 1, np.nan)))
    return history, waypoints, torch.full((1, FRAMES, history.shape[-1]), torch.nan)


def _rest(
    rng: np.random.Generator, room: Room, seats: list[np.ndarray], clip: Clips
) -> tuple[Tensor, np.ndarray, Tensor] | None:
    """Put a recorded clip on the first seat: its height becomes the clip's, its edge lies behind the ankles."""
    body = ProcBody()
    joints, _ = body(clip.motion)
    lying = clip.actions[0] == 2
    height = float(joints[0, -1, 0, 2] + clip.pelvis[0]) - (OVER_BED if lying else OVER_SEAT)
    x, y, _, half, deep, _, turn = seats[0]
    seat = room.boxes[0, 0]
    seat[2] = seat[5] = height / 2
    ahead = np.array((-np.sin(turn), np.cos(turn)))  # of whoever sits: out of the seat's +y side
    aside = np.array((np.cos(turn), np.sin(turn))) * rng.uniform(-0.3, 0.3) * half
    feet = float(joints[0, 0, 7, 1])  # ahead of the first pose's pelvis
    edge = np.array((x, y)) + deep * ahead + aside
    place = edge + (rng.uniform(*IN_FRONT) - feet) * ahead
    motion = _placed(clip, place, float(turn))
    joints, markers = body(motion)
    if float(room.distance(markers).min()) < -0.04:
        return None
    return motion[:, :HISTORY], joints[0, -1, :1].double().numpy(), motion


def _placed(clip: Clips, place: np.ndarray, turn: float) -> Tensor:
    cosine, sine = np.cos(turn), np.sin(turn)
    rotation = torch.tensor(
        [[[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]]], dtype=torch.float32
    )
    origin = torch.tensor([[*place, float(clip.pelvis[0])]], dtype=torch.float32)
    return Frame(rotation, origin).motion_to_world(clip.motion, ProcBody().root)


def furnish(rng: np.random.Generator, kind: str = "walk") -> tuple[Room, list[np.ndarray]]:
    """Return a room of 4 to 8 m with two to six pieces of furniture, and the boxes that one can sit or lie on.

    The boxes are returned as rows (centre, half widths, angle) of which the first is also the room's first. Whoever
    sits looks along a seat's own +y.

    Args:
        rng: Where the numbers come from.
        kind: For sit the first piece is a seat, for lie a bed.
    """
    extent = rng.uniform(2.0, 4.0, 2)
    pieces: list[list[np.ndarray]] = []
    wanted = int(rng.integers(2, 7))
    first = {"sit": ("stool", "sofa"), "lie": ("bed",)}.get(kind)
    for index in range(wanted):
        for _ in range(20):
            name = rng.choice(first if index == 0 and first else ("table", "sofa", "stool", "bed"))
            piece = PIECES[name](rng, extent)
            around = max(np.hypot(box[3], box[4]) + np.hypot(*(box[:2] - piece[0][:2])) for box in piece)
            apart = all(
                np.hypot(*(piece[0][:2] - other[0][:2])) > around + np.hypot(*other[0][3:5])
                for other in pieces
            )
            if apart:
                pieces.append(piece)
                break
    rows = np.array([box for piece in pieces for box in piece]).reshape(-1, 7)
    room = Room(
        torch.tensor(extent, dtype=torch.float32)[None], torch.tensor(rows, dtype=torch.float32)[None]
    ).padded(max(BOXES, len(rows)))
    seats = [piece[0] for piece in pieces if SEAT[0] <= 2 * piece[0][5] <= SEAT[1]]
    return room, seats


def _spot(rng: np.random.Generator, extent: np.ndarray, half: float) -> tuple[float, float, float]:
    x, y = rng.uniform(-1, 1, 2) * np.maximum(extent - half - 0.05, 0.1)
    return float(x), float(y), float(rng.choice((0.0, 0.5, 1.0, 1.5)) * np.pi + rng.uniform(-0.15, 0.15))


def _box(x: float, y: float, turn: float, half: tuple[float, float], height: float) -> np.ndarray:
    return np.array((x, y, height / 2, *half, height / 2, turn))


def _table(rng: np.random.Generator, extent: np.ndarray) -> list[np.ndarray]:
    half = tuple(rng.uniform(0.3, 0.6, 2))
    return [_box(*_spot(rng, extent, max(half)), half, rng.uniform(0.7, 0.8))]


def _stool(rng: np.random.Generator, extent: np.ndarray) -> list[np.ndarray]:
    return [_box(*_spot(rng, extent, 0.3), (0.25, 0.25), rng.uniform(*SEAT))]


def _bed(rng: np.random.Generator, extent: np.ndarray) -> list[np.ndarray]:
    return [_box(*_spot(rng, extent, 1.0), (0.7, 1.0), rng.uniform(*SEAT))]


def _sofa(rng: np.random.Generator, extent: np.ndarray) -> list[np.ndarray]:
    x, y, turn = _spot(rng, extent, 0.9)
    half = float(rng.uniform(0.5, 0.9))
    seat = _box(x, y, turn, (half, 0.35), rng.uniform(*SEAT))
    behind = 0.35 + 0.1
    back = _box(x + behind * np.sin(turn), y - behind * np.cos(turn), turn, (half, 0.1), 0.85)
    return [seat, back]


PIECES = {"table": _table, "stool": _stool, "bed": _bed, "sofa": _sofa}

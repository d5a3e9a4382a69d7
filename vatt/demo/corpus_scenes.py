"""Pictures of the demo corpus: a coloured, textured shape on a drifting, textured background.

Lengths are shares of the short side of the picture, so that a scene looks the same at every size;
positions are measured from the centre, x to the right and y down. The object stays inside the
central square, which a centred crop keeps; only at both ends of a crossing is its edge cut. Every
motion repeats so often that it can be recognised in any 1.6 s of a file.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Field = np.ndarray  # float32 array over a grid of points
Combination = tuple[str, str, str]  # shape, colour, motion

ATTRIBUTES = ("shape", "colour", "motion")  # in the order of a combination
COLOURS = {  # sRGB
    "red": (215, 30, 35),
    "green": (35, 165, 55),
    "blue": (40, 70, 225),
    "yellow": (240, 225, 45),
    "purple": (150, 40, 190),
    "orange": (245, 130, 20),
    "white": (245, 245, 245),
    "black": (18, 18, 18),
}
MOTIONS = ("left", "right", "up", "down", "grow", "shrink", "turn", "bounce")

# Width, height in pixels, and the other way round. So small, a file decodes in 2–3 ms.
SIZES = ((80, 64), (96, 64), (96, 72), (88, 80), (112, 80), (128, 96))
FRAME_RATES = (24, 25, 30)
SAMPLE_RATES = (16_000, 22_050, 32_000, 44_100)
DURATION_SECONDS = (2.0, 3.5)
PERIOD_SECONDS = (1.8, 2.2)  # ≥ 1.6, so that a window holds at most one jump back to the start
TRAVEL = 0.29  # of a crossing, to both sides of the centre: 27–33 of 64 pixels in 1.6 s
RADIUS = (0.24, 0.28)  # 15–18 pixels of 64: large enough to tell shapes, with a third left to move
GROWTH = (0.16, 0.36)  # smallest and largest radius of growing and shrinking
TURNS_PER_SECOND = (0.35, 0.6)  # 25–43° between frames at 5 fps
BOUNCE_SECONDS = (0.7, 1.0)  # 3.5–5 frames at 5 fps for one bounce
EXTENT = 1.2  # of the largest shape, in radii
COMPANY_RADIUS = 0.09
COMPANY_RATE = 0.25


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Random choices that determine picture and sound of a scene."""

    shape: str
    colour: str
    motion: str
    company: tuple[str, str] | None  # shape and colour of a second, small object in a corner
    corner: tuple[int, int]  # its corner, as signs of x and y
    num_frames: int
    frame_rate: int
    width: int  # pixels
    height: int
    sample_rate: int  # Hz
    radius: float
    centre: tuple[float, float]  # (x, y) in [-1, 1] of the room left over; the motion overrides it
    drift: tuple[float, float]  # slow drift (x, y) over the whole file
    tilt: float  # radians
    period_seconds: float  # of one crossing, growth or shrinking
    turns_per_second: float  # negative: anticlockwise
    bounce_frames: int  # from one impact to the next
    first_impact: int  # its frame

    @property
    def duration_seconds(self) -> float:
        """Length of the file in seconds."""
        return self.num_frames / self.frame_rate

    def progress(self, times: np.ndarray) -> np.ndarray:
        """Completed share of the current crossing or growth, in [0, 1); 0.5 at half time."""
        return ((times - self.duration_seconds / 2) / self.period_seconds + 0.5) % 1

    def since_impact(self, times: np.ndarray) -> np.ndarray:
        """Completed share of the current bounce, in [0, 1); it is 0 at the time of a frame."""
        return ((times * self.frame_rate - self.first_impact) / self.bounce_frames) % 1


def draw_scene(shape: str, colour: str, motion: str, rng: np.random.Generator) -> Scene:
    """Draws a random scene with given attributes."""
    frame_rate = int(rng.choice(FRAME_RATES))
    width, height = SIZES[rng.integers(len(SIZES))]
    if rng.random() < 0.5:
        width, height = height, width
    bounce_frames = round(rng.uniform(*BOUNCE_SECONDS) * frame_rate)
    return Scene(
        shape=shape,
        colour=colour,
        motion=motion,
        company=_draw_company(shape, colour, rng),
        corner=(int(rng.choice((-1, 1))), int(rng.choice((-1, 1)))),
        num_frames=round(rng.uniform(*DURATION_SECONDS) * frame_rate),
        frame_rate=frame_rate,
        width=width,
        height=height,
        sample_rate=int(rng.choice(SAMPLE_RATES)),
        radius=rng.uniform(*RADIUS),
        centre=(rng.uniform(-0.7, 0.7), rng.uniform(-0.7, 0.7)),
        drift=(rng.uniform(-0.04, 0.04), rng.uniform(-0.04, 0.04)),
        tilt=rng.uniform(-0.3, 0.3),
        period_seconds=rng.uniform(*PERIOD_SECONDS),
        turns_per_second=rng.uniform(*TURNS_PER_SECOND) * rng.choice((-1, 1)),
        bounce_frames=bounce_frames,
        first_impact=int(rng.integers(bounce_frames)),
    )


def _draw_company(shape: str, colour: str, rng: np.random.Generator) -> tuple[str, str] | None:
    """Draws another shape of another colour, for a quarter of the scenes."""
    other_shape = rng.choice([name for name in SHAPES if name != shape])
    other_colour = rng.choice([name for name in COLOURS if name != colour])
    return (str(other_shape), str(other_colour)) if rng.random() < COMPANY_RATE else None


def render_scene(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Paints the frames of a scene.

    Returns:
        uint8 `[T, H, W, C]`.
    """
    frames = _render_background(scene, rng)
    if scene.company is not None:
        shape, colour = scene.company
        room = 0.5 - EXTENT * COMPANY_RADIUS - 0.01
        still = np.ones(scene.num_frames, np.float32)
        x, y = (still * sign * room for sign in scene.corner)
        sprite = _paint_sprite(shape, colour, rng)
        _paint(frames, sprite, x, y, still * COMPANY_RADIUS, still * 0)
    _paint(frames, _paint_sprite(scene.shape, scene.colour, rng), *trajectory(scene))
    return frames


def trajectory(scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Path of the object.

    Returns:
        Four float32 arrays `[T]`: x, y and radius in shares of the short side, angle in radians,
        clockwise.
    """
    times = np.arange(scene.num_frames) / scene.frame_rate
    progress = scene.progress(times)
    radius = np.full(scene.num_frames, scene.radius)
    angle = np.full(scene.num_frames, scene.tilt)
    if scene.motion in ("grow", "shrink"):
        share = progress if scene.motion == "grow" else 1 - progress
        radius = GROWTH[0] * (GROWTH[1] / GROWTH[0]) ** share
    if scene.motion == "turn":
        angle = angle + 2 * math.pi * scene.turns_per_second * times
    room = 0.5 - EXTENT * radius.max() - 0.01
    wander = times / scene.duration_seconds - 0.5
    x, y = (room * c + d * wander for c, d in zip(scene.centre, scene.drift, strict=True))
    if scene.motion in ("left", "right"):
        x = TRAVEL * (2 * progress - 1) * (1 if scene.motion == "right" else -1)
    if scene.motion in ("up", "down"):
        y = TRAVEL * (2 * progress - 1) * (1 if scene.motion == "down" else -1)
    if scene.motion == "bounce":
        flight = scene.since_impact(times)
        y = room * (1 - 2 * 4 * flight * (1 - flight))
    limit = max(room, TRAVEL)
    x, y = np.clip(x, -limit, limit), np.clip(y, -limit, limit)
    return tuple(array.astype(np.float32) for array in (x, y, radius, angle))  # type: ignore[return-value]


def _box(u: Field, v: Field, half_width: float, half_height: float) -> Field:
    return np.maximum(np.abs(u) - half_width, np.abs(v) - half_height)


# Shapes as signed distances in radii, negative inside; and centre and radius of a notch that breaks
# the symmetry and makes turning visible. The shapes differ in their area (whole, hollow, thin,
# curved, striped), not only in corners: circle and square, or triangle, star and cross look alike
# at 64 pixels.
Shape = tuple[Callable[[Field, Field], Field], tuple[float, float, float]]
SHAPES: dict[str, Shape] = {
    "ball": (lambda u, v: np.hypot(u, v) - 0.95, (0.0, -0.6, 0.27)),
    "ring": (lambda u, v: np.abs(np.hypot(u, v) - 0.83) - 0.24, (0.0, -0.83, 0.27)),
    "triangle": (
        lambda u, v: np.maximum(v - 0.62, 0.866 * np.abs(u) - 0.5 * v - 0.58),
        (0.0, -0.38, 0.24),
    ),
    "bar": (lambda u, v: _box(u, v, 1.15, 0.3), (-0.85, 0.0, 0.27)),
    "moon": (
        lambda u, v: np.maximum(np.hypot(u + 0.1, v) - 1.05, 0.85 - np.hypot(u - 0.55, v)),
        (-0.74, 0.0, 0.27),
    ),
    "fence": (
        lambda u, v: _box(np.minimum(np.abs(u), np.abs(np.abs(u) - 0.66)), v, 0.17, 0.86),
        (-0.66, -0.6, 0.27),
    ),
}

SPRITE_SIZE = 96  # cells over ±SPRITE_REACH radii: finer than the pixels of the largest object
SPRITE_REACH = 1.35


def _paint_sprite(shape: str, colour: str, rng: np.random.Generator) -> np.ndarray:
    """Paints a textured shape, from which any size and angle is sampled.

    Returns:
        float32 `[SPRITE_SIZE², 4]`: signed distance in radii, then red, green, blue in 0…255.
    """
    axis = (np.arange(SPRITE_SIZE, dtype=np.float32) + 0.5) / SPRITE_SIZE * 2 - 1
    v, u = np.meshgrid(axis * SPRITE_REACH, axis * SPRITE_REACH, indexing="ij")
    distance, (notch_u, notch_v, notch_radius) = SHAPES[shape][0](u, v), SHAPES[shape][1]
    rgb = np.array(COLOURS[colour], np.float32) + rng.normal(0, 10, 3).astype(np.float32)
    shade = 1 + 0.15 * _smooth_noise((SPRITE_SIZE, SPRITE_SIZE), 7, rng) - 0.10 * np.clip(v, -1, 1)
    surface = shade[..., None] * rgb
    notch = np.hypot(u - notch_u, v - notch_v) < notch_radius
    surface[notch] = 25 if rgb.mean() > 90 else 200
    sprite = np.concatenate([distance[..., None], np.clip(surface, 0, 255)], axis=-1)
    return sprite.reshape(-1, 4).astype(np.float32)


def _paint(
    frames: np.ndarray,
    sprite: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    radius: np.ndarray,
    angle: np.ndarray,
) -> None:
    """Paints the sprite into all frames, each inside a box that just holds it."""
    height, width = frames.shape[1:3]
    side = min(height, width)
    centre_x, centre_y, radius = width / 2 + side * x, height / 2 + side * y, side * radius
    box = min(side, 2 * math.ceil(EXTENT * float(radius.max())) + 4)
    left = np.clip(np.rint(centre_x - box / 2), 0, width - box).astype(int)
    top = np.clip(np.rint(centre_y - box / 2), 0, height - box).astype(int)
    cells = np.arange(box, dtype=np.float32) + 0.5
    dx = ((left - centre_x)[:, None] + cells).astype(np.float32)[:, None, :]
    dy = ((top - centre_y)[:, None] + cells).astype(np.float32)[:, :, None]
    scale = SPRITE_SIZE / (2 * SPRITE_REACH)  # sprite cells per radius
    cos = (np.cos(angle) / radius * scale)[:, None, None].astype(np.float32)
    sin = (np.sin(angle) / radius * scale)[:, None, None].astype(np.float32)
    column = np.clip(dx * cos + dy * sin + SPRITE_SIZE / 2, 0, SPRITE_SIZE - 1).astype(np.int32)
    row = np.clip(dy * cos - dx * sin + SPRITE_SIZE / 2, 0, SPRITE_SIZE - 1).astype(np.int32)
    painted = sprite.take(row * SPRITE_SIZE + column, axis=0)
    # The share of a pixel that the shape covers, from the distance of its centre to the edge.
    alpha = np.clip(0.5 - painted[..., :1] * radius[:, None, None, None], 0, 1)
    for t, (i, j) in enumerate(zip(top, left, strict=True)):
        window = frames[t, i : i + box, j : j + box]
        window += (alpha[t] * (painted[t, ..., 1:] - window)).astype(np.int16).astype(np.uint8)


def _render_background(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Paints a mottled, tinted, dim surface that drifts under the camera.

    Returns:
        uint8 `[T, H, W, C]`.
    """
    reach = 24  # half pixels that the drift may cover
    shape = (2 * scene.height + reach, 2 * scene.width + reach)  # in half pixels
    tint = np.stack([_smooth_noise(shape, 6, rng) for _ in range(3)], axis=-1)
    mottle = _smooth_noise(shape, 24, rng)[..., None]
    surface = (100 + 28 * tint + 18 * mottle) * rng.uniform(0.75, 1.25)
    texture = np.clip(surface, 0, 255).astype(np.uint8)
    direction, distance = rng.uniform(0, 2 * math.pi), rng.uniform(0.2, 1)
    way = np.linspace(-0.5, 0.5, scene.num_frames) * distance * reach
    left = np.rint(reach / 2 + way * math.cos(direction)).astype(int)
    top = np.rint(reach / 2 + way * math.sin(direction)).astype(int)
    windows = [
        texture[i : i + 2 * scene.height : 2, j : j + 2 * scene.width : 2]
        for i, j in zip(top, left, strict=True)
    ]
    return np.stack(windows)


def _smooth_noise(shape: tuple[int, int], num_cells: int, rng: np.random.Generator) -> Field:
    """Uniform noise in [-1, 1] at num_cells × num_cells points, linear in between."""
    noise = rng.uniform(-1, 1, (num_cells, num_cells)).astype(np.float32)
    return _stretch(_stretch(noise, shape[0]).T, shape[1]).T


def _stretch(values: Field, size: int) -> Field:
    """Linear interpolation along the first axis; by hand, since BLAS would start its threads."""
    position = np.linspace(0, len(values) - 1, size, dtype=np.float32)
    below = np.minimum(position.astype(int), len(values) - 2)
    share = (position - below).astype(np.float32)[:, None]
    return values[below] * (1 - share) + values[below + 1] * share

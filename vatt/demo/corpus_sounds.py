"""Sound of the demo corpus: shape becomes timbre, motion becomes rhythm, loudness or pitch.

Every shape has its own frequency band around a carrier, and no motion leaves the band: carriers are
a factor of 1.6 apart, glides span ±15 %. Rhythm, loudness and pitch follow the picture: steps of a
crossing, size, height, turns and impacts.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from vatt.demo.corpus_scenes import Scene

CONTROL_RATE = 2000  # Hz, of envelopes and frequencies: impacts are right to 0.5 ms
GLIDE_OCTAVES = 0.2  # half the way of a glide: ±15 %
VIBRATO_OCTAVES = 0.06
WOBBLES_PER_TURN = 24  # 8–14 Hz: a whirr
SLOW_STEPS, CLIMBING_STEPS, FAST_STEPS = 4, 7, 12  # a crossing takes about 2 s: 2, 3.5 and 6 Hz
CLIMBING_FLOOR = 0.25
SWELL_DECIBELS = 26.0
CARRIER_AMPLITUDE = 0.35
LEVEL_JITTER_DECIBELS = 4.0
SNR_DECIBELS = (18.0, 28.0)
TUNING_OCTAVES = 0.03

Signal = np.ndarray  # float64 at CONTROL_RATE


def _crackle(t: Signal, rng: np.random.Generator) -> Signal:
    points = np.arange(0, t[-1] + 0.1, 1 / 60)
    return np.interp(t, points, rng.choice((-1.0, 1.0), points.size))


# Carrier in Hz and amplitude modulation. The modulations are faster than any rhythm of a motion
# (28 Hz and more against 14 Hz at most) and narrower than the gaps between the bands (±85 Hz).
TIMBRES: dict[str, tuple[float, Callable[[Signal, np.random.Generator], Signal]]] = {
    "ball": (280.0, lambda t, _: np.ones_like(t)),  # a hum
    "triangle": (450.0, lambda t, _: 0.55 + 0.45 * np.sin(2 * math.pi * 55 * t)),  # a buzz
    "fence": (720.0, _crackle),
    "bar": (1150.0, lambda t, _: 1.2 * np.exp(-3 * ((28 * t) % 1))),  # a rattle
    "ring": (1850.0, lambda t, _: np.cos(2 * math.pi * 45 * t)),  # a bell
    "moon": (2950.0, lambda t, _: np.abs(np.sin(math.pi * 38 * t))),  # a purr
}


def synthesize_sound(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Sound of a scene.

    Returns:
        float32 `[S]` in [-1, 1] at the scene's sample rate. It starts with frame 0 and is as long
        as the video.
    """
    num_samples = round(scene.duration_seconds * scene.sample_rate)
    control = np.arange(math.ceil(scene.duration_seconds * CONTROL_RATE) + 2) / CONTROL_RATE
    carrier, modulation = TIMBRES[scene.shape]
    carrier *= 2 ** rng.uniform(-TUNING_OCTAVES, TUNING_OCTAVES)
    frequency = carrier * 2 ** _pitch(scene, control)
    cycles = np.cumsum(frequency) / CONTROL_RATE + rng.random()
    loudness = modulation(control, rng) * _envelope(scene, control)
    times = np.arange(num_samples) / scene.sample_rate
    phase = np.interp(times, control, cycles)
    tone = np.sin(2 * math.pi * (phase - np.floor(phase)).astype(np.float32))
    tone *= np.interp(times, control, loudness).astype(np.float32)
    noise = rng.standard_normal(num_samples, np.float32)
    noise *= math.sqrt(0.5) * _gain(-rng.uniform(*SNR_DECIBELS))  # relative to a steady carrier
    level = CARRIER_AMPLITUDE * _gain(rng.uniform(-LEVEL_JITTER_DECIBELS, LEVEL_JITTER_DECIBELS))
    return np.clip(level * (tone + noise), -1, 1).astype(np.float32)


def _pitch(scene: Scene, times: Signal) -> Signal:
    """Octaves above the carrier: higher as the object rises, wavering as it turns."""
    if scene.motion in ("up", "down"):
        way = 2 * scene.progress(times) - 1
        return GLIDE_OCTAVES * (way if scene.motion == "up" else -way)
    if scene.motion == "turn":
        return VIBRATO_OCTAVES * np.cos(_wobble(scene, times))
    return np.zeros_like(times)


def _envelope(scene: Scene, times: Signal) -> Signal:
    """Loudness in [0, 1]: steps of a crossing, swelling of growth, impacts of a bounce."""
    progress = scene.progress(times)
    if scene.motion == "left":  # slow and long
        return _steps(progress * SLOW_STEPS, 0.6)
    if scene.motion == "right":  # fast and short
        return _steps(progress * FAST_STEPS, 0.4)
    if scene.motion == "up":  # step by step, while going down is one smooth slide
        return CLIMBING_FLOOR + (1 - CLIMBING_FLOOR) * _steps(progress * CLIMBING_STEPS, 0.5)
    if scene.motion == "grow":
        return _gain(SWELL_DECIBELS * (progress - 1))
    if scene.motion == "shrink":
        return _gain(-SWELL_DECIBELS * progress)
    if scene.motion == "bounce":
        return np.exp(-5 * scene.since_impact(times))
    if scene.motion == "turn":
        return 0.5 + 0.5 * np.sin(_wobble(scene, times))
    return np.ones_like(times)


def _wobble(scene: Scene, times: Signal) -> Signal:
    """Angle of the whirr of a turning object, radians."""
    return 2 * math.pi * WOBBLES_PER_TURN * abs(scene.turns_per_second) * times


def _steps(beats: Signal, duty: float) -> Signal:
    """1 for the first `duty` of every beat, 0 after it, with edges of a twentieth of a beat."""
    phase = beats % 1
    return np.clip(np.minimum(phase, duty - phase) * 20, 0, 1)


def _gain(decibels: float | Signal) -> Any:
    return 10 ** (decibels / 20)

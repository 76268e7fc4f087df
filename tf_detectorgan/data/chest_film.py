"""Draws chest X-rays with faint nodules and exact boxes; `phantom.py` makes a data set of them.

All but the film grain is drawn in coordinates relative to the film, so the same seed at another size draws
the same patient. Lengths are fractions of the film's width. Positions (u right, v down) lie in [0, 1].
Densities are before the film's response: 0 is air, about 1 soft tissue of the trunk. S: size in pixels.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from scipy import ndimage

# Difficulty of the data set. Ranges are (low, high) of uniform draws.
NODULE_CONTRAST = (0.10, 0.36)  # peak density added by a nodule; a rib adds about 0.16, a vessel 0.05 to 0.2
NODULE_RADIUS = (0.030, 0.080)  # mean half width of the box
SECOND_NODULE_SHARE = 0.15  # share of images with a nodule that have two
END_ON_VESSELS = (3, 9)  # number of vessels seen along their axis: small, sharp, bright dots
END_ON_RADIUS = (0.011, 0.021)
END_ON_CONTRAST = (0.10, 0.28)
GRAIN = (0.015, 0.030)  # standard deviation of the film noise in units of the image's range
CLUTTER = 0.020  # standard deviation of the overlaid soft-tissue texture, density

# A box contains exactly the pixels where the nodule's profile exceeds this fraction of its peak.
BOX_THRESHOLD = 0.2


@dataclasses.dataclass(frozen=True)
class Nodule:
    """One nodule: a star-shaped blob whose radius varies with the angle, in film coordinates."""

    u: float
    v: float
    radius: float  # mean radius of the contour at BOX_THRESHOLD
    elongation: float  # long over short axis
    angle: float  # of the long axis, radians
    power: float  # 2 is a Gaussian, larger has a firmer edge
    contrast: float  # density at the centre
    waves: tuple[
        tuple[int, float, float], ...
    ]  # (order, amplitude, phase): lobes are low, spicules high orders

    def _radius(self, angle: np.ndarray) -> np.ndarray:
        shape = np.ones_like(angle)
        for order, amplitude, phase in self.waves:
            shape += amplitude * np.cos(order * angle + phase)
        return self.radius * shape

    def profile(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Returns the density added at film positions u, v."""
        cos, sin, stretch = np.cos(self.angle), np.sin(self.angle), np.sqrt(self.elongation)
        along = ((u - self.u) * cos + (v - self.v) * sin) / stretch
        across = ((v - self.v) * cos - (u - self.u) * sin) * stretch
        distance = np.hypot(along, across) / self._radius(np.arctan2(across, along))
        return self.contrast * BOX_THRESHOLD ** (distance**self.power)

    def box(self) -> np.ndarray:
        """Returns the box (x0, y0, x1, y1) [4] of the contour at BOX_THRESHOLD, in film coordinates."""
        angle = np.linspace(0, 2 * np.pi, 720, endpoint=False)
        cos, sin, stretch = np.cos(self.angle), np.sin(self.angle), np.sqrt(self.elongation)
        along = self._radius(angle) * np.cos(angle) * stretch
        across = self._radius(angle) * np.sin(angle) / stretch
        u = self.u + along * cos - across * sin
        v = self.v + along * sin + across * cos
        return np.array([u.min(), v.min(), u.max(), v.max()])


class Kind(NamedTuple):
    """A kind of shadow that resembles a nodule; ranges are (low, high) of uniform draws."""

    share: float  # of the patients that have at least one
    most: int  # largest number in one patient
    radius: tuple[float, float]  # the shorter half axis
    elongation: tuple[float, float]
    density: tuple[float, float]
    power: float  # 2 is a Gaussian, 10 a disc with a hard edge
    hollow: tuple[float, float]  # share of the density that is missing in the middle; 1 is a ring
    place: tuple[tuple[float, float], tuple[float, float]] = ((0.10, 0.32), (0.18, 0.70))  # |u - 0.5|, v
    paired: bool = False  # one on each side, symmetric


_TRUNK, _BREASTS = ((0.0, 0.35), (0.15, 0.85)), ((0.17, 0.24), (0.58, 0.70))
LOOKALIKES = (
    Kind(0.7, 5, (0.020, 0.060), (1, 1), (0.15, 0.45), 10, (0, 0.9), _TRUNK),  # electrodes
    Kind(0.8, 5, (0.014, 0.028), (2.5, 4), (0.15, 0.45), 3, (0, 0)),  # healed ribs
    Kind(0.6, 4, (0.013, 0.030), (1, 1.2), (0.35, 0.80), 3, (0, 0)),  # calcified scars
    Kind(0.6, 1, (0.025, 0.050), (1, 1.2), (0.12, 0.36), 3, (0, 0), _BREASTS, True),  # nipples
    Kind(0.4, 3, (0.035, 0.070), (1, 1.3), (0.15, 0.35), 3, (1, 1)),  # rings: bullae, bronchi seen end-on
    Kind(0.4, 3, (0.025, 0.050), (1.6, 2.2), (0.15, 0.35), 8, (0, 0)),  # plaques of the pleura
)


class Lookalike(NamedTuple):
    """A round or oval shadow that is not a nodule, in trunk coordinates."""

    u: float
    v: float
    along: float  # half axes: along `angle`, and perpendicular to it
    across: float
    angle: float
    density: float  # maximum
    power: float
    hollow: float

    def profile(self, u: np.ndarray, v: np.ndarray, pixel: float) -> np.ndarray:
        """Returns the density added at trunk positions u, v. Axes below a pixel get wider and fainter."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        along, across = max(self.along, 0.6 * pixel), max(self.across, 0.6 * pixel)
        a = ((u - self.u) * cos + (v - self.v) * sin) / along
        b = ((v - self.v) * cos - (u - self.u) * sin) / across
        distance = np.hypot(a, b)
        peak = self.density * (self.along / along) * (self.across / across)
        return peak * np.exp(-(distance**self.power)) * (1 - self.hollow * np.exp(-((distance / 0.6) ** 4)))


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """One patient's anatomy, drawn from the patient's number and the same in all of its images."""

    width: float  # scale of the chest
    apex: float  # v of the lungs' tops
    domes: tuple[float, float]  # v of the diaphragm's tops, left and right on the film
    heart: tuple[float, float, float, float]  # u, v and half axes
    spacing: float  # distance of the ribs
    slope: tuple[float, float]  # of the ribs' back and front parts
    rib_jitter: np.ndarray  # [2, 64] thickness of each rib, relative
    rib_density: float
    breasts: float  # density
    tissue: float  # density of the trunk
    vessels: np.ndarray  # [n, 7] u0, v0, u1, v1, half width, density, sharpness; a point if seen end-on
    clutter: np.ndarray  # [48, 48] texture, unit variance
    lookalikes: tuple[Lookalike, ...]


@dataclasses.dataclass(frozen=True)
class View:
    """Position and exposure of one image; they differ between images of a patient."""

    du: float
    dv: float
    scale: float
    lean: float  # sideways shift of the trunk from top to bottom
    exposure: float
    contrast: float
    grain: float
    grain_seed: int


def patient(index: int) -> int:
    """Returns the patient's number. Four images show three patients: the second patient has two images."""
    return index - 1 if index % 4 == 2 else index


def draw(seed: int, index: int, size: int, nodule: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns image `index` of a seed [S, S] float32 in [0, 1], and its boxes [k, 4] float32 in pixels."""
    image, nodules = film(seed, index, size, nodule)
    boxes = np.array([n.box() for n in nodules], np.float64).reshape(-1, 4) * size
    return image, np.clip(boxes, 0, size).astype(np.float32)


def film(seed: int, index: int, size: int, nodule: bool) -> tuple[np.ndarray, list[Nodule]]:
    """Returns the image of `draw`, and its nodules instead of their boxes."""
    anatomy = _draw_anatomy(*(np.random.default_rng([seed, patient(index), part]) for part in (0, 3)))
    view = _draw_view(np.random.default_rng([seed, index, 1]))
    nodules = _draw_nodules(np.random.default_rng([seed, index, 2]), anatomy, view) if nodule else []
    v, u = np.meshgrid(*[(np.arange(size) + 0.5) / size] * 2, indexing="ij")
    density = _density(anatomy, *_to_trunk(view, u, v), 1.0 / size)
    for one in nodules:
        density += one.profile(u, v)
    return _expose(view, density).astype(np.float32), nodules


def _draw_anatomy(rng: np.random.Generator, lookalikes: np.random.Generator) -> Anatomy:
    domes = 0.77 + rng.uniform(-0.04, 0.04) + np.array([-0.012, 0.012])
    return Anatomy(
        width=rng.uniform(0.93, 1.06),
        apex=rng.uniform(0.10, 0.15),
        domes=(float(domes[0]), float(domes[1])),
        heart=(
            0.55 + rng.uniform(-0.02, 0.02),
            domes.mean() - rng.uniform(0.09, 0.12),
            *rng.uniform(0.9, 1.2, 2) * (0.135, 0.125),
        ),
        spacing=rng.uniform(0.078, 0.092),
        slope=(rng.uniform(0.15, 0.35), rng.uniform(0.5, 0.8)),
        rib_jitter=rng.uniform(0.8, 1.2, (2, 64)),
        rib_density=rng.uniform(0.10, 0.19),
        breasts=rng.uniform(0.05, 0.16) * (rng.random() < 0.5),
        tissue=rng.uniform(0.85, 1.1),
        vessels=_draw_vessels(rng),
        clutter=_unit(ndimage.gaussian_filter(rng.standard_normal((48, 48)), 1.3)),
        lookalikes=tuple(_draw_lookalikes(lookalikes)),
    )


def _draw_lookalikes(rng: np.random.Generator) -> list[Lookalike]:
    """Draws each kind in its share of the patients; nipples are two at the same height, or none."""
    found = []
    for kind in LOOKALIKES:
        present = rng.random() < kind.share
        for _ in range(int(rng.integers(1, kind.most + 1)) if present else 0):
            side = rng.choice([-1.0, 1.0])
            ranges = (kind.radius, kind.elongation, kind.density, kind.hollow, (0.1, 0.7), *kind.place)
            across, elongation, density, hollow, tilt, aside, v = rng.uniform(*np.transpose(ranges))
            for s in (-1.0, 1.0) if kind.paired else (side,):
                shape = (across * elongation, across, s * tilt, density, kind.power, hollow)
                found.append(Lookalike(0.5 + s * aside, v, *shape))
    return found


def _draw_vessels(rng: np.random.Generator) -> np.ndarray:
    """Draws branches that leave both hila and fork, then end-on vessels; rows as `Anatomy.vessels`."""
    rows = []
    chance = iter(rng.random((400, 4)))
    for side in (-1, 1):
        hilum = 0.46 + rng.uniform(-0.02, 0.02)
        tips = [
            (0.5 + side * 0.075, hilum, angle, 0.011)
            for angle in np.linspace(-1.25, 1.25, 6) + rng.normal(0, 0.1, 6)
        ]
        for length in (0.085, 0.075, 0.065):
            children = []
            for u, v, angle, half in tips:
                lengthen, forks, first, second = next(chance)
                step = length * (0.8 + 0.4 * lengthen)
                end_u, end_v = u + side * step * math.cos(angle), v + 1.25 * step * math.sin(angle)
                rows.append((u, v, end_u, end_v, half, 13.0 * half, 1.0))
                turns = [0.2 + 0.25 * first, -0.2 - 0.25 * second]
                if half < 0.006 or forks > 0.6:
                    turns = [0.4 * (first - second)]
                children += [(end_u, end_v, angle + turn, 0.66 * half) for turn in turns]
            tips = children
    for _ in range(rng.integers(END_ON_VESSELS[0], END_ON_VESSELS[1] + 1)):
        u = 0.5 + rng.choice([-1.0, 1.0]) * min(rng.gamma(4.0, 0.045), 0.31)
        v = rng.normal(0.47, 0.10)
        rows.append((u, v, u, v, rng.uniform(*END_ON_RADIUS), rng.uniform(*END_ON_CONTRAST), 1.7))
    return np.array(rows)


def _draw_view(rng: np.random.Generator) -> View:
    return View(
        du=rng.normal(0, 0.015),
        dv=rng.normal(0, 0.015),
        scale=rng.uniform(0.95, 1.05),
        lean=rng.normal(0, 0.02),
        exposure=rng.uniform(0.85, 1.15),
        contrast=rng.uniform(0.9, 1.1),
        grain=rng.uniform(*GRAIN),
        grain_seed=int(rng.integers(2**63)),
    )


def _draw_nodules(rng: np.random.Generator, anatomy: Anatomy, view: View) -> list[Nodule]:
    """Draws one or two nodules without overlap that lie in the lungs, also behind ribs."""
    nodules: list[Nodule] = []
    wanted = 1 + (rng.random() < SECOND_NODULE_SHARE)
    while len(nodules) < wanted:
        places = rng.uniform((0.1, 0.15), (0.9, 0.85), (32, 2))
        places = places[_lungs(anatomy, *_to_trunk(view, *places.T), 0.004) > 0.9]
        for u, v in places:
            one = _draw_nodule(rng, u, v)
            x0, y0, x1, y1 = one.box()
            ends = np.array([(x0, v), (x1, v), (u, y0), (u, y1)])
            inside = _lungs(anatomy, *_to_trunk(view, *ends.T), 0.004) > 0.5
            free = all(np.hypot(u - n.u, v - n.v) > 2 * (one.radius + n.radius) for n in nodules)
            if free and inside.all() and len(nodules) < wanted:
                nodules.append(one)
                break
    return nodules


def _draw_nodule(rng: np.random.Generator, u: float, v: float) -> Nodule:
    radius, elongation, angle, power, contrast, spiculated = rng.uniform(
        (NODULE_RADIUS[0], 1.0, 0.0, 2.0, NODULE_CONTRAST[0], 0.0),
        (NODULE_RADIUS[1], 1.35, np.pi, 4.0, NODULE_CONTRAST[1], 1.0),
    )
    orders = (2, 3, *rng.integers(7, 12, 2))
    amplitudes = rng.uniform((0, 0, 0.02, 0.02), (0.10, 0.10, 0.06, 0.06))
    phases = rng.uniform(0, 2 * np.pi, 4)
    waves = tuple(zip(map(int, orders), amplitudes, phases, strict=True))[: 4 if spiculated < 0.4 else 2]
    return Nodule(u, v, radius, elongation, angle, power, contrast, waves)


def _to_trunk(view: View, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Converts film positions to positions in the upright, centred trunk."""
    v = (v - 0.5 - view.dv) / view.scale + 0.5
    return (u - 0.5 - view.du) / view.scale + 0.5 - view.lean * (v - 0.5), v


def _step(distance: np.ndarray, soft: float) -> np.ndarray:
    """Returns a smooth step from 0 to 1 at distance 0, which extends 1.5 * soft to either side."""
    t = np.clip(distance * (1 / (3 * soft)) + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def _lungs(anatomy: Anatomy, u: np.ndarray, v: np.ndarray, soft: float) -> np.ndarray:
    """Returns 1 inside the lungs and 0 outside; the heart counts as outside."""
    x = np.abs(u - 0.5) / anatomy.width
    heights = (0.05, 0.16, 0.22, 0.32, 0.45, 0.60, 0.75, 0.90)
    outer = np.interp(v, heights, (0.17, 0.215, 0.25, 0.295, 0.33, 0.355, 0.37, 0.37))
    apex = anatomy.apex + 5.0 * (x - 0.13) ** 2
    dome = np.where(u < 0.5, *anatomy.domes) + 3.2 * (x - 0.17) ** 2
    edges = np.minimum(np.minimum(outer - x, x - 0.055), np.minimum(v - apex, dome - v))
    heart_u, heart_v, a, b = anatomy.heart
    tilted = u - heart_u + 0.25 * (heart_v - v)
    outside = (np.sqrt((tilted / a) ** 2 + ((v - heart_v) / b) ** 2) - 1) * b
    return _step(np.minimum(edges, outside), max(soft, 0.012))


def _density(anatomy: Anatomy, u: np.ndarray, v: np.ndarray, pixel: float) -> np.ndarray:
    """Returns the trunk's density [..] without nodules at positions u, v, for pixels of width `pixel`."""
    x = np.abs(u - 0.5) / anatomy.width
    heights = (-0.1, 0.03, 0.08, 0.14, 0.22, 0.32, 0.45, 1.1)
    trunk = _step(
        np.interp(v, heights, (0.10, 0.11, 0.20, 0.36, 0.47, 0.46, 0.435, 0.42)) - x, max(0.012, pixel)
    )
    lungs = _lungs(anatomy, u, v, pixel)
    belly = _step(v - np.where(u < 0.5, *anatomy.domes) - 0.02, 0.05)
    density = anatomy.tissue * trunk * (1.0 + 0.25 * belly - 0.25 * (x / 0.42) ** 2)
    density -= lungs * (0.62 * anatomy.tissue - anatomy.breasts * _breasts(x, v))
    density += _mediastinum(u, v, x) * (1 - 0.5 * lungs) * trunk
    density += _bones(anatomy, u, v, x, pixel) * trunk
    density += _vessels(anatomy, u, v, pixel) * lungs
    for one in anatomy.lookalikes:
        density += one.profile(u, v, pixel) * trunk
    grid = np.stack([v, u]) * (len(anatomy.clutter) - 1)
    texture = ndimage.map_coordinates(anatomy.clutter, grid, order=1, mode="nearest")
    return density + CLUTTER * texture * trunk


def _breasts(x: np.ndarray, v: np.ndarray) -> np.ndarray:
    distance = np.sqrt(((x - 0.22) / 0.17) ** 2 + ((v - 0.66) / 0.15) ** 2)
    return _step(1 - distance, 0.12)


def _mediastinum(u: np.ndarray, v: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Returns the density of the great vessels, the spine with its discs, and the dark windpipe."""
    spine = _step(0.04 - x, 0.012) * (0.13 + 0.03 * np.cos(2 * np.pi * v / 0.062))
    knob = np.exp(-(((u - 0.555) / 0.035) ** 2) - ((v - 0.31) / 0.05) ** 2)
    hilum = np.exp(-(((x - 0.085) / 0.03) ** 2) - ((v - 0.46) / 0.06) ** 2)
    windpipe = _step(0.016 - x, 0.008) * _step(0.36 - v, 0.02)
    return spine + 0.35 * knob + 0.22 * hilum - 0.22 * windpipe + 0.12 * _step(0.06 - x, 0.015)


def _bones(anatomy: Anatomy, u: np.ndarray, v: np.ndarray, x: np.ndarray, pixel: float) -> np.ndarray:
    """Returns the density of the back and front parts of the ribs and of the collar bones."""
    ribs = np.zeros_like(u)
    cage = _step(0.40 - x, 0.02)
    lines = (
        (v - anatomy.slope[0] * x - 1.1 * (x - 0.16) ** 2 - 0.04, 0.0125, 1.0, _step(x - 0.035, 0.01)),
        (v + anatomy.slope[1] * (x - 0.2) - 0.01, 0.0155, 0.55, _step(x - 0.15, 0.035)),
    )
    for part, (line, half, strength, reach) in enumerate(lines):
        number = np.rint(line / anatomy.spacing)
        thickness = half * anatomy.rib_jitter[part, number.astype(int) % 64]
        away = np.abs(line - number * anatomy.spacing)
        band = _step(thickness - away, max(0.003, 0.6 * pixel))
        rim = (
            0.6 + 0.4 * np.minimum(away / thickness, 1.0) ** 2
        )  # the hard outer layer is denser than the marrow
        ribs += strength * reach * band * rim * _step(number - 0.5, 0.1) * _step(10.5 - number, 0.1)
    course = 0.185 - 0.22 * x + 0.05 * np.sin(14 * x)
    collar = _step(0.015 - np.abs(v - course), max(0.004, 0.6 * pixel)) * _step(x - 0.035, 0.01)
    return anatomy.rib_density * (ribs * cage + 1.5 * collar * _step(0.40 - x, 0.01))


def _vessels(anatomy: Anatomy, u: np.ndarray, v: np.ndarray, pixel: float) -> np.ndarray:
    """Returns the density of all vessels, each computed in a square window [w, w] around its middle."""
    size, reach = len(u), 2.2
    u0, v0, u1, v1, half, peak, power = anatomy.vessels.T[:, :, None, None]
    wide = np.maximum(half, 0.6 * pixel)  # a vessel thinner than a pixel gets wider and fainter
    longest = np.maximum(np.abs(u1 - u0), np.abs(v1 - v0)) / 2
    extent = int(np.ceil((longest + reach * wide).max() / pixel)) + 2  # 2: the trunk is tilted on the film
    row = np.searchsorted(v[:, 0], ((v0 + v1) / 2).ravel())[:, None] + np.arange(-extent, extent)
    column = np.searchsorted(u[size // 2], ((u0 + u1) / 2).ravel())[:, None] + np.arange(-extent, extent)
    row, column = np.clip(row, 0, size - 1)[:, :, None], np.clip(column, 0, size - 1)[:, None, :]
    uu, vv = u[row, column] - u0, v[row, column] - v0
    du, dv = u1 - u0, v1 - v0
    along = np.clip((uu * du + vv * dv) / (du * du + dv * dv + 1e-12), 0, 1)
    away = ((uu - along * du) ** 2 + (vv - along * dv) ** 2) / (wide * wide)
    density = np.zeros(u.size)
    values = peak * (half / wide) * np.exp(-(away**power))
    np.maximum.at(density, (row * size + column).ravel(), values.ravel())
    return density.reshape(u.shape)


def _expose(view: View, density: np.ndarray) -> np.ndarray:
    """Converts density [S, S] to grey values in [0, 1] with the film's noise."""
    light = 1.0 - np.exp(-1.25 * view.exposure * np.maximum(density, 0.0))
    grey = 0.5 + view.contrast * (1.12 * light - 0.5)
    noise = np.random.default_rng(view.grain_seed).standard_normal(density.shape)
    return np.clip(grey + view.grain * _unit(ndimage.gaussian_filter(noise, 0.6)), 0.0, 1.0)


def _unit(noise: np.ndarray) -> np.ndarray:
    return noise / noise.std()

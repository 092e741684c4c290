"""The bank of surface textures: seamless images with structure at every scale, kept with their mip levels."""

from functools import cache

import numpy as np
from jaxtyping import Float, UInt8

SIZE = 512
"""Texels along an edge of level 0; a power of two, and every texture repeats without a seam."""
LEVELS = 10

ASPHALT, PAVERS, GRASS, BRICK, OFFICE, PLASTER, FOLIAGE, BARK = range(8)
PAINT, GLASS, RUBBER, CLOTH, METAL, ROOF, CONCRETE, SIGN = range(8, 16)
COUNT = 16

METRES_PER_TEXEL = np.array(
    [0.02, 0.02, 0.015, 0.025, 0.025, 0.025, 0.012, 0.006, 0.01, 0.008, 0.004, 0.003, 0.008, 0.02, 0.015, 0.01]
)
REFLECTIVITY = np.array(
    [0.12, 0.25, 0.30, 0.35, 0.30, 0.45, 0.40, 0.25, 0.50, 0.08, 0.05, 0.30, 0.60, 0.15, 0.35, 0.80]
)
"""LiDAR reflectivity of each texture's material, 0..1."""

LEVEL_OFFSETS = np.cumsum([0, *[(SIZE >> level) ** 2 for level in range(LEVELS)]])


def _spectral(rng: np.random.Generator, slope: float, aspect: float = 1.0) -> Float[np.ndarray, "size size"]:
    """Seamless noise of unit variance whose amplitude falls as frequency to the power -`slope`."""
    white = np.fft.rfft2(rng.standard_normal((SIZE, SIZE)))
    fy = np.fft.fftfreq(SIZE)[:, None] * aspect
    fx = np.fft.rfftfreq(SIZE)[None, :]
    radius = np.hypot(fx, fy)
    radius[0, 0] = 1.0
    white /= radius**slope
    white[0, 0] = 0.0
    noise = np.fft.irfft2(white, s=(SIZE, SIZE))
    return noise / noise.std()


def _tint(grey: np.ndarray, rgb: tuple[float, float, float]) -> np.ndarray:
    return grey[..., None] * np.array(rgb)


def _cells(rng: np.random.Generator, width: int, height: int, stagger: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Per-texel random value of the rectangle it lies in, and distance (texels) to that rectangle's edge."""
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    row = y // height
    shifted = (x + (row % 2) * (width // 2 if stagger else 0)) % SIZE
    column = shifted // width
    values = rng.random((SIZE // height, SIZE // width))
    edge = np.minimum(
        np.minimum(shifted % width, width - 1 - shifted % width), np.minimum(y % height, height - 1 - y % height)
    )
    return values[row % values.shape[0], column % values.shape[1]], edge


def _windows(rng: np.random.Generator, wall: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """Windows of 128-texel bays over `wall` (size, size, 3); box = left, right, bottom, top inside a bay."""
    out = wall.copy()
    left, right, bottom, top = box
    for row in range(SIZE // 128):
        for column in range(SIZE // 128):
            y0, x0 = row * 128, column * 128
            shade = 0.12 + 0.3 * rng.random() ** 2
            frame = 0.85 if rng.random() < 0.7 else 0.3
            out[y0 + bottom - 5 : y0 + top + 5, x0 + left - 5 : x0 + right + 5] = frame
            pane = np.linspace(shade, shade + 0.25 * rng.random(), top - bottom)[:, None, None]
            pane = pane * np.array([0.85, 0.95, 1.1]) * np.ones((1, right - left, 1))
            if rng.random() < 0.5:
                curtain = int((right - left) * rng.uniform(0.2, 0.5))
                pane[:, :curtain] = rng.uniform(0.4, 0.9, 3)
            pane[:, (right - left) // 2 - 2 : (right - left) // 2 + 2] = frame
            out[y0 + bottom : y0 + top, x0 + left : x0 + right] = pane
    return out


def _ground(rng: np.random.Generator) -> dict[int, np.ndarray]:
    rough, fine = _spectral(rng, 1.0), _spectral(rng, 0.3)
    patches = np.clip(_spectral(rng, 1.6) * 1.5, -1, 1)
    cracks = np.exp(-(((_spectral(rng, 1.5)) / 0.02) ** 2))
    asphalt = 0.36 + 0.05 * rough + 0.05 * fine + 0.05 * patches - 0.12 * cracks
    value, edge = _cells(rng, 32, 32)
    pavers = 0.62 + 0.16 * (value - 0.5) + 0.04 * rough + 0.03 * fine - 0.2 * (edge < 1)
    blades = 0.5 + 0.17 * _spectral(rng, 0.8) + 0.1 * fine
    dry = np.clip(0.5 + 0.5 * _spectral(rng, 1.8), 0, 1)[..., None]
    grass = blades[..., None] * ((1 - dry) * np.array([0.55, 0.95, 0.35]) + dry * np.array([0.95, 0.9, 0.5]))
    return {ASPHALT: _tint(asphalt, (1, 1, 1.03)), PAVERS: _tint(pavers, (1, 0.97, 0.92)), GRASS: grass}


def _facades(rng: np.random.Generator) -> dict[int, np.ndarray]:
    fine = _spectral(rng, 0.6)
    value, edge = _cells(rng, 16, 8, stagger=True)
    brick = _tint(0.75 + 0.3 * (value - 0.5) + 0.05 * fine, (1, 1, 1))
    brick[edge < 1] = 0.85
    stain = 0.06 * _spectral(rng, 1.5)
    plaster = _tint(0.82 + 0.05 * fine + stain, (1, 1, 1))
    office = _tint(0.7 + 0.04 * fine + stain, (1, 1, 1))
    bays, bay_edge = _cells(rng, 64, 128)
    office = office * (0.85 + 0.3 * bays[..., None]) - 0.25 * (bay_edge < 2)[..., None]
    return {
        BRICK: _windows(rng, brick, (36, 92, 30, 98)),
        OFFICE: _windows(rng, office, (10, 118, 36, 104)),
        PLASTER: _windows(rng, plaster, (44, 84, 24, 100)),
    }


def _plants(rng: np.random.Generator) -> dict[int, np.ndarray]:
    leaves = 0.5 + 0.16 * _spectral(rng, 0.9) + 0.14 * _spectral(rng, 0.4)
    holes = np.clip(_spectral(rng, 1.2), 0, None)
    foliage = np.clip(leaves - 0.12 * holes, 0.08, 1)
    bark = 0.5 + 0.15 * _spectral(rng, 0.9, aspect=5.0) + 0.06 * _spectral(rng, 0.4)
    return {FOLIAGE: _tint(foliage, (0.75, 1.0, 0.5)), BARK: _tint(bark, (1.0, 0.85, 0.7))}


def _vehicles(rng: np.random.Generator) -> dict[int, np.ndarray]:
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    dirt = 0.03 * _spectral(rng, 1.0) + 0.015 * _spectral(rng, 0.4)
    paint = 0.78 + 0.2 * y + dirt
    for seam in (0.06, 0.3, 0.55, 0.78, 0.94):
        paint = paint - 0.45 * (np.abs(x - seam) < 0.004)
    paint = paint - 0.35 * (np.abs(y - 0.12) < 0.03) + 0.2 * (np.abs(y - 0.62) < 0.012)
    for handle in (0.34, 0.59):
        paint = paint - 0.5 * ((np.abs(x - handle) < 0.02) & (np.abs(y - 0.7) < 0.02))
    glass = 0.2 + 0.35 * np.clip(y + 0.4 * np.sin(6 * x) - 0.5, 0, 1) + 0.5 * dirt
    pillars = (np.abs(x - 0.5) < 0.025) | (x < 0.03) | (x > 0.97) | (y < 0.06) | (y > 0.93)
    glass = np.where(pillars, 0.05, glass)
    rubber = 0.16 + 0.05 * _spectral(rng, 0.6)
    return {PAINT: _tint(paint, (1, 1, 1)), GLASS: _tint(glass, (0.9, 1, 1.1)), RUBBER: _tint(rubber, (1, 1, 1))}


def _stuff(rng: np.random.Generator) -> dict[int, np.ndarray]:
    fine, soft = _spectral(rng, 0.5), _spectral(rng, 1.1)
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    cloth = 0.7 + 0.12 * np.sign(np.sin(2 * np.pi * y / 64)) + 0.08 * np.sign(np.sin(2 * np.pi * x / 128)) + 0.08 * soft
    metal = 0.7 + 0.06 * soft + 0.04 * fine
    value, edge = _cells(rng, 32, 16, stagger=True)
    roof = 0.45 + 0.2 * (value - 0.5) + 0.05 * fine - 0.15 * (edge < 1)
    concrete = 0.6 + 0.07 * soft + 0.05 * fine
    panel, panel_edge = _cells(rng, 128, 128)
    hue, _ = _cells(rng, 64, 32)
    angle = 2 * np.pi * np.stack([hue, hue + 1 / 3, hue + 2 / 3], axis=-1)
    sign = 0.55 + 0.4 * np.cos(angle) * (panel[..., None] > 0.3) + 0.05 * fine[..., None]
    sign = np.where((panel_edge < 3)[..., None], 0.9, sign)
    return {
        CLOTH: _tint(cloth, (1, 1, 1)),
        METAL: _tint(metal, (1, 1, 1)),
        ROOF: _tint(roof, (1, 1, 1)),
        CONCRETE: _tint(concrete, (1, 1, 0.97)),
        SIGN: sign,
    }


def _mip_levels(image: np.ndarray) -> UInt8[np.ndarray, "texels 3"]:
    """All levels of one texture, flattened one after the other; each is the box average of the one before."""
    levels = []
    level = image
    for _ in range(LEVELS):
        levels.append(level.reshape(-1, 3))
        half = level.shape[0] // 2
        if half:
            level = level.reshape(half, 2, half, 2, 3).mean(axis=(1, 3))
    return np.clip(np.concatenate(levels) * 255 + 0.5, 0, 255).astype(np.uint8)


@cache
def texture_bank() -> UInt8[np.ndarray, "textures texels 3"]:
    """All textures with their mip levels, RGB reflectance in display space; the same in every log.

    Texture k's level l starts at texel LEVEL_OFFSETS[l] and is (SIZE >> l) texels on an edge, rows along v.
    """
    rng = np.random.default_rng(20240)
    images = _ground(rng) | _facades(rng) | _plants(rng) | _vehicles(rng) | _stuff(rng)
    bank = np.stack([_mip_levels(np.clip(images[k], 0.02, 1)) for k in range(COUNT)])
    bank.flags.writeable = False
    return bank

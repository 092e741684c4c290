"""The texture bank: no seams, mip levels that are means, structure at every scale; and its filtered look-up."""

import numpy as np
import pytest

from pipelines.synth import textures as tex
from pipelines.synth.shading import sample_texture


def level(texture: int, number: int) -> np.ndarray:
    """RGB (n, n, 3) 0..255 of one mip level."""
    begin, end = tex.LEVEL_OFFSETS[number : number + 2]
    size = tex.SIZE >> number
    return tex.texture_bank()[texture, begin:end].reshape(size, size, 3).astype(float)


@pytest.mark.parametrize("texture", range(tex.COUNT))
def test_mip_levels_are_means_of_the_finest(texture: int) -> None:
    finest = level(texture, 0)
    for number in (1, 3, 6, 9):
        n = tex.SIZE >> number
        means = finest.reshape(n, 1 << number, n, 1 << number, 3).mean(axis=(1, 3))
        # Both ends are rounded to bytes.
        np.testing.assert_allclose(level(texture, number), means, atol=1.0)


@pytest.mark.parametrize("texture", [tex.ASPHALT, tex.GRASS, tex.PLASTER, tex.FOLIAGE, tex.CONCRETE, tex.PAVERS])
def test_no_seam_where_a_texture_repeats(texture: int) -> None:
    """Neighbours across the border differ no more than neighbours elsewhere do."""
    image = level(texture, 0)
    for axis in (0, 1):
        steps = np.abs(np.diff(image, axis=axis, append=image.take([0], axis=axis))).mean(axis=(1 - axis, 2))
        assert steps[-1] <= max(1.3 * np.quantile(steps, 0.9), steps[:-1].max())


@pytest.mark.parametrize("texture", [tex.ASPHALT, tex.GRASS, tex.BRICK, tex.PLASTER, tex.FOLIAGE, tex.ROOF])
def test_every_scale_has_structure(texture: int) -> None:
    """A photometric match needs contrast at the resolution at hand: each of the finer levels varies."""
    for number in range(6):
        assert level(texture, number).mean(axis=2).std() > 1.5


def test_lookup_is_periodic_and_hits_texel_centres() -> None:
    bank = tex.texture_bank()
    size = float(tex.SIZE)
    image = level(tex.BRICK, 0) / 255
    found = sample_texture(bank, tex.BRICK, 20.5, 33.5, 1e-3, 0.0, 0.0, 1e-3, False)
    np.testing.assert_allclose(found, image[33, 20], atol=1e-9)
    for du, dv in ((size, 0.0), (0.0, -size), (3 * size, 2 * size)):
        again = sample_texture(bank, tex.BRICK, 20.5 + du, 33.5 + dv, 1e-3, 0.0, 0.0, 1e-3, False)
        np.testing.assert_allclose(again, found, atol=1e-9)


def test_a_footprint_averages_what_it_covers() -> None:
    """A square footprint of 16 texels gives about the mean of these texels, a long one the mean along it."""
    bank, image = tex.texture_bank(), level(tex.ASPHALT, 0) / 255
    square, long = [], []
    for k in range(40):
        u, v = 64.0 + 8 * k, 200.0 + 4 * k
        a, b = int(u), int(v)
        square.append(
            sample_texture(bank, tex.ASPHALT, u, v, 16.0, 0.0, 0.0, 16.0, False)[0]
            - image[b - 8 : b + 8, a - 8 : a + 8, 0].mean()
        )
        long.append(
            sample_texture(bank, tex.ASPHALT, u, v, 16.0, 0.0, 0.0, 4.0, False)[0]
            - image[b - 2 : b + 2, a - 8 : a + 8, 0].mean()
        )
    spread = image[..., 0].std()
    assert np.abs(np.mean(square)) < 0.01
    assert np.std(square) < 0.35 * spread
    assert np.std(long) < 0.35 * spread

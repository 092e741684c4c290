"""SemanticKITTI's raw label numbers for the things of the synthetic world."""

from dataclasses import replace

import numpy as np
from jaxtyping import UInt8, UInt16

from pipelines.synth import textures as tex
from pipelines.synth.models import BICYCLE, BUS, CAR, MOTORCYCLE, PEDESTRIAN, TRUCK, Actor
from pipelines.synth.shapes import CLASS, HX, TEXTURE, Primitives
from pipelines.synth.world import World

# Numbers of the data set's documentation. Two-wheelers carry a rider here, so they are bicyclists and motorcyclists.
BUILDING, OTHER_OBJECT, VEGETATION, TRUNK, POLE, SIGN = 50, 99, 70, 71, 80, 81
_ACTORS = {CAR: 10, BUS: 13, TRUCK: 18, PEDESTRIAN: 30, BICYCLE: 31, MOTORCYCLE: 32}
_GROUND = {10: 40, 11: 49, 12: 48, 13: 72}
"""From the ground's occupancy class: road, other ground, sidewalk, terrain."""
_MOVING = {10: 252, 31: 253, 30: 254, 32: 255, 13: 257, 18: 258}

_FIRST_CODE = 32
_CODED = (BUILDING, OTHER_OBJECT, VEGETATION, TRUNK, POLE, SIGN, *_ACTORS.values())


def _raw_of_code() -> UInt16[np.ndarray, " 256"]:
    table = np.zeros(256, np.uint16)
    for semantic, raw in _GROUND.items():
        table[semantic] = raw
    table[_FIRST_CODE : _FIRST_CODE + len(_CODED)] = _CODED
    return table


RAW_OF_CODE = _raw_of_code()
"""Raw label of each class in a world that `coded` made; 0 (unlabelled, free) for free voxels."""


def _moving_table() -> UInt16[np.ndarray, " 512"]:
    table = np.arange(512, dtype=np.uint16)
    table[list(_MOVING)] = list(_MOVING.values())
    return table


MOVING_OF_RAW = _moving_table()
"""Raw label of the same kind of thing on the move."""


def _code(raw: int) -> int:
    return _FIRST_CODE + _CODED.index(raw)


def _static_codes(static: Primitives) -> UInt8[np.ndarray, " n"]:
    """By material and size: what is thin and of metal is a pole, wider metal a bin, a wide sign a hoarding."""
    texture, wide = static[:, TEXTURE].astype(int), static[:, HX] > 0.2
    codes = np.full(len(static), _code(BUILDING), np.uint8)
    codes[texture == tex.FOLIAGE] = _code(VEGETATION)
    codes[texture == tex.BARK] = _code(TRUNK)
    codes[texture == tex.METAL] = _code(POLE)
    codes[texture == tex.SIGN] = _code(SIGN)
    bins = (texture == tex.METAL) & wide & (static[:, 3] < 1.0)
    codes[bins | ((texture == tex.SIGN) & wide)] = _code(OTHER_OBJECT)
    return codes


def coded(world: World) -> World:
    """The same world whose primitives' CLASS tells SemanticKITTI's classes apart, to be read by RAW_OF_CODE."""
    static = world.city.static.copy()
    static[:, CLASS] = _static_codes(static)
    actors = [_coded_actor(actor) for actor in world.actors]
    return replace(world, city=replace(world.city, static=static), actors=actors)


def _coded_actor(actor: Actor) -> Actor:
    primitives = actor.model.primitives.copy()
    primitives[:, CLASS] = _code(_ACTORS[actor.model.semantic])
    return replace(actor, model=replace(actor.model, primitives=primitives))

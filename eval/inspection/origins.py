"""Where the labels of the sampled keyframes come from: cue, licence, weights and code by their commit records."""

from collections import Counter
from typing import Any

from eval.inspection.views import Keyframe
from storage.commit import CommitRecord
from storage.layout import UnitId
from storage.schema import CUES


class Origins:
    """Collects the provenance of every unit that is met, each once; keyframes come scene by scene."""

    def __init__(self) -> None:
        self._scene = ""
        self._met: set[UnitId] = set()
        self._configurations: dict[tuple[str, ...], Counter[str]] = {}
        self._own_car: Counter[str] = Counter()

    def add(self, keyframe: Keyframe) -> None:
        """Look at the units that hold this keyframe."""
        scene = keyframe.scene
        if scene.name != self._scene:
            self._scene, self._met = scene.name, set()
        for cue in CUES:
            unit = scene.unit(cue, keyframe.t)
            if unit not in self._met and scene.has(cue, keyframe.t):
                self._met.add(unit)
                self._note(cue, scene.record(cue, keyframe.t))

    def _note(self, cue: str, record: CommitRecord) -> None:
        origin = record.provenance
        row = (cue, origin.licence, origin.weights_digest, origin.code_version)
        self._configurations.setdefault(row, Counter())[origin.config_digest] += 1
        if cue == "lidar":
            for key in ("points", "own_car_removed"):
                count = origin.quality.get(key, 0)
                self._own_car[key] += count if isinstance(count, int) else 0

    def rows(self) -> list[dict[str, Any]]:
        """A row per cue, licence, weights and code version, and how many units and different configurations (a scene's
        sizes are part of one) it stands for."""
        keys = ("cue", "licence", "weights_digest", "code_version")
        return [
            {
                **dict(zip(keys, row, strict=True)),
                "units": found.total(),
                "configurations": len(found),
                "config_digest": next(iter(found)) if len(found) == 1 else "",
            }
            for row, found in sorted(self._configurations.items())
        ]

    def own_car_share(self) -> float | None:
        """Share of LiDAR returns that extraction took for the own car's; None where its records do not say."""
        removed, kept = self._own_car["own_car_removed"], self._own_car["points"]
        return removed / (removed + kept) if removed + kept else None

"""What a synthetic log looks like: its size, its sensors, its traffic, its difficulty; all of it seeded."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from pipelines.synth.rig import NUSCENES_CAMERAS

Manoeuvre = Literal["straight", "turn_left", "turn_right", "stop", "follow"]


class Difficulty(BaseModel):
    """Numbers that the presets set; every one may be overridden in `SynthConfig.difficulty`."""

    model_config = ConfigDict(extra="forbid")

    moving_vehicles: tuple[int, int] = (8, 12)
    """Fewest and most moving cars, trucks, buses, cyclists wanted near the ego path (fewer where there is no room)."""
    pedestrians: tuple[int, int] = (4, 8)
    parked_share: float = Field(default=0.45, ge=0, le=1)
    """Share of kerb-side parking places that are taken."""
    noise: float = Field(default=0.004, ge=0, allow_inf_nan=False)
    """Standard deviation of image noise at mid grey, as a share of full scale."""
    exposure: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Largest relative gain change of a camera over a scene, and between cameras."""
    lidar_noise_m: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    lidar_dropout: float = Field(default=0.0, ge=0, lt=1)
    tilt_deg: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Amplitude of the ego car's pitch and roll."""
    texture_contrast: float = Field(default=1.0, gt=0, le=1)

    @field_validator("moving_vehicles", "pedestrians")
    @classmethod
    def _fewest_and_most(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 0 <= value[0] <= value[1]:
            raise ValueError("expected fewest and most, neither below 0 and the first not above the second")
        return value


PRESETS: dict[str, Difficulty] = {
    "easy": Difficulty(),
    "hard": Difficulty(
        moving_vehicles=(14, 20),
        pedestrians=(8, 16),
        parked_share=0.65,
        noise=0.015,
        exposure=0.15,
        lidar_noise_m=0.02,
        lidar_dropout=0.05,
        tilt_deg=0.6,
        texture_contrast=0.6,
    ),
}


class SynthConfig(BaseModel):
    """Everything that decides the bytes of a synthetic log.

    Sizes are pixels; the cameras' intrinsics scale with `width`. A scene depends on `seed` and its own index only:
    neither on the number of scenes nor on the number of threads.
    """

    model_config = ConfigDict(extra="forbid")

    preset: Literal["easy", "hard"] = "easy"
    seed: int = Field(default=0, ge=0)
    scenes: int = Field(default=3, ge=1)
    val_scenes: int | None = Field(default=None, ge=0)
    """The last so many scenes are listed as `val` in splits.json; by default a quarter, at least one of two."""
    keyframes: int = Field(default=10, ge=2)
    """Per scene: 2 Hz in nuScenes' layout, every frame (9.64 Hz) in KITTI's."""
    width: int = Field(default=352, ge=32)
    height: int = Field(default=198, ge=18)
    """By default 352 x 198; in KITTI's layouts 416 x 128, or KITTI's aspect for another width."""
    cameras: tuple[str, ...] = NUSCENES_CAMERAS
    """By default all that the layout has: nuScenes' six, KITTI-MOT's stereo pair. SemanticKITTI has one."""
    manoeuvres: tuple[Manoeuvre, ...] = Field(
        default=("straight", "turn_left", "stop", "turn_right", "follow"), min_length=1
    )
    """The ego car's manoeuvre, taken in turn by scene index."""
    truth: bool = True
    lidar_beams: int = Field(default=32, ge=1)
    """In KITTI's layouts 64 by default."""
    lidar_azimuths: int = Field(default=1084, ge=8)
    jpeg_quality: int = Field(default=93, ge=1, le=100)
    difficulty: Difficulty | None = None
    """Overrides the preset's numbers as a whole."""
    threads: int | None = Field(default=None, ge=1)
    """Rendering threads; all cores by default. Does not change a byte of the output."""

    @property
    def level(self) -> Difficulty:
        """The numbers in force."""
        return self.difficulty if self.difficulty is not None else PRESETS[self.preset]

    @property
    def validation_count(self) -> int:
        """How many scenes, the last ones, are for validation."""
        if self.val_scenes is not None:
            return min(self.val_scenes, self.scenes)
        return 0 if self.scenes == 1 else max(1, self.scenes // 4)

"""The three published shapes of the flow network, and what images each takes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """Everything that shapes the network; weights fit one shape only.

    Attributes:
        name: as the released files are named.
        scales: matching at 1/8 of the image, or at 1/8 and then 1/4.
        splits: windows per side that attention is split into, by scale.
        refinements: regression steps after the last matching.
        widths, channels, layers: of the encoder's stages, of the features, of the transformer. The published ones are
            the defaults; smaller ones are for tests and trials, and have no published weights.
    """

    name: str
    scales: int
    splits: tuple[int, ...]
    refinements: int = 0
    widths: tuple[int, int, int] = (64, 96, 128)
    channels: int = 128
    layers: int = 6

    def __post_init__(self) -> None:
        if len(self.splits) != self.scales or self.scales not in (1, 2):
            raise ValueError(
                f"variant {self.name}: scales {self.scales} with splits {self.splits}; one per scale, 1 or 2"
            )
        if self.channels % 4:
            raise ValueError(f"variant {self.name}: channels {self.channels} must be a multiple of 4 (sines of 2 axes)")

    @property
    def upsampling(self) -> int:
        """From the resolution of the last features to the image's."""
        return 8 if self.scales == 1 else 4

    @property
    def multiple(self) -> int:
        """Both sides of an image must be multiples of this: 16 at scale 1, 32 at scale 2, for the published splits."""
        return max(8 // 2**scale * splits for scale, splits in enumerate(self.splits))


SCALE1 = Variant("gmflow-scale1", scales=1, splits=(2,))
SCALE2 = Variant("gmflow-scale2", scales=2, splits=(2, 8))
SCALE2_REFINE6 = Variant("gmflow-scale2-regrefine6", scales=2, splits=(2, 8), refinements=6)
VARIANTS = {variant.name: variant for variant in (SCALE1, SCALE2, SCALE2_REFINE6)}

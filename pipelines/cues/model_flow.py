"""What flow cues made by a network have in common: slot, device, and weights that are known by their content."""

from pipelines.weights import locate, weights_digest


class ModelFlow:
    """Base of such cues; they declare the three fields."""

    slot: str
    weights: str
    device: str

    @property
    def name(self) -> str:
        """The cue's name, by its slot: flow_next, flow_prev or flow_aux."""
        return f"flow_{self.slot}"

    @property
    def needs_gpu(self) -> bool:
        """Whether a GPU was asked for by name."""
        return self.device.startswith("cuda")

    @property
    def weights_digest(self) -> str:
        """SHA-256 of the checkpoint."""
        return weights_digest(locate(self.weights))

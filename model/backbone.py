"""ConvNeXt image backbone with the parameter names of the official files, and their loader."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from model.config import BackboneConfig

STRIDES = (4, 8, 16, 32)
"""Pixels per cell of the four levels."""


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W). In channels-last memory the two permutations are free."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Normalise each pixel."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class DropPath(nn.Module):
    """Drops the residual branch of whole samples while training (stochastic depth)."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Zero or rescale each sample of x (B, ...)."""
        if not self.training or self.probability == 0:
            return x
        keep = 1 - self.probability
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        return x * x.new_empty(shape).bernoulli_(keep) / keep


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, LayerNorm, two pointwise layers with GELU, LayerScale, residual."""

    def __init__(self, dim: int, drop_path: float, layer_scale: float) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), layer_scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Same shape out as in."""
        y = self.dwconv(x).permute(0, 2, 3, 1)
        y = _normalise_rows(y, self.norm.eps)
        # The norm's scale and shift and LayerScale are parts of the products: scaling a small matrix in place of the
        # features saves passes over them and over their gradient.
        wide, narrow = self.pwconv1, self.pwconv2
        y = F.linear(y, wide.weight * self.norm.weight, wide.bias + (wide.weight * self.norm.bias).sum(dim=1))
        y = F.linear(F.gelu(y), self.gamma[:, None] * narrow.weight, self.gamma * narrow.bias)
        return x + self.drop_path(y.permute(0, 3, 1, 2))


def _normalise_rows(x: Float[Tensor, "*rows c"], eps: float) -> Float[Tensor, "*rows c"]:
    """Each row to zero mean and unit deviation, in the precision that it comes in.

    Autocast would answer half precision in float32, only to be rounded for the product; sums are in float32 anyway.
    """
    if x.dtype == torch.float32:
        return F.layer_norm(x, x.shape[-1:], eps=eps)
    with torch.autocast(x.device.type, enabled=False):
        return F.layer_norm(x, x.shape[-1:], eps=eps)


class ConvNeXt(nn.Module):
    """Four levels at strides 4, 8, 16, 32, each with its own output LayerNorm (ConvNeXt, CVPR 2022)."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        dims, depths = config.dims, config.depths
        stem = nn.Sequential(nn.Conv2d(3, dims[0], kernel_size=4, stride=4), LayerNorm2d(dims[0], eps=1e-6))
        self.downsample_layers = nn.ModuleList([stem])
        for before, after in pairwise(dims):
            self.downsample_layers.append(
                nn.Sequential(LayerNorm2d(before, eps=1e-6), nn.Conv2d(before, after, kernel_size=2, stride=2))
            )
        rates = torch.linspace(0, config.drop_path, sum(depths), device="cpu").tolist()
        self.stages = nn.ModuleList()
        for dim, depth in zip(dims, depths, strict=True):
            blocks = [ConvNeXtBlock(dim, rates.pop(0), config.layer_scale) for _ in range(depth)]
            self.stages.append(nn.Sequential(*blocks))
        self.output_norms = nn.ModuleList(LayerNorm2d(dim, eps=1e-6) for dim in dims)
        self.apply(_init_weights)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> list[Float[Tensor, "n _c _h _w"]]:
        """Normalised images to features at strides 4, 8, 16, 32.

        The right and bottom borders are repeated up to a multiple of 32, and the features of the padding are cut off,
        so that level l covers the image exactly when its stride divides the image. Not zeros: the stem turns them into
        its bias, zero at first, and the gradient of a LayerNorm at zero is a thousand times (1 / sqrt(eps)) all others.
        """
        height, width = images.shape[-2:]
        x = F.pad(images, (0, -width % 32, 0, -height % 32), mode="replicate")
        x = x.contiguous(memory_format=torch.channels_last)
        levels = []
        for stride, down, stage, norm in zip(
            STRIDES, self.downsample_layers, self.stages, self.output_norms, strict=True
        ):
            x = stage(down(x))
            levels.append(norm(x)[..., : -(-height // stride), : -(-width // stride)])
        return levels


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@dataclass(frozen=True)
class WeightReport:
    """What a weight file gave, name by name."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    """Parameters of the backbone that the file lacks and that therefore keep their initial values."""
    unused: tuple[str, ...]
    """Entries of the file that the backbone has no place for (classifier head, decoder)."""


def load_official_weights(backbone: ConvNeXt, path: str | Path) -> WeightReport:
    """Load an official ConvNeXt file (ImageNet) or SparK's ("official style") into `backbone`.

    Both hold the names used here, under `model`, `module`, `state_dict` or at the top, perhaps behind a prefix. Read
    with `weights_only=True`: nothing in the file is executed.

    Raises:
        OSError: there is no such file, or it may not be read.
        ValueError: the file is no such checkpoint, is damaged, or holds another size of ConvNeXt: names the entry, both
            shapes and what to set.
    """
    entries = _official_entries(_read(Path(path)), str(path))
    own = backbone.state_dict()
    wrong = [name for name, value in entries.items() if name in own and value.shape != own[name].shape]
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{path}: {len(wrong)} entries have another shape than the configured backbone, first {name}: file "
            f"{tuple(entries[name].shape)}, configured {tuple(own[name].shape)}; set backbone.depths and backbone.dims "
            "to the size of the file (ConvNeXt-Base: depths 3 3 27 3, dims 128 256 512 1024)"
        )
    missing = tuple(name for name in own if name not in entries and not name.startswith("output_norms."))
    found, configured = _depths(entries), _depths(own)
    # Official sizes differ in depth alone (Small, Tiny): a part of a deeper file would fit without a word.
    if missing or found != configured:
        lacks = f"lacks {len(missing)} parameters of the configured backbone, first {missing[0]}; " if missing else ""
        why = "it is of another kind of ConvNeXt (V2?); take a file of version 1"
        if found != configured:
            why = f"has {found} blocks per stage, configured {configured}; set backbone.depths to the size of the file"
        raise ValueError(f"{path}: {lacks}{why}")
    loaded = {name: value for name, value in entries.items() if name in own}
    backbone.load_state_dict(loaded, strict=False)
    return WeightReport(
        loaded=tuple(loaded),
        missing=tuple(name for name in own if name not in entries),
        unused=tuple(name for name in entries if name not in own),
    )


def _depths(entries: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Blocks of each stage, by the names of parameters."""
    blocks = {tuple(name.split(".")[1:3]) for name in entries if name.startswith("stages.")}
    return tuple(sum(stage == str(i) for stage, _ in blocks) for i in range(len(STRIDES)))


def _read(path: Path) -> object:
    """What a PyTorch file holds. `torch.load` does not look at the checksums inside, so that is done before."""
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    try:
        if zipped:
            _check_members(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler raises nearly anything on damaged bytes
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{path}: cannot be read as a file of tensors ({reason}); download it again, or save its state_dict alone "
            "if it holds other objects"
        ) from error


def _check_members(path: Path) -> None:
    """Read all of a zip file once: zipfile raises where a checksum is wrong. 0 is that of a file written without."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.CRC:
                with archive.open(member) as file:
                    while file.read(1 << 20):
                        pass


_PREFIXES = ("module.", "backbone.", "encoder.", "sparse_encoder.", "sp_cnn.")


def _official_entries(content: object, path: str) -> dict[str, Tensor]:
    """The flat name -> tensor table of a checkpoint, without wrappers and prefixes."""
    while isinstance(content, Mapping):
        inner = next((key for key in ("model", "module", "state_dict") if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = content[inner]
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: expected a table of tensors, found {type(content).__name__}")
    entries = {}
    for name, value in content.items():
        if isinstance(name, str) and isinstance(value, Tensor):
            while name.startswith(_PREFIXES):
                name = name.split(".", 1)[1]
            entries[name] = value
    if "downsample_layers.0.0.weight" not in entries:
        raise ValueError(
            f"{path}: no entry downsample_layers.0.0.weight, so this is no ConvNeXt file in the official layout; "
            f"it starts with {list(entries)[:3]}"
        )
    return entries

"""ConvNeXt: sizes, published parameter counts, and loading of files in the official layout."""

from pathlib import Path

import pytest
import torch

from model.backbone import ConvNeXt, ConvNeXtBlock, DropPath, load_official_weights
from model.config import BackboneConfig
from model.fpn import FeaturePyramid

SMALL = BackboneConfig(depths=(1, 1, 2, 1), dims=(4, 6, 8, 10))


def _official_file(path: Path, config: BackboneConfig = SMALL, wrap: str | None = "model", prefix: str = "") -> dict:
    """A file as the authors publish it: random values, official names, classifier head, no output norms."""
    shapes: dict[str, tuple[int, ...]] = {}
    dims = config.dims
    shapes["downsample_layers.0.0.weight"] = (dims[0], 3, 4, 4)
    shapes["downsample_layers.0.0.bias"] = shapes["downsample_layers.0.1.weight"] = (dims[0],)
    shapes["downsample_layers.0.1.bias"] = (dims[0],)
    for i in range(1, 4):
        shapes[f"downsample_layers.{i}.0.weight"] = shapes[f"downsample_layers.{i}.0.bias"] = (dims[i - 1],)
        shapes[f"downsample_layers.{i}.1.weight"] = (dims[i], dims[i - 1], 2, 2)
        shapes[f"downsample_layers.{i}.1.bias"] = (dims[i],)
    for i, (depth, dim) in enumerate(zip(config.depths, dims, strict=True)):
        for j in range(depth):
            block = f"stages.{i}.{j}."
            shapes[block + "gamma"] = shapes[block + "dwconv.bias"] = shapes[block + "pwconv2.bias"] = (dim,)
            shapes[block + "norm.weight"] = shapes[block + "norm.bias"] = (dim,)
            shapes[block + "dwconv.weight"] = (dim, 1, 7, 7)
            shapes[block + "pwconv1.weight"], shapes[block + "pwconv1.bias"] = (4 * dim, dim), (4 * dim,)
            shapes[block + "pwconv2.weight"] = (dim, 4 * dim)
    shapes["norm.weight"] = shapes["norm.bias"] = (dims[3],)
    shapes["head.weight"], shapes["head.bias"] = (1000, dims[3]), (1000,)
    entries = {prefix + name: torch.randn(shape) for name, shape in shapes.items()}
    torch.save({wrap: entries} if wrap else entries, path)
    return entries


def test_a_block_is_what_the_paper_writes() -> None:
    """Norm, product, GELU, product, LayerScale one after the other, in float64: result and every gradient.

    The block has scales and shifts inside its products."""
    torch.manual_seed(0)
    block = ConvNeXtBlock(6, drop_path=0.0, layer_scale=0.3).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64, requires_grad=True)
    y = block.dwconv(x).permute(0, 2, 3, 1)
    y = block.gamma * block.pwconv2(torch.nn.functional.gelu(block.pwconv1(block.norm(y))))
    expected, found = x + y.permute(0, 3, 1, 2), block(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weight, leaves = torch.randn_like(x), [x, *block.parameters()]
    gradients, wanted = (torch.autograd.grad((out * weight).sum(), leaves) for out in (found, expected))
    for one, other in zip(gradients, wanted, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_convnext_base_has_the_published_size() -> None:
    with torch.device("meta"):
        backbone = ConvNeXt(BackboneConfig())
    own = sum(p.numel() for name, p in backbone.named_parameters() if not name.startswith("output_norms"))
    # 88,591,464 is the published model, with its final norm and 1000-class head, which we do not have.
    assert own == 88_591_464 - (1024 * 1000 + 1000) - 2 * 1024


def test_four_levels_cover_images_that_no_stride_divides() -> None:
    backbone, pyramid = ConvNeXt(SMALL), FeaturePyramid(SMALL.dims, 5)
    levels = pyramid(backbone(torch.randn(2, 3, 64, 176)))
    assert [tuple(x.shape) for x in levels] == [(2, 5, 16, 44), (2, 5, 8, 22), (2, 5, 4, 11), (2, 5, 2, 6)]


@pytest.mark.parametrize(("wrap", "prefix"), [("model", ""), ("module", "sparse_encoder.sp_cnn."), (None, "module.")])
def test_official_files_load_name_by_name(tmp_path: Path, wrap: str | None, prefix: str) -> None:
    entries = _official_file(tmp_path / "weights.pth", wrap=wrap, prefix=prefix)
    backbone = ConvNeXt(SMALL)
    report = load_official_weights(backbone, tmp_path / "weights.pth")
    own = backbone.state_dict()
    assert set(report.unused) == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert set(report.missing) == {name for name in own if name.startswith("output_norms.")}
    assert set(report.loaded) == set(own) - set(report.missing)
    for name in report.loaded:
        assert torch.equal(own[name], entries[prefix + name]), name


def test_wrong_files_are_refused_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    _official_file(path, BackboneConfig(depths=(1, 1, 2, 1), dims=(4, 6, 8, 12)))
    with pytest.raises(ValueError, match=r"weights\.pth.*another shape.*set backbone\.depths and backbone\.dims"):
        load_official_weights(ConvNeXt(SMALL), path)
    _official_file(path, BackboneConfig(depths=(1, 1, 1, 1), dims=SMALL.dims))
    with pytest.raises(ValueError, match=r"lacks 9 parameters.*stages\.2\.1"):
        load_official_weights(ConvNeXt(SMALL), path)
    _official_file(path, BackboneConfig(depths=(1, 1, 4, 1), dims=SMALL.dims))
    with pytest.raises(
        ValueError, match=r"weights\.pth: has \(1, 1, 4, 1\) blocks per stage, configured \(1, 1, 2, 1\)"
    ):
        load_official_weights(ConvNeXt(SMALL), path)
    second = {name: value for name, value in _official_file(path, wrap=None).items() if "gamma" not in name}
    torch.save(second, path)
    with pytest.raises(ValueError, match=r"lacks 5 parameters.*stages\.0\.0\.gamma; it is of another kind"):
        load_official_weights(ConvNeXt(SMALL), path)
    torch.save({"conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"no ConvNeXt file.*conv1\.weight"):
        load_official_weights(ConvNeXt(SMALL), path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="found list"):
        load_official_weights(ConvNeXt(SMALL), path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"weights\.pth.*cannot be read"):
        load_official_weights(ConvNeXt(SMALL), path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.3, 0.6, 0.9, 0.999])
def test_files_that_are_cut_off_are_named(tmp_path: Path, zipped: bool, share: float) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"model": _official_file(path)}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"weights\.pth: cannot be read .*download it again"):
        load_official_weights(ConvNeXt(SMALL), path)


def test_a_bit_that_flipped_inside_a_weight_is_found(tmp_path: Path) -> None:
    """The file's own checksums, which torch.load passes over; a file may be written without any."""
    path = tmp_path / "weights.pth"
    weights = _official_file(path)["stages.2.0.pwconv1.weight"].numpy().tobytes()
    data = bytearray(path.read_bytes())
    data[data.index(weights) + 7] ^= 0x40
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"weights\.pth: cannot be read .*CRC.*download it again"):
        load_official_weights(ConvNeXt(SMALL), path)
    torch.serialization.set_crc32_options(False)
    try:
        _official_file(path)
    finally:
        torch.serialization.set_crc32_options(True)
    load_official_weights(ConvNeXt(SMALL), path)


def test_the_padding_of_odd_sizes_does_not_dominate_the_gradient() -> None:
    backbone = ConvNeXt(SMALL)
    levels = backbone(torch.randn(1, 3, 64, 176))
    sum((level * torch.randn_like(level)).sum() for level in levels).backward()
    stem, norm = backbone.downsample_layers[0]
    assert stem.bias.grad.norm() < 100 * norm.bias.grad.norm(), "zero padding gave 1e4 and more"


def test_drop_path_keeps_the_mean_and_only_acts_in_training() -> None:
    drop, x = DropPath(0.25), torch.ones(4000, 2)
    assert drop.eval()(x) is x
    dropped = drop.train()(x)
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.05)

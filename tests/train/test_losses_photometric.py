"""Photometric reprojection: against a slow loop version, on a plane with a known answer, and with hostile values."""

import math

import numpy as np
import pytest
import torch

from train.losses.photometric import compare, masked_ssim, photometric_loss


def slow_ssim(x: np.ndarray, y: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(rows, columns) of one image pair (3, rows, columns), window by window."""
    _, rows, columns = x.shape
    out = np.zeros((rows, columns))
    for i in range(rows):
        for j in range(columns):
            window = [
                (a, b)
                for a in range(max(0, i - 1), min(rows, i + 2))
                for b in range(max(0, j - 1), min(columns, j + 2))
                if mask[a, b]
            ]
            if not window:
                continue
            per_channel = []
            for c in range(3):
                xs = np.array([x[c, a, b] for a, b in window])
                ys = np.array([y[c, a, b] for a, b in window])
                mx, my = xs.mean(), ys.mean()
                vx, vy = ((xs - mx) ** 2).mean(), ((ys - my) ** 2).mean()
                cov = ((xs - mx) * (ys - my)).mean()
                per_channel.append(
                    (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
                )
            out[i, j] = np.mean(per_channel)
    return out


def make_case(seed: int, rows: int = 4, columns: int = 5, samples: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    rays = rows * columns
    return {
        "target": rand(2, 3, rows, columns),
        "colours": rand(2, 3, rays, samples),
        "weights": rand(2, rays, samples) / samples,
        "in_view": rand(2, rays, samples) > 0.3,
        "unwarped": rand(2, 3, rows, columns),
        "usable": rand(2, rows, columns) > 0.1,
    }


def test_ssim_equals_window_by_window() -> None:
    case = make_case(0)
    mask = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(1)) > 0.4
    fast = masked_ssim(case["target"], case["unwarped"], mask)
    for n in range(2):
        slow = slow_ssim(case["target"][n].numpy(), case["unwarped"][n].numpy(), mask[n].numpy())
        assert np.allclose(fast[n].numpy()[mask[n]], slow[mask[n].numpy()], atol=1e-10)


def test_ssim_of_an_image_with_itself_is_one() -> None:
    image = make_case(3)["target"]
    assert torch.allclose(
        masked_ssim(image, image, torch.ones(2, 4, 5, dtype=torch.bool)), torch.ones(2, 4, 5).double()
    )


def test_compare_equals_ray_by_ray() -> None:
    case = make_case(5)
    out = compare(**case)
    for n in range(2):
        blended, l1 = np.zeros((3, 4, 5)), np.zeros((4, 5))
        valid = np.zeros((4, 5), dtype=bool)
        for ray in range(20):
            i, j = divmod(ray, 5)
            total = sum(float(case["weights"][n, ray, s]) for s in range(6) if case["in_view"][n, ray, s])
            valid[i, j] = total > 1e-3 and bool(case["usable"][n, i, j])
            if total <= 1e-3:
                continue
            for s in range(6):
                if case["in_view"][n, ray, s]:
                    share = float(case["weights"][n, ray, s]) / total
                    colour = case["colours"][n, :, ray, s].numpy()
                    blended[:, i, j] += share * colour
                    l1[i, j] += share * np.abs(colour - case["target"][n, :, i, j].numpy()).mean()
        expected = 0.15 * l1 + 0.85 * (1 - slow_ssim(case["target"][n].numpy(), blended, valid)) / 2
        assert (out.valid[n].numpy() == valid).all()
        assert np.allclose(out.warped[n].numpy()[valid], expected[valid], atol=1e-10)


def test_out_of_view_samples_contribute_nothing() -> None:
    case = make_case(7)
    case["weights"].requires_grad_()
    compare(**case).warped.sum().backward()
    gradient = case["weights"].grad
    assert gradient is not None
    assert (gradient[~case["in_view"]] == 0).all()
    assert (gradient[case["in_view"]] != 0).any()
    changed = case["colours"].clone()
    changed[~case["in_view"][:, None].expand_as(changed)] = 123.0
    case["weights"].requires_grad_(False)
    before = compare(**case)
    after = compare(**{**case, "colours": changed})
    assert torch.equal(before.warped[before.valid], after.warped[after.valid])


def test_a_ray_without_samples_in_view_is_dropped_not_rewarded() -> None:
    case = make_case(9)
    case["usable"][:] = True
    case["in_view"][0, 7] = False
    out = compare(**case)
    assert not out.valid[0, 1, 2]
    case["in_view"][:] = False
    loss = photometric_loss([compare(**case)])
    assert loss.rays == 0
    assert loss.dropped == 40
    assert loss.loss == 0


def test_true_depth_wins() -> None:
    """A neighbour that holds the target's colour at one sample only: all weight there costs nothing."""
    target = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    colours = torch.zeros(1, 3, 16, 5)
    colours[..., 3] = target.reshape(1, 3, 16)
    weights = torch.full((1, 16, 5), 0.2)
    everywhere = torch.ones(1, 16, 5, dtype=torch.bool)
    usable = torch.ones(1, 4, 4, dtype=torch.bool)
    best = torch.zeros(1, 16, 5)
    best[..., 3] = 0.5
    kwargs = {"target": target, "colours": colours, "in_view": everywhere, "unwarped": target, "usable": usable}
    assert compare(weights=best, **kwargs).warped.abs().max() < 1e-6
    assert compare(weights=weights, **kwargs).warped.min() > 0.01


def test_identity_masks_stationary_pixels() -> None:
    case = make_case(11)
    case["usable"][:] = True
    case["unwarped"] = case["target"].clone()
    comparison = compare(**case)
    assert comparison.identity.abs().max() < 1e-6
    masked = photometric_loss([comparison])
    assert masked.loss < 1e-6
    assert masked.stationary == masked.rays > 0
    assert photometric_loss([comparison], automask=False).loss > 0.1


def test_identity_equals_the_loss_of_the_image_as_it_is() -> None:
    """Of the neighbour's own pixels, whatever is usable: NaN in either image is in no window, and in the neighbour has
    no identity loss at all."""
    case = make_case(12)
    case["target"][0, 1, 2, 3] = case["unwarped"][1, 0, 0, 4] = math.nan
    out = compare(**case)
    target, still = np.nan_to_num(case["target"].numpy()), np.nan_to_num(case["unwarped"].numpy())
    there = ~np.isnan(case["unwarped"].numpy()).any(axis=1)
    mask = there & ~np.isnan(case["target"].numpy()).any(axis=1)
    for n in range(2):
        l1 = np.abs(still[n] - target[n]).mean(axis=0)
        expected = 0.15 * l1 + 0.85 * (1 - slow_ssim(target[n], still[n], mask[n])) / 2
        assert np.allclose(out.identity[n].numpy()[mask[n]], expected[mask[n]], atol=1e-10)
    assert (torch.isinf(out.identity).numpy() == ~there).all()


def test_stationary_rays_are_valid_ones_that_explain_themselves_better() -> None:
    """Five rays worked by hand: better as they are, worse, as good, better but not valid, and without identity."""
    one = compare(**make_case(13))
    one.warped = torch.tensor([[[0.5, 0.2, 0.3, 0.9, 0.4]]], dtype=torch.float64)
    one.identity = torch.tensor([[[0.1, 0.6, 0.3, 0.2, math.inf]]], dtype=torch.float64)
    one.valid = torch.tensor([[[True, True, True, False, True]]])
    found = photometric_loss([one])
    assert (int(found.stationary), int(found.rays), int(found.dropped)) == (1, 4, 1)
    assert float(found.loss) == pytest.approx((0.1 + 0.2 + 0.3 + 0.4) / 4)
    assert float(photometric_loss([one], automask=False).loss) == pytest.approx((0.5 + 0.2 + 0.3 + 0.4) / 4)


def test_two_neighbours_mean_and_min() -> None:
    """One valid ray in each of three situations, worked by hand."""
    first, second = compare(**make_case(13)), compare(**make_case(14))
    for comparison, values in ((first, [0.2, 0.4, 0.9]), (second, [0.6, 0.1, 0.7])):
        comparison.warped = torch.tensor(values, dtype=torch.float64).reshape(1, 1, 3)
        comparison.identity = torch.full((1, 1, 3), math.inf, dtype=torch.float64)
    first.valid = torch.tensor([[[True, True, False]]])
    second.valid = torch.tensor([[[True, False, False]]])
    assert float(photometric_loss([first, second], "mean").loss) == pytest.approx((0.4 + 0.4) / 2)
    assert float(photometric_loss([first, second], "min").loss) == pytest.approx((0.2 + 0.4) / 2)


def test_nan_pixels_drop_their_rays_and_keep_the_gradient_finite() -> None:
    case = make_case(15)
    case["usable"][:] = True
    case["target"][0, 1, 2, 3] = math.nan
    case["colours"][1, 0, 4, 2] = math.nan
    case["unwarped"][1, 2, 0, 0] = math.nan
    case["weights"].requires_grad_()
    out = compare(**case)
    assert not out.valid[0, 2, 3]
    loss = photometric_loss([out])
    loss.loss.backward()
    assert torch.isfinite(loss.loss)
    assert torch.isfinite(case["weights"].grad).all()


def test_gradient_in_weights_and_colours() -> None:
    case = make_case(17, rows=3, columns=3, samples=3)
    case["in_view"][:] = True
    case["usable"][:] = True

    def loss(weights: torch.Tensor, colours: torch.Tensor) -> torch.Tensor:
        return photometric_loss([compare(**{**case, "weights": weights, "colours": colours})], automask=False).loss

    assert torch.autograd.gradcheck(loss, (case["weights"].requires_grad_(), case["colours"].requires_grad_()))

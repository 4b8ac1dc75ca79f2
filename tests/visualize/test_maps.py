import numpy as np
import pytest
import torch

from d2kd import visualize
from d2kd.methods import MCDropout
from tests import toys
from tests.test_matching import truth


def test_cells_lie_on_their_pixels():
    cells = torch.zeros(4, 5)
    cells[1, 3] = 1
    squares = visualize.upsample(cells, 4, (15, 18), smooth=False)
    assert squares.shape == (15, 18)  # what is beyond the image is padding
    expected = np.zeros((15, 18))
    expected[4:8, 12:16] = 1
    np.testing.assert_array_equal(squares, expected)

    smooth = visualize.upsample(cells, 4, (16, 20))
    peak = np.argwhere(smooth == smooth.max())
    assert peak.min(0).tolist() == [5, 13] and peak.max(0).tolist() == [6, 14]  # the cell's middle
    assert smooth[1, 13] == 0 and smooth[2, 13] > 0  # it fades over one cell


def test_attention_of_a_detector():
    model = toys.retinanet()
    image = toys.image(size=(48, 64))
    heat = visualize.spatial_attention(model, image, level="p3")
    assert heat.shape == (48, 64)
    assert model.training
    model.eval()
    with torch.no_grad():
        pixels = model.preprocess_image([image]).tensor
        magnitude = model.backbone(pixels)["p3"].abs().mean(1)[0]
    cells = torch.softmax(magnitude.flatten() / 0.5, 0).view_as(magnitude) * magnitude.numel()
    # Between cells (1, 2) and (2, 3) the mean of the four.
    np.testing.assert_allclose(heat[15:17, 23:25].mean(), cells[1:3, 2:4].mean().item(), rtol=1e-5)


def test_key_regions():
    regions = visualize.key_regions(
        toys.retinanet(), toys.image(size=(48, 64)), truth((8, 8, 15, 15, 0)), level="p3"
    )
    # Stride 8: cells 1 to 2 either way, both ends inclusive, as FGD has it: 4 cells.
    expected = np.zeros((48, 64))
    expected[8:24, 8:24] = 1 / 4
    np.testing.assert_allclose(regions, expected)


def test_uncertainty_of_a_teacher():
    model = toys.retinanet().eval()
    image = toys.image(size=(48, 64))
    mean, spread = visualize.uncertainty(model, image, MCDropout((0.5,) * 4), level="p3")
    assert mean.shape == spread.shape == (48, 64)
    with torch.no_grad():
        features = model.backbone(model.preprocess_image([image]).tensor)["p3"][0]
    # Each sample is 0 or twice the value, so that mean and variance give back its square:
    # with k of 4 kept, mean = k f / 2 and mean square = k f^2, thus variance = (k - k^2 / 4) f^2.
    torch.manual_seed(0)
    drop = MCDropout((0.5,) * 4)
    kept = 2 * drop.multiplier((1, *features.shape), features.device)
    assert set(kept.flatten().tolist()) == {0.0, 1.0, 2.0, 3.0, 4.0}
    torch.manual_seed(0)
    mean, spread = visualize.uncertainty(model, image, drop, level="p3")
    k, middle = kept[0], (slice(15, 17), slice(23, 25))
    expected = (k * features / 2).abs().mean(0)[1:3, 2:4].mean()
    np.testing.assert_allclose(mean[middle].mean(), expected.item(), rtol=1e-5)
    expected = ((k - k**2 / 4) * features**2).mean(0).sqrt()[1:3, 2:4].mean()
    np.testing.assert_allclose(spread[middle].mean(), expected.item(), rtol=1e-4)
    none = visualize.uncertainty(model, image, MCDropout((0.0,)), level="p3")[1]
    assert not none.any()


def test_a_level_that_a_detector_does_not_have_is_named():
    with pytest.raises(ValueError, match=r"level: expected .* of RetinaNet \(p3, .*found 'p2'"):
        visualize.spatial_attention(toys.retinanet(), toys.image(), level="p2")

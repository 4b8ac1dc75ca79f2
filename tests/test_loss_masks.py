import torch
from detectron2.structures import Boxes, pairwise_ioa
from torch import nn

from d2kd.loss_masks import covered, mask_scores


def test_covered_is_the_share_of_the_box():
    torch.manual_seed(0)
    corners = torch.rand(2, 40, 2) * 60
    boxes = torch.cat([corners[0], corners[0] + torch.rand(40, 2) * 30], 1)
    regions = torch.cat([corners[1], corners[1] + torch.rand(40, 2) * 40], 1).view(2, 20, 4)
    regions[1, 10:] = 0
    found = covered(boxes, regions, chunk=7)
    for i in range(2):
        share = pairwise_ioa(Boxes(regions[i]), Boxes(boxes))
        assert torch.equal(found[i], (share >= 0.5).any(0))
    assert found.any() and not found.all()


def test_a_box_without_area_is_not_covered():
    box = torch.tensor([[5.0, 5.0, 5.0, 9.0]])
    assert not covered(box, torch.tensor([[[0.0, 0.0, 20.0, 20.0]]])).any()


def test_background_stands_for_classes_not_searched_for():
    scores = torch.tensor([[1.0, 2.0, 0.5, -1.0]], dtype=torch.float64, requires_grad=True)
    searched = torch.tensor([[True, False, False]])
    merged = mask_scores(scores, searched, sigmoid=False)
    p = scores.detach().softmax(1)[0]
    torch.testing.assert_close(merged.softmax(1)[0, [0, 3]], torch.stack([p[0], 1 - p[0]]))
    loss = nn.functional.cross_entropy(merged, torch.tensor([3]))
    torch.testing.assert_close(loss, -torch.log(p[1:].sum()))
    loss.backward()
    # Nothing pushes the unknown classes down. Their scores grow together with the background.
    assert (scores.grad[0, 1:] < 0).all() and scores.grad[0, 0] > 0


def test_sigmoid_scores_of_classes_not_searched_for_have_no_gradient():
    scores = torch.randn(4, 3, requires_grad=True)
    searched = torch.tensor([[True, False, True]]).expand(4, 3)
    loss = nn.functional.binary_cross_entropy_with_logits(
        mask_scores(torch.cat([scores, scores[:, :1]], 1), searched, sigmoid=True)[:, :3],
        torch.zeros(4, 3),
        reduction="sum",
    )
    loss.backward()
    assert not scores.grad[:, 1].any() and (scores.grad[:, ::2] > 0).all()

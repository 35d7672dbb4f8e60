"""mask_overlapping against a double loop in exact fractions."""

from fractions import Fraction

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ops


def iou(a, b) -> Fraction:
    """The exact IoU of two whole-number boxes; boxes without area overlap nothing."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return Fraction(0)
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return Fraction(width * height, area - width * height)


def obvious(boxes, seeds, valid, threshold: Fraction):
    live = [s and v for s, v in zip(seeds, valid, strict=True)]
    return [
        v and (live[i] or any(live[j] and 0 < iou(boxes[i], boxes[j]) >= threshold for j in range(len(boxes))))
        for i, v in enumerate(valid)
    ]


box = st.tuples(*[st.integers(0, 12)] * 4).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3]))
)
region = st.tuples(box, st.booleans(), st.booleans())


@settings(max_examples=400, deadline=None)
@given(
    st.lists(region, max_size=9),
    st.sampled_from([Fraction(2, 5), Fraction(1, 2), Fraction(1, 4), Fraction(1)]),
)
def test_equals_the_double_loop_on_whole_number_boxes(regions, threshold):
    boxes, seeds, valid = (list(column) for column in zip(*regions, strict=True)) if regions else ([], [], [])
    found = ops.mask_overlapping(
        torch.tensor(boxes).reshape(1, -1, 4).float(),
        torch.tensor(seeds, dtype=torch.bool).reshape(1, -1),
        torch.tensor(valid, dtype=torch.bool).reshape(1, -1),
        float(threshold),
    )
    assert found[0].tolist() == obvious(boxes, seeds, valid, threshold)


def test_an_iou_of_exactly_two_fifths_is_masked():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 4], [0, 0, 10, 3.99]]])
    seeds = torch.tensor([[True, False, False]])
    assert ops.mask_overlapping(boxes, seeds).tolist() == [[True, True, False]]


def test_boxes_without_area_and_nan_overlap_nothing_but_are_masked_as_seeds():
    nan = float("nan")
    boxes = torch.tensor([[[5.0, 5, 5, 5], [5, 5, 5, 5], [0, 0, nan, 9], [0, 0, 9, 9], [0, 0, nan, 9]]])
    seeds = torch.tensor([[True, False, True, False, False]])
    assert ops.mask_overlapping(boxes, seeds).tolist() == [[True, False, True, False, False]]


def test_images_do_not_touch_each_other():
    boxes = torch.tensor([[0.0, 0, 1, 1]]).expand(2, 1, 4)
    assert ops.mask_overlapping(boxes, torch.tensor([[True], [False]])).tolist() == [[True], [False]]


def test_no_regions_and_no_images():
    assert ops.mask_overlapping(torch.zeros(3, 0, 4), torch.zeros(3, 0, dtype=torch.bool)).shape == (3, 0)
    assert ops.mask_overlapping(torch.zeros(0, 5, 4), torch.zeros(0, 5, dtype=torch.bool)).shape == (0, 5)

"""mask_overlapping, compiled and pure, against a double loop in exact fractions and against each other."""

import platform
import re
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from box_cases import random_case
from hypothesis import given, settings
from hypothesis import strategies as st

import ops
from ops import pure_torch, registration

PACKAGE = Path(__file__).parents[2] / "ops"

implementations = pytest.mark.parametrize(
    "mask", [ops.mask_overlapping, pure_torch.mask_overlapping], ids=["as installed", "pure torch"]
)


def test_the_compiled_operator_is_the_one_in_use():
    """The environment that the README makes has a compiler."""
    if not shutil.which("c++"):
        pytest.skip("no C++ compiler here: the pure version serves")
    assert registration.backends["CPU"] == "compiled"


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


def ordered(corners):
    x1, y1, x2, y2 = corners
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


region = st.tuples(st.tuples(*[st.integers(0, 12)] * 4).map(ordered), st.booleans(), st.booleans())


@implementations
@settings(max_examples=300, deadline=None)
@given(
    regions=st.lists(region, max_size=9),
    threshold=st.sampled_from([Fraction(2, 5), Fraction(1, 2), Fraction(1, 4), Fraction(1)]),
)
def test_equals_the_double_loop_on_whole_number_boxes(mask, regions, threshold):
    boxes, seeds, valid = (list(column) for column in zip(*regions, strict=True)) if regions else ([], [], [])
    found = mask(
        torch.tensor(boxes).reshape(1, -1, 4).float(),
        torch.tensor(seeds, dtype=torch.bool).reshape(1, -1),
        torch.tensor(valid, dtype=torch.bool).reshape(1, -1),
        float(threshold),
    )
    assert found[0].tolist() == obvious(boxes, seeds, valid, threshold)


@implementations
def test_an_iou_of_exactly_two_fifths_is_masked(mask):
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 4], [0, 0, 10, 3.99]]])
    assert mask(boxes, torch.tensor([[True, False, False]]), None, 0.4).tolist() == [[True, True, False]]


@implementations
def test_boxes_without_area_and_nan_overlap_nothing_but_are_masked_as_seeds(mask):
    nan = float("nan")
    boxes = torch.tensor([[[5.0, 5, 5, 5], [5, 5, 5, 5], [0, 0, nan, 9], [0, 0, 9, 9], [0, 0, nan, 9], [nan, 0, 9, 9]]])
    seeds = torch.tensor([[True, False, True, False, False, False]])
    assert mask(boxes, seeds, None, 0.4).tolist() == [[True, False, True, False, False, False]]
    seeds = torch.tensor([[False, False, False, True, False, False]])
    assert mask(boxes, seeds, None, 0.0).tolist() == seeds.tolist()


@implementations
def test_images_do_not_touch_each_other(mask):
    boxes = torch.tensor([[0.0, 0, 1, 1]]).expand(2, 1, 4)
    assert mask(boxes, torch.tensor([[True], [False]]), None, 0.4).tolist() == [[True], [False]]


@implementations
@pytest.mark.parametrize("shape", [(3, 0), (0, 5), (0, 0)])
def test_no_regions_and_no_images(mask, shape):
    none = torch.zeros(shape, dtype=torch.bool)
    assert mask(torch.zeros(*shape, 4), none, none, 0.4).shape == shape


MANY_BOXES = [(2000, 36), (300, 100), (2, 1024), (1, 2500), (10_000, 3)]
MORE_BOXES = [pytest.param(*sizes, marks=pytest.mark.slow) for sizes in [(14_000, 36), (1000, 100), (50_000, 3)]]


@pytest.mark.parametrize(("batch", "n"), [*MANY_BOXES, *MORE_BOXES])
def test_compiled_and_pure_agree_to_the_bit_on_many_boxes(batch, n):
    boxes, seeds, valid = random_case(batch, n)
    for mask in (None, valid):
        for threshold in (0.4, 0.0, 0.7):
            found = ops.mask_overlapping(boxes, seeds, mask, threshold)
            assert torch.equal(found, pure_torch.mask_overlapping(boxes, seeds, mask, threshold))
    assert found.sum() > 1.01 * (seeds & valid).sum()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_computed_in_float32(dtype):
    boxes, seeds, valid = random_case(50, 20)
    boxes = boxes.to(dtype)
    assert torch.equal(ops.mask_overlapping(boxes, seeds, valid), ops.mask_overlapping(boxes.float(), seeds, valid))


def test_inputs_need_not_be_contiguous():
    boxes, seeds, valid = random_case(20, 30)
    expected = ops.mask_overlapping(boxes, seeds, valid)
    turned = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (boxes, seeds, valid)]
    assert torch.equal(ops.mask_overlapping(*turned), expected)
    shifted = torch.cat([torch.zeros(1), boxes.flatten()])[1:].view_as(boxes)
    assert torch.equal(ops.mask_overlapping(shifted, seeds, valid), expected)
    assert torch.equal(
        ops.mask_overlapping(boxes[::2, 3:], seeds[::2, 3:]),
        ops.mask_overlapping(boxes[::2, 3:].contiguous(), seeds[::2, 3:].contiguous()),
    )


def test_any_number_of_threads_gives_the_same():
    boxes, seeds, valid = random_case(500, 36)
    expected = ops.mask_overlapping(boxes, seeds, valid)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(ops.mask_overlapping(boxes, seeds, valid), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("boxes", "seeds", "valid", "words"),
    [
        (torch.zeros(2, 3, 5), torch.zeros(2, 3, dtype=torch.bool), None, "boxes should be"),
        (torch.zeros(3, 4), torch.zeros(3, dtype=torch.bool), None, "boxes should be"),
        (torch.zeros(2, 3, 4, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.bool), None, "boxes should be"),
        (torch.zeros(2, 3, 4), torch.zeros(2, 3), None, "seeds should be bool"),
        (torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.bool), None, "seeds should be bool"),
        (
            torch.zeros(2, 3, 4),
            torch.zeros(2, 3, dtype=torch.bool),
            torch.zeros(1, 3, dtype=torch.bool),
            "valid should",
        ),
    ],
)
def test_wrong_shapes_and_types_are_refused(boxes, seeds, valid, words):
    with pytest.raises(ValueError, match=words):
        ops.mask_overlapping(boxes, seeds, valid)


def test_opcheck():
    boxes, seeds, valid = random_case(4, 7)
    operator = torch.ops.twelve_in_one.mask_overlapping.default
    for mask in (None, valid):
        torch.library.opcheck(operator, (boxes, seeds, mask, 0.4))


def test_under_compile_without_a_graph_break():
    boxes, seeds, valid = random_case(4, 7)

    def hidden(boxes, seeds, valid):
        return ops.mask_overlapping(boxes * 1.0, seeds & valid, valid) | ~valid

    compiled = torch.compile(hidden, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(boxes, seeds, valid), hidden(boxes, seeds, valid))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize(("batch", "n"), [(4096, 36), (512, 100), (2, 1024), (1, 2500), (3, 1), (0, 5), (5, 0)])
def test_gpu_and_cpu_agree_to_the_bit(batch, n):
    boxes, seeds, valid = random_case(batch, n)
    for mask in (None, valid):
        on_gpu = ops.mask_overlapping(boxes.cuda(), seeds.cuda(), None if mask is None else mask.cuda())
        assert torch.equal(on_gpu.cpu(), ops.mask_overlapping(boxes, seeds, mask))


def test_python_m_ops_says_what_is_in_use():
    done = subprocess.run([sys.executable, "-m", "ops"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert f"CPU   {registration.backends['CPU']}; self-check passed" in done.stdout
    assert "CUDA  " in done.stdout
    assert f"torch {torch.__version__}, Python {platform.python_version()}" in done.stdout.splitlines()[0]


def test_the_compiled_operators_serve_later_versions_of_torch_and_python():
    """The library uses C functions of LibTorch's stable ABI only: no C++ symbols of torch, and none of Python."""
    library = PACKAGE / "_compiled.abi3.so"
    if not library.exists() or not shutil.which("nm"):
        pytest.skip("no compiled operators, or no nm to read their symbols with")
    done = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True)
    names = {line.split()[-1].partition("@")[0] for line in done.stdout.splitlines()}
    assert any(name.startswith("aoti_torch_") for name in names)
    assert [name for name in names if re.search(r"2at\d|3c10|5torch|^_?Py", name)] == []


def test_where_nothing_is_compiled_the_pure_version_serves_under_the_same_name(tmp_path):
    """A copy without the extension, in a process of its own, next to copies of the packages that ops looks for."""
    shutil.copytree(PACKAGE, tmp_path / "ops", ignore=shutil.ignore_patterns("*.so", "*.pyd"))
    for name in ("shards", "pretrain", "finetune"):
        (tmp_path / name).mkdir()
        shutil.copy(PACKAGE.parent / name / "__init__.py", tmp_path / name)
    script = (
        "import logging; logging.basicConfig(level=logging.INFO); import ops, torch; "
        "from ops import registration; print(ops.__file__, registration.backends); "
        "b = torch.tensor([[[0.,0,1,1],[0,0,1,1]]]); print(ops.mask_overlapping(b, torch.tensor([[True,False]])))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) in done.stdout and "{'CPU': 'pure torch', 'CUDA': 'pure torch'}" in done.stdout
    assert "tensor([[True, True]])" in done.stdout
    assert done.stderr.count("operators: CPU pure torch") == 1 and "were not built" in done.stderr

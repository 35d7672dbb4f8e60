"""The plane of the first two principal components, compared with a singular value decomposition."""

import numpy as np
import pytest

from finetune.inference.principal_components import principal_plane


def test_coordinates_and_shares_are_those_of_a_singular_value_decomposition():
    values = np.random.default_rng(0).normal(size=(40, 12)) * np.linspace(5, 0.1, 12) + 100
    plane = principal_plane(values)
    centred = values - values.mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(plane.project(values)), np.abs(left[:, :2] * sizes[:2]), atol=1e-9)
    np.testing.assert_allclose(plane.explained, sizes[:2] ** 2 / (sizes**2).sum())
    assert all(axis[np.abs(axis).argmax()] > 0 for axis in plane.axes), "the sign of an axis is determined"


def test_float16_embeddings_far_from_the_origin():
    values = (np.random.default_rng(1).normal(size=(500, 6)) + 1000).astype(np.float16)
    expected = principal_plane(values.astype(np.float64))
    np.testing.assert_allclose(principal_plane(values).explained, expected.explained)


@pytest.mark.parametrize(
    ("values", "explained"),
    [
        (np.ones((1, 5)), (0, 0)),
        (np.full((7, 5), 3.3), (0, 0)),
        (np.outer(np.arange(6.0), np.ones(5)), (1, 0)),
        (np.arange(6.0)[:, None], (1, 0)),
    ],
    ids=["one vector", "all equal", "on a line", "of size 1"],
)
def test_fewer_than_two_directions(values, explained):
    plane = principal_plane(values)
    assert plane.explained == pytest.approx(explained, abs=1e-9)
    assert plane.project(values).shape == (len(values), 2) and np.abs(plane.project(values)[:, 1]).max() < 1e-6

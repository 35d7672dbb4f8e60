"""The reasons in messages about models that could not be loaded."""

import pytest

from shards.common import model_hub


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError("No such file.\nMore lines."), "No such file"),
        (ImportError(), "ImportError"),  # of a library without a message
        (ValueError(" \n"), "ValueError"),
    ],
)
def test_the_reason_fits_into_a_sentence(monkeypatch, error, expected):
    monkeypatch.setattr(model_hub, "_answers", lambda address: True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert model_hub.load_failure(error, "me/twelve") == expected
    monkeypatch.setattr(model_hub, "_answers", lambda address: False)
    assert model_hub.load_failure(error, "me/twelve") == f"{expected}; the hub does not answer, its cache was searched"

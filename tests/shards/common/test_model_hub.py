"""The reasons in messages about models that could not be loaded or uploaded."""

import pytest
from huggingface_hub.errors import HTTPError

from shards.common import model_hub
from shards.common.errors import UserError


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


@pytest.mark.parametrize(
    ("error", "offline", "answers", "message"),
    [
        (HTTPError("Lost\nMore."), False, True, "cannot be uploaded (Lost); the connection failed, try again"),
        (OSError("No token"), False, True, "cannot be uploaded (No token); log in with `hf auth login`"),
        (None, False, False, "cannot be uploaded, because the hub does not answer"),
        (None, True, True, "cannot be uploaded, because HF_HUB_OFFLINE is set"),
    ],
)
def test_a_failed_upload_is_one_sentence(monkeypatch, tmp_path, error, offline, answers, message):
    """HTTPError: of the client of the hub's library, without an answer of the hub; not an OSError."""

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(model_hub, "_answers", lambda address: answers)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("huggingface_hub.create_repo", fail)
    with pytest.raises(UserError) as raised:
        model_hub.upload(tmp_path, "me/twelve", private=False)
    assert str(raised.value) == f"me/twelve: {message}"

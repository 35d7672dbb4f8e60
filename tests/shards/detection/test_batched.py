"""What the detectors with weights share."""

import os

import pytest

from shards.common.errors import UserError
from shards.detection.batched import read_class_names


def test_names_with_and_without_the_background(tmp_path):
    (tmp_path / "names").write_text("cat\n\n dog \n")
    assert read_class_names(str(tmp_path / "names"), 3) == ["background", "cat", "dog"]
    assert read_class_names(str(tmp_path / "names"), 2) == ["cat", "dog"]
    with pytest.raises(UserError, match="has 2 names, but the detector has 5 classes"):
        read_class_names(str(tmp_path / "names"), 5)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"--class_names .*pipe: is a named pipe; give a file"):
        read_class_names(str(tmp_path / "pipe"), 3)

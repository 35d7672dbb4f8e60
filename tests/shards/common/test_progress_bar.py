"""Progress bars do not fill log files."""

import io
import sys

import pytest

from shards.common.progress_bar import LOG, TERMINAL, progress_bar


@pytest.mark.parametrize(("terminal", "interval"), [(True, TERMINAL), (False, LOG)])
def test_a_log_file_gets_an_update_now_and_then(monkeypatch, terminal, interval):
    stderr = io.StringIO()
    stderr.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stderr)
    bar = progress_bar(range(5000), desc="reading", unit=" images")
    assert bar.mininterval == interval and list(bar) == list(range(5000))
    assert "reading" in stderr.getvalue() and "5000/5000" in stderr.getvalue()
    assert terminal or stderr.getvalue().count("\r") <= 3

"""What ends a command early is one sentence and an exit status."""

from __future__ import annotations

import signal

import pytest

from ddim.errors import UserError
from ddim.runs.ending import exit_with_sentence
from ddim.runs.signals import StopRequest


def test_a_user_error_is_one_sentence_and_status_2(capsys):
    def task():
        raise UserError("seed=-1 must not be negative.")

    with pytest.raises(SystemExit) as exit_:
        exit_with_sentence(task)
    assert exit_.value.code == 2
    assert capsys.readouterr() == ("", "error: seed=-1 must not be negative.\n")


def test_a_signal_is_one_sentence_and_its_status(capsys):
    def task():
        with StopRequest(lambda: "go on with `this`"):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as exit_:
        exit_with_sentence(task)
    assert exit_.value.code == 143
    assert capsys.readouterr() == ("", "Stopped by SIGTERM: go on with `this`.\n")


def test_ctrl_c_before_the_work_is_no_traceback_either(capsys):
    # A shell's background jobs, so perhaps these tests, are started with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as exit_:
            exit_with_sentence(lambda: signal.raise_signal(signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)
    assert exit_.value.code == 130
    assert capsys.readouterr() == ("", "Stopped by Ctrl-C before the work began.\n")


def test_the_result_and_other_errors_pass_through():
    assert exit_with_sentence(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        exit_with_sentence(lambda: 1 / 0)


def test_full_errors_on_request(monkeypatch):
    def task():
        raise UserError("sentence")

    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(UserError, match="sentence"):
        exit_with_sentence(task)

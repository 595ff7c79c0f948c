"""Choosing a device, and noticing a process that must not fork any more; no GPU is needed."""

import os
from pathlib import Path

import pytest
import torch

from zerowake.snapshot.device import assert_cuda_untouched, resolve_device
from zerowake.snapshot.errors import DeviceError


@pytest.mark.parametrize(
    ("requested", "built", "gpus", "resolved"),
    [
        ("cpu", True, 1, "cpu"),
        ("auto", True, 1, "cuda"),
        ("auto", True, 0, "cpu"),
        ("auto", False, 0, "cpu"),
        ("cuda", True, 2, "cuda"),
    ],
)
def test_resolve_device(
    monkeypatch: pytest.MonkeyPatch, requested: str, built: bool, gpus: int, resolved: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0" if built else None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert resolve_device(requested) == resolved


@pytest.mark.parametrize(
    ("requested", "built", "message"),
    [
        ("cuda", False, "built without CUDA; install a CUDA build of torch, or use --device cpu"),
        ("cuda", True, "no GPU is visible.*CUDA_VISIBLE_DEVICES"),
        ("gpu", True, "'gpu' is not known; use auto, cpu or cuda"),
    ],
)
def test_resolve_device_refuses(
    monkeypatch: pytest.MonkeyPatch, requested: str, built: bool, message: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0" if built else None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(DeviceError, match=message):
        resolve_device(requested)


def test_cuda_untouched_here() -> None:
    resolve_device("auto")
    assert_cuda_untouched()


def test_an_open_gpu_is_seen(tmp_path: Path) -> None:
    (tmp_path / "0").symlink_to(os.devnull)
    (tmp_path / "1").symlink_to("/dev/null")
    (tmp_path / "7").symlink_to("/dev/nvidia-uvm")
    with pytest.raises(DeviceError, match="/dev/nvidia-uvm"):
        assert_cuda_untouched(tmp_path)


def test_an_initialised_context_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(DeviceError, match="initialised CUDA context"):
        assert_cuda_untouched(tmp_path)

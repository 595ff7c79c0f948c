"""``zerowake.runtime.gateway.serve``: what is refused before it listens, and what is begun on a guess."""

import os
from pathlib import Path

import pytest
from scripted import GOOD

from zerowake.adapters.stores import open_store
from zerowake.runtime.config import ServeConfig
from zerowake.runtime.errors import ConfigError
from zerowake.runtime.gateway import http
from zerowake.runtime.gateway import serve as serving


def test_a_gpu_that_is_not_there_is_refused_before_torch_is_asked(tmp_path: Path) -> None:
    (tmp_path / "null").touch()
    serving.check_device("auto", tmp_path)
    with pytest.raises(ConfigError, match="there is no GPU here"):
        serving.check_device("cuda", tmp_path)
    (tmp_path / "nvidia0").touch()
    serving.check_device("cuda", tmp_path)


def test_an_address_of_another_machine_is_a_matter_of_the_host() -> None:
    with pytest.raises(ConfigError, match="choose another with --host"):
        http.listen(ServeConfig(host="192.0.2.1", port=0))


def test_reload_of_nothing_but_snapshots_says_what_to_name() -> None:
    config = ServeConfig(port=0)
    with pytest.raises(ConfigError, match=r"name path/app\.py:Class, or leave --reload out"):
        serving.serve([str(GOOD)], config, http.HttpIngress(config), open_store, reload=True)


def test_a_strangers_form_is_not_waited_for(tmp_path: Path) -> None:
    form = tmp_path / "compiled" / "0123456789abcdef" / "form.json"
    form.parent.mkdir(parents=True)
    os.mkfifo(form)
    assert not serving._looks_torch_free(str(tmp_path))
    form.unlink()
    form.symlink_to("/dev/zero")
    assert not serving._looks_torch_free(str(tmp_path))
    form.unlink()
    form.write_bytes(b'{"torch_free": true}')
    assert serving._looks_torch_free(str(tmp_path))
    os.truncate(form, 1 << 40)
    assert not serving._looks_torch_free(str(tmp_path))

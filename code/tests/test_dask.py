"""Preprocess on Dask: workers that die cost their slide alone, and a scheduler that cannot be used is one line."""

import socket
import sys

import pytest

from epsam.errors import DataError
from epsam.runtime import dask_tasks
from epsam.runtime.dask_tasks import VARIABLE, run_shared_tasks
from epsam.stages.preprocess import preprocess
from epsam.workspace import Workspace
from tests.slide_factory import make_dataset
from tests.test_slides_preprocess import config, slides, written

CRASHING = """
import os, signal
class MultiResolutionImageReader:
    def open(self, path):
        if "tumor_004" in path:
            os.kill(os.getpid(), signal.SIGKILL)
"""


def run(folder, asap) -> Workspace:
    workspace = Workspace(folder, "mine")
    make_dataset(workspace.dataset)
    preprocess(config(workers=1, slides={"asap_path": asap}), workspace)
    return workspace


def test_a_dask_worker_that_dies_costs_its_slide_alone(tmp_path, monkeypatch):
    dask = pytest.importorskip("dask")
    distributed = pytest.importorskip("distributed")
    (tmp_path / "asap").mkdir()
    (tmp_path / "asap" / "multiresolutionimageinterface.py").write_text(CRASHING)
    here = run(tmp_path / "here", tmp_path / "asap")
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None, local_directory=tmp_path) as cluster,
    ):
        monkeypatch.setenv(VARIABLE, cluster.scheduler_address)
        shared = run(tmp_path / "shared", tmp_path / "asap")
        with pytest.raises(DataError, match="does not see"):
            monkeypatch.setattr(dask_tasks.Path, "resolve", lambda _: dask_tasks.Path("/nowhere/marker"))
            list(run_shared_tasks(abs, [1], 0, tmp_path))
        monkeypatch.undo()
        monkeypatch.setenv(VARIABLE, cluster.scheduler_address)
        monkeypatch.setattr(dask_tasks, "__version__", "9.9")
        with pytest.raises(DataError, match=r"has epsam .*, this run 9\.9: start it again"):
            list(run_shared_tasks(abs, [1], 0, tmp_path))
    assert written(shared) == written(here)
    rows = slides(shared)
    assert [name for name, row in rows.items() if row["status"] == "failed"] == ["tumor_004"]
    assert rows["tumor_004"]["reason"] == slides(here)["tumor_004"]["reason"]


def test_a_scheduler_that_cannot_be_used_is_one_line(tmp_path, monkeypatch):
    def refused(address: str, match: str) -> None:
        monkeypatch.setenv(VARIABLE, address)
        with pytest.raises(DataError, match=match) as caught:
            list(run_shared_tasks(abs, [1], 0, tmp_path))
        assert "\n" not in str(caught.value)

    for address in ("here", "tcp://a:b", "file:///etc/passwd", "tcp://a b:1"):
        refused(address, "is no address; give it as tcp://HOST:PORT")
    monkeypatch.setattr(dask_tasks, "CONNECT_S", 0.5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        refused(f"tcp://127.0.0.1:{free.getsockname()[1]}", "no Dask scheduler answers there")
    monkeypatch.setitem(sys.modules, "distributed", None)
    refused("tcp://127.0.0.1:1", r"package distributed is not installed.*code\[cluster\]")
    monkeypatch.delenv(VARIABLE)
    assert list(run_shared_tasks(abs, [-1], 0, tmp_path)) == [(-1, 1)]

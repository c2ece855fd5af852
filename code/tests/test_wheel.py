"""The installed package, used from a folder that is no clone; test_chain.py has a whole run of it."""

import json


def test_settings_and_the_demos_sam_come_along(installed_epsam, tmp_path):
    assert "retrain.rounds = 3" in installed_epsam("settings", "retrain", cwd=tmp_path).stdout
    checks = json.loads(installed_epsam("doctor", "--config", "own-small", "--json", cwd=tmp_path).stdout)
    (weights,) = [check for check in checks if check["name"] == "weights"]
    assert weights["status"] == "ok"
    assert "shipped/sam_demo.pth" in weights["message"]
    assert not list(tmp_path.iterdir()), "nothing is written by looking"


def test_the_demo_keeps_its_name(installed_epsam, tmp_path):
    done = installed_epsam("train", "name=camelyon16", cwd=tmp_path)
    assert done.returncode == 1
    assert "the demo keeps its name" in done.stdout
    assert not list(tmp_path.iterdir())

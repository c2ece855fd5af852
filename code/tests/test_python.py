"""`import epsam` in a script or notebook."""

import subprocess
import sys

import pytest

import epsam


def test_everything_that_is_offered_is_there_and_documented():
    for name in epsam.__all__:
        offered = getattr(epsam, name)
        assert name.startswith("__") or (offered.__doc__ and offered.__module__.startswith("epsam."))
    assert set(epsam.__all__) <= set(dir(epsam))
    with pytest.raises(AttributeError, match="no attribute 'load_modell'"):
        _ = epsam.load_modell


def test_importing_it_loads_nothing_else():
    code = "import sys, epsam; assert not {'torch', 'numpy', 'cv2', 'yaml'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)

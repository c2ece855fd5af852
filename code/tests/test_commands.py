"""The scripts and the command line as a user meets them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from epsam.cli import cli
from epsam.errors import ConfigError
from epsam.inference.variables import read_variables
from epsam.pipeline import STAGES
from epsam.workspace import Workspace
from tests.patch_factory import make_patches

PYTHON = ".venv/bin/python"
NOTHING = {"inputs": False, "model": False, "output": False}
"""That the command line says nothing of what variables can say."""


def test_help_everywhere(run_in):
    for script in ("./train.sh", "./infer.sh"):
        done = run_in(script, "--help")
        assert done.returncode == 0
        assert script in done.stdout
    for name, command in cli.commands.items():
        assert command.help, name
    assert [name for name in cli.commands if name in {s.name for s in STAGES}] == [s.name for s in STAGES]


def test_the_scripts_run_under_a_plain_shell_too(run_in):
    for script in ("train.sh", "infer.sh"):
        done = run_in("sh", script, "--help")
        assert (done.returncode, done.stderr) == (0, "")
        assert f"./{script}" in done.stdout


def test_train_runs_the_stages_in_the_order_of_the_method(top):
    lines = (top / "train.sh").read_text().splitlines()
    called = [line.split()[1] for line in lines if line.startswith(("stage ", "shared_stage "))]
    assert called == ["doctor", *(s.name for s in STAGES)]


@pytest.mark.parametrize("argument", ["--frsh", "demo demo", "--from"])
def test_a_wrong_argument_is_refused(run_in, argument):
    done = run_in("./train.sh", *argument.split())
    assert done.returncode != 0
    assert done.stderr.strip()


@pytest.mark.parametrize(
    "command",
    [
        "./train.sh name=camelyon16",
        "./train.sh demo name=camelyon16",
        "./train.sh --config=camelyon16",
        "./train.sh --root=.",
        "./train.sh --from=embed",
        "./train.sh --gpus camelyon17",
        "./train.sh --gpus 0",
        "./train.sh -x=1",
        "./train.sh demo --fresh=1",
        "./infer.sh --output-dir=x",
        "./infer.sh --root .",
        "./infer.sh camelyon17",
        "./infer.sh --frsh",
        "./infer.sh --config",
        "./infer.sh --modle x",
    ],
)
def test_a_wrong_argument_touches_nothing(run_in, top, command):
    theirs = {top / "dataset/camelyon16/images/tumor_001.tif", top / "dataset/camelyon16/annotations/tumor_001.xml"}
    for path in theirs:
        path.parent.mkdir(parents=True)
        path.write_text("of Camelyon16")
    done = run_in(*command.split())
    assert done.returncode != 0
    assert len((done.stdout + done.stderr).splitlines()) == 1
    assert not (top / "runs").exists()
    assert set((top / "dataset").rglob("*.*")) == theirs
    assert {path.read_text() for path in theirs} == {"of Camelyon16"}


def test_the_demo_draws_into_no_folder_but_its_own(run_in, top):
    path = top / "dataset" / "camelyon16" / "images" / "tumor_001.tif"
    path.parent.mkdir(parents=True)
    path.write_text("of Camelyon16")
    done = run_in(PYTHON, "-m", "epsam", "demo", "--config", "demo", "name=camelyon16")
    assert done.returncode == 1
    assert "dataset/camelyon16 was not made by the demo" in done.stdout
    assert "Traceback" not in done.stderr
    assert [p for p in (top / "dataset").rglob("*") if p.is_file()] == [path]
    assert path.read_text() == "of Camelyon16"


def test_modules_in_the_current_folder_are_not_imported(run_in, top):
    for name in ("numpy", "yaml", "multiresolutionimageinterface"):
        (top / f"{name}.py").write_text(f"open('ran_{name}', 'w')")
    done = run_in(PYTHON, "-m", "epsam", "doctor", "--json", "--config", "demo", PYTHONSAFEPATH="")
    assert [check["name"] for check in json.loads(done.stdout)][:2] == ["Python", "program"]
    for script in ("train.sh", "infer.sh"):  # for the processes that these start
        assert "PYTHONSAFEPATH=1" in (top / script).read_text()
    assert not list(top.glob("ran_*"))


def test_no_camelyon16_says_where_it_must_lie_and_how_to_get_it(run_in, top):
    done = run_in("./train.sh", "camelyon16")
    assert done.returncode == 1
    assert "dataset/camelyon16/images does not exist" in done.stdout
    assert (
        "--include 'tumor_*' s3://camelyon-dataset/CAMELYON16/images/ dataset/camelyon16/images/ && aws" in done.stdout
    )
    assert "Traceback" not in done.stdout + done.stderr
    assert not (top / "runs").exists()
    assert not (top / "dataset").exists()


def test_dataset_type_can_come_from_the_environment(run_in):
    done = run_in("./train.sh", DATASET_TYPE="camelyon17")
    assert "dataset/camelyon17/images does not exist" in done.stdout


def test_a_typo_in_the_settings_is_one_line(run_in, top):
    (top / "mine.yaml").write_text("clasifier: {depth: 18}\n")
    done = run_in("./train.sh", "mine.yaml")
    assert done.returncode == 1
    assert done.stdout.strip() == "error: mine.yaml: unknown setting `clasifier`; did you mean `classifier`?"
    assert done.stderr == ""
    done = run_in(PYTHON, "-m", "epsam", "preprocess", "--config", "demo", "clasifier.depth=18")
    assert "demo.yaml with clasifier.depth=18: unknown setting `clasifier`" in done.stdout


def test_infer_without_checkpoint_says_what_makes_it(run_in, top):
    done = run_in("./infer.sh", PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 1
    loaded = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines()]
    assert "epsam.cli" in loaded
    assert "torch" not in loaded, "it takes seconds"
    assert "no model `demo` in checkpoints: neither demo_student.pth nor demo_resnet_adl.pth" in done.stdout
    assert "./train.sh makes it; there is none there" in done.stdout
    assert not (top / "runs").exists()


def test_weights_without_the_settings_they_were_trained_with_are_not_guessed_at(run_in, top):
    for name in ("demo_resnet_adl.pth", "demo_sam_decoder.pth"):
        (top / "checkpoints" / name).write_bytes(b"weights from elsewhere")
    done = run_in("./infer.sh")
    assert done.returncode == 1
    assert "demo_sam_decoder.pth: no settings beside it" in done.stdout
    assert "./infer.sh --config camelyon17" in done.stdout


def test_a_python_that_is_too_old_or_missing_is_said_at_once(run_in):
    for python in ("/bin/false", "/no/such/python3"):
        done = run_in("./train.sh", PYTHON=python)
        assert done.returncode == 1
        assert "Python 3.10 or later is needed" in done.stderr


def _environment(folder: Path, says: str) -> Path:
    """A folder that looks like an environment, whose interpreter runs `says`."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").write_text(f"#!/bin/sh\n{says}\n")
    (folder / "bin" / "python").chmod(0o755)
    return folder


def test_an_environment_that_is_there_is_used_as_it_is(run_in, top):
    shutil.move(top / ".venv", top / "theirs")
    for venv, cwd in ((str(top / "theirs"), top), ("theirs", top), ("../theirs", top / "dataset")):
        cwd.mkdir(exist_ok=True)
        done = run_in(str(top / "train.sh"), cwd=cwd, DATASET_TYPE="no_such", VENV=venv, PYTHONPATH="")
        assert "no_such: no such settings file" in done.stdout, done.stderr
    done = run_in("./infer.sh", VENV=str(top / "theirs"), PYTHONPATH="")
    assert "no model `demo` in checkpoints" in done.stdout, done.stderr
    assert not (top / ".venv").exists(), "nothing is installed"


def test_an_environment_that_cannot_be_used_is_one_line_that_says_why(run_in, top):
    here = top / "theirs"
    done = run_in("./train.sh", VENV=str(here))
    assert done.stderr == (
        f"error: VENV={here}: no environment of Python is there (bin/python); correct the path, or unset VENV\n"
    )
    _environment(here, "exit 1")
    assert f"Python 3.10 or later is needed; VENV={here} is older" in run_in("./train.sh", VENV=str(here)).stderr
    hide = "import sys, runpy; from importlib import metadata as m; v = m.version; "
    lookup = "lambda n: v('no-such') if n == 'simplejpeg' else '2.4.1' if n == 'pydicom' else v(n)"
    check = f"sys.argv.pop(0); m.version = {lookup}; runpy.run_path(sys.argv[0], run_name='__main__')"
    python = here / "bin" / "python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *check_env*) exec {sys.executable} -c "{hide}{check}" "$@";; esac\n')
    done = run_in("./train.sh", VENV=str(here))
    assert done.returncode == 1
    assert " lacks simplejpeg>=1.7, pydicom>=3.0 (2.4.1 is there): run " in done.stderr
    assert done.stderr.endswith("-m pip install 'simplejpeg>=1.7' 'pydicom>=3.0'\n")
    assert not (top / "runs").exists()


def test_an_installation_that_fails_is_tried_again_next_time(run_in, top):
    (top / ".venv" / "installed").unlink()
    (top / ".venv" / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
    done = run_in("./train.sh")
    assert done.returncode == 1
    assert "installation failed (see above); fix it and run the same command again" in done.stderr
    assert not (top / ".venv" / "installed").exists()


READ_ONLY = [
    "unshare",
    "-m",
    "bash",
    "-c",
    'mount --bind .venv .venv && mount -o remount,bind,ro .venv && exec "$@"',
    "ro",
]


@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run(["unshare", "-m", "true"], check=False).returncode != 0,
    reason="needs the right to mount",
)
def test_an_environment_that_cannot_be_written_is_used_as_it_is_or_named_with_its_owner(run_in, top):
    whole = run_in(*READ_ONLY, "./train.sh", "no_such.yaml")
    assert "no_such.yaml: no such settings file" in whole.stdout
    (top / ".venv" / "installed").write_text("of other requirements")
    old = run_in(*READ_ONLY, "./train.sh")
    assert old.returncode == 1
    assert old.stdout == ""
    assert old.stderr == (
        f"error: packages must be installed, and you cannot write to {top}/.venv. Ask its owner ({top.owner()}) to run "
        "the same command once, or use a copy of this folder of your own\n"
    )


def test_the_versions_last_tested_are_installed_once_where_asked_for(run_in, top):
    (top / ".venv" / "bin" / "python").write_text(
        '#!/bin/sh\ncase "$*" in *pip*) echo "$@" >> pip.txt;; *) exit 3;; esac\n'
    )
    run_in("./train.sh")
    assert not (top / "pip.txt").exists()
    for constraints in ("code/constraints.txt", "code/constraints.txt", ""):
        run_in("./train.sh", CONSTRAINTS=constraints)
    (call,) = (top / "pip.txt").read_text().splitlines()
    assert "-c code/constraints.txt -r requirements.txt" in call
    done = run_in("./train.sh", CONSTRAINTS="other.txt")
    assert done.stderr == "error: CONSTRAINTS=other.txt: there is no such file; code/constraints.txt is one\n"


def test_a_terminal_without_unicode_and_a_folder_with_spaces(run_in, top):
    (top / "mein Länge.yaml").write_text("größe: 3\n")
    done = run_in("./train.sh", "mein Länge.yaml", PYTHONIOENCODING="ascii")
    assert done.returncode == 1
    assert r"unknown setting `gr\xf6\xdfe`" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


NO_ROOM = """
import sys, torch
def to(self, *_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
torch.nn.Module.to = to
from epsam.cli import main
sys.argv = ["epsam", "train-classifier", "--config", "small.yaml"]
main()
"""


def test_a_gpu_that_others_have_filled_is_one_line(run_in, top):
    (top / "small.yaml").write_text("name: small\nclassifier: {depth: 18}\n")
    make_patches(Workspace(top, "small"))
    assert run_in(PYTHON, "-m", "epsam", "preprocess", "--config", "small.yaml").returncode == 0
    done = run_in(PYTHON, "-c", NO_ROOM)
    assert done.returncode == 1
    assert "error: the GPU's memory is full (nvidia-smi lists what uses it)" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_stage_out_of_order_names_the_one_before(run_in):
    done = run_in(PYTHON, "-m", "epsam", "retrain", "--config", "demo")
    assert done.returncode == 1
    assert "retrain needs preprocess" in done.stdout


def test_doctor_as_json(run_in):
    done = run_in(PYTHON, "-m", "epsam", "doctor", "--json", "--config", "demo")
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert checks["torch"]["status"] == "ok"
    assert checks["slides"]["status"] == "error"
    assert done.returncode == 1
    assert "images" in checks["slides"]["fix"]


def test_paths_count_from_where_the_user_stands(run_in, top, tmp_path_factory):
    there = tmp_path_factory.mktemp("elsewhere")
    (there / "mine.yaml").write_text("name: mine\nclasifier: {}\n")
    for value in ("weights.pth", "~/weights.pth"):
        done = run_in(str(top / "infer.sh"), cwd=there, STUDENT_CHECKPOINT=value, HOME=str(there))
        assert f"{there / 'weights.pth'}: no such checkpoint" in done.stdout
    for script in (("train.sh", "mine.yaml"), ("infer.sh", "--config", "mine.yaml")):
        done = run_in(str(top / script[0]), *script[1:], cwd=there, STUDENT_CHECKPOINT=str(top / script[0]))
        assert f"{there / 'mine.yaml'}: unknown setting `clasifier`" in done.stdout + done.stderr
    done = run_in(f"../{top.name}/infer.sh", cwd=top, HOME=str(there))
    assert "error: no model `demo` in checkpoints:" in done.stdout, "defaults lie in the project"
    (there / ".segment").symlink_to(top / "infer.sh")
    for script in (str(top / "infer.sh"), "./.segment"):
        done = run_in(script, "--help", cwd=there, CDPATH=str(top.parent))
        assert "./infer.sh SLIDE_OR_FOLDER..." in done.stdout
    assert [path.name for path in there.iterdir() if not path.name.startswith(".")] == ["mine.yaml"]


def test_a_misspelt_variable_is_an_error(run_in):
    done = run_in("./infer.sh", TEST_DATASETDIR="x")
    assert done.returncode == 1
    assert "variable TEST_DATASETDIR is not one of ./infer.sh; did you mean TEST_DATASET_DIR?" in done.stdout
    for name in ("RESNET_CHECKPONT", "OUTPUTDIR", "SAM_DECODER_CHECKPOINTS"):
        with pytest.raises(ConfigError, match=f"{name} is not one"):
            read_variables({name: "x"}, **NOTHING)
    harmless = {"SAM_CHECKPOINT": "x", "OUTPUT_FORMAT": "", "TEST_TMPDIR": "", "PATH": ""}
    assert read_variables(harmless, **NOTHING).sam_checkpoint == Path("x")


@pytest.mark.parametrize(
    ("variable", "argument"),
    [("TEST_DATASET_DIR", "inputs"), ("STUDENT_CHECKPOINT", "model"), ("OUTPUT_DIR", "output")],
)
def test_what_is_said_twice_is_an_error(variable, argument):
    with pytest.raises(ConfigError, match=rf"environment variable {variable} \(x\) are given; leave one out"):
        read_variables({variable: "x"}, **NOTHING | {argument: True})
    read_variables({variable: ""}, **NOTHING | {argument: True})


def test_misspelt_arguments_name_the_nearest(run_in, top):
    assert "'nan' is not a number" in run_in("./infer.sh", "--mpp", "nan", "x.tif").stderr
    assert "did you mean '--model'?; see --help" in run_in("./infer.sh", "--modle", "x").stderr.lower()
    for end in ("student.pth", "student.pth.json"):
        (top / "checkpoints" / f"mine_{end}").write_text('{"settings": {"name": "mine"}}')
    assert "no such file or folder; give a slide" in run_in("./infer.sh", "mine").stdout
    assert "did you mean --model mine?" in run_in("./infer.sh", "mine").stdout
    done = run_in("./infer.sh", "--model", "mien")
    assert "no model `mien` in checkpoints" in done.stdout
    assert "did you mean `mine`?" in done.stdout
    done = run_in("./infer.sh", "--model", "mine", "inference.treshold=0.4")
    assert "unknown setting `inference.treshold`; did you mean `threshold`?" in done.stdout

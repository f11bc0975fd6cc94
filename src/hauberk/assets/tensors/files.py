"""Which reader a file of weights has, by what it begins with."""

from __future__ import annotations

import zipfile
from pathlib import Path

from hauberk.assets.tensors.npz import read_npz
from hauberk.assets.tensors.safetensors import read_safetensors
from hauberk.assets.tensors.spec import TensorSpec
from hauberk.assets.tensors.torch_zip import read_torch
from hauberk.core.errors import ModelError, UnsafeFile

WEIGHTS = (".safetensors", ".npz", ".pt", ".pth", ".bin", ".ckpt")


def tensors_in(path: str | Path) -> list[TensorSpec]:
    """Return the tensors of a file, or of all files of weights in a folder, sorted by name; no value is read yet.

    Arguments:
        path: safetensors, a state dict of torch.save (zip), npz; or a folder with shards of them.

    Raises:
        ModelError: when there are none, the file is broken, or holds what is no tensor.
        UnsafeFile: when it plays tricks, or two files of a folder name the same tensor.
    """
    place = Path(path)
    files = [place]
    if place.is_dir():
        inside = sorted(place.rglob("*"))
        links = [one for one in inside if one.is_symlink() and one.is_dir()]
        if links:  # what reads the folder may follow it, to shards that were not looked at
            raise UnsafeFile(f"{links[0]} is a link", want="plain files and folders")
        files = [one for one in inside if one.suffix.lower() in WEIGHTS and one.is_file()]
        if not files:
            raise ModelError(f"{place} holds no weights", want=f"files that end in {', '.join(WEIGHTS)}")
    found: dict[str, TensorSpec] = {}
    for file in files:
        for tensor in _read(file):
            if tensor.name in found:
                raise UnsafeFile(
                    f"tensor '{tensor.name[:80]}' comes twice, again in {file.name}", want="each name once",
                    fix="Name the one file of weights that is meant",
                )
            found[tensor.name] = tensor
    return [found[name] for name in sorted(found, key=lambda name: name.encode("utf-8", "surrogatepass"))]


def _read(path: Path) -> list[TensorSpec]:
    if path.is_symlink() or not path.is_file():
        raise UnsafeFile(f"{path} is a link, or no file", want="a file of weights")
    with path.open("rb") as file:
        head = file.read(9)
    if head.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(path) as archive:
                arrays = all(name.endswith(".npy") for name in archive.namelist())
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise ModelError(f"{path} is a broken archive ({error})", want="a whole file") from error
        return read_npz(path) if arrays else read_torch(path)
    if head[8:9] == b"{":
        return read_safetensors(path)
    raise ModelError(
        f"{path} is in no format whose tensors are read here", want="safetensors, torch.save (zip) or npz",
        fix="Save the state dict with safetensors.torch.save_file",
    )

"""Read files of weights without running code inside them, and say what is wrong with a bad one."""

from __future__ import annotations

import os
import pickle
import re
import tarfile
import zipfile
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from .arrays import load_pickled_arrays

__all__ = ["read_checkpoint"]

# The first bytes of a file that `torch.save` wrote before PyTorch 1.6: its magic number, pickled.
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_NOT_WEIGHTS = {
    b"version https://git-lfs": "a pointer of Git LFS; run `git lfs pull`",
    b"<!DOCTYPE": "a web page; download the file again",
    b"<html": "a web page; download the file again",
    b"\x1f\x8b": "a gzip archive; unpack it",
    b"\x93NUMPY": "one array of numpy (.npy), without names; save a state_dict (name -> tensor)",
    b"\x89HDF": "an HDF5 file, as Keras writes it; save a state_dict (name -> tensor)",
}


def read_checkpoint(path: str) -> Any:
    """Read a file of weights. Its content decides how, not its name.

    | written by | read by |
    |---|---|
    | `torch.save` | `torch.load` with weights_only; the checksums of a zip file are compared |
    | safetensors | safetensors |
    | pickle (Detectron2's model zoo, Caffe2) | an unpickler that rebuilds arrays from bytes |

    Returns:
        the content, with tensors on the CPU or numpy arrays.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, cut off, damaged or of another kind, or would run code.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"checkpoint {path}: expected a file, found none. A path is relative to the current "
            f"folder."
        )
    size = os.path.getsize(path)
    with open(path, "rb") as f:
        head = f.read(4096)
    if not head:
        raise _refusal(path, "an empty file (0 bytes)")
    if not any(head):
        raise _refusal(path, f"{size} bytes that begin with zeros, as a power cut leaves them")
    if head.startswith(b"PK\x03\x04"):
        _check_zip(path, size)
        return _torch_load(path)
    if head.startswith(_LEGACY):
        # PyTorch before 2.6 would run the code in a tar archive in spite of weights_only.
        if tarfile.is_tarfile(path):
            raise _refusal(path, "a tar archive")
        return _torch_load(path)
    if path.endswith(".safetensors") or _begins_like_safetensors(head, size):
        try:
            return load_file(path)
        except (SafetensorError, ValueError, OSError) as e:
            raise ValueError(
                f"checkpoint {path}: expected a safetensors file, found one that is cut off or of "
                f"another kind ({e})."
            ) from e
    for start, kind in _NOT_WEIGHTS.items():
        if head.lstrip().startswith(start):
            raise _refusal(path, kind)
    if head[0] == 0x80 or path.endswith(".pkl"):
        try:
            with open(path, "rb") as f:
                return load_pickled_arrays(f)
        except pickle.UnpicklingError as e:
            raise ValueError(
                f"checkpoint {path} is refused: expected a pickle of numpy arrays in plain "
                f"containers, found that {e}. A pickle can run any code. If you trust this file, "
                f"write its weights with torch.save."
            ) from e
    raise _refusal(path, f"a file of another kind or a damaged one (it begins with {head[:16]!r})")


def _refusal(path: str, found: str) -> ValueError:
    return ValueError(
        f"checkpoint {path}: expected a file by torch.save, safetensors or pickle, found {found}."
    )


def _begins_like_safetensors(head: bytes, size: int) -> bool:
    # Eight bytes with the length of a header, which is JSON.
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8


def _check_zip(path: str, size: int) -> None:
    """Compare the checksums in a zip file by `torch.save`, which `torch.load` does not.

    Raises:
        ValueError: it is damaged, or was written by something else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if any(name.endswith("/constants.pkl") for name in names):
                raise _refusal(
                    path, "a TorchScript archive; save the state_dict() of its module instead"
                )
            damaged = archive.testzip()
    except ValueError:
        raise
    except Exception as e:  # a directory that was made up or damaged raises any kind of exception
        raise _refusal(path, f"one that is cut off or damaged after {size} bytes ({e})") from e
    if damaged:
        raise _refusal(
            path,
            f"a damaged one: {damaged!r} in it has another checksum than when it was written. "
            f"Copy or download it again",
        )
    if not any(name.count("/") == 1 and name.endswith("/data.pkl") for name in names):
        raise _refusal(path, _kind_of_archive(path, names))


def _kind_of_archive(path: str, names: list[str]) -> str:
    shown = f"{', '.join(map(repr, names[:3]))}{', ...' if len(names) > 3 else ''}"
    if names and all(name.endswith(".npy") for name in names):
        shown = shown.replace(".npy'", "'")
        return (
            f"numpy's .npz with {len(names)} arrays ({shown}). If these are weights of the model, "
            f"write them with torch.save: torch.save({{'model': {{k: torch.from_numpy(v) for k, v "
            f"in numpy.load({path!r}).items()}}}}, 'weights.pth')"
        )
    return f"a whole zip archive of something else, with {len(names)} files ({shown})"


def _torch_load(path: str) -> Any:
    try:
        with open(path, "rb") as f:  # given a path, torch.load may decide by its suffix
            return torch.load(f, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        needs = re.search(r"(?:GLOBAL|[Uu]nsupported class|type) ([\w.]+\.\w+)", str(e))
        found = f"it needs {needs[1]}" if needs else str(e).strip().splitlines()[0]
        raise ValueError(
            f"checkpoint {path} is refused: expected tensors in plain containers, found that "
            f"{found}. Such a file can run code. If you trust it, write its weights alone: "
            f"torch.save({{'model': torch.load({path!r}, weights_only=False)['model']}}, "
            f"'weights.pth'), where 'model' is the name of its state_dict."
        ) from e
    except Exception as e:  # damaged files raise many kinds of exceptions
        first = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise _refusal(path, f"one that is cut off or damaged ({first})") from e

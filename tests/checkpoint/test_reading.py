"""Each kind of file is read without running code, or refused with its name and what is wrong."""

import argparse
import io
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from d2kd.checkpoint import read_checkpoint

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([7])}


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def write(path, content, kind):
    if kind == "zip":
        torch.save(content, path)
    elif kind == "legacy":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "safetensors"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".pkl", ".pyth", ".bin", ".safetensors"])
def test_the_content_decides_how_a_file_is_read(tmp_path, kind, suffix):
    path = tmp_path / f"weights{suffix}"
    if kind == "safetensors":
        save_file(WEIGHTS, path)
    elif kind == "pickle":
        write(path, {k: v.numpy() for k, v in WEIGHTS.items()}, kind)
        if suffix == ".safetensors":
            pytest.skip("the name says what it is")
    else:
        write(path, WEIGHTS, kind)
    found = read_checkpoint(str(path))
    assert {k: np.asarray(v).tolist() for k, v in found.items()} == {
        k: v.tolist() for k, v in WEIGHTS.items()
    }


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".pkl", ".pyth", ".bin"])
def test_no_file_runs_code(tmp_path, kind, suffix):
    path, marker = tmp_path / f"weights{suffix}", tmp_path / "the payload ran"
    weights = {k: v.numpy() for k, v in WEIGHTS.items()} if kind == "pickle" else WEIGHTS
    write(path, {"model": weights, "extra": Payload(marker)}, kind)
    with pytest.raises(ValueError, match=r"weights\.\w+ is refused: expected .* found .*mkdir"):
        read_checkpoint(str(path))
    assert not marker.exists()


def test_a_tar_archive_in_disguise_is_refused(tmp_path):
    # PyTorch before 2.6 unpickles what is in a tar archive in spite of weights_only. The name of
    # the first member is the file's first bytes.
    path, buffer = tmp_path / "weights.pth", io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        name = tarfile.TarInfo(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.".decode("latin1"))
        archive.encoding = "latin1"
        archive.addfile(name, io.BytesIO())
    path.write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match=r"weights.pth: expected .*found a tar archive"):
        read_checkpoint(str(path))


def test_an_object_in_a_checkpoint_is_refused_with_its_class_and_the_fix(tmp_path):
    path = tmp_path / "weights.pth"
    for extra, name in (
        (argparse.Namespace(lr=1), "argparse.Namespace"),
        (np.float64(3), "multiarray.scalar"),
    ):
        torch.save({"model": WEIGHTS, "extra": extra}, path)
        with pytest.raises(ValueError, match=rf"weights.pth is refused.*{name}.*torch.save"):
            read_checkpoint(str(path))


def flipped(content: bytes) -> bytes:
    middle = content.index(WEIGHTS["a.weight"].numpy().tobytes()) + 3
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGED = {
    "empty": (lambda b: b"", "an empty file"),
    "zeros": (lambda b: bytes(len(b)), "zeros"),
    "cut": (lambda b: b[: len(b) // 2], "cut off"),
    "cut at the end": (lambda b: b[:-1], "cut off|damaged"),
    "zeros at the end": (lambda b: b[: len(b) // 2] + bytes(len(b) // 2), "cut off"),
    "one flipped bit": (flipped, "another checksum"),
    "a web page": (lambda b: b"<!DOCTYPE html><html>404", "a web page; download"),
    "Git LFS": (lambda b: b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    "text": (lambda b: b"hello", "of another kind"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_an_error_that_names_it_and_the_damage(tmp_path, kind):
    path, (damage, message) = tmp_path / "weights.pth", DAMAGED[kind]
    torch.save(WEIGHTS, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        ValueError, match=rf"weights.pth: expected a file by .* found .*({message})"
    ):
        read_checkpoint(str(path))


@pytest.mark.parametrize("kind", ["legacy", "pickle", "safetensors"])
def test_a_cut_file_of_another_kind_is_an_error_too(tmp_path, kind):
    path = tmp_path / "weights"
    if kind == "safetensors":
        path = path.with_suffix(".safetensors")
        save_file(WEIGHTS, path)
    else:
        write(path, {k: v.numpy() if kind == "pickle" else v for k, v in WEIGHTS.items()}, kind)
    whole = path.read_bytes()
    for length in range(1, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"expected .*found"):
            read_checkpoint(str(path))


def test_a_torchscript_archive_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    with pytest.raises(ValueError, match=r"a TorchScript archive; save the state_dict"):
        read_checkpoint(str(path))


def test_a_zip_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photo.jpg", b"x")
    found = r"photos.zip.*expected .*found a whole zip archive .* 1 files \('photo.jpg'\)"
    with pytest.raises(ValueError, match=found):
        read_checkpoint(str(path))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut off or damaged"):
        read_checkpoint(str(path))


def test_files_of_numpy_are_not_called_damaged(tmp_path):
    path = tmp_path / "weights.npz"
    np.savez(path, **{k: v.numpy() for k, v in WEIGHTS.items()})
    found = r"weights.npz: .* found numpy's .npz with 2 arrays \('a.weight', 'b'\).*: torch.save\("
    with pytest.raises(ValueError, match=found) as error:
        read_checkpoint(str(path))
    # The command in the message mends it.
    line = "torch.save(" + str(error.value).rsplit("torch.save(", 1)[1].removesuffix(".")
    line = line.replace("'weights.pth'", repr(str(tmp_path / "weights.pth")))
    subprocess.run([sys.executable, "-c", f"import numpy, torch; {line}"], check=True)
    mended = read_checkpoint(str(tmp_path / "weights.pth"))["model"]
    assert all(torch.equal(mended[k], v) for k, v in WEIGHTS.items())
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"one.npy: .* found one array of numpy"):
        read_checkpoint(str(tmp_path / "one.npy"))


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.pth: expected a file, found none"):
        read_checkpoint(str(tmp_path / "nowhere.pth"))

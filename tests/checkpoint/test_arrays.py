"""Pickles of numpy arrays: every array comes back, and nothing else is done."""

import contextlib
import io
import pickle
from collections import OrderedDict

import numpy as np
import pytest

from d2kd.checkpoint.arrays import load_pickled_arrays


def load(content: bytes):
    return load_pickled_arrays(io.BytesIO(content))


ARRAYS = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "float16": np.array([0.5, -2], dtype=np.float16),
    "float64": np.array([[1e300]]),
    "int64": np.array([-(2**40), 3]),
    "uint8": np.arange(256, dtype=np.uint8),
    "bool": np.array([True, False]),
    "complex64": np.array([1 + 2j], dtype=np.complex64),
    "no axes": np.array(3.5),
    "empty": np.zeros((0, 4), np.float32),
    "big endian": np.array([1.5, 2.5], dtype=">f4"),
    "Fortran order": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "view": np.arange(12.0)[::2],
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ARRAYS)
def test_each_array_comes_back(name, protocol):
    array = ARRAYS[name]
    found = load(pickle.dumps({"a": [array]}, protocol))["a"][0]
    assert type(found) is np.ndarray and found.shape == array.shape
    assert found.dtype == array.dtype.newbyteorder("=") and np.array_equal(found, array)
    found[...] = 0  # it can be written to


@pytest.mark.parametrize("protocol", range(6))
def test_containers_and_numbers_come_back(protocol):
    content = OrderedDict(
        a=(1, 2.5, None, True), b=["é", b"\xff"], c={3: np.float64(1.5), "d": np.int64(7)}
    )
    found = load(pickle.dumps(content, protocol))
    assert found == content and type(found) is OrderedDict
    assert type(found["c"][3]) is np.float64


def test_a_file_of_python_2_comes_back():
    # pickle.dumps({"w": numpy.array([1.5, -2], "float32")}, 2) of Python 2.7 with numpy 1.16.
    content = (
        b"\x80\x02}q\x01U\x01wq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq"
        b"\x04K\x00\x85U\x01b\x87Rq\x05(K\x01K\x02\x85cnumpy\ndtype\nq\x06U\x02f4K\x00K\x01\x87Rq"
        b"\x07(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08\x00\x00\xc0?\x00"
        b"\x00\x00\xc0tbs."
    )
    assert load(content)["w"].tolist() == [1.5, -2.0]


def test_a_list_that_contains_itself_comes_back():
    content: list = []
    content.append(content)
    found = load(pickle.dumps(content))
    assert found[0] is found


class Calls:
    """Pickled as a call of a function with arguments."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


SCALAR = np.float64(0).__reduce__()[0]
RECONSTRUCT = np.zeros(1).__reduce__()[0]
ADDRESS = (0xDEADBEEF).to_bytes(8, "little")
RECORD = np.dtype([("a", "O")])
REFUSED = {
    "a call": Calls(print, "the payload ran"),
    "an object at an address": Calls(SCALAR, np.dtype("O"), ADDRESS),
    "objects at addresses": Calls(
        RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (1,), np.dtype("O"), False, ADDRESS)
    ),
    "a record of objects": Calls(SCALAR, RECORD, ADDRESS),
    "a number that becomes an object": Calls(
        SCALAR,
        Calls(np.dtype, "f8", False, True, state=(3, "|", None, None, None, 8, 8, 63)),
        ADDRESS,
    ),
    "more numbers than bytes": Calls(
        RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (1 << 40,), np.dtype("f8"), False, ADDRESS)
    ),
    "a negative shape": Calls(
        RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (-1, -1), np.dtype("f8"), False, ADDRESS)
    ),
    "text": np.array(["a"]),
    "objects": np.array([{}], dtype=object),
    "a class": np.ndarray,
    "a changed function": Calls(SCALAR, np.dtype("f8"), ADDRESS, state={"a": 1}),
}


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("kind", REFUSED)
def test_anything_else_is_refused(kind, protocol, capsys):
    content = pickle.dumps({"w": REFUSED[kind]}, protocol)
    if kind == "a class":
        assert load(content) == {"w": "numpy.ndarray"}  # a word, not the class
        return
    if kind == "a number that becomes an object":
        # The state's flags are not read. What is left is eight bytes as a number.
        assert load(content)["w"] == np.frombuffer(ADDRESS)[0]
        return
    with pytest.raises(pickle.UnpicklingError):
        load(content)
    assert not capsys.readouterr().out


def test_a_file_cannot_change_the_stand_ins():
    # BUILD with a tuple sets attributes: here on the function `scalar` itself.
    content = b"\x80\x02cnumpy.core.multiarray\nscalar\n(N}X\x09\x00\x00\x00_functionK\x00s\x86b."
    with pytest.raises(pickle.UnpicklingError):
        load(content)


@pytest.mark.parametrize("opcode", range(256))
def test_no_damage_raises_another_error(opcode):
    whole = pickle.dumps({"w": np.arange(3.0), "n": np.float32(2)}, 2)
    for position in range(2, len(whole), 7):
        damaged = whole[:position] + bytes([opcode]) + whole[position + 1 :]
        for content in (damaged, whole[:position]):
            with contextlib.suppress(pickle.UnpicklingError):
                load(content)


def test_deep_nesting_is_refused():
    with pytest.raises(pickle.UnpicklingError, match=r"containers in each other"):
        load(b"\x80\x02" + b"]" * 1000 + b"a" * 999 + b".")

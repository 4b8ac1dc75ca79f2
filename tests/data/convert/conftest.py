import pytest
from PIL import Image


@pytest.fixture
def picture(tmp_path):
    """Write a picture of some width and height below the test's folder."""

    def write(path: str, width: int = 100, height: int = 50) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (width, height)).save(file)

    return write


@pytest.fixture
def text(tmp_path):
    """Write a text file below the test's folder, one argument a line."""

    def write(path: str, *lines: str) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{line}\n" for line in lines))

    return write

"""Make the virtual environment that `make demo` and `make test` run in.

If the Python that runs this script can import Detectron2, .venv uses that one. Otherwise the script
installs a wheel whose hash it checks: the authors of Detectron2 publish no wheel, and its sources
have to be compiled. You can interrupt the script at any moment, because the next run completes what
it finds. `make` looks at `.venv/.ready`, which is written last.
"""

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"

# Upstream's Python files of 2024-04-17; tagged for CPython 3.10, but they run on any later one.
WHEEL = "sal-detectron2==0.7.2"
SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"

NO_DETECTRON2 = f"""\
d2kd needs Detectron2 and found none.
  expected  a Python that imports torch, torchvision and detectron2,
            or a package index that has {WHEEL}
  found     {sys.executable} does not import them,
            and pip could not install that wheel (its message is above)
  run       python -m pip install 'git+https://github.com/facebookresearch/detectron2.git'
            in an environment with torch and torchvision, then with its Python
            make setup PYTHON=/path/to/python"""

VERIFY = """\
import sys, torch, torchvision, cv2, detectron2.modeling, detectron2.model_zoo, d2kd
print("Python", sys.version.split()[0], "| torch", torch.__version__, end=" | ")
print("Detectron2", detectron2.__version__)"""


def stop(message):
    sys.exit("\n" + message)


def run(*args, python=VENV / "bin" / "python"):
    """Run Python away from the checkout, so that it imports only what is installed."""
    pip = {"PIP_USER": "0", "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    to_pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.run([python, *args], cwd=VENV, env={**os.environ, **pip}, **to_pipe)


def step(title, *args, failed):
    """Run Python quietly; show what it printed only if it fails."""
    print(f"{title} ...", end=" ", flush=True)
    start = time.time()
    done = run(*args)
    if done.returncode:
        print(f"failed\n\n{done.stdout}")
        stop(failed)
    print(f"{time.time() - start:.0f} s")
    return done.stdout


def ask(expression):
    """The value of an expression in .venv."""
    code = f"from importlib import metadata, util; import sysconfig; print(repr({expression}))"
    return ast.literal_eval(run("-c", code).stdout.splitlines()[-1])


def check_python():
    version = "{}.{}".format(*sys.version_info)
    found = f"found {version} ({sys.executable})"
    if sys.version_info < (3, 10):  # noqa: UP036
        stop(f"d2kd needs Python 3.10 to 3.13, {found}.\n  run  make setup PYTHON=python3.11")
    if sys.version_info >= (3, 14):
        print(f"d2kd is tested with Python 3.11 and 3.13, {found}; going on with it.")
    if importlib.util.find_spec("ensurepip") is None:
        hint = f"apt install python{version}-venv (on Debian and Ubuntu), then this again"
        stop(f"{sys.executable} cannot make virtual environments.\n  run  {hint}")


def make_venv():
    """Make sure that .venv has a Python that runs and a whole pip; return its site-packages."""
    VENV.mkdir(exist_ok=True)
    if not (VENV / "bin" / "python").exists() or run("-c", "").returncode:
        create = ["-m", "venv", "--clear", "--without-pip", VENV]
        if run(*create, python=sys.executable).returncode:
            stop(f"This failed:\n  {sys.executable} -m venv {VENV}")
    site = Path(ask("sysconfig.get_path('purelib')"))
    # pip writes RECORD last. Without it a package is incomplete, but pip sees it as installed.
    for info in site.glob("*.dist-info"):
        if not (info / "RECORD").exists():
            shutil.rmtree(info)
    if not list(site.glob("pip-*.dist-info")):
        pip = ["-m", "ensurepip", "--default-pip"]  # `pip`, too, not `pip3` alone
        step("Making .venv", *pip, failed="pip could not be put into .venv.")
    return site


def share_detectron2(site):
    """Let .venv import the packages of the Python that runs this, if Detectron2 is among them."""
    if not all(importlib.util.find_spec(name) for name in ("torch", "torchvision", "detectron2")):
        return False
    if run("-c", "import torchvision, detectron2.modeling", python=sys.executable).returncode:
        print(f"The Detectron2 of {sys.executable} does not import; installing another.")
        return False
    if site.parent.name != "python{}.{}".format(*sys.version_info):
        stop(f".venv is not of {sys.executable}.\n  run  make distclean, then this again")
    print(f"Using the Detectron2, torch and torchvision of {sys.executable}")
    # --system-site-packages would do the same, but not for a Python in a virtual environment.
    paths = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    lines = [f"import site; site.addsitedir({path!r})\n" for path in paths]
    (site / "detectron2_of_user.pth").write_text("".join(lines))
    return True


def install_detectron2(site):
    incoming = VENV / "incoming"
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir()
    (incoming / "wheel.txt").write_text(f"{WHEEL} --hash=sha256:{SHA256}\n")
    pip = ["-m", "pip", "install", "--no-deps", "--no-compile", "--require-hashes"]
    pip += ["--only-binary=:all:", "--platform=any", "--abi=none", "--python-version=3.10"]
    pip += ["--implementation=cp", "--target", incoming, "--requirement", incoming / "wheel.txt"]
    step("Installing Detectron2", *pip, failed=NO_DETECTRON2)
    # The compiled part of the wheel fits one old torch only. Its package `tools` is not needed.
    for library in (incoming / "detectron2").glob("_C*.so"):
        library.unlink()
    (incoming / "detectron2").rename(site / "detectron2")  # at once, or not at all
    shutil.rmtree(incoming)


def install_d2kd():
    """Install d2kd and what it still lacks; no torch, torchvision or numpy is replaced."""
    present = dict(ask("[(d.name or '', d.version) for d in metadata.distributions()][::-1]"))
    kept = [name for name in ("torch", "torchvision", "numpy") if name in present]
    pins = "".join(f"{name}=={present[name]}\n" for name in kept)
    (VENV / "constraints.txt").write_text(pins)
    wanted = ["--constraint", VENV / "constraints.txt", "--editable", f"{ROOT}[demo,dev]"]
    wanted += ["setuptools<81"]  # for the pkg_resources that Detectron2 imports
    if not any(name.startswith("opencv") for name in present):
        wanted += ["opencv-python-headless"]  # any OpenCV works, but two break each other
    big = "" if "torch" in present else " (with torch: about 5 GB on disk, some minutes)"
    failed = "pip could not install all of this (its message is above).\n  run  make setup again,"
    failed += " or make distclean setup to start anew"
    step(f"Installing d2kd and what it needs{big}", "-m", "pip", "install", *wanted, failed=failed)


def main():
    check_python()
    site = make_venv()
    if not ask("bool(util.find_spec('detectron2'))") and not share_detectron2(site):
        install_detectron2(site)
    install_d2kd()
    failed = ".venv does not import what was installed (see above).\n  run  make distclean setup"
    print("Ready:", step("Checking", "-c", VERIFY, failed=failed).splitlines()[-1])
    (VENV / ".ready.new").write_text(f"{ROOT}\n")
    (VENV / ".ready.new").replace(VENV / ".ready")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        stop("Interrupted. The next run continues from here.")

from setuptools import find_packages, setup

setup(
    name="d2kd",
    version="0.1.0",
    description="Knowledge distillation for Detectron2",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["d2kd", "d2kd.*"]),
    # d2kd/model_zoo/configs is a link to configs/. The package gets a copy of what it points to.
    package_data={
        "d2kd": ["py.typed"],
        "d2kd.model_zoo": [
            "students.json",
            *(f"configs/**/*.{suffix}" for suffix in ("py", "pth", "safetensors", "txt", "md")),
        ],
    },
    entry_points={"console_scripts": ["d2kd = d2kd.cli:main"]},
    # Not in this list:
    # - detectron2: no package index has it under its name; it is installed from its repository.
    # - OpenCV: Detectron2 works with any of opencv-python, -headless and -contrib, and two of them
    #   in one place break each other. tools/bootstrap.py brings one where there is none.
    # - setuptools<81, for the pkg_resources that Detectron2 imports: required here, it would
    #   downgrade that of users who are well without. tools/bootstrap.py asks for it.
    install_requires=[
        "torch>=1.13",  # the first with torch.load(weights_only=...)
        "torchvision>=0.14",  # the pair of torch 1.13
        "numpy>=1.21",  # the first with files for Python 3.10
        "scipy>=1.7.2",  # likewise
        "pillow>=8.4",  # likewise
        "matplotlib>=3.5",  # likewise
        "safetensors>=0.4",  # the format of the students' weights; it needs no other package
        # Detectron2's own minimum versions
        "fvcore>=0.1.5",
        "iopath>=0.1.7",
        "pycocotools>=2.0.2",
        "omegaconf>=2.1,<2.4",
        "hydra-core>=1.1",
        "yacs>=0.1.8",
        "termcolor>=1.1",
        "tqdm>=4.29.1",
        "tabulate",
        "cloudpickle",
        "tensorboard",
        "packaging",
        "pyyaml>=5.1",  # Detectron2 needs it, too
    ],
    extras_require={
        "demo": ["scikit-learn>=1.3", "scikit-image>=0.22"],  # ship digits and photographs
        # backbones that Detectron2 and torchvision do not have; `d2kd weights` writes safetensors
        "timm": ["timm>=1.0", "safetensors>=0.3"],
        # `d2kd export` to ONNX: onnx writes the file, onnxruntime checks it and makes it int8
        "export": ["onnx>=1.15", "onnxruntime>=1.17"],
        # train.writers; mlflow-skinny is enough for a tracking server
        "wandb": ["wandb"],
        "mlflow": ["mlflow"],
        "dev": [
            "pytest>=7",
            "hypothesis>=6.100",
            "ruff>=0.4",
            "mypy>=1.8",
            "import-linter>=2.17",
            "timm>=1.0",
            "sphinx>=7.2",
            "myst-parser>=3.0",
            "furo>=2024.1",
            "nbformat>=5",
            "nbclient>=0.8",
            "ipykernel>=6",
            "onnx>=1.15",
            "onnxruntime>=1.17",
        ],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
)

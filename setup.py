"""Packaging of tf_detectorgan. Exact tested versions are in constraints.txt, which `make` installs with."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
VERSION = re.search(
    r'^__version__ = "([^"]+)"', (ROOT / "tf_detectorgan/__init__.py").read_text("utf-8"), re.MULTILINE
).group(1)

REQUIRES = [
    # The framework; 2.21 is the release that every gradient of Eqn 3 was checked on.
    "tensorflow>=2.21,<2.22",
    # Networks and optimizers; DET runs on W' by `stateless_call`, and TensorFlow 2.21 asks for 3.12.
    "keras>=3.12,<4",
    # RetinaNet: the model, its ResNet backbone and the layout of its anchors (docs/decisions/0002).
    "keras-cv>=0.9,<0.10",
    # Data set builders and the TFRecord files that every room reads and writes.
    "tensorflow-datasets>=4.9.10",
    # tensorflow-datasets 4.9.10 imports it and does not declare it.
    "importlib_resources>=6",
    # Flags of every command, and flagfiles.
    "absl-py>=2",
    # `tf.summary` and the TensorBoard page; TensorFlow 2.21 no longer brings it.
    "tensorboard>=2.20",
    # The reference implementation of COCO average precision and recall.
    "pycocotools>=2.0.8",
    # Weight files of Keras, read by layer.
    "h5py>=3.11",
    # Arrays at the border: files in, metrics and reports out.
    "numpy>=1.26",
    # Exact intervals for k of n, distance transforms and filters of the drawn X-rays.
    "scipy>=1.13",
    # Image files of any bit depth: reading, checking, writing.
    "pillow>=11",
    # Poisson blending, a baseline to be beaten.
    "opencv-python-headless>=4.10",
    # Curves of the report.
    "matplotlib>=3.9",
    # Progress bars with the time that is left.
    "tqdm>=4.66",
    # Pascal VOC's files, without the entities by which XML of strangers can fill the memory.
    "defusedxml>=0.7",
    # The names of classes in YOLO's data.yaml.
    "pyyaml>=6",
    # The report's and the gallery's HTML pages.
    "Jinja2>=3.1",
]

STUDY = ["flask>=3.1", "werkzeug>=3.1", "waitress>=3"]

EXTRAS = {
    # CUDA libraries as wheels.
    "gpu": ["tensorflow[and-cuda]>=2.21,<2.22"],
    # Submits the jobs of k8s/ from Python; pydantic raises what the client refuses, urllib3 what it cannot
    # reach, and websocket-client reads what a pod sends.
    "k8s": ["kubernetes>=37", "pydantic>=2", "urllib3>=2", "websocket-client>=1.6"],
    # Medical images: DICOM, and NODE21's MetaImages.
    "medical": ["pydicom>=3", "SimpleITK>=2.4"],
    # KerasHub's RetinaNet; 0.32 wants Python 3.11 and pins kagglesdk, which constraints.txt follows.
    "kerashub": ['keras-hub>=0.32,<0.33; python_version >= "3.11"'],
    # The rating page: Flask (Werkzeug is its basis) for routes, signed cookies, pages; waitress serves it.
    "study": STUDY,
    # Everything `make test` runs: xdist for files side by side, Playwright to look at pages in a browser;
    # setuptools because a test reads this file.
    "test": [
        *STUDY,
        "pytest>=8",
        "pytest-xdist>=3.6",
        "playwright>=1.50",
        "hypothesis>=6",
        "ruff>=0.17,<0.18",
        "mypy>=1.15",
        "import-linter>=2.7",
        "kubernetes>=37",
        "kubernetes-validate>=1.37",
        "pydicom>=3",
        "SimpleITK>=2.4",
        "setuptools>=70",
        "types-tqdm",
    ],
    # PyTorch beside which benchmarks/ measures our step time.
    "bench": ["torch>=2.6"],
}

setup(
    name="tf_detectorgan",
    version=VERSION,
    description="Synthetic images with exact boxes that make a detector better (DetectorGAN, ICCV 2019)",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["tf_detectorgan", "tf_detectorgan.*"]),
    package_data={"tf_detectorgan": ["**/templates/*", "**/*.jinja"]},
    install_requires=REQUIRES,
    extras_require=EXTRAS,
)

"""Tests that imports are declared, that all files are packed, and that documented commands exist."""

import ast
import re
import runpy
import sys
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import retired_words
from tf_detectorgan import __version__

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tf_detectorgan"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Declared, but imported by no file of the package.
INDIRECT = {
    "importlib-resources": "tensorflow-datasets imports it without declaring it",
    "tensorboard": "contains the operations of tf.summary, and shows the runs",
}
# Imported under another name than that of the distribution.
PROVIDERS = {
    "absl": "absl-py",
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "yaml": "pyyaml",
    "websocket": "websocket-client",
}


def test_class_names_are_unique():
    names = [
        node.name
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
    ]
    assert sorted(names) == sorted(set(names))


def test_retired_words_are_found_by_line():
    text = "The doors of a building.\nDIS_globalX judges x, beside y; --exemplar=image and --exemplars=3"
    found = [(number, word) for number, word, _ in retired_words.hits(text)]
    assert found == [(1, "doors"), (2, "judges"), (2, "beside"), (2, "--exemplar")]


@pytest.fixture(scope="module")
def arguments():
    """Returns the arguments that setup.py passes to setuptools.setup."""
    passed = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", passed.update)
        patch.chdir(ROOT)
        runpy.run_path(str(ROOT / "setup.py"))
    return passed


def imports(path):
    """Yields (module, name) of every import in a file, at any depth; name is None for `import module`."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name) for alias in node.names)


def third_party(paths):
    """Returns the canonical names of the imported distributions, each with a file that imports it."""
    found = {}
    for path in paths:
        for module, _ in imports(path):
            top = module.split(".")[0]
            if top not in sys.stdlib_module_names and top != PACKAGE.name:
                found[canonicalize_name(PROVIDERS.get(top, top))] = path.relative_to(ROOT)
    return found


def names(requirements):
    return {canonicalize_name(Requirement(line).name) for line in requirements}


def test_every_import_is_declared(arguments):
    extras = ("k8s", "kerashub", "study")
    optional = names(line for extra in extras for line in arguments["extras_require"][extra])
    declared = names(arguments["install_requires"]) | optional
    found = third_party(SOURCES)
    assert "tensorflow" in found
    assert {name: path for name, path in found.items() if name not in declared} == {}


def test_every_requirement_is_imported(arguments):
    declared = names(arguments["install_requires"])
    assert INDIRECT.keys() <= declared
    assert declared - INDIRECT.keys() - third_party(SOURCES).keys() == set()


def test_every_requirement_has_a_comment_with_its_reason():
    lines = (ROOT / "setup.py").read_text("utf-8").splitlines()
    block = lines[lines.index("REQUIRES = [") + 1 : lines.index("]")]
    assert len(block) % 2 == 0
    for reason, requirement in zip(block[::2], block[1::2], strict=True):
        assert re.fullmatch(r"    # .+\.", reason), reason
        assert re.fullmatch(r'    "[^"]+",', requirement), requirement


def test_every_requirement_is_locked_within_its_range(arguments):
    locked = {}
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines():
        if not line.startswith("#"):
            pin = Requirement(line)
            assert pin.url is None, line
            assert re.fullmatch(r"==[^,*]+", str(pin.specifier)), line
            locked.setdefault(canonicalize_name(pin.name), []).append(pin)
    extras = arguments["extras_require"]
    for line in (
        arguments["install_requires"] + extras["test"] + extras["k8s"] + extras["gpu"] + extras["kerashub"]
    ):
        requirement = Requirement(line)
        for pin in locked[canonicalize_name(requirement.name)]:
            version = str(pin.specifier).removeprefix("==")
            assert requirement.specifier.contains(version), f"{pin} is outside {requirement}: run make lock"


def test_version_is_that_of_the_package_and_in_the_changelog(arguments):
    assert arguments["version"] == __version__
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert arguments["version"] in headings


def test_every_file_of_the_package_is_packed(arguments):
    packages = set(arguments["packages"])
    homes = {".".join(path.relative_to(ROOT).parent.parts) for path in SOURCES}
    assert homes == packages

    matched = {path for glob in arguments["package_data"]["tf_detectorgan"] for path in PACKAGE.glob(glob)}
    others = {path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert others - set(SOURCES) - matched == set()


def test_only_commands_import_flags():
    commands = {"train.py", "prepare.py", "synthesize.py", "evaluate.py", "command.py", "config.py"}
    readers = {
        str(path.relative_to(PACKAGE))
        for path in SOURCES
        if any(
            (module, name) == ("absl", "flags") or module == "absl.flags" for module, name in imports(path)
        )
    }
    assert "config.py" in readers
    assert readers <= commands


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_documented_commands_exist(document):
    text = (ROOT / document).read_text("utf-8")
    rules = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    typed = re.findall(r"(?:^|`|\$ )make ([a-z]+)", text, re.MULTILINE)
    assert typed
    assert set(typed) <= rules
    for command in re.findall(r"python -m tf_detectorgan\.(\w+)", text):
        assert (PACKAGE / f"{command}.py").is_file(), command
    for flagfile in re.findall(r"--flagfile=([\w./-]+)", text):
        assert (ROOT / flagfile).is_file(), flagfile
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text):
        assert (ROOT / document).parent.joinpath(target).exists(), target


def test_decisions_have_unique_numbers_and_are_in_the_index():
    folder = ROOT / "docs" / "decisions"
    records = sorted(path.name for path in folder.glob("[0-9]*.md"))
    numbers = [name[:4] for name in records]
    assert len(set(numbers)) == len(numbers)
    index = re.findall(
        r"^\| \[(\d{4})\]\((\d{4}-[a-z0-9-]+\.md)\)", (folder / "README.md").read_text("utf-8"), re.M
    )
    assert sorted(link for _, link in index) == records
    assert all(link.startswith(number) for number, link in index)

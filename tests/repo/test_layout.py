"""Rules of the repository that linters cannot state."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "contract/quire_contract",
    "kernels/quire_kernels",
    "worker/quire_worker",
    "router/quire_router",
    "operator/quire_operator",
    "cli/quire_cli",
)
MAX_MODULE_LINES = 400


def product_modules() -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listing.returncode != 0:
        pytest.skip("not a git checkout, so there is no list of tracked files")
    paths = [ROOT / name for name in listing.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def test_no_top_level_folder_is_a_package_that_shadows_another() -> None:
    shadows = list(ROOT.glob("*/__init__.py"))

    assert shadows == []


def test_the_standard_library_operator_module_survives_the_root_on_the_path() -> None:
    code = "import operator, collections; print(operator.__file__)"

    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert found.returncode == 0, found.stderr
    assert str(ROOT) not in found.stdout


def test_the_wheel_holds_exactly_the_packages_of_the_design() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())

    assert tuple(config["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) == PACKAGES
    assert all((ROOT / package / "py.typed").is_file() for package in PACKAGES)


def test_no_module_is_longer_than_the_limit() -> None:
    too_long = {
        str(p.relative_to(ROOT)): n
        for p in product_modules()
        if (n := len(p.read_text().splitlines())) > MAX_MODULE_LINES
    }

    assert too_long == {}


def test_every_module_says_what_it_is_for() -> None:
    silent = [str(p.relative_to(ROOT)) for p in product_modules() if not ast.get_docstring(ast.parse(p.read_text()))]

    assert silent == []


def test_nothing_reads_the_environment_or_arguments_outside_main() -> None:
    pattern = re.compile(r"os\.environ|os\.getenv|sys\.argv")

    readers = [
        str(p.relative_to(ROOT)) for p in product_modules() if p.name != "__main__.py" and pattern.search(p.read_text())
    ]

    assert readers == []


def test_nothing_unpickles_or_evaluates_untrusted_bytes() -> None:
    pattern = re.compile(
        r"\bimport (?:pickle|dill|marshal|shelve)\b|\btorch\.load\(|\byaml\.load\(|trust_remote_code\s*=\s*True"
    )

    offenders = [str(p.relative_to(ROOT)) for p in product_modules() if pattern.search(p.read_text())]

    assert offenders == []


def test_tests_neither_sleep_for_a_fixed_time_nor_patch() -> None:
    """A poll with a deadline may pause between looks; `tests/` names such a pause POLL_S."""
    pattern = re.compile(r"\bsleep\((?!POLL_S\)|0\))|\bmonkeypatch\b|unittest\.mock|\bmocker\b")

    offenders = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        if path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if pattern.search(line)
    ]

    assert offenders == []


def test_no_tracked_file_is_large_but_the_demo_model() -> None:
    large = [p.relative_to(ROOT) for p in tracked_files() if p.stat().st_size > 1 << 20]

    assert all(str(path).startswith("examples/models/") for path in large)
    assert sum((ROOT / path).stat().st_size for path in large) <= 27 << 20


def test_documents_link_only_to_files_that_exist() -> None:
    broken = []
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text()):
            if "://" not in target and not (document.parent / target).exists():
                broken.append(f"{document.relative_to(ROOT)} -> {target}")

    assert broken == []


def test_every_make_target_the_readme_names_exists() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))

    named = set(re.findall(r"`?make ([a-z][a-z-]*)", (ROOT / "README.md").read_text()))

    assert named and named <= targets

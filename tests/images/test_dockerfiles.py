"""The Dockerfiles, read as text: what each image is made from, what reaches it and who runs it."""

import ast
import json
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from quire_operator.platform import Platform
from tests.images.conftest import ROOT, Instruction, read_dockerfile, stages

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCKERFILES = {
    "operator/Dockerfile": "operator",
    "router/Dockerfile": "router",
    "worker/Dockerfile": "worker,otel",
    "worker/Dockerfile.cuda": "gpu",
}
"""Dockerfile and the extras that it installs."""
FOLDERS = {
    f"quire_{folder}": f"{folder}/quire_{folder}" for folder in ("contract", "kernels", "worker", "router", "operator")
}
PINNED = re.compile(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+")


@pytest.fixture(params=DOCKERFILES)
def file(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def instructions(file: str) -> list[Instruction]:
    return read_dockerfile(ROOT / file)


def process_of(file: str) -> str:
    return file.partition("/")[0]


def imports_of(package: str) -> set[str]:
    """Top-level names that any module of `package` imports, anywhere in it."""
    found: set[str] = set()
    for module in (ROOT / FOLDERS[package]).rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found


def needed_packages(process: str) -> set[str]:
    needed: set[str] = set()
    waiting = {f"quire_{process}"}
    while waiting:
        package = waiting.pop()
        needed.add(package)
        waiting |= (imports_of(package) & set(FOLDERS)) - needed
    return needed


def constraints() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if not PINNED.fullmatch(line)] == []
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def context_sources(instructions: list[Instruction]) -> list[str]:
    copies = [instruction.words for instruction in instructions if instruction.name == "COPY"]
    return [source for words in copies if not words[0].startswith("--from") for source in words[:-1]]


def requirements_of(extra: str) -> list[Requirement]:
    found: list[Requirement] = []
    for requirement in map(Requirement, PROJECT["optional-dependencies"][extra]):
        if requirement.name == "quire":
            for inner in sorted(requirement.extras):
                found += requirements_of(inner)
        else:
            found.append(requirement)
    return found


def test_the_base_is_the_first_line_and_every_stage_starts_from_it(file: str, instructions: list[Instruction]) -> None:
    first = (ROOT / file).read_text().splitlines()[0]
    starts = [instruction.words for instruction in instructions if instruction.name == "FROM"]
    named = {words[2] for words in starts if words[1:2] == ["AS"]}

    assert re.fullmatch(r"ARG BASE=[a-z/-]+:[0-9][\w.-]+", first)
    assert len(starts) >= 2
    assert {words[0] for words in starts} <= {"${BASE}", "${BUILD_BASE}", *named}


def test_the_image_runs_the_process_as_the_user_of_the_pods(file: str, instructions: list[Instruction]) -> None:
    final = {instruction.name: instruction.rest for instruction in stages(instructions)[-1]}

    user = Platform().run_as_user
    assert final["USER"] == f"{user}:{user}"
    assert json.loads(final["ENTRYPOINT"]) == [f"quire-{process_of(file)}"]
    assert final["STOPSIGNAL"] == "SIGTERM"


def test_the_build_ends_with_the_help_of_every_command_and_needs_no_shell_for_it(
    file: str, instructions: list[Instruction]
) -> None:
    final = stages(instructions)[-1]
    package = f"quire_{process_of(file)}"
    scripts = {name for name, target in PROJECT["scripts"].items() if target.startswith(f"{package}.")}

    runs = [json.loads(instruction.rest) for instruction in final if instruction.name == "RUN"]

    assert instructions[-1] == Instruction("RUN", json.dumps([f"quire-{process_of(file)}", "--help"]))
    assert {command for command, _ in runs} == scripts
    assert {flag for _, flag in runs} == {"--help"}
    assert [instruction.name for instruction in final].index("USER") < len(final) - len(runs)


def test_only_the_process_own_commands_are_installed(file: str, instructions: list[Instruction]) -> None:
    package = f"quire_{process_of(file)}"
    scripts = {name for name, target in PROJECT["scripts"].items() if target.startswith(f"{package}.")}

    (install,) = [each.rest for each in instructions if each.name == "RUN" and "--root /staging" in each.rest]

    assert set(re.findall(r"! -name (\S+)", install)) == scripts


def test_exactly_the_packages_that_the_process_imports_are_copied(file: str, instructions: list[Instruction]) -> None:
    expected = {FOLDERS[package] for package in needed_packages(process_of(file))}
    models = {"examples/models"} if process_of(file) == "worker" else set()

    copied = set(context_sources(instructions)) - {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"}

    assert copied == expected | models


def test_what_is_copied_passes_the_ignore_file_and_nothing_else_of_the_repository_does(
    instructions: list[Instruction],
) -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    sources = context_sources(instructions)

    assert rules[0] == "*"
    assert {f"!{source}" for source in sources} <= set(rules)
    assert {"**/__pycache__", "**/.*"} <= set(rules)
    assert all((ROOT / source).exists() for source in sources)


def test_nothing_is_fetched_but_by_pip_and_apt(file: str, instructions: list[Instruction]) -> None:
    text = "\n".join(instruction.rest for instruction in instructions)

    assert "ADD" not in {instruction.name for instruction in instructions}
    assert re.findall(r"https?://\S+", text) in ([], ["https://download.pytorch.org/whl/cpu"])
    assert not re.search(r"\b(curl|wget|git clone)\b", text)
    assert ("apt-get" in text) == (file == "worker/Dockerfile.cuda")


def test_every_installation_takes_listed_versions(instructions: list[Instruction]) -> None:
    commands = [part for each in instructions if each.name == "RUN" for part in re.split(r"&&|;", each.rest)]

    installs = [command for command in commands if re.search(r"(pip|\$pip|python) .*\binstall\b", command)]

    pip_installs = [command for command in installs if "apt-get" not in command]
    assert len(pip_installs) >= 3
    assert [c for c in pip_installs if "-c constraints.txt" not in c and "--no-deps --no-index" not in c] == []
    assert any("grep -vxFf constraints.txt" in command for command in commands)


def test_no_secret_and_no_machine_setting_is_kept(instructions: list[Instruction]) -> None:
    kept = [each for each in instructions if each.name in {"ENV", "ARG", "LABEL"}]
    final = stages(instructions)[-1]

    assert not [each for each in kept if re.search(r"(?i)passw|token|secret|api_?key|credential", each.rest)]
    assert not [each for each in kept if re.search(r"(?i)PIP_(INDEX|EXTRA|FIND|TRUSTED|CERT|CONFIG)|_proxy", each.rest)]
    assert not [each for each in final if "--mount" in each.rest]
    assert {each.words[0].partition("=")[0] for each in final if each.name == "COPY"} == {"--from"}


def test_a_read_only_root_is_enough(instructions: list[Instruction]) -> None:
    final = stages(instructions)[-1]
    env = dict(word.split("=", 1) for each in final if each.name == "ENV" for word in each.words)
    compiled = [each.rest for each in instructions if "compileall" in each.rest]

    assert env["PYTHONDONTWRITEBYTECODE"] == "1"
    assert env["PYTHONSAFEPATH"] == "1"
    assert env["HOME"] == "/tmp"
    # There is no entry for the user in /etc/passwd: libraries that ask for a name get it from here.
    assert env["LOGNAME"] == "quire"
    assert len(compiled) == 2


def test_the_image_says_what_it_is(file: str, instructions: list[Instruction]) -> None:
    (labels,) = [each.words for each in stages(instructions)[-1] if each.name == "LABEL"]

    values = dict(word.split("=", 1) for word in labels)

    assert values["org.opencontainers.image.title"] == f"quire-{process_of(file)}"
    assert values["org.opencontainers.image.licenses"] == PROJECT["license"]
    assert values["org.opencontainers.image.version"] == "${VERSION}"
    assert values["org.opencontainers.image.revision"] == "${REVISION}"
    assert len(values["org.opencontainers.image.description"]) > 20


def test_each_image_installs_the_extra_of_its_process(file: str, instructions: list[Instruction]) -> None:
    installed = re.findall(r"\.whl\)\[([\w,]+)\]", "\n".join(each.rest for each in instructions))

    assert installed == [DOCKERFILES[file]]


@pytest.mark.parametrize("extra", sorted(set(DOCKERFILES.values())))
def test_the_listed_versions_are_ones_that_the_project_allows(extra: str) -> None:
    listed = constraints()

    wrong = [
        str(requirement)
        for name in extra.split(",")
        for requirement in requirements_of(name)
        if not requirement.specifier.contains(listed.get(canonicalize_name(requirement.name), "0.0.0.dev0"))
    ]

    assert wrong == []


@pytest.mark.parametrize("process", ["operator", "router", "worker"])
def test_everything_that_a_process_imports_has_a_listed_version(process: str) -> None:
    imported = set.union(*map(imports_of, needed_packages(process))) - set(FOLDERS) - set(sys.stdlib_module_names)
    # The Linux builds of PyTorch for CUDA bring Triton; a worker on CPUs does without.
    distributions = packages_distributions()
    listed = constraints()

    missing = {
        name for name in imported if not {canonicalize_name(dist) for dist in distributions.get(name, [])} & set(listed)
    }

    assert missing == set()


@pytest.mark.parametrize("process", ["operator", "router"])
def test_the_light_images_have_no_way_to_torch(process: str) -> None:
    assert "torch" not in {requirement.name for requirement in requirements_of(process)}
    assert "quire_kernels" not in needed_packages(process)


def test_the_quickstart_model_is_where_workers_look_for_it() -> None:
    instructions = read_dockerfile(ROOT / "worker/Dockerfile")
    (copy,) = [each.words for each in instructions if each.name == "COPY" and each.words[0] == "examples/models"]
    service = next(yaml.safe_load_all((ROOT / "examples/quickstart.yaml").read_text()))
    uri = service["spec"]["model"]["uri"]

    folder = Path(uri.removeprefix("file://").removeprefix("./"))

    assert folder.parts[0] == "models"
    assert copy[1] == f"/staging{Platform().model_root}/models"
    assert (ROOT / "examples" / folder / "config.json").is_file()


def test_the_cuda_image_has_a_compiler_and_headers_for_triton() -> None:
    instructions = read_dockerfile(ROOT / "worker/Dockerfile.cuda")
    base, final = stages(instructions)[0], stages(instructions)[-1]

    installed = next(each.rest for each in base if each.name == "RUN")

    assert {"gcc", "libc6-dev", "python3-dev"} <= set(installed.split())
    assert final[0].words == ["python"]
    assert base[0].words == ["${BASE}", "AS", "python"]


def test_the_cuda_image_differs_from_the_other_worker_in_base_and_torch_only() -> None:
    plain, cuda = (read_dockerfile(ROOT / name) for name in ("worker/Dockerfile", "worker/Dockerfile.cuda"))

    application, cuda_application = stages(plain)[-2], stages(cuda)[-2]
    final, cuda_final = (
        [each for each in stages(file)[-1] if each.name not in {"FROM", "LABEL"}] for file in (plain, cuda)
    )

    assert application == cuda_application
    assert final == cuda_final

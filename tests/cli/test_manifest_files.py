"""Reading manifests: errors name file, line and field, all at once; `quire render` prints what is applied."""

import importlib.metadata
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from quire_cli.app import run_command
from quire_cli.errors import CommandError
from quire_cli.host import Host
from quire_cli.manifest_files import load_resources
from quire_cli.rendering import render, to_yaml

HEAD = "apiVersion: quire.dev/v1alpha1\nkind: InferenceService\n"
HOST = Host(environ={}, python=Path("/nowhere/python"))


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a manifest."""

    def write(text: str, name: str = "m.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def errors_of(*files: Path) -> list[str]:
    """What is wrong with the files, without their folder."""
    with pytest.raises(CommandError) as caught:
        load_resources(files)
    return [line.replace(f"{files[0].parent}/", "") for line in caught.value.lines]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            HEAD + "metadata: {name: a}\nspec:\n  modle:\n    uri: file:x\n",
            ["m.yaml:4: spec.model: is required", "m.yaml:5: spec.modle: unknown field; did you mean 'model'?"],
        ),
        (
            HEAD + "metadata: {name: a}\nspec:\n  model: {uri: file:x}\n  replicas: two\n",
            ["m.yaml:6: spec.replicas: must be a whole number, not 'two'"],
        ),
        (
            HEAD + "metadata: {name: a}\nspec:\n  model: {uri: file:x}\n  replicas: 1\n  replicas: 2\n",
            ["m.yaml:7: spec.replicas: is written twice (first in line 6); remove one"],
        ),
        (
            HEAD + "metadata: {name: a}\nspec:\n  model:\n    uri: file:x\n    aliases:\n    - ok\n    - 'not ok'\n",
            ["m.yaml:9: spec.model.aliases[1]: 'not ok' has characters or a form that is not allowed here"],
        ),
        (
            "kind: Tenant\n",
            ["m.yaml:1: apiVersion: must be quire.dev/v1alpha1, not nothing"],
        ),
        (
            "kind: InferenceServce\n",
            ["m.yaml:1: kind: InferenceServce is not a kind that this command knows; did you mean"],
        ),
        ("# nothing\n---\n", ["m.yaml: holds no InferenceService"]),
        ("a: [1\n", ["m.yaml:2: is not YAML: expected ',' or ']'"]),
        ("a: !!python/object:x {}\n", ["m.yaml:1: is not YAML: could not determine a constructor"]),
        ("- 1\n", ["m.yaml:1: must be an object of kind InferenceService, not a list"]),
        (
            HEAD.replace("v1alpha1", "v1") + "spec: {}\n",
            ["m.yaml:1: apiVersion: must be quire.dev/v1alpha1, not 'quire.dev/v1'"],
        ),
    ],
)
def test_errors_name_file_line_and_field(file: Callable[[str], Path], text: str, expected: list[str]) -> None:
    errors = errors_of(file(text))

    assert len(errors) == len(expected)
    assert all(error.startswith(start) for error, start in zip(errors, expected, strict=True)), errors


def test_problems_of_all_documents_and_files_are_told_at_once(file: Callable[..., Path]) -> None:
    first = file(HEAD + "metadata: {name: a}\nspec: {}\n---\n" + HEAD + "metadata: {name: b}\nspec: {}\n", "one.yaml")
    second = file("kind: Pod\n", "two.yaml")

    errors = errors_of(first, second)

    assert [error.split(": ")[0] for error in errors] == ["one.yaml:4", "one.yaml:9", "two.yaml:1"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert errors_of(tmp_path / "none.yaml") == ["none.yaml: cannot be read: No such file or directory"]


def test_aliases_that_blow_up_are_refused(file: Callable[[str], Path]) -> None:
    levels = ["a: &a [1,1,1,1,1,1,1,1,1,1]"]
    levels += [f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]" for old, new in zip("abcdef", "bcdefg", strict=True)]

    errors = errors_of(file("\n".join(levels)))

    assert errors == ["m.yaml: has more than 100000 fields; is it a manifest?"]


def test_a_service_defined_twice_is_refused(file: Callable[[str], Path]) -> None:
    document = HEAD + "metadata:\n  name: a\nspec: {model: {uri: file:x}}\n"

    errors = errors_of(file(document + "---\n" + document))

    assert errors == ["m.yaml:10: metadata.name: 'a' is defined already at m.yaml:4; give one another name"]


def test_a_name_served_twice_is_blamed_on_the_later_service_wherever_it_stands(file: Callable[[str], Path]) -> None:
    document = HEAD + "metadata:\n  name: {name}\nspec:\n  model:\n    uri: pvc://a/b\n    {names}\n"
    named = [("one", "aliases: [x]"), ("two", "name: one"), ("three", "aliases: [x, y]"), ("four", "name: z")]
    path = file("---\n".join(document.format(name=name, names=names) for name, names in named))

    with pytest.raises(CommandError) as caught:
        render(load_resources([path]).services)

    two, three = (line.replace(f"{path.parent}/", "") for line in caught.value.lines)
    taken = "which 'one' serves already"
    assert (
        two
        == f"m.yaml:17: spec.model.name: InferenceService 'two' serves 'one', {taken}; give it another spec.model.name"
    )
    assert three == f"m.yaml:26: spec.model.aliases: InferenceService 'three' serves 'x', {taken}; remove the alias"


def test_a_date_stays_text(file: Callable[[str], Path]) -> None:
    path = file(HEAD + "metadata:\n  name: a\n  labels: {since: 2026-01-01}\nspec: {model: {uri: file:x}}\n")

    (loaded,) = load_resources([path]).services

    assert loaded.service.metadata.labels == {"since": "2026-01-01"}


def test_what_is_printed_is_what_is_rendered(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = repository / "examples" / "quickstart.yaml"

    code = run_command(HOST, ["render", str(file)])

    printed = list(yaml.safe_load_all(capsys.readouterr().out))
    assert code == 0
    assert printed == render(load_resources([file]).services).manifests
    assert [manifest["kind"] for manifest in printed].count("Deployment") == 2


def test_every_example_renders(repository: Path) -> None:
    files = sorted((repository / "examples").glob("*.yaml"))

    rendered = [render(found.services) for file in files if (found := load_resources([file])).services]

    assert len(rendered) >= 3
    assert all(len(one.manifests) == 7 + 5 * len(one.workers) for one in rendered)


def test_text_of_several_lines_is_printed_as_a_block(repository: Path) -> None:
    text = to_yaml(render(load_resources([repository / "examples" / "quickstart.yaml"]).services).manifests)

    assert "router.json: |" in text
    assert "&id" not in text


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (
            "model: {uri: file:x}, disaggregation: {}",
            "m.yaml:4: spec.disaggregation: not supported by this version: it needs the hand-off of KV blocks",
        ),
    ],
)
def test_what_does_not_exist_yet_is_refused_when_rendering(
    file: Callable[[str], Path], spec: str, expected: str
) -> None:
    path = file(HEAD + f"metadata: {{name: a}}\nspec: {{{spec}}}\n")

    with pytest.raises(CommandError) as caught:
        render(load_resources([path]).services)

    assert expected in str(caught.value)


@pytest.mark.parametrize("uri", ["s3://bucket/x", "https://models.example.com/x/", "hf://a/b", "pvc://claim/x"])
def test_every_source_of_a_cluster_renders(
    file: Callable[[str], Path], uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = file(HEAD + f"metadata: {{name: a}}\nspec: {{model: {{uri: '{uri}'}}}}\n")

    assert run_command(HOST, ["render", str(path)]) == 0
    assert uri in capsys.readouterr().out


def test_a_source_that_would_be_downloaded_is_not_run_locally(
    file: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = file(HEAD + "metadata: {name: a}\nspec: {model: {uri: 's3://bucket/x'}}\n")

    assert run_command(HOST, ["up", str(path)]) == 2
    assert "m.yaml:4: spec.model.uri: s3:// is not supported by this version" in capsys.readouterr().err


ROUTE = "apiVersion: quire.dev/v1alpha1\nkind: ModelRoute\nmetadata: {name: chat}\nspec: {model: chat, targets: %s}\n"


def test_a_route_beside_a_service_is_checked_when_rendering_and_makes_no_objects(
    file: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    service = HEAD + "metadata: {name: a}\nspec: {model: {uri: file:x}}\n"
    path = file(f"{service}---\n{ROUTE % '[{model: a}]'}")

    code = run_command(HOST, ["render", str(path)])

    out, told = capsys.readouterr()
    assert code == 0
    assert list(yaml.safe_load_all(out)) == render(load_resources([file(service, "s.yaml")]).services).manifests
    assert told == f"{path}:6: this ModelRoute is valid and makes no objects: the operator tells routers of it\n"


def test_a_wrong_route_is_refused_when_rendering(
    file: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = file(ROUTE % "[{model: a, weight: 0}]")

    assert run_command(HOST, ["render", str(path)]) == 2
    assert "m.yaml:4: spec.targets: all weights are 0" in capsys.readouterr().err


def test_usage_errors_exit_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    code = run_command(HOST, ["up", "x.yaml", "--prot", "1"])

    assert code == 2
    assert "--port" in capsys.readouterr().err


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(HOST, ["version"]) == 0
    assert capsys.readouterr().out == f"quire {importlib.metadata.version('quire')}\n"


@pytest.fixture
def repository() -> Path:
    """The root of the repository."""
    return Path(__file__).parents[2]

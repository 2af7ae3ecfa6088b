"""`quire simulate` as it is typed."""

import sys
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from quire_cli.app import run_command
from quire_cli.host import Host
from quire_cli.simulate.costs import FORMAT, CostFile, StepCost, WorkerShape

HOST = Host(environ={}, python=Path(sys.executable))
SMALL = [
    "simulate",
    "--duration",
    "2m",
    "--rate",
    "2",
    "--prompt-tokens",
    "200",
    "--output-tokens",
    "40",
    "--seed",
    "3",
]
MANIFEST = """
apiVersion: quire.dev/v1alpha1
kind: InferenceService
metadata: {name: chat}
spec:
  model: {uri: "hf://a/b"}
  scaling: {minReplicas: 1, maxReplicas: 4, demandPerReplica: 4}
"""


def test_the_table_names_latency_goodput_and_cost(capsys: pytest.CaptureFixture[str]) -> None:
    code = run_command(HOST, [*SMALL, "--workers", "2", "--price-per-hour", "4"])

    said = capsys.readouterr().out
    assert code == 0
    for words in ("llama-3-8b on 1 x h100", "time to first token p50 / p95 / p99", "goodput/s", "replica-hours", "USD"):
        assert words in said


def test_a_manifest_scales_and_is_compared_with_keda_in_json_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, picture = tmp_path / "chat.yaml", tmp_path / "course.svg"
    manifest.write_text(MANIFEST)

    code = run_command(
        HOST, [*SMALL, "--manifest", str(manifest), "--keda-threshold", "4", "--json", "--plot", str(picture)]
    )

    found = msgspec.json.decode(capsys.readouterr().out)
    assert code == 0
    assert [one["summary"]["policy"] for one in found] == ["chat", "keda queue 4"]
    assert found[0]["summary"]["requests"] == found[1]["summary"]["requests"] > 100
    assert ElementTree.fromstring(picture.read_text()).tag == "{http://www.w3.org/2000/svg}svg"


@pytest.mark.parametrize(("hold_s", "is_lost"), [(300, False), (20, True)])
def test_at_zero_requests_wait_as_long_as_the_manifest_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], hold_s: int, is_lost: bool
) -> None:
    manifest = tmp_path / "chat.yaml"
    manifest.write_text(MANIFEST.replace("minReplicas: 1,", f"minReplicas: 0, holdTimeoutSeconds: {hold_s},"))

    code = run_command(HOST, [*SMALL, "--manifest", str(manifest), "--cold-start", "80s", "--json"])

    (found,) = msgspec.json.decode(capsys.readouterr().out)
    assert code == 0
    assert (found["summary"]["dropped"] > 0) == is_lost


def test_a_measured_cost_takes_the_place_of_model_and_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cost.json"
    cost = StepCost(overhead_s=0.01, row_s=0.001, weights_s=0.02, token_s=0.001, kv_s=0, pair_s=0)
    worker = WorkerShape(kv_blocks=1000, max_num_seqs=8, max_model_len=4096)
    path.write_bytes(msgspec.json.encode(CostFile(format=FORMAT, measured="by hand", worker=worker, cost=cost)))

    code = run_command(HOST, [*SMALL, "--cost", str(path), "--fidelity", "exact", "--json"])

    (found,) = msgspec.json.decode(capsys.readouterr().out)
    assert code == 0
    assert found["summary"]["ttft"]["p50"] > 0.05


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpu", "tpu"], "--gpu: tpu is not known; one of h100"),
        (["--model", "gpt-9"], "--model: gpt-9 is not known; one of llama-3-8b"),
        (["--model", "llama-3-70b"], "--gpu: the model's 141 GB of weights leave no memory for KV on 1 of this GPU"),
        (["--load", "tidal"], "--load: tidal is not known; one of poisson"),
        (["--rate", "0"], "--rate: is 0; give requests per second"),
        (["--duration", "soon"], "--duration: 'soon' is no duration"),
        (["--ttft", "fast"], "--ttft: 'fast' is no duration"),
        (["--fidelity", "perfect"], "--fidelity: perfect is not known; one of fast, exact"),
        (["--keda-threshold", "4"], "--keda-threshold: needs --manifest"),
        (["--cost", "/nowhere"], "/nowhere: cannot be read"),
        (["--trace", "/nowhere"], "/nowhere: cannot be read"),
        (["--manifest", "/nowhere"], "/nowhere: cannot be read"),
        (["--plot", "/nowhere/course.svg"], "--plot: /nowhere/course.svg: there is no folder /nowhere; make it"),
        (["--plot", "course.png"], "--plot: course.png: pictures are SVG; give a name that ends in .svg"),
        (["--rate", "9000", "--duration", "24h"], "make 778 million requests; 20 million are the most"),
    ],
)
def test_a_wrong_flag_is_named_with_its_fix(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run_command(HOST, ["simulate", *arguments])

    assert code == 2
    assert words in capsys.readouterr().err


def test_a_cost_file_with_a_wrong_field_is_refused_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cost.json"
    path.write_text(
        '{"format": "quire-step-cost-v1", "measured": "", "worker": {"kv_blocks": 10}, "cost": {"overhead_s": -1}}'
    )

    code = run_command(HOST, ["simulate", "--cost", str(path)])

    assert code == 2
    assert str(path) in capsys.readouterr().err

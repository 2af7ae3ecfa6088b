"""The command line: vLLM's names, defaults, and errors that say what to type."""

import dataclasses
from pathlib import Path

import pytest

from quire_worker.config import WorkerConfig, parse_args
from quire_worker.engine.config import EngineConfig
from quire_worker.operation import Operation
from quire_worker.server.engine_settings import engine_config


def test_the_model_is_enough() -> None:
    config = parse_args(["/models/llama"])

    assert config == WorkerConfig(model=Path("/models/llama"))
    assert (config.host, config.port) == ("127.0.0.1", 8000)
    assert config.model_names == ("llama",)


def test_flags_are_those_of_vllm_serve() -> None:
    argv = [
        "--model",
        "/m",
        "--served-model-name",
        "a",
        "b",
        "--host",
        "0.0.0.0",
        "--port",
        "9",
        "--dtype",
        "bfloat16",
        "--max-model-len",
        "8k",
        "--max-num-seqs",
        "4",
        "--max-num-batched-tokens",
        "64",
        "--block-size",
        "32",
        "--api-key",
        "k1",
        "--api-key",
        "k2",
        "--gpu-memory-utilization",
        "0.5",
        "--kv-cache-memory-bytes",
        "2G",
        "--num-gpu-blocks-override",
        "99",
        "--seed",
        "3",
        "--generation-config",
        "vllm",
        "--no-enable-prefix-caching",
        "--disable-log-requests",
    ]

    config = parse_args(argv)

    assert config.served_model_names == ("a", "b")
    assert config.api_keys == ("k1", "k2")
    assert (config.max_model_len, config.kv_cache_memory_bytes) == (8000, 2 * 1024**3)
    assert (config.enable_prefix_caching, config.disable_log_requests) == (False, True)


@pytest.mark.parametrize(
    ("text", "tokens"), [("auto", None), ("-1", None), ("4096", 4096), ("32K", 32768), ("1.5k", 1500)]
)
def test_lengths_are_read_as_people_write_them(text: str, tokens: int | None) -> None:
    assert parse_args(["m", f"--max-model-len={text}"]).max_model_len == tokens


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "no model given"),
        (["m", "--model", "other"], "given twice"),
        (["m", "--max-modle-len", "5"], "did you mean --max-model-len?"),
        (["m", "--port", "eighty"], "--port: 'eighty' is not a whole number from 0 to 65535"),
        (["m", "--port", "70000"], "--port: 70000 is not"),
        (["m", "--block-size", "20"], "--block-size: 20 is not a multiple of 16"),
        (["m", "--gpu-memory-utilization", "90"], "--gpu-memory-utilization: 90 is not above 0 and at most 1"),
        (["m", "--depth", "3"], "--depth"),
        (["m", "--dtype", "int3"], "--dtype"),
        (["m", "--kv-events-endpoint", "5557"], "tcp://127.0.0.1:5557"),
        (["m", "--kv-replay-endpoint", "tcp://127.0.0.1:1"], "needs --kv-events-endpoint"),
        (["m", "--pod-name", "a@b"], "--pod-name"),
        (["m", "--max-model-len", "long"], "--max-model-len"),
        (["m", "--api-key", ""], "--api-key"),
    ],
)
def test_a_wrong_flag_is_named_with_the_fix(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        parse_args(argv)

    assert exited.value.code == 2
    assert words in capsys.readouterr().err


def test_help_names_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        parse_args(["--help"])

    text = capsys.readouterr().out
    assert exited.value.code == 0
    renamed = {
        "served_model_names": "served_model_name",
        "api_keys": "api_key",
        "allowed_template_kwargs": "allow_chat_template_kwarg",
    }
    fields = [field for field in dataclasses.fields(WorkerConfig) if field.name != "operation"]
    for field in [*fields, *dataclasses.fields(Operation)]:
        name = renamed.get(field.name, field.name).removesuffix("_s").replace("_", "-")
        assert f"--{name}" in text


def test_keys_of_the_environment_yield_to_the_flag_and_are_not_shown() -> None:
    from_flag = parse_args(["m", "--api-key", "flag"], ["environment"])
    from_environment = parse_args(["m"], ["environment"])

    assert from_flag.api_keys == ("flag",)
    assert from_environment.api_keys == ("environment",)
    assert "environment" not in repr(from_environment)


def test_the_engine_is_told_how_to_quantise() -> None:
    told = engine_config(
        parse_args(["m", "--quantization", "int8-weight-only", "--kv-cache-dtype", "fp8"]),
        inbound_endpoint="ipc://a",
        outbound_endpoint="ipc://b",
    )

    assert (told.quantization, told.kv_cache_dtype) == ("int8-weight-only", "fp8")


def test_the_engine_is_told_how_a_gpu_is_used() -> None:
    told = engine_config(
        parse_args(["m", "--batch-invariant", "--enforce-eager"]),
        inbound_endpoint="ipc://a",
        outbound_endpoint="ipc://b",
    )

    assert (told.batch_invariant, told.enforce_eager) == (True, True)


def test_what_is_not_set_keeps_the_engines_default() -> None:
    bare = engine_config(parse_args(["m"]), inbound_endpoint="ipc://a", outbound_endpoint="ipc://b")

    assert bare == EngineConfig(
        model_dir="m",
        served_model_names=["m"],
        inbound_endpoint="ipc://a",
        outbound_endpoint="ipc://b",
        pod_name="local",
    )

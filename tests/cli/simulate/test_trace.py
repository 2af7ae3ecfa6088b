"""Traces as they are published, and what is said of those that cannot be read."""

from pathlib import Path

import pytest

from quire_cli.errors import CommandError
from quire_cli.simulate.trace import read_trace


def write(folder: Path, text: str) -> Path:
    path = folder / "trace"
    path.write_text(text)
    return path


def test_azures_csv_begins_at_zero_whatever_its_date(tmp_path: Path) -> None:
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:04.9799600,374,44\n2023-11-16 18:17:03.9799600,396,109\n"

    requests = read_trace(write(tmp_path, text), 8192)

    assert [(one.at_s, one.prompt, one.output) for one in requests] == [(0.0, 396, 109), (1.0, 374, 44)]


def test_mooncakes_hash_ids_are_blocks_that_prompts_share(tmp_path: Path) -> None:
    text = (
        '{"timestamp": 1000, "input_length": 1200, "output_length": 5, "hash_ids": [7, 8, 9]}\n'
        '{"timestamp": 4000, "input_length": 1100, "output_length": 6, "hash_ids": [7, 8, 10]}\n'
    )

    first, second = read_trace(write(tmp_path, text), 8192)

    assert second.at_s == 3.0
    assert first.chain == (("h7", 512), ("h8", 1024), ("r0", 1200))
    assert second.chain == (("h7", 512), ("h8", 1024), ("r1", 1100))


def test_burstgpts_columns_are_known(tmp_path: Path) -> None:
    text = (
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,Conversation log\n"
    )

    requests = read_trace(write(tmp_path, text), 8192)

    assert [(one.at_s, one.prompt, one.output) for one in requests] == [(0.0, 472, 18)]


def test_a_column_of_milliseconds_is_read_as_such(tmp_path: Path) -> None:
    text = "Timestamp_ms,prompt_tokens,output_tokens\n500,10,3\n2500,10,3\n"

    requests = read_trace(write(tmp_path, text), 8192)

    assert [one.at_s for one in requests] == [0.0, 2.0]


def test_a_session_goes_on_with_its_own_stream_and_groups_share_a_beginning(tmp_path: Path) -> None:
    text = (
        "time,prompt,output,session,prefix_group,prefix_tokens\n0,300,20,a,g,100\n1,200,10,b,g,100\n5,400,20,a,g,100\n"
    )

    first, other, later = read_trace(write(tmp_path, text), 8192)

    assert first.chain == (("gg", 100), ("sa@0", 300))
    assert other.chain == (("gg", 100), ("sb@1", 200))
    assert later.chain == (("gg", 100), ("sa@0", 400))


def test_what_is_longer_than_the_model_is_cut(tmp_path: Path) -> None:
    requests = read_trace(write(tmp_path, "time,prompt,output\n0,9000,100\n"), 4096)

    assert (requests[0].prompt, requests[0].output) == (3995, 100)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("time,prompt,output\n", "holds no requests"),
        ("when,prompt,output\n1,2,3\n", ":1: has columns when, prompt, output, and lacks time: one of time, timestamp"),
        ("time,prompt,output\n1,two,3\n", ":2: prompt tokens: 'two': write a whole number of tokens"),
        ("time,prompt,output,priority\n1,2,3,high\n", ":2: priority: 'high': write a whole number"),
        ("time_ms,prompt,output\nsoon,2,3\n", ":2: time_ms: 'soon': write milliseconds, 0 or more"),
        (
            "time,prompt,output\n2024-01-01 00:00:00,2,3\n5,2,3\n",
            ":3: time: is seconds, and dates before; write all of them",
        ),
        ("time,prompt\n1,2\n", "output: one of output, output_tokens, output_length"),
        ('{"time": 1, "prompt": 2, "output": 3, "hash_ids": 5}\n', ":1: hash_ids: '5': write a list of block names"),
        ('{"time": null, "prompt": 2, "output": 3}\n', ":1: time: 'None': is neither seconds nor a date"),
        ('[{"time": 1, "prompt": 2, "output": 3}]\n', ":1: is not a JSON object; write one request a line"),
        ("time,prompt,output\nsoon,2,3\n", ":2: time: 'soon': is neither seconds nor a date"),
        ("time,prompt,output\n1,2\n", ":2: has 2 columns, the header has 3"),
        ("time,prompt,output\n1,-2,3\n", ":2: prompt tokens: '-2': write a whole number of tokens"),
        ("time,prompt,output\nnan,2,3\n", ":2: time: 'nan': write seconds, 0 or more"),
        ('{"time": 1, "prompt": 2, "output": 3}\n{"time"\n', ":2: is not JSON"),
        ('{"time": 1, "prompt": 2, "output": 3}\n[1]\n', ":2: is not a JSON object"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path, text)

    with pytest.raises(CommandError) as caught:
        read_trace(path, 8192)

    assert str(caught.value).startswith(str(path))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("time,prompt,output\n0,5,5\n1e15,5,5\n", "time: .* days"),
        ("time,prompt,output\n0,5,5\n1e308,5,5\n", "time: .* days"),
        ("time,prompt,output\nnan,5,5\n", ":2: time"),
        ("time,prompt,output\n0,5," + "5" * 200_000 + "\n", ":2: is not CSV"),
        ('time,prompt,output\n"0,5,5\n' + "1,2,3\n" * 50_000, "is not CSV"),
        ('{"time":' + "[" * 100_000 + "\n", ":1: is not JSON"),
        ('{"timestamp":0,"input_length":600,"output_length":5,"hash_ids":5}\n', ":1: hash_ids"),
        ('{"time":0,"prompt":5,"output":5,"priority":1' + "0" * 400 + "}\n", ":1: priority"),
        ("time,prompt,output\n0,5,5\n\0", ":3:"),
    ],
)
def test_hostile_traces_are_refused_by_place_and_not_by_an_exception(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path, text)

    with pytest.raises(CommandError, match=words):
        read_trace(path, 8192)

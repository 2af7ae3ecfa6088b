"""Our linear layers alone, in each form that weights have on a CPU: bf16, W8A8, int8 weights only.

    python bench/linear_layers.py [--shape 88m] [--rows 1,8,32,64] [--rounds 15] [--lock FILE]

A pass is every projection of every layer once, without the output head, which is never quantised. In every round each form makes one pass,
in turn, on the same inputs; what counts is the median over rounds of the ratio within a round. Weights are larger than the caches, as a
model's are. One thread, by its processor time: work beside it on the machine takes memory bandwidth from it, but no time.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from rows import MODELS
from side import machine_lock, processor

from quire_kernels.cpu.linear import Int8, NativeLinear, NativeLinears
from quire_kernels.cpu.native_library import native_library

FORMS: dict[str, Int8 | None] = {"bf16": None, "int8": "w8a8", "int8 weights only": "weights"}


def layers_of(linears: NativeLinears, shape: str, int8: Int8 | None) -> list[NativeLinear]:
    """Random projections: q, k and v; out; gate and up; down; of every layer."""
    sizes = MODELS[shape][0]
    hidden, mlp = sizes.hidden_size, sizes.intermediate_size
    heads = hidden + 2 * hidden // sizes.num_heads * sizes.num_kv_heads
    made = []
    for _ in range(sizes.num_layers):
        for outputs, inputs in ((heads, hidden), (hidden, hidden), (2 * mlp, hidden), (hidden, mlp)):
            packed = linears.empty(outputs, inputs, torch.bfloat16, gate_up=outputs == 2 * mlp, int8=int8)
            packed.pack_rows(torch.randn(outputs, inputs) * 0.02)
            made.append(packed.layer())
    return made


def pass_ms(layers: list[NativeLinear], inputs: dict[int, torch.Tensor]) -> float:
    began = time.process_time()
    for layer in layers:
        layer(inputs[layer.weight.packed.in_features])
    return 1e3 * (time.process_time() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(MODELS), default="88m")
    parser.add_argument("--rows", default="1,8,32,64")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--lock", type=Path, help="file to lock while measuring, a number of rows at a time")
    args = parser.parse_args()
    library = native_library()
    if library is None:
        parser.error("no C++ ops on this machine: install g++")
    library.set_num_threads(1)
    torch.set_num_threads(1)
    linears = NativeLinears(library)
    forms = {name: layers_of(linears, args.shape, int8) for name, int8 in FORMS.items()}
    widths = {int(layer.weight.packed.in_features) for layer in forms["bf16"]}
    print(f"{processor()}, one thread; {MODELS[args.shape][1]}; {args.rounds} interleaved rounds\n")
    print("| rows | " + " | ".join(f"{name}, ms" for name in forms) + " | int8 / bf16 | int8 weights only / bf16 |")
    print("| --- " * (len(forms) + 3) + "|")
    for num_rows in map(int, args.rows.split(",")):
        inputs = {width: torch.randn(num_rows, width).bfloat16() for width in widths}
        times: dict[str, list[float]] = {name: [] for name in forms}
        with machine_lock(args.lock):
            for layers in forms.values():
                pass_ms(layers, inputs)
            for _ in range(args.rounds):
                for name, layers in forms.items():
                    times[name].append(pass_ms(layers, inputs))
        cells = [f"{statistics.median(found):.2f}" for found in times.values()]
        for name in list(forms)[1:]:
            ratios = [plain / found for plain, found in zip(times["bf16"], times[name], strict=True)]
            quartiles = statistics.quantiles(ratios, n=4)
            cells.append(f"**{statistics.median(ratios):.2f}x** ({quartiles[0]:.2f}-{quartiles[2]:.2f})")
        print(f"| {num_rows} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()

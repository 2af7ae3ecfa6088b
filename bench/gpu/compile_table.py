"""Compiles every entry of the launch table for sm_90, without a GPU: a JSON line for each, as gpu.compile_shard answers.

    python -m gpu.compile_table [--jobs N]

Exit code 1 if an entry does not compile, needs more shared memory than there is, or spills registers.
"""

import argparse
import json
import sys
from collections.abc import Iterator

from gpu.tunables import entry_workload
from gpu.tune import Job, compile_jobs, refusal
from quire_kernels.launch_configs import read_table

LIMIT_S = 1500.0


def main() -> None:
    """Parse, compile, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    jobs = list(table_jobs())
    answers = compile_jobs(jobs, args.jobs, LIMIT_S)
    for answer in answers:
        print(json.dumps(answer))
    faults = [f"{a['kernel']} {a['shape_class']} {a['params']}: {why}" for a in answers if (why := refusal(a))]
    if len(answers) < len(jobs):
        faults.append(f"{len(jobs) - len(answers)} entries were not compiled in time")
    if faults:
        sys.exit("\n".join(faults))


def table_jobs() -> Iterator[Job]:
    """Each distinct entry once; kernels that nothing here launches are left out."""
    seen = set()
    for kernel, classes in read_table().items():
        for shape_class, by_device in classes.items():
            for params in by_device.values():
                key = (kernel, shape_class, tuple(sorted(params.items())))
                if key not in seen and entry_workload(kernel, shape_class) is not None:
                    seen.add(key)
                    yield {"kernel": kernel, "shape_class": shape_class, "params": params}


if __name__ == "__main__":
    main()

"""The model's operations on tensors: one op, one file per backend. Imports nothing else of ours.

    <op>.py       the op's table (shapes, dtypes, strides), and `<op>_reference`: plain torch, the definition of correct
    cpu/<op>.py   `<op>_cpu`, where the reference is not already the fast way on a processor
    gpu/<op>.py   the Triton kernel and its launcher `<op>_triton`
    ops.py        `load_ops(name)`: the set of one backend, chosen once when a model is built

Only `gpu/` imports Triton, and only `load_ops("triton")` imports `gpu/`: references and CPU paths work without it.
This package knows tensors. It must not know requests, schedulers, models or devices' memory limits.
"""

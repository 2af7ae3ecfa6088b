"""Triton kernels and their launchers. The only place of this package that imports Triton.

Numbers that change from step to step are `do_not_specialize`: Triton would otherwise compile a kernel anew when one becomes 1 or a
multiple of 16, while requests wait.
"""

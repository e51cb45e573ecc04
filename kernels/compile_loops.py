"""Compiles every loop into the cache, so that no run has to wait for it: `python -m kernels.compile_loops`."""

from kernels import best_output, cpu_attention, int8_rows, kv_write, matmul, openmp, rms_norm, rotary

MODULES = (best_output, cpu_attention, int8_rows, kv_write, matmul, rms_norm, rotary)
LOOPS = [module._loop for module in MODULES]


def main() -> None:
    """Nothing where this torch has no threads to run them on."""
    if openmp.available():
        for loop in LOOPS:
            loop.compile()


if __name__ == "__main__":
    main()

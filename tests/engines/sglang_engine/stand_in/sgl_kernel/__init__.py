"""A stand-in for SGLang's compiled CPU kernels, for tests only: they are not on the package index and want AVX-512.

SGLang imports their names on CPUs; its own torch code runs in their place where the processor lacks AMX. One that is
called all the same raises, so nothing here computes.
"""

__version__ = "0"


def __getattr__(name: str):
    if name.startswith("__"):
        raise AttributeError(name)

    def kernel(*args, **options):
        raise NotImplementedError(f"sgl_kernel.{name} is not here: this is a stand-in for tests")

    return kernel

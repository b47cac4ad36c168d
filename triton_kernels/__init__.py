"""The Triton kernels of fastgen's ops. Installed as ``fastgen.triton_kernels``."""

if __name__ != "fastgen.triton_kernels":
    raise ImportError(
        f"these are fastgen's kernels, imported as {__name__!r}: import them as 'fastgen.triton_kernels'. (The bare "
        "name belongs to another distribution; if that one is wanted, run from outside fastgen's checkout.)"
    )

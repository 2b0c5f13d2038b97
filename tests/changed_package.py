"""The command line of a changed copy of the package, in a process that has imported the package itself already."""

import sys
from importlib import import_module


def main(folder: str, *argv: str) -> None:
    """`truing *argv` out of the copy in the folder; torch and the other libraries stay imported."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "truing"]:
        del sys.modules[name]
    sys.path.insert(0, folder)
    sys.argv = ["truing", *argv]
    cli = import_module("truing.cli")
    assert str(cli.__file__).startswith(folder)
    cli.main()

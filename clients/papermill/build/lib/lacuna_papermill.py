"""Parameters for notebooks of the kernel "Lacuna (Rust)" in papermill.

Once this package is installed, `papermill in.ipynb out.ipynb -p sparsity 0.5` works as in Python. The kernel's own program
writes the cell, so that types, mutability and messages are those of `lacuna notebook run -p sparsity=0.5`.
"""

import json
import subprocess
import threading

from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from papermill.engines import NBClientEngine
from papermill.exceptions import PapermillException
from papermill.models import Parameter
from papermill.translators import Translator, papermill_translators

KERNEL = "lacuna"


def ask(source, values):
    """What the kernel's program answers to a cell of parameters and values for them."""
    try:
        program = KernelSpecManager().get_kernel_spec(KERNEL).argv[0]
    except NoSuchKernel:
        raise PapermillException(f"no kernel {KERNEL} is installed: lacuna kernel install") from None
    question = json.dumps({"source": source, "values": values}, default=str)
    done = subprocess.run([program, "kernel", "parameters"], input=question, capture_output=True, encoding="utf-8", check=False)
    if done.returncode != 0:
        raise PapermillException(done.stderr.strip().removeprefix("error: "))
    return json.loads(done.stdout)


class LacunaTranslator(Translator):
    """Writes the cell with a run's parameters."""

    # papermill hands the notebook's own cell to `inspect` first, and only the values to `codify`.
    _cell = threading.local()

    @classmethod
    def inspect(cls, parameters_cell):
        cls._cell.source = parameters_cell["source"]
        return [Parameter(name=found["name"], inferred_type_name=found["kind"], default=found["value"], help="")
                for found in ask(cls._cell.source, {})["parameters"]]

    @classmethod
    def codify(cls, parameters, comment="Parameters"):
        source = getattr(cls._cell, "source", None)
        if source is None:
            raise PapermillException("the notebook has no parameters: tag the cell that holds them `parameters`")
        del cls._cell.source
        return ask(source, parameters)["source"] + "\n"


class LacunaEngine(NBClientEngine):
    """papermill's own engine, by whose name the package is found."""


papermill_translators.register(KERNEL, LacunaTranslator)

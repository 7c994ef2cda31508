"""The probes of PyTorch, as the parent makes them: in child processes, begun again after one that hangs or crashes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping

from ...diagnosis import Machine, Probe
from ...diagnosis.children import ChildError, HungError
from .build import build
from .plan import lacking, with_needed

__all__ = ["Probes"]

_CODE = "from yolo_xpu_trainer.commands.doctor.child import main; main()"


class Probes(Mapping[str, Probe]):
    """The answers of the probes that are wanted, made when the first is asked for.

    Args:
        machine: The machine.
        wanted: Names of probes; what they need is made, too.
    """

    def __init__(self, machine: Machine, wanted: Iterable[str]) -> None:
        self._machine = machine
        self._names = with_needed(wanted)
        self._found: dict[str, Probe] | None = None

    def __getitem__(self, name: str) -> Probe:
        if name not in self._names:
            raise KeyError(name)
        if self._found is None:
            self._found = {}
            self._make(self._found)
        return self._found.get(name, Probe(text="there was no time left for it"))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _make(self, found: dict[str, Probe]) -> None:
        """Make all of them, in one process and in another one after each that hangs or crashes."""
        if build(self._machine) is None:
            found["import"] = Probe(text="PyTorch isn't installed")
        ends = time.monotonic() + 2 * self._machine.seconds
        while time.monotonic() < ends:
            for name in self._names:
                if name not in found and (reason := lacking(name, found)):
                    found[name] = Probe(text=reason)
            left = [name for name in self._names if name not in found]
            if not left:
                return
            self._child(left, found, min(self._machine.seconds, max(ends - time.monotonic(), 1)))
            if left[0] not in found:
                found[left[0]] = Probe(text="the process gave no answer")

    def _child(self, names: list[str], found: dict[str, Probe], seconds: float) -> None:
        machine = self._machine
        environ = {
            **machine.environ,
            "PYTHONPATH": os.pathsep.join(str(path) for path in machine.packages),
            "PYTHONFAULTHANDLER": "1",
            "PYTHONIOENCODING": "utf-8",
        }
        again = ["import"] if "import" not in names else []  # which everything needs, and is done anew in each process
        begun = names[0]
        try:
            for line in machine.children([machine.executable, "-c", _CODE, ",".join(again + names)], environ, seconds):
                try:
                    answer = json.loads(line)
                    begun = answer.get("begin", begun)
                    if "probe" in answer and answer["probe"] not in found:
                        found[answer["probe"]] = Probe(answer["state"], answer["value"], answer["text"])
                except (ValueError, AttributeError, KeyError):  # printed by somebody else
                    continue
        except ChildError as failure:
            if begun in found:  # it ended between two of them
                begun = next((name for name in names if name not in found), begun)
            found[begun] = Probe(
                "hung" if isinstance(failure, HungError) else "crashed", text=str(failure), said=failure.said
            )

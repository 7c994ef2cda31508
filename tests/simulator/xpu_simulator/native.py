"""The compiled library as Python sees it."""

from __future__ import annotations

import ctypes
import json
import warnings
from functools import cache
from typing import Any, cast

from . import build

LISTENER = ctypes.CFUNCTYPE(None, ctypes.c_char_p)

_INT, _LONG, _DOUBLE, _TEXT = ctypes.c_int, ctypes.c_int64, ctypes.c_double, ctypes.c_char_p
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "install": (_INT, [_INT]),
    "install_collectives": (_INT, []),
    "register_fork_handler": (None, []),
    "is_in_bad_fork": (_INT, []),
    "require_initialization": (None, []),
    "hand_out_default_generators": (None, [_INT]),
    "last_error": (_TEXT, []),
    "add_device": (None, [_TEXT, _LONG, _LONG, _INT, _INT, _INT, _INT]),
    "set_machine": (None, []),
    "physical_index": (_INT, [_INT]),
    "device_count": (_INT, []),
    "current_device": (_INT, []),
    "set_device": (_INT, [_INT]),
    "check_alive": (_INT, []),
    "current_stream": (_LONG, [_INT]),
    "set_current_stream": (None, [_INT, _LONG]),
    "synchronize": (_INT, [_INT]),
    "set_asynchronous": (None, [_INT]),
    "memory_stats": (_TEXT, [_INT]),
    "memory_info": (_INT, [_INT, ctypes.POINTER(_LONG), ctypes.POINTER(_LONG)]),
    "empty_cache": (None, []),
    "reset_peak_stats": (None, [_INT]),
    "reset_accumulated_stats": (None, [_INT]),
    "memory_fraction": (_DOUBLE, [_INT]),
    "set_memory_fraction": (None, [_INT, _DOUBLE]),
    "order_out_of_memory": (None, [_LONG, _TEXT]),
    "order_device_lost": (None, [_LONG]),
    "order_no_free_memory_query": (None, []),
    "clear_faults": (None, []),
    "order_exhaustion": (None, [_INT]),
    "order_quirks": (_INT, [_TEXT]),
    "forget_primitives": (None, []),
    "counters": (_TEXT, []),
    "last_graph_error": (_TEXT, []),
    "graph_new": (_LONG, []),
    "graph_pool_new": (_LONG, []),
    "graph_begin": (_INT, [_LONG, _LONG]),
    "graph_end": (_INT, [_LONG]),
    "graph_replay": (_INT, [_LONG]),
    "graph_reset": (_INT, [_LONG]),
    "graph_free": (None, [_LONG]),
    "graph_pool": (_LONG, [_LONG]),
    "graph_kernels": (_LONG, [_LONG]),
    "is_recording": (_INT, [_INT]),
    "set_listener": (None, [ctypes.c_void_p]),
}


@cache
def _library() -> ctypes.CDLL:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of every kernel that takes a composite's place
        library = ctypes.CDLL(str(build.library()))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, f"xpusim_{name}")
        function.restype, function.argtypes = result, arguments
    return library


def call(name: str, *arguments: Any) -> Any:
    """Call a function of the library that can't fail."""
    return getattr(_library(), f"xpusim_{name}")(*arguments)


def check(name: str, *arguments: Any) -> None:
    """Call a function that can fail, and raise its error."""
    if call(name, *arguments):
        raise RuntimeError(call("last_error").decode())


def read_json(name: str, *arguments: Any) -> dict[str, Any]:
    """Call a function that answers in JSON."""
    return cast("dict[str, Any]", json.loads(call(name, *arguments)))

"""Attention of one setting, all layers, computed by quorum (lane.hpp)."""
import ctypes
import os

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LIBRARY = os.path.join(ROOT, "build", "end_to_end", "cmake", "libquorum_lane.so")

Floats, Halves, Doubles = ctypes.POINTER(ctypes.c_float), ctypes.POINTER(ctypes.c_uint16), ctypes.POINTER(ctypes.c_double)


class LaneShape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int32) for name in ("num_layers", "num_qo_heads", "num_kv_heads", "head_dim", "max_tokens")]


class LanePrompt(ctypes.Structure):
    _fields_ = [("keys", Halves), ("values", Halves), ("prompt_queries", Floats), ("num_tokens", ctypes.c_int32),
                ("num_prompt_queries", ctypes.c_int32)]


class LaneStep(ctypes.Structure):
    _fields_ = [("query", Floats), ("key", Floats), ("value", Floats), ("output", Floats), ("report", Doubles),
                ("append_seconds", ctypes.c_double), ("decode_seconds", ctypes.c_double)]


def load_library():
    library = ctypes.CDLL(LIBRARY)
    library.lane_error.restype = library.lane_report_columns.restype = ctypes.c_char_p
    library.lane_create.restype = ctypes.c_void_p
    library.lane_create.argtypes = [ctypes.POINTER(LaneShape), ctypes.c_int32, ctypes.POINTER(ctypes.c_char_p), Doubles]
    library.lane_destroy.argtypes, library.lane_destroy.restype = [ctypes.c_void_p], None
    for function, record in ((library.lane_prefill, LanePrompt), (library.lane_decode, LaneStep)):
        function.restype, function.argtypes = ctypes.c_bool, [ctypes.c_void_p, ctypes.c_int32, ctypes.POINTER(record)]
    return library


LANES = load_library()
COLUMNS = LANES.lane_report_columns().decode().split(",")


def pointer(array, dtype):
    """For C. Caller: keeps the array alive."""
    assert array.flags.c_contiguous and array.dtype == dtype, (array.dtype, array.strides)
    kind = {np.float32: Floats, np.float16: Halves, np.float64: Doubles}[dtype]
    return array.ctypes.data_as(kind)


class Lane:
    """Caches, indexes and decoder of one setting ({option: number}); usable once prefill() has seen every layer."""

    def __init__(self, sizes, max_tokens, options):
        shape = LaneShape(sizes.num_layers, sizes.num_qo_heads, sizes.num_kv_heads, sizes.head_dim, max_tokens)
        names = (ctypes.c_char_p * len(options))(*(name.encode() for name in options))
        numbers = (ctypes.c_double * len(options))(*options.values())
        self._handle = LANES.lane_create(ctypes.byref(shape), len(options), names, numbers)
        if not self._handle:
            raise ValueError(LANES.lane_error().decode())
        self._report = np.empty((sizes.num_qo_heads, len(COLUMNS)))

    def __del__(self):
        LANES.lane_destroy(getattr(self, "_handle", None))

    def prefill(self, layer, keys, values, prompt_queries):
        """keys, values [tokens, num_kv_heads, head_dim] f16; prompt_queries [rows, num_qo_heads, head_dim] f32."""
        prompt = LanePrompt(pointer(keys, np.float16), pointer(values, np.float16), pointer(prompt_queries, np.float32), len(keys),
                            len(prompt_queries))
        if not LANES.lane_prefill(self._handle, layer, ctypes.byref(prompt)):
            raise RuntimeError(LANES.lane_error().decode())

    def decode(self, layer, query, key, value):
        """Appends the token, attends. Returns output [num_qo_heads, head_dim], report [num_qo_heads, COLUMNS], the two times in s."""
        output = np.empty_like(query)
        step = LaneStep(*(pointer(row, np.float32) for row in (query, key, value, output)), pointer(self._report, np.float64))
        if not LANES.lane_decode(self._handle, layer, ctypes.byref(step)):
            raise RuntimeError(LANES.lane_error().decode())
        return output, self._report, (step.append_seconds, step.decode_seconds)

"""Buffers that hold what was put into them, and the graphs that make them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from runtimes.gpu_memory import EXPAND_GRAPHS, DeviceMemory, SessionMemory

TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


@pytest.mark.parametrize("dtype", TYPES)
def test_written_out_graph_is_what_onnx_builds(dtype: str) -> None:
    graph = helper.make_graph(
        [helper.make_node("Expand", ["x", "shape"], ["y"])],
        "expand",
        [
            helper.make_tensor_value_info("x", TYPES[dtype], None),
            helper.make_tensor_value_info("shape", TensorProto.INT64, ["rank"]),
        ],
        [helper.make_tensor_value_info("y", TYPES[dtype], None)],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    assert onnx.load_from_string(EXPAND_GRAPHS[dtype]) == model


def test_there_is_a_graph_for_every_type_of_state() -> None:
    assert set(EXPAND_GRAPHS) == {"float32", "float16"}


# A session's memory on the CPU: the same graphs, another allocator.
MEMORIES = [DeviceMemory("cpu"), SessionMemory("CPUExecutionProvider", "cpu")]


@pytest.mark.parametrize("memory", MEMORIES, ids=["device", "session"])
@pytest.mark.parametrize("dtype", TYPES)
def test_what_was_uploaded_is_read_back(memory: DeviceMemory | SessionMemory, dtype: str) -> None:
    array = np.arange(24).reshape(1, 2, 3, 4).astype(dtype)
    # Not contiguous, as keys and values are that were cut to a length.
    cut = array[:, :, :2]
    for source in (array, cut):
        value = memory.upload(source)
        kept = source.copy()
        np.testing.assert_array_equal(memory.read(value), kept)
        assert memory.read(value).dtype == np.dtype(dtype)


@pytest.mark.parametrize("memory", MEMORIES, ids=["device", "session"])
def test_zeros_are_zeros_of_that_shape(memory: DeviceMemory | SessionMemory) -> None:
    for shape in ((1, 1, 5, 4), (1, 8, 2)):
        zeros = memory.read(memory.zeros(shape, "float16"))
        assert (zeros.shape, zeros.dtype) == (shape, np.float16)
        assert (zeros == 0).all()


def test_upload_is_a_copy_of_what_the_caller_keeps() -> None:
    memory, array = DeviceMemory("cpu"), np.ones((2, 2), np.float32)
    value = memory.upload(array)
    array[:] = 7
    read = memory.read(value)
    assert (read == 1).all()
    read[:] = 9
    assert (memory.read(value) == 1).all()


def test_values_are_written_in_place() -> None:
    memory = DeviceMemory("cpu")
    value = memory.zeros((2, 3), "float32")
    place = value.data_ptr()
    memory.write(value, np.full((2, 3), 5, np.float32))
    assert value.data_ptr() == place
    assert (memory.read(value) == 5).all()


def test_memory_that_cannot_be_written_says_so() -> None:
    memory = SessionMemory("CPUExecutionProvider", "cpu")
    value = memory.zeros((2,), "float32")
    with pytest.raises(NotImplementedError, match="cannot be written in place"):
        memory.write(value, np.ones(2, np.float32))

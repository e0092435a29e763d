"""ONNX Runtime sessions: the skeleton plus one flat buffer of weights, on the CPU or on CUDA. No torch."""

import contextlib
import ctypes
import functools
import io
import logging
import sys
import threading
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from adapt.documents.soup import BnMode
from deploy.layout import FLOAT_BYTES, INPUT_NAME, OUTPUT_NAME, WEIGHTS_LOCATION, BundleError
from training.documents import one_line

logger = logging.getLogger(__name__)

Device = Literal["auto", "cpu", "cuda"]
Floats = npt.NDArray[np.float32]

MAX_RUN_BATCH = 256  # images per call into ONNX Runtime: bounds the memory of a large request
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
GRAPH_FACTOR = 36  # bytes that ONNX Runtime keeps per byte of a serialised graph; 28 to 42 for the nets measured
_arena_lock = threading.Lock()


def session_bytes(skeleton: bytes, row_floats: int) -> int:
    """Return about how much memory a session on the CPU keeps: its own copy of the weights, and the graph."""
    return row_floats * FLOAT_BYTES + GRAPH_FACTOR * len(skeleton)


class SoupSession:
    """A running soup. Immutable; `run` may be called from several threads at once."""

    def __init__(
        self,
        inference: ort.InferenceSession,
        coefficients: dict[str, float],
        bn_mode: BnMode,
        image_shape: tuple[int, ...],
    ) -> None:
        self._inference = inference
        self.image_shape = image_shape
        self.coefficients = coefficients
        self.bn_mode: BnMode = bn_mode
        self.provider: str = inference.get_providers()[0]

    def run(self, images: Floats) -> Floats:
        """Return the logits (B, K), float32, not divided by any temperature.

        Args:
            images: float32 RGB (B, 3, H, W) in [0, 1] at the input size, B >= 1; large batches run in slices.

        Raises:
            ValueError: another shape or dtype.
        """
        if images.ndim != 4 or images.shape[1:] != self.image_shape or len(images) < 1 or images.dtype != np.float32:
            expected = ", ".join(str(size) for size in self.image_shape)
            raise ValueError(f"expected float32 images (B >= 1, {expected}), got {images.dtype} {images.shape}")
        parts = [
            self._inference.run(
                [OUTPUT_NAME], {INPUT_NAME: np.ascontiguousarray(images[start : start + MAX_RUN_BATCH])}
            )[0]
            for start in range(0, len(images), MAX_RUN_BATCH)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def build_inference(
    skeleton: bytes, weights: Floats, *, device: Device, threads: int = 1, optimise: bool = True
) -> ort.InferenceSession:
    """Build one ONNX Runtime session with `weights` as the skeleton's external data; the weights are copied.

    Args:
        skeleton: the serialised graph, whose weights lie in the external file `WEIGHTS_LOCATION`.
        weights: that file's content, float32 (row_floats,).
        device: "cuda" never falls back; "auto" takes CUDA where a device and its libraries are found.
        threads: threads per run, >= 1.
        optimise: False turns every graph optimisation off: slow to run, quick to build, a reference.

    Raises:
        ValueError: unknown device or thread count.
        BundleError: the graph cannot be loaded; or CUDA was asked for and is not to be had (names the provider).
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"expected device auto, cpu or cuda, got {device!r}")
    if threads < 1:
        raise ValueError(f"expected at least 1 thread, got {threads}")
    create = functools.partial(_create, skeleton, weights, threads=threads, optimise=optimise)
    if device == "cpu" or (device == "auto" and not _cuda_device_exists()):
        return create(CPU)
    try:
        return create(CUDA)
    except BundleError as error:
        if device == "cuda":
            raise
        logger.warning("a CUDA device is present but cannot be used, serving on the CPU: %s", error)
        return create(CPU)


def _create(skeleton: bytes, weights: Floats, provider: str, *, threads: int, optimise: bool) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if threads > 1:  # idle threads that spin take the cores of the other workers
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Only the address is taken here: `weights` must live until the session is built, which copies it. `add_initializer`
    # would be the obvious call; it gives silently wrong logits once BatchNorm is fused into a convolution.
    buffer = weights.view(np.uint8)
    options.add_external_initializers_from_files_in_memory([WEIGHTS_LOCATION], [buffer], [buffer.nbytes])
    if provider == CUDA:
        _load_cuda_libraries()
    else:
        _share_arena(options)
    try:
        # Without enable_fallback=0, ONNX Runtime answers an error on CUDA by building again, on the CPU, from options
        # whose buffer may be gone by then.
        session = ort.InferenceSession(skeleton, options, providers=_providers(provider), enable_fallback=0)
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        raise BundleError(f"ONNX Runtime cannot build the session on {provider}: {one_line(error)}") from error
    if session.get_providers()[0] != provider:
        raise BundleError(f"{provider} cannot be loaded by ONNX Runtime, which has only {session.get_providers()}")
    return session


def release_memory() -> None:
    """Give memory that was freed back to the system, where the C library can: glibc keeps it otherwise.

    Building a session takes several times what it needs afterwards.
    """
    if (trim := _malloc_trim()) is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return None


def _share_arena(options: ort.SessionOptions) -> None:
    """Let all sessions of the process take what a run needs from one arena.

    An arena never shrinks: with one each, every session would keep room for the largest batch it ever ran, more than
    its weights take. The weights stay outside, where a session that is dropped leaves no holes.
    """
    with _arena_lock:
        _register_arena()
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")


@functools.cache
def _register_arena() -> None:
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, None)


def _providers(provider: str) -> list[Any]:
    if provider == CPU:
        return [CPU]
    # TF32 rounds inputs to 10 bits: no parity. The exhaustive algorithm search would run again for each batch size.
    return [(CUDA, {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}), CPU]


@functools.cache
def _load_cuda_libraries() -> None:
    """Load CUDA and cuDNN from the nvidia packages: a predictor has no torch that brought them."""
    with contextlib.redirect_stdout(io.StringIO()) as told:  # it prints what it misses
        ort.preload_dlls()
    if told.getvalue():
        logger.warning("loading CUDA: %s", " ".join(told.getvalue().split()))


def _cuda_device_exists() -> bool:
    """Ask the driver; ONNX Runtime lists the CUDA provider on machines without one."""
    if CUDA not in ort.get_available_providers():
        return False
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    found = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    return found and count.value > 0

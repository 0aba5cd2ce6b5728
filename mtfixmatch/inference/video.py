"""Read the frames of videos, and write videos: by PyAV as H.264, else by OpenCV as MPEG-4."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction

# OpenCV and FFmpeg would print lines of their own for a broken file.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

import cv2
import numpy as np

from ..utils.errors import InputError, first_line

try:
    import av
except ImportError:  # the extra "video"
    av = None  # type: ignore[assignment]

ERRORS: tuple[type[Exception], ...] = (OSError,)
if av is not None:
    ERRORS += (av.error.FFmpegError,)
DEFAULT_FPS = 25.0


class VideoFrames:
    """The frames of a video file; a context manager.

    Attributes:
        fps: frames in a second.
        listed: number of frames in the file's header; 0: it says none.
    """

    def __init__(self, path: str):
        """Open a video file, or raise InputError."""
        self._capture = cv2.VideoCapture(path)
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if 0 < fps < 1000 else DEFAULT_FPS
        self.listed = max(int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
        self._frame = self._next()
        if self._frame is None:
            self._capture.release()
            raise InputError(f"cannot read the video {path}: it has no frame that OpenCV reads")

    def __enter__(self) -> "VideoFrames":
        return self

    def __exit__(self, *args: object) -> None:
        self._capture.release()

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield each frame, (H, W, 3) uint8 RGB."""
        while self._frame is not None:
            yield np.ascontiguousarray(self._frame[..., ::-1])
            self._frame = self._next()

    def _next(self) -> np.ndarray | None:
        success, frame = self._capture.read()
        return frame if success else None


class _OpenCVWriter:
    def __init__(self, path: str, fps: float, width: int, height: int):
        code = cv2.VideoWriter.fourcc(*"mp4v")
        self._writer = cv2.VideoWriter(path, code, fps, (width, height))

    def write(self, frame: np.ndarray) -> None:
        self._writer.write(np.ascontiguousarray(frame[..., ::-1]))

    def close(self) -> None:
        self._writer.release()


class _PyAVWriter:
    def __init__(self, path: str, fps: float, width: int, height: int):
        self._container = av.open(path, "w")
        rate = Fraction(fps).limit_denominator(1001)
        self._stream = self._container.add_stream("libx264", rate=rate, options={"crf": "20"})
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = "yuv420p"

    def write(self, frame: np.ndarray) -> None:
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))

    def close(self) -> None:
        self._container.mux(self._stream.encode())
        self._container.close()


class VideoFile:
    """A video that appears under its name when it is complete.

    Frames of an odd width or height get a column or a row more, which the codecs need.
    """

    def __init__(self, path: str, temporary: str, fps: float):
        """Set the path of the video, that of the file until then, and the frames in a second."""
        self.path = path
        self._temporary = temporary
        self._fps = fps
        self._frames = 0
        self._writer: _OpenCVWriter | _PyAVWriter | None = None

    def write(self, frame: np.ndarray) -> None:
        """Add a frame, (H, W, 3) uint8 RGB; raise InputError if it cannot be written."""
        height, width = frame.shape[:2]
        frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        with self._errors():
            if self._writer is None:
                os.makedirs(os.path.dirname(self._temporary), exist_ok=True)
                kind = _OpenCVWriter if av is None else _PyAVWriter
                self._writer = kind(self._temporary, self._fps, frame.shape[1], frame.shape[0])
            self._writer.write(frame)
        self._frames += 1

    def finish(self) -> None:
        """Complete the file, or raise InputError."""
        with self._errors():
            if self._writer is not None:
                self._writer.close()
            self._check()
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            os.replace(self._temporary, self.path)

    def _check(self) -> None:
        """Raise OSError if frames are missing: OpenCV does not report that a disk is full."""
        capture = cv2.VideoCapture(self._temporary)
        frames = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        capture.release()
        if frames != self._frames:
            raise OSError(f"it has {max(frames, 0)} of {self._frames} frames, is the disk full?")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except ERRORS as error:
            with suppress(OSError):
                os.remove(self._temporary)
            reason = getattr(error, "strerror", None) or first_line(error)
            raise InputError(f"{self.path} cannot be written: {reason}") from None

"""Camera images between two processes without copying them through a pipe.

One process writes the images of an observation into memory that both have mapped, and says over
its pipe where they lie. The memory is anonymous (`os.memfd_create`): it has no name, so nothing of
it is left when both processes are gone, however they end, and the size of /dev/shm does not matter.
It grows with the images, so nobody has to know their size beforehand.
"""

from __future__ import annotations

import math
import mmap
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Frame:
    """Where an image lies on the board."""

    camera: str
    offset: int
    shape: tuple[int, ...]


class FrameBoard:
    """The images of one observation; one process writes, another reads.

    The writer must not write again before the reader has said over another channel that it is done.
    """

    def __init__(self, descriptor: int) -> None:
        """Map a board that another process made.

        Args:
            descriptor: The inherited file descriptor; it belongs to the board from now on.
        """
        self.descriptor = descriptor
        self._memory: mmap.mmap | None = None

    @classmethod
    def make(cls) -> FrameBoard:
        """Make an empty board; hand ``descriptor`` down to the other process."""
        return cls(os.memfd_create("frames"))

    def write(self, images: Mapping[str, NDArray[np.uint8]]) -> tuple[Frame, ...]:
        """Put images on the board, over those that were there.

        Raises:
            ContractError: An image does not consist of bytes.
        """
        frames: list[Frame] = []
        end = 0
        for camera, image in images.items():
            if image.dtype != np.uint8:
                raise ContractError(
                    f"the simulator's {camera} image has {image.dtype} values, expected uint8; "
                    "return RGB in 0 to 255"
                )
            frames.append(Frame(camera, end, image.shape))
            end += image.nbytes
        if os.fstat(self.descriptor).st_size < end:
            os.ftruncate(self.descriptor, end)
        for frame, image in zip(frames, images.values(), strict=True):
            self._view(frame)[...] = image
        return tuple(frames)

    def read(self, frames: Sequence[Frame]) -> dict[str, NDArray[np.uint8]]:
        """Return the images as read-only views, which the next `write` changes."""
        images = {frame.camera: self._view(frame) for frame in frames}
        for image in images.values():
            image.flags.writeable = False
        return images

    def close(self) -> None:
        """Give the memory back once no view of it is left."""
        os.close(self.descriptor)
        self._memory = None

    def _view(self, frame: Frame) -> NDArray[np.uint8]:
        n_bytes = math.prod(frame.shape)
        if self._memory is None or len(self._memory) < frame.offset + n_bytes:
            # Views of the old mapping keep it alive, and it shows the same memory.
            self._memory = mmap.mmap(self.descriptor, 0)
        flat = np.frombuffer(self._memory, np.uint8, count=n_bytes, offset=frame.offset)
        return flat.reshape(frame.shape)

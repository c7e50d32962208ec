"""What a source of examples is, and the one that holds them all in memory."""

import dataclasses
from typing import Any, Protocol

import numpy as np


class Source(Protocol):
  """A finite, ordered collection of examples of one shape, read a batch at a time.

  `read` may be called from several threads at once.
  """

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape of one example: (H, W, C) of an image, (D,) of a vector."""

  @property
  def labels(self) -> np.ndarray | None:
    """Class labels, int (len(self),), where they are known."""

  @property
  def classes(self) -> tuple[str, ...] | None:
    """The names of the classes, by label, where there are labels."""

  @property
  def fingerprint(self) -> str:
    """Another one once the examples have changed; '' for a built-in set, which does not."""

  @property
  def record(self) -> Any:
    """Of images, what is known of their files, a `diffusion_ebm.data.summary.Record`; else None."""

  def __len__(self) -> int:
    """The number of examples."""

  def read(self, indices: np.ndarray) -> np.ndarray:
    """Reads examples.

    Args:
      indices: int (B,), each in [0, len(self)).

    Returns:
      uint8 (B, H, W, C) in [0, 255] for images, float32 (B, D) for vectors.
    """


@dataclasses.dataclass(frozen=True)
class ArraySource:
  """A source held in memory.

  Attributes:
    examples: uint8 (N, H, W, C) or float32 (N, D).
    labels: int (N,) or None.
    classes: their names, by label, or None.
    fingerprint: as of `Source`.
    record: of images, what is known of their files: a `diffusion_ebm.data.summary.Record`; else None.
  """

  examples: np.ndarray
  labels: np.ndarray | None = None
  classes: tuple[str, ...] | None = None
  fingerprint: str = ''
  record: Any = dataclasses.field(default=None, repr=False)

  @property
  def shape(self):
    return self.examples.shape[1:]

  def __len__(self):
    return len(self.examples)

  def read(self, indices):
    return self.examples[indices]

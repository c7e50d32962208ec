"""How much memory decoding takes, and how much of it at once."""

import contextlib
import io
import threading

# Of each pixel: the image, its colours converted or laid over white, the part that is cut out; 4 bytes each and more.
_BYTES_OF_PIXEL = 24
# Of what is smaller, as files or decoded, no number matters that is decoded at once.
_SMALL_FILE, _SMALL_IMAGE = 2**14, 2**25


def needed(encoded: bytes, image_size: int) -> int:
  """Roughly how many bytes it takes to decode an image to a size, from what its file says of it; 0 if few."""
  from PIL import Image

  if len(encoded) < _SMALL_FILE:
    return 0
  try:
    with Image.open(io.BytesIO(encoded)) as image:
      image.draft(None, (2 * image_size, 2 * image_size))  # as it will be decoded
      total = len(encoded) + _BYTES_OF_PIXEL * image.width * image.height
  except Exception:  # damaged: it will be refused
    return 0
  return total if total > _SMALL_IMAGE else 0


class Budget:
  """An amount of memory that threads share: who asks for more than is left waits."""

  def __init__(self, limit: float):
    self._limit = self._left = max(int(limit), 1)
    self._changed = threading.Condition()

  @contextlib.contextmanager
  def taking(self, amount: int):
    """Takes so many bytes for the time of the context; what is more than all of it waits for all of it."""
    if not amount:
      yield
      return
    amount = min(amount, self._limit)
    with self._changed:
      self._changed.wait_for(lambda: self._left >= amount)
      self._left -= amount
    try:
      yield
    finally:
      with self._changed:
        self._left += amount
        self._changed.notify_all()

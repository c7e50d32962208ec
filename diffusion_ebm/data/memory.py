"""How much memory decoding takes, and how much of it at once."""

import contextlib
import threading

from diffusion_ebm.data import decode

# Of what is smaller, as files or decoded, no number matters that is decoded at once.
_SMALL_FILE, _SMALL_IMAGE = 2**14, 2**25


def needed(encoded: bytes, image_size: int) -> int:
  """Bytes that it takes to decode an image to a size, with its file; 0 if few. Raises as `decode.memory`."""
  if len(encoded) < _SMALL_FILE:
    return 0
  total = len(encoded) + decode.memory(encoded, image_size)
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

"""Images that are made, or come along with libraries: letters, patches of photographs, textures."""

import os

import numpy as np

from diffusion_ebm.run import pictures

# Those that look like digits are left out.
_LETTERS = sorted(set('ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz') - set('IOlo'))
_FONTS = ('DejaVuSans', 'DejaVuSans-Bold', 'DejaVuSans-Oblique', 'DejaVuSerif', 'DejaVuSerif-Bold', 'DejaVuSansMono')
_LETTER_SIZE = 64  # pixels, before a letter is reduced


def letters(shape: tuple[int, int, int, int], rng: np.random.Generator) -> np.ndarray:
  """Letters of the fonts that come with Matplotlib, as high or as wide as the image; white on black, or of two colours.

  Args:
    shape: (N, H, W, C).
    rng: of the random numbers.

  Returns:
    uint8, of the shape.
  """
  from PIL import Image, ImageDraw, ImageFont

  folder = os.path.join(pictures.load_matplotlib().get_data_path(), 'fonts', 'ttf')
  fonts = [ImageFont.truetype(os.path.join(folder, f'{name}.ttf'), _LETTER_SIZE) for name in _FONTS]
  count, height, width, channels = shape
  ink = np.zeros((count, height, width))
  for image in ink:
    canvas = Image.new('L', (2 * _LETTER_SIZE, 2 * _LETTER_SIZE))
    corner = (_LETTER_SIZE // 2, _LETTER_SIZE // 4)
    ImageDraw.Draw(canvas).text(corner, str(rng.choice(_LETTERS)), 255, fonts[rng.integers(len(fonts))])
    left, top, right, bottom = canvas.getbbox()
    scale = max((right - left) / width, (bottom - top) / height)
    across, down = (width * scale - (right - left)) / 2, (height * scale - (bottom - top)) / 2
    box = tuple(round(edge) for edge in (left - across, top - down, right + across, bottom + down))
    image[:] = np.asarray(canvas.crop(box).resize((width, height), Image.Resampling.BOX)) / 255
  ink = ink[..., None]
  if channels == 1:
    return _to_uint8(255 * ink)
  paper, colour = rng.uniform(0, 255, (2, count, 1, 1, channels))
  return _to_uint8(paper + (colour - paper) * ink)


def patches(shape, rng):
  """Square parts, of any size, of the two photographs that come with scikit-learn; arguments as of `letters`."""
  from PIL import Image
  from sklearn import datasets

  count, height, width, channels = shape
  photographs = [
    Image.fromarray(each).convert('L' if channels == 1 else 'RGB') for each in datasets.load_sample_images().images
  ]
  made = np.zeros(shape, np.uint8)
  for image in made:
    photograph = photographs[rng.integers(len(photographs))]
    largest = min(photograph.size)
    side = largest * (min(height, largest) / largest) ** rng.uniform()  # uniform in its logarithm
    left, top = (rng.uniform(0, length - side) for length in photograph.size)
    part = photograph.resize((width, height), Image.Resampling.BOX, (left, top, left + side, top + side))
    image[:] = np.asarray(part).reshape(height, width, channels)
  return made


def gratings(shape, rng):
  """Sine waves between two colours, one period or more across the image; arguments as of `letters`."""
  count, height, width, channels = shape
  y, x = np.mgrid[:height, :width] / max(height, width)
  angle, frequency, phase = (
    rng.uniform(low, high, (count, 1, 1)) for low, high in ((0, np.pi), (1, height / 4), (0, 1))
  )
  wave = np.sin(2 * np.pi * (frequency * (np.cos(angle) * x + np.sin(angle) * y) + phase))
  one, other = rng.uniform(0, 255, (2, count, 1, 1, channels))
  return _to_uint8(one + (other - one) * (0.5 + 0.5 * wave[..., None]))


def pink_noise(shape, rng):
  """Noise whose amplitudes fall as one over the frequency, as those of photographs do; arguments as of `letters`.

  Each image has mean 127.5 and standard deviation 50 before it is clipped.

  Source: Field 1987, Relations between the statistics of natural images and the response properties of cortical cells.
  """
  _, height, width, _ = shape
  frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
  frequency[0, 0] = np.inf
  white = np.fft.rfft2(rng.standard_normal(shape), axes=(1, 2))
  noise = np.fft.irfft2(white / frequency[..., None], (height, width), axes=(1, 2))
  return _to_uint8(127.5 + 50 * noise / noise.std((1, 2, 3), keepdims=True))


def _to_uint8(x):
  return np.round(np.clip(x, 0, 255)).astype(np.uint8)

import os
import subprocess
import sys
import warnings

from absl.testing import absltest, parameterized
import numpy as np

from diffusion_ebm.run import pictures
from tests import testing


class PicturesTest(absltest.TestCase):
  def test_grid_holds_the_images_row_by_row(self):
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((5, 40, 40, 1), np.uint8)
    grid = pictures.image_grid(images, columns=2)
    self.assertEqual(grid.shape, (3 * 42, 2 * 42, 3))
    for i in range(5):
      np.testing.assert_array_equal(grid[42 * (i // 2) + 20, 42 * (i % 2) + 20], [i] * 3)
    np.testing.assert_array_equal(grid[2 * 42 + 20, 42 + 20], [255] * 3)  # no sixth image

  def test_small_images_are_enlarged_by_whole_pixels(self):
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3)).astype(np.uint8)
    grid = pictures.image_grid(image)[1:-1, 1:-1]
    np.testing.assert_array_equal(grid[2::5, 2::5], image[0])

  def test_levels_show_generated_above_data_with_noise_on_the_left(self):
    generated = np.stack([np.full((4, 40, 40, 1), value, np.uint8) for value in (10, 20, 30)])
    picture = pictures.image_levels(generated, generated + 100, (0, 1, 2))
    middle = [[int(picture[18 + 20 + row * (84 + 18), 20 + column * 88, 0]) for column in range(3)] for row in (0, 1)]
    self.assertEqual(middle, [[30, 20, 10], [130, 120, 110]])

  def test_points_are_drawn_where_they_are(self):
    picture = pictures.point_cloud(np.full((500, 2), 0.8) + np.random.default_rng(0).normal(size=(500, 2)) * 0.02)
    height, width, _ = picture.shape
    dark = picture.sum(axis=2) < 200
    quarter = dark[height // 10 : height // 2, width // 2 : width - width // 10]  # up and to the right, off the frame
    self.assertGreater(quarter.sum(), 20)
    self.assertEqual(dark[height // 2 : height - height // 10, width // 10 : width // 2].sum(), 0)

  def test_histograms_of_sets_far_apart_divide_by_nothing(self):
    near = np.random.default_rng(0).normal(size=100)
    with warnings.catch_warnings():
      warnings.simplefilter('error')
      picture = pictures.histograms({'test': near, 'noise': near - 1e4}, 'log density')
      alone = pictures.histograms({'test': np.append(near, np.nan)}, 'log density')
    self.assertEqual(picture.shape, (alone.shape[0], 2 * alone.shape[1], 3))

  def test_distances_are_drawn_from_no_gradient_on_and_those_that_are_none_are_gaps(self):
    x, y = np.array([0, 6, 12.0]), np.array([30, 20, 10.0])
    with warnings.catch_warnings():
      warnings.simplefilter('error')
      whole, gap, empty = (pictures.distance_curves({'a': (x, each * y)}, 't') for each in (1, [1, 1, np.nan], np.nan))
      pictures.distance_curves({'a': (x[:1], y[:1])}, 't')
    self.assertEqual(whole.shape, (400, 560, 3))
    blue = [np.sum(np.all(picture == [31, 119, 180], axis=2)) for picture in (whole, gap, empty)]
    self.assertGreater(blue[0], blue[1])
    self.assertGreater(blue[1], blue[2])


class BackendTest(parameterized.TestCase):
  @parameterized.parameters('nonsense', 'module://nowhere', 'tkagg')
  def test_pictures_need_no_backend(self, name):
    code = (
      'from diffusion_ebm.run import pictures; import numpy as np; print(pictures.point_cloud(np.zeros((2, 2))).shape)'
    )
    result = subprocess.run(
      [sys.executable, '-c', code],
      cwd=testing.ROOT,
      capture_output=True,
      text=True,
      env=os.environ | {'MPLBACKEND': name},
    )
    self.assertEqual(result.stdout, '(400, 400, 3)\n', result.stderr)


if __name__ == '__main__':
  absltest.main()

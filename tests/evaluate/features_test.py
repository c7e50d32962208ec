import tempfile
from unittest import mock

from absl.testing import absltest, parameterized
import numpy as np

from configs import cifar10, default, digits
from diffusion_ebm import data
from diffusion_ebm.data.source import ArraySource
from diffusion_ebm.evaluate import classifier, feature_statistics, features, reference
from diffusion_ebm.run.errors import UserError
from tests import testing


class FeaturesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())

  def test_pixels_are_in_0_to_1_whatever_the_batch(self):
    images = np.random.default_rng(0).integers(0, 256, (11, 2, 3, 1)).astype(np.uint8)
    for batch_size in (1, 4, 20):
      rows, logits = features.compile_extractor(features.pixels((2, 3, 1)), (2, 3, 1), batch_size)(images)
      np.testing.assert_allclose(rows, images.reshape(11, 6) / 255, rtol=1e-6)
      self.assertIsNone(logits)

  @parameterized.parameters(
    (np.zeros((2, 2, 2, 1), np.float32), r'uint8 images in 0 \.\. 255, but these are float32 in \[0, 0\]'),
    (np.full((2, 2, 2, 1), 300, np.int64), r'int64 in \[300, 300\]'),
    (np.full((2, 2, 2, 1), np.nan, np.float32), '2 of 2 samples hold NaN'),
    (np.zeros((2, 3, 2, 1), np.uint8), r'shape \(2, 2, 1\), but these have \(3, 2, 1\)'),
  )
  def test_other_images_are_refused_in_one_line(self, images, message):
    with self.assertRaisesRegex(UserError, message) as caught:
      features.check_examples(images, (2, 2, 1))
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(
    ('digits', True), ('mnist', True), ('mnist:3.0.1', True), ('cifar10', False), ('huggingface:mnist', False)
  )
  def test_a_classifier_suits_digits_in_every_version(self, name, suits):
    config = default.get_config()
    config.data.name = name
    self.assertEqual(features.is_classified(config.data), suits)
    self.assertEqual(reference.extractor_name(config.eval, config.data), 'classifier' if suits else 'inception')

  @testing.long
  def test_the_classifier_learns_the_digits_and_is_kept(self):
    config = digits.get_config()
    sources = {split: data.load_source(config.data, split) for split in ('train', 'test')}
    with mock.patch.object(classifier, '_STEPS', 120):
      first = features.small_classifier(sources, self.folder, 'key')
    self.assertGreater(first.notes['classifier_accuracy'], 0.9)  # a tenth is chance
    with mock.patch.object(classifier, 'train', side_effect=AssertionError):
      again = features.small_classifier(sources, self.folder, 'key')
    self.assertEqual(again.notes, first.notes)
    images = sources['test'].read(np.arange(360))
    extract = [features.compile_extractor(each, (8, 8, 1), 100) for each in (first, again)]
    (rows, logits), (rows_again, _) = (each(images) for each in extract)
    np.testing.assert_array_equal(rows, rows_again)
    self.assertEqual((rows.shape, logits.shape), ((360, 128), (360, 10)))
    self.assertAlmostEqual(np.mean(np.argmax(logits, 1) == sources['test'].labels), first.notes['classifier_accuracy'])
    self.assertBetween(np.sqrt(np.mean(rows**2)), 0.9, 1.1)

  def test_the_key_of_sets_that_cannot_change_is_as_it_always_was(self):
    for config, expected in ((digits, 'f47243206f04ce2a'), (cifar10, '03ad3965210b3317')):
      sources = {'train': ArraySource(np.zeros((3, 2))), 'test': None}
      key = feature_statistics.key(features.data_key(config.get_config().data, sources))
      self.assertEqual(key, expected)

  def test_the_key_of_others_depends_on_their_content(self):
    data, examples = digits.get_config().data, np.zeros((3, 2))
    keys = {
      feature_statistics.key(
        features.data_key(data, {'train': ArraySource(examples, fingerprint=of_train), 'test': of_test})
      )
      for of_train in ('', 'a', 'b')
      for of_test in (None, ArraySource(examples, fingerprint='a'), ArraySource(examples, fingerprint='b'))
    }
    self.assertLen(keys, 9)

  def test_the_classifier_needs_labels(self):
    unlabelled = ArraySource(np.zeros((5, 8, 8, 1), np.uint8))
    with self.assertRaisesRegex(UserError, r'needs labels.*--config\.eval\.extractor='):
      features.small_classifier({'train': unlabelled, 'test': None}, self.folder)


if __name__ == '__main__':
  absltest.main()

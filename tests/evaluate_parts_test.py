"""Statistics, extractors, baselines, records and the report of the evaluation."""

import html.parser
import json
import multiprocessing
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized
import numpy as np
from PIL import Image

from configs import digits
from diffusion_ebm import data
from diffusion_ebm.data.source import ArraySource
from diffusion_ebm.errors import UserError
from diffusion_ebm.evaluate import baselines, classifier, features, report, results, statistics
from tests import testing


class TemporaryTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())
    self.path = os.path.join(self.folder, 'file')


class StatisticsTest(TemporaryTest):

  def setUp(self):
    super().setUp()
    self.images = np.random.default_rng(0).integers(0, 256, (50, 2, 2, 1)).astype(np.uint8)
    self.rows = self.images.reshape(50, 4) / 255
    self.extract = features.compile_extractor(features.pixels((2, 2, 1)), (2, 2, 1), False, 7)

  def stream(self, **kwargs):
    return statistics.of_source(ArraySource(self.images), self.extract, 4, 'data', 16, **kwargs)

  def test_a_streamed_split_has_the_moments_of_all_its_examples(self):
    found = self.stream()
    self.assertEqual(found.count, 50)
    np.testing.assert_allclose(found.mean, self.rows.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.covariance, np.cov(self.rows.T), rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(found.features, self.rows[found.index], rtol=1e-6)
    self.assertCountEqual(found.index, range(50))
    self.assertNotEqual(found.index.tolist(), list(range(50)))  # shuffled: splits may be sorted by class

  def test_of_many_examples_some_are_kept_and_all_counted(self):
    with mock.patch.object(statistics, 'MAX_KEPT', 20):
      found, only = self.stream(), self.stream(only_kept=True)
    self.assertEqual((found.count, len(found.features), len(set(found.index))), (50, 20, 20))
    np.testing.assert_allclose(found.mean, self.rows.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.features, self.rows[found.index], rtol=1e-6)
    self.assertEqual(only.count, 20)
    np.testing.assert_array_equal(only.index, found.index)

  def test_what_is_cached_comes_back(self):
    found = self.stream()
    statistics.save(found, self.path)
    back = statistics.load(self.path)
    for name in ('mean', 'covariance', 'count', 'index', 'features'):
      np.testing.assert_array_equal(getattr(back, name), getattr(found, name))
    self.assertIsNone(back.logits)
    self.assertIsNone(statistics.load(self.path + '.none'))
    self.assertEqual(os.listdir(self.folder), ['file'])

  def test_given_statistics_are_read(self):
    path = self.path + '.npz'
    covariance = np.cov(self.rows.T)
    np.savez(path, mu=self.rows.mean(0).astype(np.float32), sigma=covariance)
    mean, back = statistics.load_given(path, 4)
    np.testing.assert_allclose(mean, self.rows.mean(0), rtol=1e-6)
    np.testing.assert_array_equal(back, covariance)

  @parameterized.parameters(
      ({'mu': np.zeros(5), 'sigma': np.eye(5)}, r'for other features: mu is \(5,\).* have 4 dimensions'),
      ({'mu': np.zeros(4), 'sigma': np.eye(3)}, r'sigma \(3, 3\)'),
      ({'mean': np.zeros(4)}, 'cannot be read .*mu'),
      ({'mu': np.zeros(4), 'sigma': np.eye(4) * np.nan}, 'not finite'),
      ({'mu': np.zeros(4), 'sigma': np.triu(np.ones((4, 4)))}, 'not symmetric'),
      ({'mu': np.array([{}]), 'sigma': np.eye(4)}, 'cannot be read'))  # a pickle
  def test_given_statistics_of_another_kind_are_refused_in_one_line(self, arrays, message):
    path = self.path + '.npz'
    np.savez(path, **arrays)
    with self.assertRaisesRegex(UserError, message) as caught:
      statistics.load_given(path, 4)
    self.assertNotIn('\n', str(caught.exception))

  def test_no_file_is_refused(self):
    with self.assertRaisesRegex(UserError, r'--config\.eval\.statistics=.*cannot be read'):
      statistics.load_given(self.path, 4)


class FeaturesTest(TemporaryTest):

  def test_pixels_are_in_0_to_1_whatever_the_batch(self):
    images = np.random.default_rng(0).integers(0, 256, (11, 2, 3, 1)).astype(np.uint8)
    for batch_size in (1, 4, 20):
      rows, logits = features.compile_extractor(features.pixels((2, 3, 1)), (2, 3, 1), False, batch_size)(images)
      np.testing.assert_allclose(rows, images.reshape(11, 6) / 255, rtol=1e-6)
      self.assertIsNone(logits)

  @parameterized.parameters(
      (np.zeros((2, 2, 2, 1), np.float32), r'uint8 images in 0 \.\. 255, but these are float32 in \[0, 0\]'),
      (np.full((2, 2, 2, 1), 300, np.int64), r'int64 in \[300, 300\]'),
      (np.full((2, 2, 2, 1), np.nan, np.float32), '2 of 2 samples hold NaN'),
      (np.zeros((2, 3, 2, 1), np.uint8), r'shape \(2, 2, 1\), but these have \(3, 2, 1\)'))
  def test_other_images_are_refused_in_one_line(self, images, message):
    with self.assertRaisesRegex(UserError, message) as caught:
      features.check_examples(images, (2, 2, 1), False)
    self.assertNotIn('\n', str(caught.exception))

  def test_the_classifier_learns_the_digits_and_is_kept(self):
    config = digits.get_config()
    sources = [data.load_source(config.data, split) for split in ('train', 'test')]
    with mock.patch.object(classifier, '_STEPS', 120):
      first = features.small_classifier(*sources, self.path)
    self.assertGreater(first.notes['classifier_accuracy'], 0.9)  # a tenth is chance
    with mock.patch.object(classifier, 'train', side_effect=AssertionError):
      again = features.small_classifier(*sources, self.path)
    self.assertEqual(again.notes, first.notes)
    images = sources[1].read(np.arange(360))
    extract = [features.compile_extractor(each, (8, 8, 1), False, 100) for each in (first, again)]
    (rows, logits), (rows_again, _) = (each(images) for each in extract)
    np.testing.assert_array_equal(rows, rows_again)
    self.assertEqual((rows.shape, logits.shape), ((360, 128), (360, 10)))
    self.assertAlmostEqual(np.mean(np.argmax(logits, 1) == sources[1].labels), first.notes['classifier_accuracy'])
    self.assertBetween(np.sqrt(np.mean(rows**2)), 0.9, 1.1)

  def test_the_classifier_needs_labels(self):
    with self.assertRaisesRegex(UserError, r'needs labels.*--config\.eval\.extractor='):
      features.small_classifier(ArraySource(np.zeros((5, 8, 8, 1), np.uint8)), None, self.path)


class BaselinesTest(absltest.TestCase):

  def test_gaussian_has_the_mean_and_the_covariance_of_the_examples(self):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(500, 3)) @ rng.normal(size=(3, 3)) + [1, 2, 3]).astype(np.float32)
    samples = baselines.gaussian(x, 40_000, 0)
    self.assertEqual((samples.dtype, samples.shape), (np.float32, (40_000, 3)))
    # Monte-Carlo error of a variance: sqrt(2 / 40,000) = 0.7 %.
    covariance = np.cov(x.T)
    np.testing.assert_allclose(np.cov(samples.T), covariance, atol=0.04 * np.abs(covariance).max())
    np.testing.assert_allclose(samples.mean(0), x.mean(0), atol=5 * np.sqrt(covariance.max() / 40_000))

  def test_mixture_finds_the_clusters(self):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(10, 5)) * 20
    x = (np.repeat(centres, 60, 0) + rng.normal(size=(600, 5))).astype(np.float32)
    samples = baselines.gaussian_mixture(x, 2000, 0)
    distance = np.linalg.norm(samples[:, None] - centres, axis=-1)
    self.assertLess(np.mean(distance.min(1) > 6), 0.05)  # radius sqrt(5), and a little is lost with 1 % of the variance
    share = np.bincount(distance.argmin(1), minlength=10) / 2000
    np.testing.assert_allclose(share, 0.1, atol=0.04)
    halves = [np.bincount(half.argmin(1), minlength=10) for half in np.array_split(distance, 2)]
    np.testing.assert_allclose(halves[0], halves[1], atol=60)  # shuffled

  def test_cross_validation_finds_the_number_of_clusters(self):
    # Thirty standard deviations apart: fewer components than clusters are far from them, more fit noise alone.
    rng = np.random.default_rng(0)
    x = (np.repeat(30 * np.eye(3), 60, 0) + rng.normal(size=(180, 3))).astype(np.float32)
    self.assertEqual(baselines.cross_validated_size(x), 3)
    self.assertEqual(baselines.cross_validated_size(x[:2]), 1)  # no more than there are examples

  def test_mixtures_of_one_and_of_more_components_than_examples(self):
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    one = baselines.gaussian_mixture(x, 4000, 0, 1)
    # The mixture's covariance is divided by N, not N - 1; Monte-Carlo error sqrt(2 / 4,000) = 2 %.
    np.testing.assert_allclose(np.cov(one.T), np.cov(x.T) * 19 / 20, atol=0.1 * np.cov(x.T).max())
    self.assertLen(baselines.gaussian_mixture(x, 50, 0, 30), 50)

  def test_images_stay_images_and_seeds_count(self):
    images = np.random.default_rng(0).integers(0, 256, (60, 3, 3, 1)).astype(np.uint8)
    for generator in (baselines.gaussian, baselines.gaussian_mixture):
      first, same, other = (generator(images, 30, seed) for seed in (0, 0, 1))
      self.assertEqual((first.dtype, first.shape), (np.uint8, (30, 3, 3, 1)))
      self.assertEqual((first.min(), first.max()), (0, 255))  # clipped, not wrapped
      np.testing.assert_array_equal(first, same)
      self.assertTrue(np.any(first != other))


def append_many(path, who):
  for number in range(100):
    results.append(path, {'who': who, 'step': number, 'filling': 'x' * 3000})


class ResultsTest(TemporaryTest):

  def test_records_come_back_whole_and_after_a_torn_line(self):
    self.assertEqual(results.read(self.path), [])
    results.append(self.path, {'step': 1})
    with open(self.path, 'a', encoding='utf-8') as file:
      file.write('{"step": 2, "fi')
    results.append(self.path, {'step': 2, 'fid': 0.1})
    self.assertEqual(results.read(self.path), [{'step': 1}, {'step': 2, 'fid': 0.1}])

  def test_two_processes_lose_nothing(self):
    context = multiprocessing.get_context('spawn')
    processes = [context.Process(target=append_many, args=(self.path, who)) for who in (0, 1)]
    for process in processes:
      process.start()
    for process in processes:
      process.join()
    found = [(record['who'], record['step']) for record in results.read(self.path)]
    self.assertCountEqual(found, [(who, step) for who in (0, 1) for step in range(100)])

  def test_a_claim_is_one_jobs_alone_and_ends_with_its_death(self):
    code = ('import sys, time; from diffusion_ebm.evaluate import results\n'
            'with results.claim(sys.argv[1], 7) as mine:\n  print(mine, flush=True)\n  time.sleep(600)')
    with subprocess.Popen([sys.executable, '-c', code, self.folder], cwd=testing.ROOT, text=True,
                          stdout=subprocess.PIPE) as process:
      self.assertEqual(process.stdout.readline(), 'True\n')
      with results.claim(self.folder, 7) as mine, results.claim(self.folder, 8) as other:
        self.assertFalse(mine)
        self.assertTrue(other)
      process.send_signal(signal.SIGKILL)
    with results.claim(self.folder, 7) as mine:
      self.assertTrue(mine)


class _Page(html.parser.HTMLParser):

  def __init__(self):
    super().__init__()
    self.open, self.tags, self.links, self.text = [], [], [], []

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.links += [value for name, value in attrs if name in ('src', 'href', 'xlink:href') and value]
    if tag not in ('meta', 'img', 'br'):
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.links += [value for name, value in attrs if name in ('src', 'href', 'xlink:href') and value]

  def handle_endtag(self, tag):
    assert self.open.pop() == tag, tag

  def handle_data(self, text):
    self.text.append(text)


class ReportTest(TemporaryTest):

  def scores(self, fid):
    return {'num_samples': 100, 'fid': fid, 'inception_score': 3.21, 'inception_score_std': 0.1, 'kid': 0.5,
            'kid_standard_error': 0.01, 'precision': 0.6, 'recall': 0.7, 'density': 0.8, 'coverage': 0.9}

  def record(self, step, fid):
    return self.scores(fid) | {
        'step': step, 'num_data': 360, 'num_features': 128, 'num_neighbour_samples': 100, 'num_neighbour_data': 360,
        'extractor': 'classifier', 'split': 'test', 'classifier_accuracy': 0.9876,
        'baselines': {'gaussian_mixture': self.scores(77.25) | {'num_components': 10}}}

  def test_the_page_holds_everything_and_needs_nothing(self):
    picture = self.path + '.png'
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(picture)
    records = [self.record(100, 33.5), self.record(200, 22.5), {'step': 300, 'error': 'NaN <b>everywhere</b>'}]
    report.write(self.path, 'Run <x>', records, {'Samples': [('step 200', picture), ('lost', self.path + '.none')]},
                 {'data': {'name': 'digits'}})
    content = pathlib.Path(self.path).read_text(encoding='utf-8')
    page = _Page()
    page.feed(content)
    self.assertEmpty(page.open)
    text = ' '.join(''.join(page.text).split())
    for shown in ('Run <x>', '33.5', '22.5', '77.25', '3.21 ± 0.1', '100 samples', '360 examples', '128 classifier',
                  '98.76%', '22.5 at step 200', 'NaN <b>everywhere</b>', '"name": "digits"', 'gaussian mixture (10)',
                  'no more samples than features'):
      self.assertIn(shown, text)
    self.assertEqual((page.tags.count('svg'), page.tags.count('img')), (1, 1))
    self.assertNotIn('b', page.tags)
    self.assertTrue(all(link.startswith(('data:', '#')) for link in page.links), page.links)
    self.assertNotRegex(re.sub(r'xmlns(:\w+)?="[^"]*"', '', content), r'(src|href)="http')

  def test_scores_without_classes_and_without_baselines(self):
    record = self.record(100, 33.5) | {'inception_score': None, 'inception_score_std': None, 'baselines': {}}
    content = report.page('Run', [record], {}, {})
    self.assertIn('–', content)
    self.assertNotIn('inception score (higher)', content)

  def test_only_errors_still_make_a_page(self):
    self.assertIn('chains diverged', report.page('Run', [{'step': 1, 'error': 'chains diverged'}], {}, {}))

  def test_it_is_the_same_for_the_same_records(self):
    records = [self.record(100, 33.5)]
    self.assertEqual(report.page('Run', records, {}, {}), report.page('Run', records, {}, json.loads('{}')))


if __name__ == '__main__':
  absltest.main()

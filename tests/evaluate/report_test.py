import html.parser
import json
import os
import re
import tempfile

from absl.testing import absltest
import numpy as np
from PIL import Image

from diffusion_ebm.evaluate import report


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


class ReportTest(absltest.TestCase):
  def scores(self, fid):
    return {
      'num_samples': 100,
      'fid': fid,
      'inception_score': 3.21,
      'inception_score_std': 0.1,
      'kid': 0.5,
      'kid_standard_error': 0.01,
      'precision': 0.6,
      'recall': 0.7,
      'density': 0.8,
      'coverage': 0.9,
    }

  def record(self, step, fid):
    return self.scores(fid) | {
      'step': step,
      'num_data': 360,
      'num_features': 128,
      'num_neighbour_samples': 100,
      'num_neighbour_data': 360,
      'extractor': 'classifier',
      'split': 'test',
      'classifier_accuracy': 0.9876,
      'baselines': {'gaussian_mixture': self.scores(77.25) | {'num_components': 10}},
    }

  def test_the_page_holds_everything_and_needs_nothing(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    picture, lost = (os.path.join(folder, name) for name in ('samples.png', 'lost.png'))
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(picture)
    records = [self.record(100, 33.5), self.record(200, 22.5), {'step': 300, 'error': 'NaN <b>everywhere</b>'}]
    pictures = {'Samples': [('step 200', picture), ('lost', lost)]}
    content = report.page('Run <x>', records, pictures, {'data': {'name': 'digits'}})
    page = _Page()
    page.feed(content)
    self.assertEmpty(page.open)
    text = ' '.join(''.join(page.text).split())
    for shown in (
      'Run <x>',
      '33.5',
      '22.5',
      '77.25',
      '3.21 ± 0.1',
      '100 samples',
      '360 examples',
      '128 classifier',
      '98.76%',
      '22.5 at step 200',
      'NaN <b>everywhere</b>',
      '"name": "digits"',
      'gaussian mixture (10)',
      'no more samples than features',
    ):
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

  def test_too_few_images_to_compare_with_are_said_and_leave_no_gaps(self):
    none = dict.fromkeys(('kid', 'kid_standard_error', 'precision', 'recall', 'density', 'coverage'))
    record = self.record(100, 33.5) | none | {'num_neighbour_data': 5}
    record['baselines']['gaussian_mixture'] |= none
    content = report.page('Run', [record], {}, {})
    self.assertIn('The test split has too few images (5, not 20) for KID', content)
    self.assertIn('inception score (higher)', content)
    self.assertNotIn('None', content)
    self.assertNotIn('too few', report.page('Run', [self.record(100, 33.5)], {}, {}))

  def test_only_errors_still_make_a_page(self):
    self.assertIn('chains diverged', report.page('Run', [{'step': 1, 'error': 'chains diverged'}], {}, {}))

  def test_it_is_the_same_for_the_same_records(self):
    records = [self.record(100, 33.5)]
    self.assertEqual(report.page('Run', records, {}, {}), report.page('Run', records, {}, json.loads('{}')))


if __name__ == '__main__':
  absltest.main()

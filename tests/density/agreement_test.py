"""Whether estimates agree, and their table."""

from absl.testing import absltest
import numpy as np

from diffusion_ebm.density import agreement

ROUTES = [
  agreement.Route('one', -10.0, 0.1, 3.0, 'a'),
  agreement.Route('two', -10.3, 0.1, 3.3, 'b'),
  agreement.Route('three', -12.0, 0.3, None, 'c'),
]


class AgreementTest(absltest.TestCase):
  def test_what_is_more_than_three_standard_errors_apart_is_said_with_what_differs(self):
    found = agreement.disagreements(ROUTES)
    self.assertLen(found, 2)
    self.assertEqual(
      found[0], 'one and three differ by 2.000 nats, 6.3 standard errors: the first assumes that a, the second that c'
    )
    self.assertEqual(agreement.disagreements(ROUTES[:2]), [])

  def test_the_table_has_bits_for_images_alone(self):
    rows = agreement.table(ROUTES, lambda nats: -nats / 10 + 1).splitlines()
    self.assertEqual(rows[2], '| one | 3.000 | -10.000 +- 0.100 | 2.0000 +- 0.0100 |')
    self.assertEqual(rows[4], '| three |  | -12.000 +- 0.300 | 2.2000 +- 0.0300 |')
    self.assertEqual(agreement.table(ROUTES).splitlines()[2], '| one | 3.000 | -10.000 +- 0.100 |')

  def test_rank_correlation(self):
    x = np.array([3.0, 1.0, 2.0, 5.0])
    self.assertAlmostEqual(agreement.rank_correlation(x, np.exp(x)), 1)
    self.assertAlmostEqual(agreement.rank_correlation(x, [1.0, 2.0, 3.0, 4.0]), 0.4)


if __name__ == '__main__':
  absltest.main()

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile

from absl.testing import absltest

from diffusion_ebm.evaluate import results
from tests import testing


def append_many(path, who):
  for number in range(100):
    results.append(path, {'who': who, 'step': number, 'filling': 'x' * 3000})


class ResultsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())
    self.path = os.path.join(self.folder, 'file')

  def test_records_come_back_whole_and_after_a_torn_line(self):
    self.assertEqual(results.read(self.path), [])
    results.append(self.path, {'step': 1})
    with open(self.path, 'a', encoding='utf-8') as file:
      file.write('{"step": 2, "fi')
    results.append(self.path, {'step': 2, 'fid': 0.1})
    self.assertEqual(results.read(self.path), [{'step': 1}, {'step': 2, 'fid': 0.1}])

  @testing.long
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
    code = (
      'import sys, time; from diffusion_ebm.evaluate import results\n'
      'with results.claim(sys.argv[1], 7) as mine:\n  print(mine, flush=True)\n  time.sleep(600)'
    )
    with subprocess.Popen(
      [sys.executable, '-c', code, self.folder], cwd=testing.ROOT, text=True, stdout=subprocess.PIPE
    ) as process:
      self.assertEqual(process.stdout.readline(), 'True\n')
      with results.claim(self.folder, 7) as mine, results.claim(self.folder, 8) as other:
        self.assertFalse(mine)
        self.assertTrue(other)
      process.send_signal(signal.SIGKILL)
    with results.claim(self.folder, 7) as mine:
      self.assertTrue(mine)


if __name__ == '__main__':
  absltest.main()

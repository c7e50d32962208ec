"""Which folders are taken for splits and classes."""

from absl.testing import absltest, parameterized

from diffusion_ebm.data import splits

# What people have: names; the images for training, those for testing, as their numbers; the classes of all.
_LAYOUTS = {
  'two folders': (['train/a', 'test/b'], [0], [1], ['', '']),
  'classes in splits': (['train/cat/a', 'train/dog/b', 'test/cat/c'], [0, 1], [2], ['cat', 'dog', 'cat']),
  'splits in classes': (
    ['cat/train/a', 'cat/test/b', 'dog/train/c', 'dog/test/d'],
    [0, 2],
    [1, 3],
    ['cat', 'cat', 'dog', 'dog'],
  ),
  'splits in classes, one without a test': (
    ['cat/Train/a', 'cat/Val/b', 'dog/train/c', 'elk/train/d', 'elk/test/e'],
    [0, 2, 3],
    [1, 4],
    ['cat', 'cat', 'dog', 'elk', 'elk'],
  ),
  'training alone in classes': (['cat/train/a', 'dog/train/b'], [0, 1], [], ['cat', 'dog']),
  'upper case': (['Train/a', 'TEST/b'], [0], [1], ['', '']),
  'training and testing': (['training/a', 'testing/b'], [0], [1], ['', '']),
  'Training and Validation': (['Training/x/a', 'Validation/x/b'], [0], [1], ['x', 'x']),
  'val': (['train/a', 'val/b'], [0], [1], ['', '']),
  'valid': (['train/a', 'valid/b'], [0], [1], ['', '']),
  'dev and eval: the first of the list': (['train/a', 'dev/b', 'eval/c'], [0], [2], ['', 'dev', '']),
  'the literal name wins': (['train/a', 'test/b', 'Test/c', 'val/d'], [0], [1], ['', '', 'Test', 'val']),
  'the literal name for training wins': (['train/a', 'Training/b', 'val/c'], [0], [2], ['', 'Training', '']),
  'a folder around': (['set/train/a', 'set/test/b'], [0], [1], ['', '']),
  'two folders around': (['set/images/train/c/a', 'set/images/val/c/b'], [0], [1], ['c', 'c']),
  'a folder around beside an image': (['set/train/a', 'set/test/b', 'c'], [0], [1], ['', '', '']),
  'a folder around beside another': (['set/train/a', 'set/test/b', 'more/c'], [0], [1], ['', '', 'more']),
  'two folders around beside images': (['x/set/train/a', 'x/set/test/b', 'x/c', 'd'], [0], [1], ['', '', 'x', '']),
  'the upper of two': (['train/a', 'test/b', 'copy/train/c', 'copy/test/d'], [0], [1], ['', '', 'copy', 'copy']),
  'images beside the splits': (['train/a', 'test/b', 'c', 'd/e'], [0], [1], ['', '', '', 'd']),
  'training beside others': (['train/a', 'cat/b', 'c'], [0], [], ['', 'cat', '']),
  'everything': (['a', 'b'], [0, 1], [], ['', '']),
  'classes': (['cat/a', 'dog/b', 'cat/x/c'], [0, 1, 2], [], ['cat', 'dog', 'cat']),
  'classes in a folder': (['set/cat/a', 'set/dog/b'], [0, 1], [], ['cat', 'dog']),
  'a word that is part of a name': (['trains/a', 'tests/b'], [0, 1], [], ['trains', 'tests']),
  'a word in one name': (['bullet train/a', 'tram/b'], [0, 1], [], ['bullet train', 'tram']),
}
# What looks like splits and may not be: names, and the folders that are said not to be used.
_UNUSED = {
  'a class called val': (['cat/a', 'dog/b', 'val/c'], ['val']),
  'a class called Train': (['Bus/a', 'Car/b', 'Train/c'], ['Train']),
  'a journey': (['2019/rome/a', '2019/train/b', '2020/oslo/c'], ['2019/train']),
  'of one class of several': (['cat/a', 'dog/val/b'], ['dog/val']),
  'with a year': (['train2017/a', 'val2017/b'], ['train2017', 'val2017']),
  'sets': (['training_set/cat/a', 'test_set/cat/b'], ['test_set', 'training_set']),
  'sets around themselves': (
    ['seg_train/seg_train/sea/a', 'seg_test/seg_test/sea/b', 'seg_pred/seg_pred/c'],
    ['seg_test', 'seg_train'],
  ),
  'two domains': (['set/trainA/a', 'set/trainB/b', 'set/testA/c'], ['set/testA', 'set/trainA', 'set/trainB']),
  'in capitals': (['TRAIN-IMAGES/a', 'validImages/b'], ['TRAIN-IMAGES', 'validImages']),
}


class SplitsTest(parameterized.TestCase):
  def places(self, names, train='train', test='test'):
    layout = splits.find(names, train, test)
    return layout, [layout.place(name.rpartition('/')[0]) for name in names]

  def of(self, split, places):
    return [number for number, (splits_, _) in enumerate(places) if split in splits_]

  @parameterized.named_parameters((name, *case) for name, case in _LAYOUTS.items())
  def test_layout(self, names, train, test, labels):
    layout, places = self.places(names)
    self.assertEqual(self.of('train', places), train)
    self.assertEqual(self.of('test', places), test)
    self.assertEqual([label for _, label in places], labels)
    self.assertEqual(layout.unused, ())

  @parameterized.named_parameters((name, *case) for name, case in _UNUSED.items())
  def test_what_may_be_something_else_is_for_training_and_named(self, names, unused):
    layout, places = self.places(names)
    self.assertEqual(self.of('train', places), list(range(len(names))))
    self.assertEqual(self.of('test', places), [])
    self.assertEqual(list(layout.unused), unused)

  def test_a_folder_for_testing_alone_leaves_nothing_to_train_on(self):
    for names in (['test/a', 'b'], ['test/a', 'cat/b'], ['set/test/x/a', 'set/cat/b']):
      layout, places = self.places(names)
      self.assertEqual((layout.train, self.of('test', places)), ((), [0]))

  @parameterized.parameters(
    ('mine', 'yours', [0], [1]),  # nothing but these
    ('mine/', '/yours', [0], [1]),
    ('mine', 'test', [0], [3]),  # the default takes what is called alike
    ('deep/one', 'deep/two', [4], [5]),
    ('', '', [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]),
    ('', 'yours', [0, 1, 2, 3, 4, 5], [1]),
    ('Mine', 'test', [], []),  # another name than the default is literal, and nothing is called alike without it
  )
  def test_configured_names_are_literal(self, train, test, expected_train, expected_test):
    names = ['mine/a', 'yours/b', 'Training/c', 'val/d', 'deep/one/e', 'deep/two/f']
    _, places = self.places(names, train, test)
    self.assertEqual((self.of('train', places), self.of('test', places)), (expected_train, expected_test))

  def test_what_is_for_training_does_not_depend_on_the_name_for_testing(self):
    for name, (names, train, *_) in _LAYOUTS.items():
      for test in ('', 'val', 'nowhere', 'holdout'):
        found = self.of('train', self.places(names, test=test)[1])
        self.assertIn(found, (train, []), (name, test))  # nothing, where the folder is for testing alone

  def test_images_in_both_get_the_class_within_the_split(self):
    _, places = self.places(['test/cat/a', 'dog/b'], '', 'test')
    self.assertEqual(places, [('train+test', 'cat'), ('train', 'dog')])


class SetAsideTest(absltest.TestCase):
  def test_it_is_about_the_fraction_and_known_by_the_name_alone(self):
    names = [f'class {n % 7}/{n}.png' for n in range(5000)]
    aside = {name for name in names if splits.is_set_aside(name, 0.1)}
    self.assertBetween(len(aside), 420, 580)
    self.assertFalse(any(splits.is_set_aside(name, 0.0) for name in names))
    # A larger fraction adds others and takes none back.
    self.assertLess(aside, {name for name in names if splits.is_set_aside(name, 0.2)})
    # On every machine the same.
    self.assertEqual([name for name in names[:20] if name in aside], ['class 6/13.png'])


if __name__ == '__main__':
  absltest.main()

"""The training job."""

import contextlib
import functools
import itertools
import logging
import os
import time

from clu import parameter_overview
import jax
import numpy as np

from diffusion_ebm import (
  bad_step_file,
  data,
  generate,
  level_pictures,
  older_versions,
  preprocessing,
  sampling,
  train_step,
  trained,
)
from diffusion_ebm import config as config_lib
from diffusion_ebm import model as model_lib
from diffusion_ebm import training_metrics as metrics
from diffusion_ebm.data import kept
from diffusion_ebm.networks import normal_factor
from diffusion_ebm.run import checkpoints, files, interrupts, parallel, writers
from diffusion_ebm.run import workdir as workdir_lib
from diffusion_ebm.run.errors import DivergedError, SaveError, UserError
from diffusion_ebm.run.progress import Progress, doing

_log = logging.getLogger(__name__)

# A grid of 6 x 6 images at each level; points cost nothing.
_NUM_IMAGES, _NUM_POINTS = 36, 2000
_NUM_KEPT = 64  # training images of which a picture is kept


def run(config, workdir: str, seed: int = 0, step: int | None = None):
  """Trains to `config.train.num_steps`, from the newest checkpoint in the workdir if there is one.

  Args:
    config: the configuration.
    workdir: gets `config.json`, `data/` (what was trained on), `checkpoints/`, `samples/`, `metrics.jsonl` and
      `tensorboard/`.
    seed: of no use; the configuration has its own.
    step: likewise.

  Raises:
    UserError: something in the configuration, the data or the workdir that the user can mend.
    DivergedError: the numbers went wrong; the last good checkpoint is kept.
    InterruptedRun: Ctrl-C; the state is saved.
    PreemptedRun: SIGTERM; the state is saved.
  """
  del seed, step
  # Everything that can be refused, before anything is written or compiled.
  config = config_lib.resolve(config)

  def load_source():
    config_lib.check(config, parallel.num_devices())
    config_lib.check_same_run(config, workdir)
    if config.train.init_from and not checkpoints.steps(workdir):
      trained.check_start(config)
    if config.data.name == 'images' and os.path.realpath(config.data.path) == os.path.realpath(workdir):
      raise UserError(
        f'--workdir={workdir} is the folder of the images, which would be mixed with results: choose another'
      )
    source, components = data.load_source(config.data, 'train'), config.model.normal_factor
    if components > len(source):
      raise UserError(f'model.normal_factor is {components}, but there are only {len(source)} examples: use fewer')
    _check_classes(config.model.num_classes, source)
    return source

  source = parallel.together(load_source)
  _check_same_everywhere(config, source)
  with contextlib.ExitStack() as lock:

    def claim():
      workdir_lib.make(workdir)
      lock.enter_context(workdir_lib.lock(workdir))
      config_lib.save(config, workdir)

    parallel.together(claim, first_only=True)
    parallel.together(functools.partial(workdir_lib.check_shared, workdir))
    _keep_data(config, workdir, source)
    _train(config, workdir, source)


def _check_classes(num_classes, source):
  """Raises a `UserError` if the network is to be told other classes than the data have."""
  found = len(source.classes or ())
  if num_classes and not found:
    raise UserError(
      f'model.num_classes is {num_classes}, but the data have no classes: put the images of each class into a '
      'sub-folder, or set --config.model.num_classes=0'
    )
  if num_classes not in (0, found):
    raise UserError(
      f'model.num_classes is {num_classes}, but the data have {found}: set --config.model.num_classes={found}'
    )


def _keep_data(config, workdir, source):
  """Keeps what the run's first start is trained on, and says at later ones what has changed since."""
  if not parallel.is_first():
    return
  folder = os.path.join(workdir, 'data')
  if kept.is_kept(folder):
    if changes := kept.changes(folder, source):
      _log.warning('%s', changes)
    return
  with _tolerated():
    os.makedirs(folder, exist_ok=True)
    count = min(len(source), _NUM_POINTS if config_lib.is_vector(config) else _NUM_KEPT)
    chosen = np.sort(np.random.default_rng(config.seed).choice(len(source), count, replace=False))
    kept.keep(folder, source, config.data.name, level_pictures.samples(source.read(chosen)))


def _check_same_everywhere(config, source):
  """Raises a `UserError` if the processes of the run were given different things to do."""
  settings = config.copy_and_resolve_references()
  settings.data.path = ''  # of its own on each host
  tasks = parallel.exchange([settings.to_json(sort_keys=True), len(source), list(source.shape)])
  for number, (settings, *examples) in enumerate(tasks):
    if settings != tasks[0][0]:
      raise UserError(f'process {number} has another configuration than process 0: start all with the same options')
    if examples != tasks[0][1:]:
      raise UserError(
        f'process {number} has other data than process 0 ({examples[0]} and {tasks[0][1]} examples): '
        f'give all the same --config.data.path, or copies of the same files'
      )


def _train(config, workdir, source):
  doing('building the network')
  model = model_lib.build(config)
  with contextlib.ExitStack() as stack:
    saver = checkpoints.Saver(workdir, config.train.keep_checkpoints, config.train.keep_every, config.to_dict())
    stack.callback(saver.close)
    state, batches_read = _first_state(config, workdir, model, saver, source)
    step = int(state.step)
    _describe(config, source, state)
    if step >= config.train.num_steps:
      return
    doing('reading the first batch')
    batches = parallel.prefetch(
      data.train_batches(
        source,
        config.train.batch_size,
        config.seed,
        batches_read,
        parallel.share(),
        labelled=config.model.num_classes > 0,
      )
    )
    first = next(batches)
    _log.info('compiling the training step')
    began = time.monotonic()
    step_fn = compile_step(config, model, state, first)
    _log.info('compiled in %.1f s; training to step %d', time.monotonic() - began, config.train.num_steps)

    # With several processes, a checkpoint is the work of all: where one fails, the run ends.
    tolerated = functools.partial(_tolerated, several=parallel.num_processes() > 1)
    writer = writers.Writer(workdir, step) if parallel.is_first() else writers.NoWriter()

    def close_writer():
      with tolerated():
        writer.close()

    stack.callback(close_writer)
    stack.callback(batches.close)
    report = _Report(config, model, writer, step, tolerated)
    stack.callback(report.progress.close)
    picture = _make_picture(config, model, source, workdir, writer)
    step = _loop(config, workdir, step_fn, state, itertools.chain([first], batches), saver, report, picture, tolerated)
  _log.info(
    'trained to step %d; pictures in %s, checkpoints in %s',
    step,
    workdir_lib.samples_dir(workdir),
    checkpoints.directory(workdir),
  )


def _describe(config, source, state):
  """Says what will be trained, or that nothing is left to do."""
  step, num_steps = int(state.step), config.train.num_steps
  if step >= num_steps:
    longer = 'raise --config.train.num_steps to go on'
    if config.train.cosine_decay:
      longer = 'to train longer with cosine decay, use another --workdir and --config.train.init_from=THIS_ONE'
    text = 'already trained to step %d of %d: nothing to do; draw samples with --mode=sample; %s'
    _log.info(text, step, num_steps, longer)
    return
  overview = parameter_overview.get_parameter_overview(state.params, include_stats=False)
  _log.info('%d examples of shape %s; the network:\n%s', len(source), source.shape, overview)
  if len(source) == 1:
    _log.info('there is one example: all that can be learned is to repeat it')
  elif len(source) < config.train.batch_size:
    _log.info('a batch of %d holds each of the %d examples more than once', config.train.batch_size, len(source))
  if step:
    _log.info('going on from step %d', step)


def _first_state(config, workdir, model, saver, source):
  """`(state, batches_read)`, continued from the newest checkpoint, or new."""
  if parallel.together(functools.partial(checkpoints.steps, workdir), first_only=True):
    return checkpoints.restore(
      saver.manager,
      model.abstract_state,
      check=functools.partial(config_lib.check_same, config),
      set_aside=True,
      lacking=older_versions.LACKING,
    )
  if config.train.init_from:
    return trained.start(config, model.state), 0
  if config.model.normal_factor:
    return _with_normal_factor(config, model.state, source), 0
  return model.state, 0


def _with_normal_factor(config, state, source):
  """The initial state with the normal densities of the data in their place."""
  _log.info('fitting %d normal densities to the data', config.model.normal_factor)
  fitted = parallel.from_first(
    normal_factor.fit(
      source,
      preprocessing.to_unit_range,
      config.model.normal_factor,
      config.seed,
      config.data.random_flip,
      _grey_width(config),
    )
  )
  # A copy for each: the training step takes over the memory of what it is given.
  return state.replace(
    **{name: getattr(state, name) | {'normal_factor': parallel.replicate(fitted)} for name in ('params', 'ema_params')}
  )


def _grey_width(config) -> float:
  """Over which images are dequantised in training; 0 for not at all."""
  return config_lib.grey_width(config) if config.data.dequantize else 0.0


def step_settings(config) -> train_step.StepSettings:
  """The constants of the training step that a configuration describes."""
  return train_step.StepSettings(
    seed=config.seed,
    num_langevin_steps=config.sampling.num_steps,
    ema_decay=config.train.ema_decay,
    random_flip=config.data.random_flip,
    objective=config.train.objective,
    shared_noise=config.train.shared_noise,
    time_score=config.train.time_score,
    score_matching=config.train.score_matching,
    label_dropout=config.train.label_dropout,
    grey_width=_grey_width(config),
    micro_batches=config.train.micro_batches,
    max_bad_steps=config.train.max_bad_steps,
    ema_warmup=config.train.ema_warmup,
  )


def compile_step(config, model: model_lib.Model, state, batch):
  """Compiles the training step for all devices: `(state, batch) -> (state, metrics)`; the state is donated."""
  settings = step_settings(config)

  def on_device(state, batch):
    examples, label = batch
    return train_step.train_step(
      state,
      examples,
      parallel.example_index(len(examples)),
      label,
      trainable=model.trainable,
      settings=settings,
      axis_name=parallel.AXIS,
    )

  return parallel.compile_for(
    on_device, state, batch, replicated=(0,), out_axes=(None, None), donate=(0,), precision=config.model.precision
  )


def _loop(config, workdir, step_fn, state, batches, saver, report, picture, tolerated):
  """Takes the steps, and keeps checkpoints and pictures on the way; returns the last step's number."""
  train, step, share_signal = config.train, int(state.step), parallel.SharedSignal()
  try:
    with interrupts.requested() as stop_requested:
      while step < train.num_steps:
        batch = next(batches)
        state, step_metrics = step_fn(state, batch)
        step += 1
        report.add(step, step_metrics, batch)
        stopping = share_signal(stop_requested())
        last = stopping or step == train.num_steps
        with tolerated(last):
          saver.check()
        if last or step % train.checkpoint_every == 0:
          with report.pause():  # every number up to here is known to be sound before the state is kept
            if last or not report.bad_steps:
              with tolerated(last):
                saver.save(state, step)
        if stopping:
          saver.wait()
          raise interrupts.stopped(
            stopping, f'stopped at step {step}, which is saved: run the same command again to go on'
          )
        if step == train.num_steps or step % train.sample_every == 0:
          with report.pause():
            report.progress.line('drawing samples')
            doing('drawing samples')
            with tolerated():
              picture(step, state)
  except DivergedError as error:
    if not report.bad_steps:
      raise
    with tolerated():
      path = bad_step_file.dump(workdir, config, *report.taken, state)
      error = DivergedError(f'{error}; to do the step again: python -m diffusion_ebm.jobs.replay_bad_step {path}')
    raise error from None
  return step


@contextlib.contextmanager
def _tolerated(stop: bool = False, several: bool = False):
  """Turns what could not be written into a warning, or into a `SaveError` that ends the run."""
  try:
    yield
  except (OSError, SaveError) as error:
    if not isinstance(error, SaveError):
      error = SaveError(f'{error.filename or "a file"} could not be written ({error.strerror or error}): free space')
    if stop or several:
      raise error from None
    _log.warning('%s; going on', error)


class _Report:
  """Checks each step's metrics, a little later so that the devices never wait, and reports their averages.

  Attributes:
    progress: of the training.
    taken: number and batch of the last step that was checked.
    bad_steps: updates skipped in a row up to it.
  """

  def __init__(self, config, model, writer, step, tolerated):
    self.progress = Progress('training', config.train.num_steps, step, shown=parallel.is_first())
    self.taken, self.bad_steps = None, 0
    self._config, self._model, self._writer, self._tolerated = config, model, writer, tolerated
    self._lagged, self._negative, self._steps = writers.Lagged(), metrics.NegativeLosses(), []
    self._mark, self._paused = time.monotonic(), 0.0

  def add(self, step: int, step_metrics, batch):
    """Takes the metrics and the batch of a step, as they are on the devices."""
    for entry in self._lagged.push((step, step_metrics, batch)):
      self._take(*entry)

  @contextlib.contextmanager
  def pause(self):
    """Takes all that is left; what is done inside the context does not count as training time."""
    for entry in self._lagged.flush():
      self._take(*entry)
    began = time.monotonic()
    try:
      yield
    finally:
      self._paused += time.monotonic() - began

  def _take(self, step, step_metrics, batch):
    step_metrics = jax.device_get(step_metrics)
    self.taken, self.bad_steps = (step, batch), int(step_metrics['bad_steps'])
    metrics.check(step, step_metrics, int(np.prod(self._model.shape)), self._config.train.max_bad_steps)
    if self.bad_steps:
      _log.warning('step %d: the update was skipped, as its gradient is not finite (%d in a row)', step, self.bad_steps)
    if self._negative.reported(float(step_metrics['loss'])):
      _log.warning(
        '%d negative losses in a row up to step %d: the chains may no longer mix',
        metrics.NEGATIVE_LOSSES_REPORTED,
        step,
      )
    self._steps.append(step_metrics)
    self.progress.update(1)
    if step % self._config.train.log_every == 0 or step == self._config.train.num_steps:
      self._write(step)

  def _write(self, step):
    now = time.monotonic()
    seconds = max(now - self._mark - self._paused, 1e-9)
    scalars = metrics.summarise(self._steps) | {
      'learning_rate': float(self._model.schedule(step)),
      'images_per_s': len(self._steps) * self._config.train.batch_size / seconds,
      'peak_memory_gb': writers.peak_memory_gb(),
    }
    with self._tolerated():
      self._writer.scalars(step, scalars)
    loss, rate = f'{scalars["loss"]:.4f}' if 'loss' in scalars else 'unknown', f'{scalars["images_per_s"]:.0f}'
    self.progress.update(0, loss=loss, images_per_s=rate)
    self.progress.line(f'loss {loss}, {rate} images/s')
    self._steps, self._mark, self._paused = [], now, 0.0


def _make_picture(config, model, source, workdir, writer):
  """A function of the step and the state that draws samples and keeps their picture."""
  keep, vector = sampling.shown_levels(model.levels.num_models), config_lib.is_vector(config)
  count = _NUM_POINTS if vector else _NUM_IMAGES
  examples = source.read(np.random.default_rng(config.seed).integers(len(source), size=count))
  sampler = generate.make_sampler(generate.numbered(config, source.classes or ()), model.shape, count, keep)

  def picture(step, state):
    ebm, proposal = trained.averaged(model, state)
    _, path = sampler(ebm, proposal, config.seed, 0, count)
    densities = level_pictures.grid_densities(ebm, config.data.distribution) if vector else None
    if not parallel.is_first():
      return
    levels = level_pictures.levels(model.levels, path, examples, keep, densities)
    files.write_png(os.path.join(workdir_lib.samples_dir(workdir), f'training_{step:08d}.png'), levels)
    writer.picture(step, 'samples', levels)

  return picture

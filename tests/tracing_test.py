"""What is compiled is traced, not run: each configuration at its published size, and every pair of options.

Of equal blocks, two stand for all.
"""

import itertools
import random

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp

from configs import digits, toy2d
from diffusion_ebm import config as config_lib
from diffusion_ebm import generate, inpainting, interpolation, langevin, marginal_density, sampling, train_step
from diffusion_ebm import model as model_lib
from diffusion_ebm.density import ais, bound, flow, ladder, log_prob, replica_exchange
from diffusion_ebm.jobs import long_run
from diffusion_ebm.jobs import train as train_job
from diffusion_ebm.run.errors import UserError
from tests import testing
from tests.config_test import NAMES, get

# Two values or more of each option that shapes a program.
_COMMON = {
  'model.dtype': ('float32', 'bfloat16'),
  'model.dropout': (0.0, 0.2),
  'model.spectral_norm': (True, False),
  'model.level_embedding': ('index', 'log_snr', 'angle'),
  'model.quadratic': (0.0, 1.0),
  'model.normal_factor': (0, 2),
  'diffusion.num_levels': (6, 1000),
  'diffusion.schedule': ('linear', 'cosine'),
  'diffusion.temperature': ('step_size', 'one', 'noise'),
  'sampling.num_steps': (3, 0),
  'sampling.step_size_rule': ('cumulative', 'conditional', 'posterior'),
  'sampling.denoise': (False, True),
  'sampling.flow_steps': (0, 3),
  'proposal.dropout': (0.0, 0.2),
  'proposal.num_layers': (1, 2),
  'proposal.num_frequencies': (0, 2),
  'train.objective': ('recovery', 'contrastive', 'dsm'),
  'train.level_weight': ('published', 'balanced'),
  'train.time_score': (0.0, 1.0),
  'train.score_matching': (0.0, 1.0),
  'train.micro_batches': (1, 2),
  'train.cosine_decay': (False, True),
  'train.shared_noise': (False, True),
  'train.ema_warmup': (False, True),
  'train.grad_clip': (0.0, 1.0),
}
_OPTIONS = {
  'digits': _COMMON
  | {
    'data.num_channels': (1, 3),
    'data.random_flip': (False, True),
    'data.dequantize': (False, True),
    'model.name': 5 * ('resnet',) + ('unet',),  # drawn less often: it takes four times as long to trace
    'model.act': ('lrelu', 'swish', 'relu'),
    'model.final_act': ('relu', 'swish'),
    'model.norm': ('none', 'group'),
    'model.use_scale': (True, False),
    'model.shortcut': ('conv', 'nin'),
    'model.level_act': (False, True),
    'model.zero_init': (True, False),
    'proposal.name': ('', 'unet', 'mlp'),
    'proposal.ch_mult': ((1,), (1, 2)),
    'proposal.attention_resolutions': ((), (8,)),
    'model.resample_with_conv': (False, True),
    'model.attention_resolutions': ((), (4,)),
    'model.remat': (False, True),
    'train.label_dropout': (0.1, 0.0),
    'sampling.label': ('', 'all', '2'),
    'sampling.guidance': (0.0, 0.5),
  },
  'toy2d': _COMMON
  | {
    'model.act': ('lrelu', 'swish', 'relu'),
    'model.num_layers': (1, 2),
    'proposal.name': ('', 'mlp'),
    'model.num_frequencies': (0, 2),
    'model.output_scale': (1.0, 0.1),
  },
}
_SMALL = {
  'digits': {
    'model.ch': 8,
    'model.ch_mult': (1, 2),
    'model.num_res_blocks': 1,
    'model.num_classes': 3,  # without classes: the configurations at their published size
    'proposal.ch': 4,
    'proposal.num_res_blocks': 1,
    'train.batch_size': 4,
  },
  'toy2d': {'model.ch': 8, 'proposal.ch': 4, 'train.batch_size': 4},
}


# One of each kind of network; for all others, what is compiled differs in sizes alone.
_KINDS = ('cifar10', 'cifar10_t1k', 'digits_density')


# Of the same programs as others, in other sizes or on other data.
_LIKE_OTHERS = (
  'cifar100',
  'svhn',
  'lsun_church64',
  'lsun_church128',
  'celebahq128',
  'imagenet32_cdrl',
  'imagenet32_cdrl_classes',
  'digits_cdrl',
)


_PLATFORMS = ('cuda', 'tpu')  # neither of which need be there


def traced(function, *args, platforms=()):
  """The shapes and types of what a function gives, which is not run; it can be lowered for the platforms."""
  program = jax.jit(function).trace(*args)
  if platforms:
    program.lower(lowering_platforms=platforms)
  return jax.tree.map(lambda a: (a.shape, a.dtype), program.out_info)


def first_state(config):
  """`(model, state)`, the arrays of the latter without content."""
  model = model_lib.build(config)
  return model, model.described_state


def trace_step(config, model, state, platforms=()):
  """The training step leaves a state like the one that it was given."""
  vector = len(model.shape) == 1
  batch = jax.ShapeDtypeStruct((config.train.batch_size, *model.shape), jnp.float32 if vector else jnp.uint8)
  settings = train_job.step_settings(config)

  def step(state, batch, label):
    index = jnp.arange(len(batch))
    return train_step.train_step(state, batch, index, label, trainable=model.trainable, settings=settings)[0]

  label = jax.ShapeDtypeStruct(batch.shape[:1], jnp.int32) if config.model.num_classes else None
  absltest.TestCase().assertEqual(
    traced(step, state, batch, label, platforms=platforms), jax.tree.map(lambda a: (a.shape, a.dtype), state)
  )


def trace_sampler(config, model, state, platforms=()):
  """The sampler draws examples, from its proposal where there is one."""

  def draw(params, proposal):
    made = (model.ebm(params), model.proposal(proposal.params) if proposal else None)
    ebm, proposal = (generate.told(config, each, jnp.arange(2)) for each in made)
    return sampling.sample(ebm, _keys(), model.shape, generate.settings(config), proposal=proposal)[0]

  absltest.TestCase().assertEqual(
    traced(draw, state.params, state.proposal, platforms=platforms), ((2, *model.shape), jnp.float32)
  )


def _keys(number=2):
  return jax.random.split(jax.random.key(0), number)


def job_functions(config, model):
  """Name to what a job compiles: `(ebm, x)`, x (2, *shape), to the examples or one number of each, and its shape."""
  drawn, shape, image = generate.settings(config), model.shape, len(model.shape) == 3
  numbers, examples = ((2,), jnp.float32), ((2, *shape), jnp.float32)

  def chain(kernel, target, x):
    return langevin.run(kernel, target, langevin.init(target, x), _keys(), 0.1, 2, 0)[0].y

  def annealed(kernel):
    rungs = ladder.Rungs(jnp.array([1, 0, 0]), jnp.array([1.0, 0.5, 1.0]))

    def function(ebm, x):
      target = lambda rung: ladder.rung_log_density(ebm, rung)  # noqa: E731
      kernel_ = langevin.make_kernel(kernel, config.density.num_leapfrog)
      return ais.anneal(target, kernel_, rungs, jnp.ones(3), x, _keys(), 1)[0]

    return function

  def exchanged(ebm, x):
    rungs = ladder.Rungs(jnp.array([1, 1, 0]), jnp.array([0.0, 1.0, 1.0]))
    x = jnp.stack(3 * [x], axis=1)
    return replica_exchange.run(ebm, langevin.make_kernel('mala'), rungs, jnp.ones(3), x, _keys(), 1, 1)[0][:, 0]

  def long_chain(kernel, conditional):
    settings = config.long_run.copy_and_resolve_references()
    settings.conditional = conditional
    kernel = langevin.make_kernel(kernel, settings.num_leapfrog)
    return lambda ebm, x: chain(kernel, long_run._target(ebm, settings, x), x)

  functions = {
    'energy': (lambda ebm, x: marginal_density.log_density(ebm, x, jnp.zeros(2, int)), numbers),
    'score': (lambda ebm, x: marginal_density.score(ebm, x, jnp.zeros(2, int)), examples),
    'log_prob': (lambda ebm, x: log_prob.log_prob(ebm, x, 0.0), numbers),
    'bound': (lambda ebm, x: bound.variational_bound(ebm, x, _keys()), numbers),
    **{f'anneal {kernel}': (annealed(kernel), examples) for kernel in ('hmc', 'mala')},
    'replica exchange': (exchanged, examples),
    'flow': (lambda ebm, x: flow.log_density(ebm, x, _keys(), 0.0, 1e-3, 1)[0], numbers),
    **{f'long run {kernel}': (long_chain(kernel, True), examples) for kernel in langevin.KERNELS},
    'long run on the marginal': (long_chain('ula', False), examples),
  }
  if image:
    mask = jnp.ones((2, *shape[:2], 1), bool)
    at_both_ends = jnp.linspace(0, 1, 2)
    eps = jnp.zeros((3, *shape))
    functions |= {
      'inpaint': (lambda ebm, x: inpainting.inpaint(ebm, _keys(), x, mask, drawn, 2), examples),
      'interpolate': (
        lambda ebm, x: interpolation.interpolate(ebm, _keys(), _keys(), at_both_ends, shape, drawn),
        examples,
      ),
      'ood': (
        lambda ebm, x: marginal_density.diffused_statistics(ebm, x, jnp.arange(2), eps),
        2 * (((2, 2, 3), jnp.float32),),
      ),
    }
  return functions


class PublishedSizeTest(parameterized.TestCase):
  def trace_jobs(self, config):
    model, state = first_state(config)
    x = jax.ShapeDtypeStruct((2, *model.shape), jnp.float32)
    for name, (function, expected) in job_functions(config, model).items():
      with self.subTest(name):
        self.assertEqual(traced(lambda params, x: function(model.ebm(params), x), state.params, x), expected)  # noqa: B023

  @testing.long
  @parameterized.parameters(*(name for name in NAMES if name not in _LIKE_OTHERS))
  def test_the_step_and_the_sampler(self, name):
    config = config_lib.resolve(get(name))
    config.model.num_res_blocks = min(config.model.num_res_blocks, 2)  # of eight, all but the first are alike
    model, state = first_state(config)
    trace_step(config, model, state, _PLATFORMS)
    trace_sampler(config, model, state, _PLATFORMS)

  @parameterized.parameters('digits', 'toy2d_t1k')
  def test_what_each_job_compiles(self, name):
    self.trace_jobs(config_lib.resolve(get(name)))

  @testing.long
  @parameterized.parameters('digits', 'toy2d_t1k')
  def test_what_each_job_compiles_in_bfloat16(self, name):
    config = config_lib.resolve(get(name))
    config.model.dtype = 'bfloat16'
    self.trace_jobs(config)

  @testing.long
  @parameterized.parameters(*_KINDS)
  def test_what_each_job_compiles_of_each_kind_of_network(self, name):
    config = config_lib.resolve(get(name))
    config.model.num_res_blocks = 1  # of eight that are alike
    self.trace_jobs(config)


class PairsTest(parameterized.TestCase):
  """Every pair of values of two options: in a configuration that is traced, or refused in one line."""

  def configured(self, name, values):
    """The configuration with these values; None where it is refused."""
    config = config_lib.resolve({'digits': digits, 'toy2d': toy2d}[name].get_config())
    for key, value in (_SMALL[name] | values).items():
      section, key = key.split('.')
      config[section][key] = value
    try:
      config_lib.check(config, 1)
    except UserError as error:
      self.assertRegex(str(error), r'\Aconfiguration: [^\n]+\Z')
      return None
    return config

  def rows(self, name, options):
    """Configurations that hold, together, every pair which is not refused whatever the other options are."""
    rng = random.Random(0)
    left = {
      pair
      for (key, values), (other, others) in itertools.combinations(options.items(), 2)
      for pair in itertools.product(((key, value) for value in values), ((other, value) for value in others))
    }
    while left:
      wanted = min(left, key=repr)
      best, gained = None, set()
      for _ in range(40):
        row = {key: rng.choice(values) for key, values in options.items()} | dict(wanted)
        if self.configured(name, row) is not None:
          held = left & set(itertools.combinations(row.items(), 2))
          if len(held) > len(gained):
            best, gained = row, held
      if best is None:  # what makes it wrong must be the pair
        self.assertIsNone(self.configured(name, dict(wanted)), wanted)
        gained = {wanted}
      else:
        yield best
      left -= gained

  @testing.long
  @parameterized.parameters(*_OPTIONS)
  def test_each_is_traced_or_refused(self, name):
    count = 0
    for row in self.rows(name, _OPTIONS[name]):
      with self.subTest(**{key.replace('.', '_'): value for key, value in row.items()}):
        config = self.configured(name, row)
        model, state = first_state(config)
        trace_step(config, model, state)
        trace_sampler(config, model, state)
      count += 1
    self.assertGreater(count, 8)


if __name__ == '__main__':
  absltest.main()

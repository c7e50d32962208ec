"""The one place of defaults: the published network and training, on which each configuration builds."""

import ml_collections


def get_config():
  config = ml_collections.ConfigDict()
  config.seed = 0

  config.data = data = ml_collections.ConfigDict()
  data.name = ''  # digits, toy2d, images, or a name of TensorFlow Datasets, also with a version: cifar10:3.0.2
  data.path = ''  # images: the folder, .zip or .tar; TensorFlow Datasets: where sets are kept, '' for its own choice
  data.distribution = 'eight_gaussians'  # toy2d: eight_gaussians, checkerboard, two_moons or rings
  data.image_size = 32
  data.num_channels = 3
  data.random_flip = True
  data.grey_levels = 256  # of the images, over 0..255
  data.dequantize = False  # train on images with uniform noise of the width of a grey level, for densities
  data.train_split = 'train'  # images: the sub-folder, '' for everything
  data.test_split = 'test'
  data.test_fraction = 0.0  # images: of all, for testing, where there is no folder for it; by their names
  data.strict = False  # refuse damaged images instead of leaving them out
  data.max_memory_gb = 4.0  # decoded images are kept in memory up to this size, decoded again and again beyond it
  data.num_workers = 0  # threads that decode, 0 for one each core

  config.model = model = ml_collections.ConfigDict()
  model.name = 'resnet'  # resnet or unet (docs/cpu.md) for images, mlp for vectors
  model.dtype = 'float32'  # of the computation: float32 or bfloat16; parameters are float32
  # Of products of float32 on accelerators, in training and in plain sampling: default (fast: bfloat16 on TPUs, TF32 on
  # GPUs), high or highest; densities, Metropolis-corrected chains and scores always take highest
  model.precision = 'default'
  model.ch = 128
  model.ch_mult = ()  # width of each resolution in units of ch; () for the published one of the image size
  model.num_res_blocks = 2
  model.act = 'lrelu'  # lrelu, swish or relu
  model.final_act = 'relu'
  model.norm = 'none'  # none or group
  model.dropout = 0.0
  model.spectral_norm = True
  model.use_scale = True  # a learned scale of each channel after each block's second convolution
  model.shortcut = 'conv'  # conv (3x3) or nin (1x1)
  model.resample_with_conv = False  # strided convolution instead of average pooling
  model.attention_resolutions = ()  # image sizes at which self-attention follows each block; published option (16,)
  model.remat = False  # recompute activations in the backward pass: less memory, more time
  model.num_layers = 3  # mlp: hidden layers
  model.num_frequencies = 0  # mlp: sines and cosines of 2^k pi y / 4 beside the coordinates
  # Of the level's number, as published; or log_snr: of log(abar_t / sbar_t); or angle: of 1000 arctan(sbar_t / abar_t)
  model.level_embedding = 'index'
  model.level_act = False  # what a block hears of the level passes through the activation once more (CDRL)
  model.zero_init = True  # each block's second convolution starts at zero; False: as the others (CDRL)
  model.raw_singular_vectors = False  # averaged kernels are normalised with the raw ones' (CDRL), not with their own
  model.quadratic = 0.0  # q: f = network - q |y|^2 / 2; 1 makes a normal density a factor of the model
  model.normal_factor = 0  # normal densities, fitted to the data, as a factor of the model; docs/density.md
  model.num_classes = 0  # classes that both networks are told, all that the data have; 0: none; docs/composition.md
  model.output_scale = 1.0  # mlp: factor of the output; about the s_t^2 of the cleanest level

  config.diffusion = ml_collections.ConfigDict()
  config.diffusion.num_levels = 6  # 6 (T6), 1000 (T1k) or any number between 2 and 1000
  config.diffusion.schedule = 'linear'  # of the paper; or cosine: equal steps of arctan(sbar_t / abar_t) (CDRL)
  config.diffusion.log_snr_max = 9.8  # cosine: log(abar_t^2 / sbar_t^2) of the cleanest level
  config.diffusion.log_snr_min = -5.1  # cosine: that of the noise from which sampling starts
  # Log density f / s_t^2, as published; 'one': f itself (docs/density.md); 'noise': f over sbar_t (docs/cpu.md)
  config.diffusion.temperature = 'step_size'

  config.sampling = sampling = ml_collections.ConfigDict()
  sampling.num_steps = 30  # K, Langevin steps at each level; 0: normal approximation, one gradient a level (T1k)
  # K in generation, 0 for num_steps, -1 for the normal approximation; a little trained model gains from longer chains
  sampling.generation_steps = 0
  sampling.step_size = 2e-4  # b^2; docs/step_sizes.md
  sampling.step_size_rule = 'cumulative'  # or conditional: s_t^2 = b^2 sigma_{t+1}^2; or posterior, in between
  sampling.noise_scale = 0.99  # eta in generation; training always uses 1
  sampling.full_noise_levels = 0  # so many of the noisiest levels, which settle what an image shows, take eta = 1
  sampling.denoise = False  # remove the noise of the cleanest level (sigma 0.01) by Tweedie's formula
  sampling.denoise_factor = 1.0  # of that step: 1 is Tweedie's, CDRL's code takes 2
  # Samples along the probability flow in so many steps of one gradient, in the place of chains: for energies that are
  # log densities of one diffused density (T1k, score matching); docs/density.md. 0: chains.
  sampling.flow_steps = 0
  sampling.label = ''  # with classes, the one to draw, by name or number; all: each in turn; '': none in particular
  sampling.guidance = 0.0  # w: f(y | label) + w (f(y | label) - f(y)), and the proposal's mean likewise
  # Instead of one class, a weighted sum of energies: classes, 'none' in particular, workdirs; docs/composition.md
  sampling.compose = ()
  sampling.corrected = ''  # mala or hmc: Metropolis-corrected chains on each level's own density, exact for sums too
  sampling.corrected_steps = 100  # of these, at each level
  sampling.batch_size = 256  # samples drawn at once, over all devices
  sampling.num_samples = 64  # of --mode=sample

  # Where chains start, and what teaches it to: an initialiser as of CDRL; docs/cdrl.md.
  config.proposal = proposal = ml_collections.ConfigDict()
  proposal.name = ''  # unet for images, mlp for vectors and small images; '' for none: chains start at the noisier data
  proposal.ch = 64
  proposal.ch_mult = (1, 1, 1)  # unet: width of each resolution in units of ch
  proposal.num_res_blocks = 3  # unet: at each resolution on the way down, and one more on the way up
  proposal.attention_resolutions = (16, 8)  # unet: image sizes at which self-attention follows each block
  proposal.num_layers = 1  # mlp: residual blocks
  proposal.num_frequencies = 0  # mlp: as model.num_frequencies
  proposal.dropout = 0.1
  proposal.learning_rate = 1e-5
  proposal.warmup_steps = 10_000
  proposal.warmup_head_start = 500  # steps of the warm-up that count as done at the first update
  proposal.grad_clip = 1.0  # global norm of the gradient, 0 for none

  config.train = train = ml_collections.ConfigDict()
  train.batch_size = 64  # over all devices
  train.micro_batches = 1  # parts of each device's batch that are computed one after another: less memory
  train.num_steps = 1_000_000
  train.init_from = ''  # a workdir, or a folder in its checkpoints/: start from its averaged weights
  # Or contrastive: Metropolis-adjusted chains that start at the data (docs/density.md); or dsm: denoising score
  # matching, the limit of little noise
  train.objective = 'recovery'
  train.shared_noise = False  # the same noise for the data of both levels: the same gradient, with less variance (CDRL)
  train.level_weight = 'published'  # sigma_1 / sigma_{t+1}; or balanced: (sbar_{t+1} / sigma_{t+1})^2 in nats
  train.label_dropout = 0.1  # with classes: share of the examples that count as of none in particular
  train.time_score = 0.0  # weight of the loss that ties the levels together, about 1; docs/density.md
  train.score_matching = 0.0  # weight of denoising score matching at noise between the levels, about 1
  train.learning_rate = 1e-4
  train.beta_1 = 0.9
  train.warmup_steps = 1000
  train.cosine_decay = False  # to zero at num_steps
  train.grad_clip = 0.0  # global norm of the gradient, 0 for none
  train.ema_decay = 0.999
  train.ema_warmup = False  # min(ema_decay, (1 + n) / (10 + n)) at update n: forgets the beginning faster
  train.max_bad_steps = 10  # updates in a row skipped for a gradient that is not finite, before the run stops
  train.log_every = 100
  train.sample_every = 5000
  train.checkpoint_every = 5000
  train.keep_checkpoints = 3  # the newest ones
  train.keep_every = 50_000  # and each one at a multiple of this step; 0 for none

  config.import_weights = ml_collections.ConfigDict()
  # An exported model, or the name of one that comes with the package, docs/pretrained.md; a checkpoint of CDRL's code
  # (.pth.tar), or weights of DRL's as .npz, docs/cdrl.md
  config.import_weights.path = ''

  config.export = ml_collections.ConfigDict()
  config.export.path = ''  # the file, *.npz; '' for export/STEP.npz in the workdir

  config.inpaint = inpaint = ml_collections.ConfigDict()
  inpaint.mask = 'left'  # what is hidden: left, right, top, bottom, centre, random, or an image, white there
  inpaint.images = ''  # a folder, a .zip, an image or a data set, or NAME=PATH; '' for the run's own test split
  inpaint.num_images = 8  # at most; the first ones
  inpaint.completions = 6  # of each image
  inpaint.repeats = 4  # chains at each level

  config.interpolate = ml_collections.ConfigDict()
  config.interpolate.num_strips = 8
  config.interpolate.frames = 16  # images in a strip

  config.ood = ml_collections.ConfigDict()
  # What to tell from the test split: noise, inversion, shuffle, constant, flip, shift, blur, letters, patches,
  # gratings, pink_noise, names of data sets, or paths; 'NAME=PATH' names a set.
  config.ood.against = ('noise', 'inversion', 'shuffle', 'constant')
  config.ood.num_examples = 1000  # of each set, at most

  config.density = density = ml_collections.ConfigDict()
  density.split = 'test'  # whose log density is reported: train or test
  density.num_images = 0  # of the split, any of them; 0 for all
  density.bracket = True  # False: no log Z below the noisiest level, for checks=('flow',) alone
  density.levels = ()  # whose log Z is bracketed, level 0 at least; () for all of six, eleven of a thousand
  density.kernel = 'hmc'  # hmc or mala
  density.num_leapfrog = 5  # hmc: leapfrog steps
  density.acceptance = 0.0  # that the step sizes are tuned to; 0 for what suits the kernel
  density.num_chains = 256
  density.pilot_chains = 128  # of the run that chooses the rungs and their step sizes
  density.rung_ess = 0.999  # share of effective samples that is left from one rung of the ladder to the next
  density.num_steps = 1  # of the kernel at each rung
  density.data_steps = 1000  # of the kernel on the model, from diffused data, before the reverse pass
  density.baselines = False  # fit a Gaussian mixture and kernels to the images too; for small images
  density.num_draws = 8  # of the noise that dequantises each image
  density.checks = ()  # independent estimates beside it: exchange (replica exchange), flow (probability-flow ODE)
  density.num_ladders = 32  # exchange: ladders that know nothing of each other
  density.num_rounds = 480  # exchange: rounds of steps at each rung, then swaps; the first third is warm-up
  density.exchange_steps = 1  # exchange: of the kernel in a round
  density.overlap = 0.5  # exchange: share of effective samples from one rung to the next, below rung_ess
  density.reverse_from = 'data'  # where the reverse pass starts: data, moved by data_steps; or exchange: its states
  density.rtol = 1e-4  # flow: tolerance of the solver
  density.num_probes = 0  # flow: random signs for the divergence; 0: exact, as many products as an image has numbers

  config.long_run = long_run = ml_collections.ConfigDict()
  long_run.kernel = 'mala'  # ula, mala or hmc
  long_run.num_leapfrog = 5  # hmc: leapfrog steps
  long_run.level = 0
  long_run.conditional = True  # p(y_t | x_{t+1}); False: the marginal of the level
  long_run.num_chains = 100
  long_run.num_steps = 100_000
  long_run.thin = 1000  # steps from one state that is kept to the next
  long_run.step_size = 0.0  # 0: tuned to the acceptance; for ula the s_t of training
  long_run.acceptance = 0.0  # that the step size is tuned to; 0 for what suits the kernel
  long_run.warmup_steps = 500  # that tune the step size
  long_run.extractor = ''  # of features: classifier, inception or pixels; '' for what suits the data set
  long_run.split = 'test'  # the data to compare with

  config.eval = evaluation = ml_collections.ConfigDict()
  evaluation.extractor = ''  # inception, classifier or pixels; '' for what suits the data set
  evaluation.split = ''  # the data to compare with: train or test; '' for train with inception, test otherwise
  evaluation.num_samples = 50_000
  evaluation.seed = 0  # of the samples
  evaluation.batch_size = 64  # examples whose features are computed at once, over all devices
  evaluation.statistics = ''  # a .npz with mu and sigma, or pool_3, of the data, instead of computing them
  evaluation.inception_weights = ''  # path of pt_inception-2015-12-05-6726825d.pth, '' to download it once
  evaluation.baselines = True  # score simple generators beside the model
  evaluation.save_samples = False  # as eval/samples_STEP.npz
  evaluation.max_wait_minutes = 60.0  # for a checkpoint of a training that has not ended; 0 for what is there

  # The Frechet distance over gradients an image: samples and scores are those of the `eval` section.
  config.steps = ml_collections.ConfigDict()
  config.steps.num_steps = (0, 1, 2, 5, 15, 30)  # K, Langevin steps at each level, with and without the proposal

  # How sure, good and varied samples of classes are; samples and scores are those of the `eval` section.
  config.guidance = ml_collections.ConfigDict()
  config.guidance.weights = (0.0, 0.5, 1.0, 2.0, 4.0)  # w
  return config

"""ImageNet at 32x32 with its thousand classes, by CDRL: the published run with guidance (FID 6.18 at 0.7)."""

from configs import imagenet32_cdrl


def get_config():
  config = imagenet32_cdrl.get_config()
  config.data.name = 'imagenet_resized/32x32'  # the other has no labels
  config.model.num_classes = 1000
  config.sampling.label = 'all'
  config.sampling.guidance = 0.7
  return config

"""Which files are pictures that can be decoded, by their first bytes, and what the others are."""

import re

# What `kind` and `unreadable` need of a file.
MAGIC_BYTES = 64

# What `unreadable` says where it has nothing else to say.
NOT_AN_IMAGE = 'not an image'

# The formats that are read, by Pillow's names, each with a signature that neither chance nor a text hits. Left out is
# what runs other programs (PostScript) or has no signature (Targa), and what is more or less than a picture: textures,
# icons, documents, measurements. A JPEG of several pictures (MPO) is a JPEG.
_READ = {
  'JPEG': rb'\xff\xd8\xff',
  'PNG': rb'\x89PNG\r\n\x1a\n',
  'WEBP': rb'RIFF.{4}WEBPVP8',
  'AVIF': rb'.{4}ftyp.*avi[fs]',
  'BMP': rb'BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\x00{3}',
  'GIF': rb'GIF8[79]a',
  'JPEG2000': rb'\xff\x4f\xff\x51|\x00{3}\x0cjP  \r\n\x87\n',
  'PCX': rb'\n[\x00\x02\x03\x05]\x01[\x01\x02\x04\x08]',
  'PPM': rb'P[1-6]\s+[#\d]',
  'QOI': rb'qoif',
  'SGI': rb'\x01\xda[\x00\x01][\x01\x02]',
  'SUN': rb'\x59\xa6\x6a\x95',
  'TIFF': rb'(II[*+]\x00|MM\x00[*+])(?!.{4}CR)',
}
# What others are and the remedy, by their signature or else by their suffix.
_OTHERS = {
  'empty: fetch it again': (rb'\Z', ''),
  'git LFS pointer: run git lfs pull': (rb'version https://git-lfs', ''),
  'vector graphic: export it as PNG': (rb'\s*(<\?xml.*)?<svg|\xd7\xcd\xc6\x9a', 'ai cdr emf svg svgz wmf'),
  'HTML page, not an image: fetch the image again': (rb'(?i:\s*<(!doctype html|html|head|body))', 'htm html'),
  'HEIC: convert it to JPEG or PNG, for instance with pillow-heif': (
    rb'.{4}ftyp(he[iv][cfmsx]|mi[af]|msf1)',
    'heic heif hif',
  ),
  'JPEG XL: convert it to JPEG or PNG': (rb'\xff\x0a|\x00{3}\x0cJXL ', 'jxl'),
  'RAW photograph: export it as JPEG or PNG': (
    rb'II\*\x00.{4}CR|.{4}ftypcrx|FUJIFILMCCD-RAW|II[RU]|MMOR|\x00MRM',
    '3fr arw cr2 cr3 crw dcr dng erf iiq kdc mef mos mrw nef nrw orf pef raf raw rw2 rwl sr2 srf srw x3f',
  ),
  'video: extract its frames as PNG': (
    rb'.{4}(ftyp|moov|mdat|wide)|RIFF.{4}AVI |\x1aE\xdf\xa3|\x00\x00\x01[\xb3\xba]|FLV',
    '3gp avi flv m4v mkv mov mp4 mpeg mpg mts webm wmv',
  ),
  'document: export its pages as PNG': (rb'%PDF|%!PS|\xc5\xd0\xd3\xc6|\xd0\xcf\x11\xe0', 'djvu doc docx eps pdf ps'),
  'archive: unpack it': (
    rb'PK\x03\x04|Rar!|7z\xbc\xaf|\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd',
    '7z bz2 gz rar tar tgz xz zip zst',
  ),
  'document with layers: export it as PNG': (rb'8BPS|gimp xcf', 'kra psb psd xcf'),
  'high dynamic range: convert it to PNG': (rb'v/1\x01|#\?R|P[Ff]\s', 'exr hdr pfm'),
  'texture or icon: convert it to PNG': (rb'DDS |\x00\x00[\x01\x02]\x00|icns', 'cur dds icns ico ktx tga'),
  'in iCloud alone: download it': (rb'(?!)', 'icloud'),
  'array: save its images as PNG': (rb'\x93NUMPY|\x89HDF|SIMPLE  =|PAR1', 'fits h5 hdf5 mat npy npz parquet pkl'),
}


_PICTURES = {name: re.compile(signature, re.DOTALL) for name, signature in _READ.items()}


def kind(prefix: bytes) -> str:
  """Pillow's name of a file's format, such as 'JPEG', by its first `MAGIC_BYTES` bytes; '' if it is not read."""
  return next((name for name, signature in _PICTURES.items() if signature.match(prefix, 0, MAGIC_BYTES)), '')


def unreadable(name: str, prefix: bytes) -> str:
  """Says what a file without a `kind` is and the remedy, such as 'video: extract its frames as PNG'.

  Args:
    name: the file's name or path, which matters where the bytes tell nothing.
    prefix: its first `MAGIC_BYTES` bytes.
  """
  suffix = name.rpartition('.')[2].lower()
  by_content = [what for what, (signature, _) in _OTHERS.items() if re.match(signature, prefix, re.DOTALL)]
  by_name = [what for what, (_, suffixes) in _OTHERS.items() if suffix in suffixes.split()]
  return (by_content + by_name + [NOT_AN_IMAGE])[0]
